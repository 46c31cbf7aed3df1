"""``python -m medvl_x2ct.convert CT-CLIP_v2.pt ct_clip.safetensors``: keep what the towers read, drop the rest.

The published file holds 2 GB, of which the towers use 1.2. Names stay the published ones.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from medvl_core.engine.weights import WeightsError, atomic_save, file_digest, read_checkpoint
from medvl_core.errors import EXIT_DATA
from medvl_x2ct.ct_clip_weights import PREFIX, UNUSED

__all__ = ["convert_ct_clip", "main"]

logger = logging.getLogger(__name__)


def convert_ct_clip(source: str | Path, target: str | Path) -> str:
    """Write the keys that the towers of CT-CLIP read to a safetensors file.

    Names are checked against the published layout, in whatever sizes; sizes are checked when the file is loaded.

    Args:
        source: ``CT-CLIP_v2.pt``.
        target: ``.safetensors`` file, written atomically.

    Returns:
        SHA-256 of the new file.

    Raises:
        WeightsError: If the source is not there, damaged, or has missing or unknown keys.
        ValueError: If ``target`` is no ``.safetensors`` name.
    """
    if Path(target).suffix != ".safetensors":
        raise ValueError(f"{target}: the converted file is a .safetensors file; name it so")
    content = read_checkpoint(source)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{source}: not a flat state dict (name → tensor); give CT-CLIP_v2.pt as it was published")
    state = {key.removeprefix(PREFIX): value for key, value in content.items()}
    state = {key: value for key, value in state.items() if not any(fnmatchcase(key, name) for name in UNUSED)}
    expected = _published_names()
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in expected]
    if problems:
        listed = "; ".join(problems[:12]) + (f"; and {len(problems) - 12} more" if len(problems) > 12 else "")
        raise WeightsError(f"{source}: not the layout of CT-CLIP ({len(problems)} keys): {listed}")
    atomic_save({key: value.contiguous() for key, value in state.items()}, target)
    return file_digest(target)


def _published_names() -> set[str]:
    from medvl_x2ct.ct_clip_vit import build_ct_clip_vit
    from medvl_x2ct.cxr_bert import build_cxr_bert

    with torch.device("meta"):
        # depth of the published networks, widths as small as can be: only names are read
        vision = build_ct_clip_vit(latent=1)
        text = build_cxr_bert(hidden_size=12)
    return {*vision.state_dict(), *text.state_dict()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medvl_x2ct.convert", description="Keep what CT-CLIP's towers read."
    )
    parser.add_argument("source", type=Path, help="CT-CLIP_v2.pt")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        digest = convert_ct_clip(options.source, options.target)
    except (OSError, ValueError) as error:
        parser.exit(EXIT_DATA, f"{error}\n")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger.info("%s  %s\n%s  %s", file_digest(options.source), options.source, digest, options.target)


if __name__ == "__main__":
    main()
