"""Separable resampling, linear or cubic, with a few taps per output voxel: the one interpolation of the project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Taps", "apply_taps", "cubic_taps", "linear_taps", "nearest_taps", "resample_grid"]


@dataclass(frozen=True, slots=True)
class Taps:
    """Output voxel o of one axis is ``sum_k weight[o, k] * x[index[o, k]]``; both arrays are ``out K``."""

    index: np.ndarray
    weight: np.ndarray

    def __getitem__(self, part: slice) -> Taps:
        return Taps(self.index[part], self.weight[part])

    def mean_weights(self, n_in: int) -> np.ndarray:
        """Weight of every input voxel in the mean over all output voxels, ``n_in``, float32, sums to 1."""
        weights = np.bincount(self.index.ravel(), self.weight.ravel().astype(np.float64), minlength=n_in)
        return (weights / len(self.index)).astype(np.float32)


def linear_taps(n_in: int, n_out: int, *, antialias: bool = False) -> Taps:
    r"""Linear interpolation of an axis of ``n_in`` voxels at ``n_out`` voxels over the same extent.

    Centre of output o in input voxels: $c = (o + 1/2)\,s - 1/2$ with $s = n_{in}/n_{out}$, clamped at the ends:
    ``align_corners=False`` of ``torch.nn.functional.interpolate``.

    Args:
        antialias: Widen the triangle to $\pm s$ when $s > 1$, so that every input voxel counts. Without it, a strong
            reduction reads two neighbours and skips the rest, which is what the published CT preprocessings do.

    Returns:
        Two taps per output, or about ``2 s`` when antialiased.
    """
    step = n_in / n_out
    centre = (np.arange(n_out) + 0.5) * step - 0.5
    if not antialias or step <= 1:
        centre = np.clip(centre, 0, n_in - 1)
        first = np.minimum(centre.astype(np.int64), max(n_in - 2, 0))
        share = centre - first
        index = np.stack([first, np.minimum(first + 1, n_in - 1)], 1)
        return Taps(index, np.stack([1 - share, share], 1).astype(np.float32))
    index = np.ceil(centre - step).astype(np.int64)[:, None] + np.arange(int(np.floor(2 * step)) + 1)
    weight = np.clip(1 - np.abs(index - centre[:, None]) / step, 0, None)
    weight[(index < 0) | (index >= n_in)] = 0
    weight /= weight.sum(1, keepdims=True)
    return Taps(np.clip(index, 0, n_in - 1), weight.astype(np.float32))


def cubic_taps(n_in: int, n_out: int) -> Taps:
    r"""Cubic convolution with $a = -1/2$ over the same extent, widened by $s = n_{in}/n_{out}$ when $s > 1$.

    The ``BICUBIC`` filter of pillow: the weights outside the image are left out and the rest sums to 1.

    Returns:
        About ``4 max(s, 1)`` taps per output.

    References:
        Keys, Cubic convolution interpolation for digital image processing, 1981, doi:10.1109/TASSP.1981.1163711.
    """
    step = n_in / n_out
    scale = max(step, 1.0)
    centre = (np.arange(n_out) + 0.5) * step - 0.5
    index = np.ceil(centre - 2 * scale).astype(np.int64)[:, None] + np.arange(int(np.floor(4 * scale)) + 1)
    x = np.abs(index - centre[:, None]) / scale
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weight = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weight[(index < 0) | (index >= n_in)] = 0
    weight /= weight.sum(1, keepdims=True)
    return Taps(np.clip(index, 0, n_in - 1), weight.astype(np.float32))


def nearest_taps(n_in: int, n_out: int) -> Taps:
    """The voxel whose cell holds the centre of the output voxel; one tap of weight 1, for label maps."""
    index = np.minimum(((np.arange(n_out) + 0.5) * n_in / n_out).astype(np.int64), n_in - 1)
    return Taps(index[:, None], np.ones((n_out, 1), np.float32))


def apply_taps(x: Tensor, dim: int, taps: Taps) -> Tensor:
    """Resample one axis of ``x``; one tap only copies, so it keeps integer labels as they are."""
    index = torch.from_numpy(taps.index).to(x.device)
    shape = [1] * x.ndim
    shape[dim] = -1
    if taps.index.shape[1] == 1:
        return x.index_select(dim, index[:, 0])
    weight = torch.from_numpy(taps.weight).to(x.device, x.dtype)
    out = x.index_select(dim, index[:, 0]).mul_(weight[:, 0].view(shape))
    for k in range(1, index.shape[1]):
        out.addcmul_(x.index_select(dim, index[:, k]), weight[:, k].view(shape))
    return out


def resample_grid(
    x: Tensor | np.ndarray, taps: tuple[Taps, ...], out: Tensor, prepare: Callable[[Any], Tensor] | None = None
) -> None:
    """Resample every axis of ``x`` into ``out``, slab by slab along axis 0, so that the work stays in the cache.

    Args:
        x: ``A B`` or ``A B C``; fastest when axis 0 is the slowest in memory.
        taps: One entry per axis.
        out: Preallocated, ``len(taps[0].index) ...``; may be a view.
        prepare: What to do with a slab of ``x`` before it is interpolated; the result must be a tensor.
    """
    used = [slice(int(axis.index.min()), int(axis.index.max()) + 1) for axis in taps]
    x = x[tuple(used)]
    taps = tuple(Taps(axis.index - part.start, axis.weight) for axis, part in zip(taps, used, strict=True))
    columns = out.movedim(0, -1)
    transposed = columns.stride(-1) < columns.stride(-2)  # then write whole cache lines
    slabs: list[Tensor] = []
    ready: dict[int, Tensor] = {}
    for o, (index, weight) in enumerate(zip(taps[0].index.tolist(), taps[0].weight.tolist(), strict=True)):
        ready = {i: ready[i] if i in ready else x[i] if prepare is None else prepare(x[i]) for i in index}
        slab = ready[index[0]]
        if len(index) > 1:
            slab = slab * weight[0]
            for i, w in zip(index[1:], weight[1:], strict=True):
                slab.add_(ready[i], alpha=w)
        for dim, axis in enumerate(taps[1:]):
            slab = apply_taps(slab, dim, axis)
        slabs.append(slab)
        if len(slabs) == 16 or o + 1 == len(out):
            rows = slice(o + 1 - len(slabs), o + 1)
            if transposed:
                columns[..., rows] = torch.stack(slabs, -1)
            else:
                out[rows] = torch.stack(slabs)
            slabs = []
