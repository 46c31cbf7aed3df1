"""What a bundle needs around its configs: start-up, overrides, paths, manifest, checks."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Names of the module ``medvl_core.bundle`` of 0.1."""
    startup = import_module("medvl_core.bundle.startup")
    if name.startswith("__") or not hasattr(startup, name):
        raise AttributeError(f"module 'medvl_core.bundle' has no attribute {name!r}")
    warnings.warn(
        f"medvl_core.bundle.{name} is now medvl_core.bundle.startup.{name}; the old path goes with 0.2",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(startup, name)
