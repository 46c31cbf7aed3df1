"""Starts a bundle of one's own as a renamed copy of the example bundle, which trains at once on the phantom cohort."""

from __future__ import annotations

import re
from pathlib import Path

from medvl_core.errors import MedvlError
from medvl_tools.new_plugin import template_folder

__all__ = ["create_bundle"]

_RENAMED = {"example_bundle/smooth": "baseline/infonce"}
"""Components that only the example has → what every medvl has."""


def create_bundle(name: str, folder: Path | None = None) -> Path:
    """Copies the example bundle as bundle ``name``, with components of medvl only.

    Args:
        name: Of the bundle and of its MLflow experiment, lower snake case.
        folder: Where to put it, ``name`` by default. Must not exist.

    Returns:
        The folder.

    Raises:
        MedvlError: If the name is no identifier, or the folder exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise MedvlError(f"bundle name {name!r} is not lower snake case; write e.g. my_method")
    target = folder or Path(name)
    if target.exists():
        raise MedvlError(f"{target}: exists already; choose another folder")
    source = template_folder("template_bundle", "plugins/example_bundle/example_bundle")
    for path in [source / "LICENSE", *source.glob("configs/*.*"), *source.glob("docs/*.*")]:
        text = path.read_text(encoding="utf-8")
        for old, new in {**_RENAMED, "example_bundle": name}.items():
            text = text.replace(old, new)
        made = target / path.relative_to(source)
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(text, encoding="utf-8")
    return target
