"""From a CT volume to a radiograph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from medvl_imaging.radiograph.anatomy import lay_out
from medvl_imaging.radiograph.cone_beam import Tube, cone_picture
from medvl_imaging.radiograph.detector import AIR_HU, DETECTORS, attenuation, expose
from medvl_imaging.radiograph.parallel import NO_CLIP, fit, mean_picture, place_in

__all__ = ["simulate_radiograph"]

_CLIP = {"mean_hu": (-1000.0, 1000.0), "beer_lambert": NO_CLIP, "cone_beam": NO_CLIP}
_LEAST_HU = -1024.0  # of a ray's mean: the readers let nothing lower pass


def simulate_radiograph(
    volume_hu: np.ndarray,
    affine: np.ndarray | Sequence[float],
    *,
    mode: Literal["mean_hu", "beer_lambert", "cone_beam"] = "mean_hu",
    view: Literal["ap", "pa", "lateral"] = "ap",
    size: tuple[int, int] | None = None,
    flip_lr: bool = False,
    iso_spacing_mm: float = 1.0,
    hu_clip: tuple[float, float] | None = None,
    detector: Literal["film", "absorbed", "attenuation"] = "film",
    source_detector_mm: float = 1800.0,
    source_isocentre_mm: float = 1600.0,
    rotation_deg: tuple[float, float, float] = (0.0, 0.0, 0.0),
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> np.ndarray:
    r"""Project a CT volume to a radiograph; bones bright, head up, the patient's right on the image's left.

    ``mean_hu``: clip, resample trilinearly to an isotropic grid, average along parallel rays: the published recipe of
    X2CT-CLIP. No physics, and the units are HU.

    ``beer_lambert``: parallel rays, attenuation $A = \int \mu\,dl$ with $\mu$ from HU, exposure $e^{-A}$, ``detector``.

    ``cone_beam``: the same with rays from a point, and the patient turned and shifted if wanted.

    The orientation comes from the affine, so the same scan stored in any of the 48 orientations gives the same
    picture; an oblique scan keeps its own axes. No scatter, spectrum or noise; bone is on the scale of water.

    Args:
        volume_hu: ``X Y Z`` in HU, any orientation, floating or integer.
        affine: Voxel index to RAS+ millimetres, 4 x 4; or three spacings in mm of a volume in RAS axes.
        mode: Rays and physics.
        view: ``"ap"`` and ``"pa"`` differ only in a cone beam, where the side near the source is magnified more;
            ``"lateral"`` is a left lateral film, anterior on the image's left.
        size: Pixels ``(H, W)``: the whole picture is scaled to fit and padded with air. ``None`` keeps
            ``iso_spacing_mm``, so the size varies with the field of view.
        flip_lr: Mirror the picture. The published X2CT-CLIP pictures are mirrored.
        iso_spacing_mm: Spacing of the isotropic grid; of the detector's pixels in a cone beam.
        hu_clip: Range that voxels are clipped to first. ``None``: (-1000, 1000) for ``mean_hu``, as published; no clip
            else, because the noise of air averages out, which clipping at -1000 HU would prevent.
        detector: Curve from attenuation to pixel, see ``detector.expose``; not used by ``mean_hu``.
        source_detector_mm: Of a cone beam; 1800 mm is usual for chest films.
        source_isocentre_mm: Of a cone beam: from the source to the centre of the volume.
        rotation_deg: Of a cone beam: turn of the patient about the left-right, front-back and head-foot axes.
        shift_mm: Of a cone beam: shift of the patient to the right, the front and the head.

    Returns:
        ``H W``, float32: mean HU; else attenuation, or a pixel in [0, 1].

    Raises:
        ValueError: If an argument breaks its rule, the volume holds NaN, or padding below -1024 HU is not clipped; the
            message names it.

    References:
        X2CT-CLIP: arXiv 2503.02162; its public code was read for the order of the steps of ``mean_hu``.
    """
    clip = _check(mode, detector, size, iso_spacing_mm, hu_clip)
    laid = lay_out(volume_hu, affine, view)
    tube = Tube(source_detector_mm, source_isocentre_mm, (*rotation_deg,), (*shift_mm,))
    if mode == "cone_beam":
        extent = laid.extent_mm[1:] * source_detector_mm / source_isocentre_mm
        frame = size or [max(int(n / iso_spacing_mm + 1e-4), 1) for n in extent]
        inside, place = place_in(extent.tolist(), frame)
        mean, path_mm = cone_picture(laid, view, tube, inside, clip)
        picture = torch.zeros(*frame)
        picture[place] = attenuation(mean, path_mm)
    elif any((*rotation_deg, *shift_mm)):
        raise ValueError(f"rotation_deg {rotation_deg}, shift_mm {shift_mm}; only mode 'cone_beam' poses the patient")
    else:
        mean = picture = mean_picture(laid, clip, iso_spacing_mm)
        if size is not None:
            picture = fit(picture, size, max(clip[0], AIR_HU))
        if mode == "beer_lambert":
            picture = attenuation(picture, float(laid.extent_mm[0]))
    _check_means(mean, volume_hu, mode)
    if mode != "mean_hu":
        picture = expose(picture, detector)
    return np.ascontiguousarray(picture.flip(1) if flip_lr else picture)


def _check_means(mean: torch.Tensor, volume: np.ndarray, mode: str) -> None:
    """What is wrong with a voxel shows in the mean of its ray, so the volume is read once."""
    if not mean.isfinite().all():
        raise ValueError(f"volume_hu of shape {volume.shape} holds NaN; replace it, outside the body by -1000")
    if mode != "mean_hu" and (lowest := float(mean.min())) < _LEAST_HU:
        raise ValueError(
            f"volume_hu of shape {volume.shape} has a ray with a mean of {lowest:.0f} HU, below that of air; "
            "clip the padding with hu_clip=(-1000, 3071)"
        )


def _check(
    mode: str,
    detector: str,
    size: tuple[int, int] | None,
    iso_spacing_mm: float,
    hu_clip: tuple[float, float] | None,
) -> tuple[float, float]:
    if mode not in _CLIP:
        raise ValueError(f"mode is {mode!r}; modes are {', '.join(map(repr, _CLIP))}")
    if detector not in DETECTORS:
        raise ValueError(f"detector is {detector!r}; detectors are {', '.join(map(repr, DETECTORS))}")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size is {size}; give (H, W) of at least 1 pixel, or None")
    low, high = _CLIP[mode] if hu_clip is None else hu_clip
    if not (0 < iso_spacing_mm < np.inf and low < high):
        raise ValueError(
            f"iso_spacing_mm {iso_spacing_mm}, hu_clip {hu_clip}; spacing is positive, the clip increasing"
        )
    return float(low), float(high)
