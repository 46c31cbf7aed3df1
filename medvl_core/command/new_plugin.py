"""Starts a plugin of one's own as a renamed copy of the example plugin."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from medvl_core.errors import MedvlError

__all__ = ["create_plugin", "template_folder"]

_SUFFIXES = (".md", ".py", ".toml")


def template_folder() -> Path:
    """The example plugin: packaged as ``medvl_core/template``, or ``plugins/example`` of a checkout.

    Raises:
        MedvlError: If neither is there.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "template", package.parent / "plugins" / "example"):
        if (folder / "pyproject.toml").is_file():
            return folder
    raise MedvlError(f"{package / 'template'}: the plugin template is missing; reinstall medvl")


def create_plugin(name: str, folder: Path | None = None, *, taken: Iterable[str] = ()) -> Path:
    """Copies the example plugin as plugin ``name``.

    Args:
        name: Plugin id, lower snake case. The package becomes ``medvl_<name>``, the distribution ``medvl-<name>``.
        folder: Where to put it, ``medvl-<name>`` by default. Must not exist.
        taken: Ids of installed plugins.

    Returns:
        The folder.

    Raises:
        MedvlError: If the id is taken or no identifier, or the folder exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise MedvlError(f"plugin id {name!r} is not lower snake case; write e.g. my_lab")
    if name in taken:
        raise MedvlError(f"plugin id {name!r} is taken by an installed plugin; choose another")
    target = folder or Path(f"medvl-{name.replace('_', '-')}")
    if target.exists():
        raise MedvlError(f"{target}: exists already; choose another folder")
    source = template_folder()
    for path in _template_files(source):
        made = target / _renamed(str(path.relative_to(source)), name)
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(_renamed(path.read_text(encoding="utf-8"), name), encoding="utf-8")
    return target


def _template_files(source: Path) -> Iterator[Path]:
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        built = any(part in ("build", "dist") or part.startswith(".") or part.endswith(".egg-info") for part in parts)
        if path.suffix in _SUFFIXES and not built:
            yield path


def _renamed(text: str, name: str) -> str:
    text = text.replace("medvl_example", f"medvl_{name}").replace("medvl-example", f"medvl-{name.replace('_', '-')}")
    text = re.sub(r"^example = ", f"{name} = ", text, flags=re.MULTILINE)
    return text.replace("example/", f"{name}/")
