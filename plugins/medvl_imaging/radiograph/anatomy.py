"""Which axis of a stored volume the rays follow, and which ones become the rows and columns of the picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nibabel.orientations import aff2axcodes
from torch import Tensor

__all__ = ["BASIS", "Laid", "lay_out"]

_LETTERS = {"ap": "PIL", "pa": "AIL", "lateral": "LIP"}
"""Where the rays, the rows (down) and the columns (to the right) lead. Frontal films are read face to face with the
patient, whichever way the rays went; a left lateral one has its left side at the detector and the chest to the left."""

_RAS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))

BASIS = {view: np.array([_RAS[letter] for letter in letters], float).T for view, letters in _LETTERS.items()}
"""Per view, the unit vectors of ray, row and column as columns, in RAS."""


@dataclass(frozen=True, slots=True)
class Laid:
    """A volume laid out for a view.

    Args:
        volume: ``ray row column``, a view of the stored voxels.
        spacing_mm: Of these three axes.
        signs: -1 where the stored axis runs against the ray, down or to the right.
    """

    volume: Tensor
    spacing_mm: np.ndarray
    signs: np.ndarray

    @property
    def extent_mm(self) -> np.ndarray:
        """Size of the volume along ray, row and column."""
        return np.array(self.volume.shape) * self.spacing_mm


def lay_out(volume: np.ndarray, affine: np.ndarray | Sequence[float], view: str) -> Laid:
    """Name the axes of a volume by anatomy. An oblique scan keeps its own axes, each named by the nearest direction.

    Args:
        volume: ``X Y Z`` in any orientation and memory order; never copied when its dtype is one torch knows.
        affine: Voxel index to RAS+ millimetres, 4 x 4; or three spacings in mm of a volume in RAS axes.
        view: ``"ap"``, ``"pa"`` or ``"lateral"``.

    Raises:
        ValueError: If an argument breaks its rule.
    """
    if view not in _LETTERS:
        raise ValueError(f"view is {view!r}; views are {', '.join(map(repr, _LETTERS))}")
    affine = np.asarray(affine, float)
    if affine.shape == (3,):
        affine = np.diag([*affine, 1.0])
    if volume.ndim != 3 or min(volume.shape) < 2 or affine.shape != (4, 4):
        raise ValueError(
            f"volume_hu has shape {volume.shape}, affine {affine.shape}; give X Y Z of at least 2 voxels each, "
            "and 4 x 4 or three spacings"
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    codes: list[Any] = list(aff2axcodes(affine)) if np.isfinite(affine).all() else [None]
    if None in codes:
        raise ValueError(f"affine {affine[:3].tolist()} names no three directions; spacings are positive and finite")
    for axis in range(3):
        if volume.strides[axis] < 0:  # a tensor cannot hold such a view
            volume, codes[axis] = np.flip(volume, axis), _OPPOSITE[codes[axis]]
    letters = _LETTERS[view]
    order = [next(d for d, code in enumerate(codes) if code in letter + _OPPOSITE[letter]) for letter in letters]
    signs = np.array([1.0 if codes[d] == letter else -1.0 for d, letter in zip(order, letters, strict=True)])
    return Laid(_tensor(volume).permute(order), spacing[order], signs)


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype not in (np.float32, np.float64, np.int16, np.int32, np.uint8):
        array = array.astype(np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
        return torch.from_numpy(array)
