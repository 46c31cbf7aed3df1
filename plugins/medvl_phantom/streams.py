"""Random streams addressed by name, so that one component's draws never move another's."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["stream"]


def stream(seed: int, *path: int | str) -> np.random.Generator:
    """A Philox generator that depends on ``seed`` and ``path`` only.

    Args:
        seed: Seed of the cohort.
        path: Address of the draws, e.g. ``(subject, "scan", 0, "Cardiomegaly")``.

    Returns:
        A fresh generator: the same draws in any process and in any order of calls.
    """
    digest = hashlib.sha256(repr((int(seed), *path)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
