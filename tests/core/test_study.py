from __future__ import annotations

import numpy as np
import pytest

from medvl_core.study import Image, Shared


class Counting:
    def __init__(self, name):
        self.name, self.loads = name, 0

    def load(self):
        self.loads += 1
        return Image(np.zeros((2, 2, 2), np.float32), np.eye(4))

    def fingerprint(self):
        return self.name


def test_last_image_is_read_once_and_cannot_be_changed():
    source, other = Counting("a"), Counting("b")
    shared = Shared(source)
    first = shared.load()
    assert Shared(source).load() is first
    assert source.loads == 1
    with pytest.raises(ValueError, match="read-only"):
        first.array[0] = 1
    Shared(other).load()
    shared.load()
    assert source.loads == 2
    assert shared.fingerprint() == "a"
