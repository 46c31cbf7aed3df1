"""From the attenuation along each ray to the value of a pixel."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = ["DETECTORS", "WATER_PER_MM", "attenuation", "expose"]

WATER_PER_MM = 0.02059
"""Linear attenuation of water at 60 keV (0.2059 cm2/g, NISTIR 5632), a usual effective energy at 120 kVp."""

AIR_HU = -1000.0
DETECTORS = ("film", "absorbed", "attenuation")

# So that the greys inside the patient, of three chest CTs, have the quantiles of seven frontal films of ChestX-ray14.
_CONTRAST = 1.1
_MEDIAN_GREY = 0.65
_SHADOW = 0.4  # of 20 mm of water: what attenuates more is the patient


def attenuation(mean_hu: Tensor, path_mm: Tensor | float) -> Tensor:
    r"""$A = \int \mu\,dl$ of rays with this mean HU over this length, with $\mu = \mu_w (1 + \mathrm{HU}/1000)$ [1].

    $\mu$ is affine in HU, so it may follow the integral; it costs one operation per pixel instead of one per voxel.

    References:
        [1] Buzug, Computed Tomography, Springer 2008, section 8.2 (Hounsfield scale).
    """
    return WATER_PER_MM * path_mm * (1 + mean_hu / 1000)


def expose(A: Tensor, detector: Literal["film", "absorbed", "attenuation"]) -> Tensor:
    r"""Pixels, bright where much was absorbed.

    ``attenuation``: $A$ itself, a logarithmic detector. ``absorbed``: $1 - e^{-A}$, a linear one.
    ``film``: the exposure $E = e^{-A}$ through the characteristic curve of a film or its digital imitation, a sigmoid
    in the logarithm of the exposure, $1 / (1 + (E / E_0)^g)$, with $E_0$ set by the picture itself, as an automatic
    exposure does: the median exposure behind the patient becomes the same grey on every film.

    Args:
        A: Attenuation of each pixel's ray.
        detector: The curve.
    """
    if detector == "attenuation":
        return A
    A = A.clamp(min=0)  # voxels below -1000 HU
    if detector == "absorbed":
        return -torch.expm1(-A)
    shadow = A[A > _SHADOW]
    median = shadow.median() if len(shadow) else A.new_tensor(_SHADOW)
    return torch.sigmoid(_CONTRAST * (A - median) + math.log(_MEDIAN_GREY / (1 - _MEDIAN_GREY)))
