"""The one door to ITK, which takes seconds to load and crashes where its own deprecation warnings are errors."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

__all__ = ["read_itk"]


def read_itk(path: Path) -> Any:
    """The ``itk.Image`` in a file.

    Raises:
        RuntimeError: ITK's own error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # SWIG types; as an error it ends in a segmentation fault
        import itk

        return itk.imread(str(path))
