"""Published checkpoints into the volume encoders: nnU-Net v2 and UniMiSS. Strict; nothing in a file is executed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medvl_core.engine.weights import WeightsError, load_state, read_checkpoint

__all__ = ["load_nnunet", "load_unimiss"]

logger = logging.getLogger(__name__)

_PREFIXES = {"student": "module.backbone.", "teacher": "backbone."}
_FRESH = ("*cls_conv.*", "transposeconv_stage3.*", "stage3_de.*")
_NUMPY_SCALARS = [
    np.dtype,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    *(type(np.dtype(name)) for name in ("float32", "float64", "int64")),
]


def load_nnunet(network: nn.Module, path: Path | str) -> None:
    """Load ``checkpoint_final.pth`` of nnU-Net v2 into a network built with the same plans and classes.

    Raises:
        WeightsError: If the file has no ``network_weights``, or a tensor is missing, unexpected or mis-shaped.
    """
    with torch.serialization.safe_globals(_NUMPY_SCALARS):  # nnU-Net logs its losses in there
        content = read_checkpoint(path)
    state = _entry(content, "network_weights", path)
    for prefix in ("module.", "_orig_mod."):  # DistributedDataParallel, torch.compile
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    load_state(network, state, path)


def load_unimiss(network: nn.Module, path: Path | str, branch: Literal["student", "teacher"] = "student") -> None:
    """Load ``UniMiss_small.pth`` into a MiT.

    What the file has not stays as it is: the segmentation heads and the last stage of the decoder, which makes the
    features. The file holds a network for 2D and 3D: names with "2D" are left out, "3D" is cut from the others, and
    class tokens are dropped. Positions are resized linearly along the flattened tokens, as published; the published
    loader does so with the class token among those of the first three stages, which shifts them a little.

    Raises:
        WeightsError: If the branch is absent, or a tensor is missing, unexpected or mis-shaped.
    """
    content = _entry(read_checkpoint(path), branch, path)
    prefix = _PREFIXES[branch]
    own = network.state_dict()
    state = {key: value for key, value in own.items() if any(fnmatchcase(key, pattern) for pattern in _FRESH)}
    logger.info("%s: has none of %s, which start fresh", path, ", ".join(state))
    for key, value in content.items():
        if key.startswith(prefix) and "2D" not in key and "cls_tokens" not in key:
            name = key.removeprefix(prefix).replace("3D", "")
            state[name] = _positions(value, own.get(name)) if "pos_embed" in name or "PosEmbed" in name else value
    load_state(network, state, path)


def _entry(content: Any, name: str, path: Path | str) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not isinstance(content.get(name), Mapping):
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(f"{path}: no {name!r} in it, only {found}; is it the right kind of checkpoint?")
    return {key: value for key, value in content[name].items() if isinstance(value, Tensor)}


def _positions(value: Tensor, own: Tensor | None) -> Tensor:
    """Without the class token, the first, and as many tokens as the network has."""
    value = value[:, 1:]
    if own is None or value.shape[1] == own.shape[1]:
        return value
    return functional.interpolate(value.mT, own.shape[1], mode="linear", align_corners=True).mT
