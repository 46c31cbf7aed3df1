"""Simulated radiographs: parallel projections of a CT, placed by the anatomy its affine states."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Any, Literal

import numpy as np
import torch
from nibabel.orientations import aff2axcodes
from torch import Tensor

from medvl_core.resample import apply_taps, linear_taps
from medvl_core.study import Image, ImageSource

__all__ = ["WATER_PER_MM", "SimulatedRadiograph", "simulate_radiograph"]

WATER_PER_MM = 0.02059
"""Linear attenuation of water at 60 keV (0.2059 cm2/g, NISTIR 5632), a usual effective energy at 120 kVp."""

_VERSION = 1  # part of every fingerprint: raise it when the pixels change
_CHUNK = 1 << 18  # voxels clipped at a time: 1 MiB of float32 stays in the cache until it is summed


def simulate_radiograph(
    volume_hu: np.ndarray,
    affine: np.ndarray,
    *,
    size: tuple[int, int] | None = None,
    mode: Literal["mean_hu", "beer_lambert"] = "mean_hu",
    view: Literal["ap", "lateral"] = "ap",
    flip_lr: bool = False,
    iso_spacing_mm: float = 1.0,
    hu_clip: tuple[float, float] = (-1000.0, 1000.0),
) -> np.ndarray:
    r"""Project a CT volume along parallel rays; bones bright, head up, the patient's right on the image's left.

    ``mean_hu``: clip to ``hu_clip``, resample trilinearly to an isotropic grid, average along the ray: the published
    recipe of X2CT-CLIP. Resampling and averaging are linear, so the volume is averaged first, with each voxel's share
    in the resampled mean, and only the picture is resampled: the same numbers, one read of the volume.

    ``beer_lambert``: the absorbed share $1 - e^{-A}$ with $A = \int \mu\,dl$ and water-scaled
    $\mu = \mu_w (1 + \mathrm{HU}/1000)$ [1]. $A$ is affine in the mean HU, so it costs nothing more; the logarithmic
    detector image $A$ itself is ``mean_hu`` up to scale and offset. Bone is underestimated by the water scale.

    No divergence, scatter or detector model; for an oblique scan the rays follow its nearest axis.

    Args:
        volume_hu: ``X Y Z`` in HU, any orientation, floating or integer.
        affine: Voxel index to RAS+ millimetres, 4 x 4.
        size: Pixels ``(H, W)``: the whole picture is scaled to fit and padded with air. ``None`` keeps the isotropic
            grid, whose size varies with the field of view.
        mode: Physics of a pixel.
        view: ``"ap"`` or ``"lateral"`` (anterior on the image's left).
        flip_lr: Mirror the picture. The published X2CT-CLIP pictures are mirrored.
        iso_spacing_mm: Pixel spacing of the isotropic grid.
        hu_clip: Range that voxels are clipped to first.

    Returns:
        ``H W``, float32: mean HU, or the absorbed share in [0, 1].

    Raises:
        ValueError: If an argument breaks its rule; the message names it.

    References:
        [1] Buzug, Computed Tomography, Springer 2008, section 8.2 (Hounsfield scale). X2CT-CLIP: arXiv 2503.02162.
    """
    _check(volume_hu, affine, mode, view, iso_spacing_mm, hu_clip)
    codes = aff2axcodes(affine)
    spacing = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    axis = {name: d for d, code in enumerate(codes) for name in _AXIS_OF if code in _AXIS_OF[name]}
    ray, column, row = (axis[name] for name in (("ap", "lr", "si") if view == "ap" else ("lr", "ap", "si")))

    scaled = [max(int(n * s / iso_spacing_mm + 1e-4), 1) for n, s in zip(volume_hu.shape, spacing, strict=True)]
    shares = linear_taps(volume_hu.shape[ray], scaled[ray]).mean_weights(volume_hu.shape[ray])
    picture = _mean_along(volume_hu, ray, shares, hu_clip)  # the two other axes in their order
    if row > column:
        picture = picture.T
    flips = (codes[row] != "I", (codes[column] not in "LP") != flip_lr)  # rows run down, columns to the left or back
    picture = picture.flip([d for d in (0, 1) if flips[d]])
    for dim, d in enumerate((row, column)):
        picture = apply_taps(picture, dim, linear_taps(volume_hu.shape[d], scaled[d]))
    if size is not None:
        picture = _fit(picture, size, hu_clip[0])
    if mode == "beer_lambert":
        path_mm = volume_hu.shape[ray] * float(spacing[ray])
        picture = -torch.expm1(-WATER_PER_MM * path_mm * (1 + picture / 1000))
    return np.ascontiguousarray(picture.numpy())


_AXIS_OF = {"lr": "LR", "ap": "AP", "si": "SI"}


def _check(
    volume: np.ndarray, affine: np.ndarray, mode: str, view: str, iso_spacing_mm: float, hu_clip: tuple[float, float]
) -> None:
    if volume.ndim != 3 or np.shape(affine) != (4, 4):
        raise ValueError(f"volume_hu has shape {volume.shape}, affine {np.shape(affine)}; give X Y Z and 4 x 4")
    if mode not in ("mean_hu", "beer_lambert") or view not in ("ap", "lateral"):
        raise ValueError(
            f"mode {mode!r}, view {view!r}; modes are 'mean_hu' and 'beer_lambert', views 'ap' and 'lateral'"
        )
    if not (0 < iso_spacing_mm < np.inf and hu_clip[0] < hu_clip[1]):
        raise ValueError(
            f"iso_spacing_mm {iso_spacing_mm}, hu_clip {hu_clip}; spacing is positive, the clip increasing"
        )
    if mode == "beer_lambert" and hu_clip[0] < -1000:
        raise ValueError(
            f"hu_clip starts at {hu_clip[0]} HU; below -1000 HU attenuation would be negative, start there"
        )


def _mean_along(volume: np.ndarray, ray: int, shares: np.ndarray, hu_clip: tuple[float, float]) -> Tensor:
    """Share-weighted mean of the clipped volume along one axis, in one read; the other two axes keep their order."""
    order = sorted(range(3), key=lambda d: -abs(volume.strides[d]))
    memory = volume.transpose(order)  # axis 0 is the slowest in memory
    position = order.index(ray)
    step = max(_CHUNK // max(memory[0].size, 1), 1)
    buffer = np.empty((min(step, len(memory)), *memory.shape[1:]), np.float32)
    parts, total = [], np.zeros(memory.shape[1:], np.float32)
    for start in range(0, len(memory), step):
        part = memory[start : start + step]
        # numpy, not torch: threads would cost more here than they bring, ten times more on a busy machine.
        chunk = np.clip(part, *hu_clip, out=buffer[: len(part)], casting="unsafe")
        if position == 0:
            total += np.tensordot(shares[start : start + step], chunk, axes=1)
        else:
            parts.append(chunk @ shares if position == 2 else shares @ chunk)
    mean = torch.from_numpy(total if position == 0 else np.concatenate(parts))
    kept = [d for d in order if d != ray]
    return mean if kept[0] < kept[1] else mean.T


def _fit(picture: Tensor, size: tuple[int, int], air: float) -> Tensor:
    """The whole picture inside ``size``, centred, aspect kept, air around it."""
    scale = min(out / n for out, n in zip(size, picture.shape, strict=True))
    result = picture.new_full(size, air)
    part = []
    for dim, out in enumerate(size):
        new = min(max(round(picture.shape[dim] * scale), 1), out)
        picture = apply_taps(picture, dim, linear_taps(picture.shape[dim], new, antialias=True))
        part.append(slice((out - new) // 2, (out - new) // 2 + new))
    result[tuple(part)] = picture
    return result


class SimulatedRadiograph:
    """The radiograph of a CT source, made when asked for.

    Args:
        source: A CT volume in HU.
        options: Keyword arguments of ``simulate_radiograph``.

    Raises:
        TypeError: If an option is unknown.
    """

    def __init__(self, source: ImageSource, **options: Any) -> None:
        self.source = source
        bound = inspect.signature(simulate_radiograph).bind(None, None, **options)
        bound.apply_defaults()
        self.options = bound.kwargs

    def load(self) -> Image:
        """Read the volume and project it: ``H W``, float32."""
        image = self.source.load()
        if image.affine is None:
            raise ValueError(f"volume of shape {image.array.shape} has no affine; a radiograph needs the orientation")
        return Image(simulate_radiograph(image.array, image.affine, **self.options))

    def fingerprint(self) -> str:
        """Digest of the source's fingerprint, the options and the version of the simulation."""
        content = json.dumps([_VERSION, self.source.fingerprint(), self.options], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()
