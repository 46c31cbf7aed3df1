"""Starts a plugin of one's own as a renamed copy of the example plugin, with the kinds of component asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from medvl_core.errors import MedvlError, did_you_mean
from medvl_core.manager import HOOKS

__all__ = ["create_plugin", "template_folder"]

_SUFFIXES = (".md", ".py", ".toml")
_MODULES = {spec.kind: hook.removeprefix("medvl_") for hook, spec in HOOKS.items()}


def template_folder(packaged: str = "template", source: str = "plugins/example") -> Path:
    """The example plugin: packaged as ``medvl_tools/template``, or ``plugins/example`` of a checkout; or another one.

    Raises:
        MedvlError: If neither is there.
    """
    package = Path(__file__).parent
    for folder in (package / packaged, package.parents[1] / source):
        if folder.is_dir():
            return folder
    raise MedvlError(f"{package / packaged}: this template is missing; reinstall medvl")


def create_plugin(
    name: str, folder: Path | None = None, *, kinds: Sequence[str] = ("encoder",), taken: Iterable[str] = ()
) -> Path:
    """Copies the example plugin as plugin ``name``.

    Args:
        name: Plugin id, lower snake case. The package becomes ``medvl_<name>``, the distribution ``medvl-<name>``.
        folder: Where to put it, ``medvl-<name>`` by default. Must not exist.
        kinds: Of the components to copy, e.g. ``"loss"``.
        taken: Ids of installed plugins.

    Returns:
        The folder.

    Raises:
        MedvlError: If the id is taken or no identifier, a kind is unknown, or the folder exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise MedvlError(f"plugin id {name!r} is not lower snake case; write e.g. my_lab")
    if name in taken:
        raise MedvlError(f"plugin id {name!r} is taken by an installed plugin; choose another")
    if unknown := [kind for kind in kinds if kind not in _MODULES]:
        hint = did_you_mean(unknown[0], _MODULES)
        raise MedvlError(f"{unknown[0]!r} is no kind of component{hint}; kinds: {', '.join(_MODULES)}")
    target = folder or Path(f"medvl-{name.replace('_', '-')}")
    if target.exists():
        raise MedvlError(f"{target}: exists already; choose another folder")
    source, others = template_folder(), [kind for kind in _MODULES if kind not in kinds]
    for path in _template_files(source):
        if path.stem.removeprefix("test_") not in [_MODULES[kind] for kind in others]:
            made = target / _renamed(str(path.relative_to(source)), name)
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(_renamed(_without(others, path.read_text(encoding="utf-8")), name), encoding="utf-8")
    return target


def _template_files(source: Path) -> Iterator[Path]:
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        built = any(part in ("build", "dist") or part.startswith(".") or part.endswith(".egg-info") for part in parts)
        if path.suffix in _SUFFIXES and not built:
            yield path


def _without(kinds: Sequence[str], text: str) -> str:
    """Without these kinds' hooks, rows of tables (``| kind |``) and lines with a comment ``# kind: ...``."""
    for kind in kinds:
        text = re.sub(rf"\n\n\n@hookimpl\ndef medvl_{_MODULES[kind]}\(.*?(?=\n\n\n|\n\Z)", "", text, flags=re.DOTALL)
        text = re.sub(rf"^(\| {kind} \|.*|.*  # {kind}: .*)\n", "", text, flags=re.MULTILINE)
    return text


def _renamed(text: str, name: str) -> str:
    text = text.replace("medvl_example", f"medvl_{name}").replace("medvl-example", f"medvl-{name.replace('_', '-')}")
    text = re.sub(r"^example = ", f"{name} = ", text, flags=re.MULTILINE)
    return text.replace("example/", f"{name}/")
