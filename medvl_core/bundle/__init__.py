"""What a bundle needs around its configs: start-up, overrides, paths, manifest."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Names of the module ``medvl_core.bundle`` of 0.1."""
    if name.startswith("__"):
        raise AttributeError(name)
    new = f"medvl_core.bundle.startup.{name}"
    warnings.warn(f"medvl_core.bundle.{name} is now {new}; the old path goes with 0.2", DeprecationWarning, 2)
    return getattr(import_module("medvl_core.bundle.startup"), name)
