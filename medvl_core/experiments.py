"""Runs of a bundle under one setting after the other: what the scripts share that make the papers' tables."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from medvl_core.bundle import OverrideError, unknown_override_keys
from medvl_core.overrides import unread_overrides

__all__ = ["run_setting", "setting"]


def setting(word: str) -> tuple[str, object]:
    """``"epochs=2"`` → ``("epochs", 2)``, the value as JSON or Python writes it, else a text; for argparse."""
    key, equals, text = word.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{word!r} is no setting; write key=value, e.g. epochs=20")
    for read in (json.loads, ast.literal_eval):
        try:
            return key, read(text)
        except (ValueError, SyntaxError):
            continue
    return key, text


def run_setting(
    files: Sequence[Path], folder: Path, settings: Mapping[str, object], result: str = "eval/metrics.json"
) -> bool:
    """Train and evaluate a bundle under one setting, in this process; a finished run is kept, a killed one goes on.

    Args:
        files: Its configs, the first in the bundle's ``configs/``, where ``metadata.json`` and ``logging.conf`` are.
        folder: Gets ``models/`` and ``eval/``.
        settings: Overrides of the configs.
        result: File within ``folder`` that only a finished run has.

    Returns:
        Whether it ran.

    Raises:
        OverrideError: If a key is in no config, or is read only by a component that is not chosen.
    """
    if (folder / result).is_file():
        return False
    sys.stderr.write(f"{folder}\n")
    from monai.bundle import ConfigWorkflow

    configs = files[0].parent
    places = {"bundle_root": configs.parent, "ckpt_dir": folder / "models", "output_dir": folder / "eval"}
    given = {"track": False, "resume": True, **{key: str(path) for key, path in places.items()}, **settings}
    if wrong := unknown_override_keys(files, given):
        raise OverrideError("; ".join(wrong))
    workflow = ConfigWorkflow(
        config_file=[str(file) for file in files],
        meta_file=str(configs / "metadata.json"),
        logging_file=str(configs / "logging.conf"),
        **given,
    )
    if wrong := unread_overrides(workflow.parser.get(), settings):
        raise OverrideError("; ".join(wrong))
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return True
