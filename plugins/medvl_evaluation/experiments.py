"""Runs of a bundle under one setting after the other: what the scripts share that make the papers' tables."""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvl_core.bundle.overrides import unread_overrides
from medvl_core.bundle.startup import OverrideError, unknown_override_keys
from medvl_core.engine.files import write_text

__all__ = ["arguments", "command_line", "run_setting", "setting"]


def command_line(doc: str | None, examples: str) -> argparse.ArgumentParser:
    """A script's command line: its docstring above the options, examples below, both as they are."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, epilog=examples, formatter_class=layout)


def arguments(doc: str | None, examples: str, out: str, seeds: Sequence[int] = (0, 1, 2)) -> argparse.ArgumentParser:
    """The command line of such a script: ``--out``, ``--seeds`` and ``--set``; a script adds its own options.

    Args:
        doc: What it does.
        examples: Shown below the options, as they are.
        out: What the folder ``--out`` gets.
        seeds: Default of ``--seeds``.
    """
    parser = command_line(doc, examples)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=out)
    shown = " ".join(map(str, seeds))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help=f"default: {shown}")
    parser.add_argument(
        "--set", type=setting, nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the configs"
    )
    return parser


def setting(word: str) -> tuple[str, object]:
    """``"epochs=2"`` → ``("epochs", 2)``, the value as JSON or Python writes it, else a text; for argparse."""
    key, equals, text = word.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{word!r} is no setting; write key=value, e.g. epochs=20")
    for read in (json.loads, ast.literal_eval):
        try:
            json.dumps(value := read(text))
        except (ValueError, SyntaxError, TypeError):
            continue
        return key, value
    return key, text


def run_setting(
    files: Sequence[Path], folder: Path, settings: Mapping[str, object], result: str = "eval/metrics.json"
) -> bool:
    """Train and evaluate a bundle under one setting, in this process; a finished run is kept, a killed one goes on.

    Args:
        files: Its configs, the first in the bundle's ``configs/``, where ``metadata.json`` and ``logging.conf`` are.
        folder: Gets ``models/``, ``eval/`` and ``settings.json``.
        settings: Overrides of the configs.
        result: File within ``folder`` that only a finished run has.

    Returns:
        Whether it ran.

    Raises:
        OverrideError: If a key is in no config, or is read only by a component that is not chosen; or if the run in the
            folder was made with other settings. The message then starts with the folder.
    """
    record = folder / "settings.json"
    contents = {f"configs/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    own = json.dumps({**contents, **settings}, indent=1, sort_keys=True)
    finished = (folder / result).is_file()
    if record.is_file() and (before := record.read_text(encoding="utf-8")) != own:
        way = f"to keep it as it is, delete {record}" if finished else "or delete the folder"
        changes = _changes(before, own)
        raise OverrideError(f"{folder}: was made with other settings ({changes}); give another --out; {way}")
    if finished:
        return False
    sys.stderr.write(f"{folder}\n")
    from monai.bundle import ConfigWorkflow

    configs = files[0].resolve().parent
    places = {"bundle_root": configs.parent, "ckpt_dir": folder / "models", "output_dir": folder / "eval"}
    given: dict[str, Any] = {
        "track": False,
        "resume": True,
        **{key: str(path) for key, path in places.items()},
        **settings,
    }
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
    write_text(record, own)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return True


def _changes(before: str, now: str) -> str:
    old, new = json.loads(before), json.loads(now)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return "; ".join(f"{key} {old.get(key, 'not set')!r} before, {new.get(key, 'not set')!r} now" for key in keys)
