"""medvl: an open framework for medical vision-language pretraining. Importing it loads neither torch nor monai."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from medvl_core.bundle.moved import install

__version__ = "0.1.0"
install()

_LAZY = {
    "build_dataset": "medvl_core.build",
    "build_encoder": "medvl_core.build",
    "build_evaluator": "medvl_core.build",
    "build_loss": "medvl_core.build",
    "build_pooling": "medvl_core.build",
    "build_text_source": "medvl_core.build",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'medvl_core' has no attribute {name!r}")
