"""Parallel rays: one weighted mean along an axis, in one read of the volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medvl_imaging.radiograph.anatomy import Laid
from medvl_imaging.radiograph.threads import in_threads
from medvl_imaging.resample import apply_taps, linear_taps

__all__ = ["NO_CLIP", "clip_into", "fit", "mean_picture", "place_in"]

NO_CLIP = (-np.inf, np.inf)

_CHUNK = 1 << 18
"""Voxels clipped at a time: they are summed while they lie in the cache."""


def mean_picture(laid: Laid, hu_clip: tuple[float, float], iso_spacing_mm: float) -> Tensor:
    """Mean along each ray of the clipped volume on an isotropic grid, ``row column``, float32.

    Resampling and averaging are linear, so the volume is averaged first, with each voxel's share in the resampled
    mean, and only the picture is resampled: the same numbers.
    """
    scaled = np.maximum((laid.extent_mm / iso_spacing_mm + 1e-4).astype(int), 1).tolist()  # 1e-4: float32 spacings
    n = laid.volume.shape
    shares = torch.from_numpy(linear_taps(n[0], scaled[0]).mean_weights(n[0]))
    picture = _mean_along(laid.volume, shares, hu_clip)
    picture = picture.flip([d for d in (0, 1) if laid.signs[d + 1] < 0])
    for dim in (0, 1):
        picture = apply_taps(picture, dim, linear_taps(n[dim + 1], scaled[dim + 1]))
    return picture


def _mean_along(volume: Tensor, shares: Tensor, hu_clip: tuple[float, float]) -> Tensor:
    """Share-weighted mean over axis 0, walking the memory in its own order."""
    order = sorted(range(3), key=volume.stride, reverse=True)
    memory, ray = volume.permute(order), order.index(0)
    step = max(_CHUNK // memory[0].numel(), 1)

    def part(start: int, stop: int) -> Tensor:
        return _part_along(memory[start:stop], ray, shares[start:stop] if ray == 0 else shares, step, hu_clip)

    parts = in_threads(part, len(memory), step)
    out = torch.stack(parts).sum(0) if ray == 0 else torch.cat(parts)
    return out if order.index(1) < order.index(2) else out.T


def _part_along(memory: Tensor, ray: int, shares: Tensor, step: int, hu_clip: tuple[float, float]) -> Tensor:
    as_it_is = memory.dtype == torch.float32 and hu_clip == NO_CLIP
    step = len(memory) if as_it_is else min(step, len(memory))
    buffer = None if as_it_is else torch.empty(step, *memory.shape[1:])
    out = torch.zeros(memory.shape[1:]) if ray == 0 else torch.empty(len(memory), memory.shape[3 - ray])
    for start in range(0, len(memory), step):
        chunk = memory[start : start + step]
        if buffer is not None:
            chunk = clip_into(buffer, chunk, hu_clip)
        if ray == 0:
            out.view(-1).addmv_(chunk.flatten(1).T, shares[start : start + step])
        elif ray == 1:
            torch.bmm(shares.expand(len(chunk), 1, -1), chunk, out=out[start : start + step].unsqueeze(1))
        else:
            torch.mv(chunk.reshape(-1, len(shares)), shares, out=out[start : start + step].view(-1))
    return out


def clip_into(buffer: Tensor, part: Tensor, hu_clip: tuple[float, float]) -> Tensor:
    """``part`` as float32 within ``hu_clip``, in the first rows of ``buffer``."""
    out = buffer[: len(part)]
    if hu_clip == NO_CLIP:
        return out.copy_(part)
    if part.dtype == out.dtype:
        return torch.clamp(part, *hu_clip, out=out)
    return out.copy_(part).clamp_(*hu_clip)


def fit(picture: Tensor, size: Sequence[int], air: float) -> Tensor:
    """The whole picture inside ``size``, centred, aspect kept, air around it."""
    inside, place = place_in(picture.shape, size)
    for dim in (0, 1):
        picture = apply_taps(picture, dim, linear_taps(picture.shape[dim], inside[dim], antialias=True))
    result = picture.new_full(tuple(size), air)
    result[place] = picture
    return result


def place_in(shape: Sequence[float], size: Sequence[int]) -> tuple[list[int], tuple[slice, slice]]:
    """Pixels of a picture of this shape or extent that is scaled to fit ``size``, and where it lies there."""
    scale = min(out / n for out, n in zip(size, shape, strict=True))
    inside = [min(max(round(n * scale), 1), out) for out, n in zip(size, shape, strict=True)]
    first = [(out - n) // 2 for out, n in zip(size, inside, strict=True)]
    return inside, (slice(first[0], first[0] + inside[0]), slice(first[1], first[1] + inside[1]))
