"""Where a bundle lives, whatever folder the command was started from."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["bundle_root", "config_files", "options"]


def config_files(argv: Sequence[str] | None = None) -> list[Path]:
    """The files named by ``--config_file`` on a ``monai.bundle`` command line, or in its ``--args_file``.

    Args:
        argv: Command line; ``sys.argv`` when ``None``.

    Returns:
        The files in order, empty when the command names none.
    """
    value = options(sys.argv[1:] if argv is None else argv).get("config_file")
    if isinstance(value, str) and value.lstrip().startswith(("[", "(")):
        value = ast.literal_eval(value)
    if value is None:
        return []
    return [Path(item) for item in ([value] if isinstance(value, str) else value)]


def bundle_root(argv: Sequence[str] | None = None) -> str:
    """The bundle's folder: the parent of ``configs/``, absolute; the current folder when no config file is named.

    MONAI's own default, ``"."``, would write next to the bundle when it is run from its parent folder.
    """
    files = config_files(argv)
    return str(files[0].resolve().parent.parent if files else Path.cwd())


def options(argv: Sequence[str]) -> dict[str, Any]:
    """Option → value as typed, empty for a switch without one; those of an ``--args_file`` where none is typed."""
    found: dict[str, Any] = {}
    for position, word in enumerate(argv):
        if word == "--":  # what follows is for fire itself
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = argv[position + 1 :][:1]
            if not equals and following and not following[0].startswith("--"):
                value = following[0]
            found[name.replace("-", "_")] = value
    file = found.get("args_file")
    return {**json.loads(Path(file).read_text()), **found} if file else found
