"""Where a bundle lives, whatever folder the command was started from."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["bundle_root", "config_files"]


def config_files(argv: Sequence[str] | None = None) -> list[Path]:
    """The files named by ``--config_file`` on a ``monai.bundle`` command line, or in its ``--args_file``.

    Args:
        argv: Command line; ``sys.argv`` when ``None``.

    Returns:
        The files in order, empty when the command names none.
    """
    options = _options(sys.argv[1:] if argv is None else argv)
    value: object = options.get("config_file")
    if value is None and "args_file" in options:
        value = json.loads(Path(options["args_file"]).read_text()).get("config_file")
    if isinstance(value, str) and value.lstrip().startswith(("[", "(")):
        value = ast.literal_eval(value)
    if value is None:
        return []
    return [Path(item) for item in ([value] if isinstance(value, str) else value)]  # type: ignore[attr-defined]


def bundle_root(argv: Sequence[str] | None = None) -> str:
    """The bundle's folder: the parent of ``configs/``, absolute; the current folder when no config file is named.

    MONAI's own default, ``"."``, would write next to the bundle when it is run from its parent folder.
    """
    files = config_files(argv)
    return str(files[0].resolve().parent.parent if files else Path.cwd())


def _options(argv: Sequence[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for position, word in enumerate(argv):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = argv[position + 1] if position + 1 < len(argv) else ""
        options[name.replace("-", "_")] = value
    return options
