"""What every message about a user's file has in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def refused(where: Path, match: str, error: type[ValueError] = ValueError) -> Iterator[None]:
    """The block raises an error of one line that starts with ``where`` and has ``match`` in it."""
    with pytest.raises(error, match=match) as caught:
        yield
    assert str(caught.value).startswith(str(where))
    assert "\n" not in str(caught.value)
