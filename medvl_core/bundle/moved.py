"""Import paths of 0.1: they work for one release, with a warning that names the new ones. Goes with 0.2."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["MOVED", "install"]

MOVED: dict[str, list[str]] = json.loads((Path(__file__).parent / "moved.json").read_text(encoding="utf-8"))
"""Old module → the modules that hold its names now."""


class _Moved(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if _places(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        old, places = module.__name__, _places(module.__name__)
        warnings.warn(f"{old} is now {' and '.join(places)}; the old path goes with 0.2", DeprecationWarning, 2)

        def get(name: str) -> Any:
            for place in places:
                if hasattr(found := import_module(place), name):
                    return getattr(found, name)
            raise AttributeError(f"module {old!r} has no attribute {name!r}; it is now {' and '.join(places)}")

        module.__getattr__ = get  # type: ignore[method-assign]


def _places(name: str) -> Sequence[str]:
    """Where a module's names are now; a moved package takes its modules along."""
    if name in MOVED:
        return MOVED[name]
    parent, _, last = name.rpartition(".")
    return [f"{place}.{last}" for place in _places(parent) if parent in MOVED] if "." in parent else []


def install() -> None:
    """Look old paths up after everything else, once per process."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
