"""Public sets in miniature, for the contract cases of the datasets that read them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

Options = dict[str, Any]


def written_when_needed(sets: Mapping[str, Callable[[Path], Options]]) -> dict[str, Callable[[], Options]]:
    """Dataset → what gives its options; the first call writes the set into a folder that goes with the process."""
    return {f"dataset/{name}": cache(partial(_written, write)) for name, write in sets.items()}


def _written(write: Callable[[Path], Options]) -> Options:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return write(Path(folder))
