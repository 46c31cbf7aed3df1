"""Where the radiograph encoders start from: ImageNet (torchvision's or transformers' layout), CXR-CLIP, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medvl_core.engine.weights import WeightsError, file_digest, load_state, read_checkpoint

__all__ = ["initialise"]

_RESNET_FILE = "resnet50-11ad3fa6.pth"
_SWIN_NAME = "microsoft/swin-tiny-patch4-window7-224"
_SWIN_FILES = ("model.safetensors", "pytorch_model.bin")
_WANTED = {
    ("resnet50", "imagenet"): f"{_RESNET_FILE} (torchvision's ResNet50_Weights.IMAGENET1K_V2)",
    ("swin_t", "imagenet"): f"model.safetensors or pytorch_model.bin of {_SWIN_NAME}",
    ("resnet50", "cxr_clip"): "r50_mcc.tar (of the released models of Soombit-ai/cxr-clip)",
    ("swin_t", "cxr_clip"): "swint_mcc.tar (of the released models of Soombit-ai/cxr-clip)",
}
_SWIN_LAYOUT = (  # transformers 5 → the layout of the published files, which transformers 4 shared
    ("attention.q_proj", "attention.self.query"),
    ("attention.k_proj", "attention.self.key"),
    ("attention.v_proj", "attention.self.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("attention.relative_position_bias.", "attention.self."),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)
_UNUSED = (  # patterns of keys that are known and not needed
    "fc.*",
    "classifier.*",
    "*.relative_position_index",
    "image_encoder.resnet.fc.*",
    "image_projection.projection.bias",
    "text_encoder.*",
    "text_projection.*",
    "logit_scale",
)


def initialise(encoder: Any, architecture: str, initialisation: str, weights: str | Path | None) -> None:
    """Set the weights of a ``CxrEncoder``, and its ``weights_sha256``, from the file of its initialisation; strictly.

    Args:
        encoder: Unchanged when anything does not fit.
        architecture: ``"resnet50"`` or ``"swin_t"``.
        initialisation: ``"imagenet"`` sets the trunk, ``"cxr_clip"`` trunk and projection, ``"random"`` nothing.
        weights: File (folder for Swin-T of ImageNet), or ``None`` for where torch and transformers keep theirs.

    Raises:
        ValueError: If the initialisation is unknown, or ``"random"`` with weights.
        WeightsError: If the file is not there or does not fit.
    """
    if initialisation not in ("imagenet", "random", "cxr_clip") or (initialisation == "random" and weights is not None):
        raise ValueError(
            f"x2ct/{architecture}: initialisation is {initialisation!r} with weights={weights!r}; "
            "give 'imagenet' or 'cxr_clip' and its weights, or 'random' without"
        )
    if initialisation == "random":
        return
    path = _file(architecture, initialisation, weights)
    content = read_checkpoint(path)
    if initialisation == "cxr_clip":
        content = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(
            f"{path}: not the layout of x2ct/{architecture}'s {initialisation} weights; "
            f"wanted is {_WANTED[architecture, initialisation]}"
        )
    published = _swin_name if architecture == "swin_t" else str
    if initialisation == "imagenet":
        head = "swin." if architecture == "swin_t" else ""
        _load(encoder.xray_encoder.trunk, content, path, lambda key: head + published(key))
    else:
        head = "image_encoder.image_encoder." if architecture == "swin_t" else "image_encoder.resnet."
        _load(encoder, content, path, lambda key: _cxr_clip_name(key, head, published))
    encoder.weights_sha256 = file_digest(path)


def _file(architecture: str, initialisation: str, weights: str | Path | None) -> Path:
    path = _default(architecture, initialisation) if weights is None else Path(weights)
    if path is not None and path.is_dir():
        path = next((path / name for name in _SWIN_FILES if (path / name).is_file()), path)
    if path is None or not path.is_file():
        raise WeightsError(
            f"{path or f'x2ct/{architecture}'}: no weights file for initialisation={initialisation!r}; wanted is "
            f"{_WANTED[architecture, initialisation]}: give its path as weights, or initialisation='random'"
        )
    return path


def _default(architecture: str, initialisation: str) -> Path | None:
    if (architecture, initialisation) == ("resnet50", "imagenet"):
        return Path(torch.hub.get_dir()) / "checkpoints" / _RESNET_FILE
    if (architecture, initialisation) == ("swin_t", "imagenet"):
        from huggingface_hub import try_to_load_from_cache

        cached = (try_to_load_from_cache(_SWIN_NAME, name) for name in _SWIN_FILES)
        return next((Path(file) for file in cached if isinstance(file, str)), None)
    return None


def _load(module: nn.Module, content: Mapping[str, Tensor], path: Path, published: Callable[[str], str]) -> None:
    own = module.state_dict()
    names = {key: published(key) for key in own}
    # files written before torch 0.4.1 lack the counter, which nothing reads
    counters = {key: own[key] for key in own if key.endswith("num_batches_tracked")}
    state: dict[str, Any] = counters | {key: content[name] for key, name in names.items() if name in content}
    known = set(names.values())
    left = {key: value for key, value in content.items() if key not in known}
    load_state(module, {**left, **state}, path, names, ignore=_UNUSED)


def _swin_name(key: str) -> str:
    for own, theirs in _SWIN_LAYOUT:
        key = key.replace(own, theirs)
    return key


def _cxr_clip_name(key: str, head: str, published: Callable[[str], str]) -> str:
    if key == "to_xray_latent.weight":
        return "image_projection.projection.weight"
    return head + published(key.removeprefix("xray_encoder.trunk."))
