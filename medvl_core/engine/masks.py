"""Voxels of predicted and true label maps: all that Dice and volumes need, without keeping the masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["LABELS", "voxel_counts"]

LABELS = 256
"""Label ids of a mask: 0 (background) to 255."""


def voxel_counts(predicted: ArrayLike, true: ArrayLike) -> NDArray[np.int64]:
    r"""Voxels of each label in both maps: Dice of label l is $2 \cdot overlap_l / (predicted_l + true_l)$.

    Args:
        predicted: Label map of one case, whole numbers from 0 to 255.
        true: Likewise, of the same shape.

    Returns:
        ``3 256``: voxels with each label in ``predicted``, in ``true``, and in both at the same place.

    Raises:
        ValueError: If the shapes differ or a map holds anything else.
    """
    maps = {"predicted": np.asarray(predicted), "true": np.asarray(true)}
    if maps["predicted"].shape != maps["true"].shape:
        shapes = {name: values.shape for name, values in maps.items()}
        raise ValueError(f"masks differ in shape, {shapes}; put the prediction on the grid of the true mask")
    for name, values in maps.items():
        whole = np.issubdtype(values.dtype, np.integer) or values.dtype == bool
        if not whole or (values.size and not 0 <= values.min() <= values.max() < LABELS):
            raise ValueError(
                f"{name} mask holds {values.dtype} values that are no label ids; give whole numbers from 0 to 255"
            )
    flat = [values.ravel().astype(np.uint8) for values in maps.values()]
    both = flat[0][flat[0] == flat[1]]
    return np.stack([np.bincount(values, minlength=LABELS) for values in (*flat, both)])
