"""ITK's ray caster as a cone beam from the back: a peer of the benchmark, an oracle of the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["ray_caster"]


def ray_caster(
    density: np.ndarray,
    spacing: np.ndarray,
    source: float,
    detector: float,
    shape: tuple[int, int],
    pitch: Sequence[float],
) -> Any:
    """ITK's filter: ``Update()`` makes the film of its ``GetOutput()``, in mm of density 1.

    Args:
        density: Volume ``Z Y X``, float32, centred at the origin; it must outlive the filter.
        spacing: Of its voxels along x, y and z, mm.
        source: Distance from the source to the origin, mm.
        detector: Distance from the source to the detector, mm.
        shape: Pixels of the film, rows to the feet and columns to the left.
        pitch: Of its rows and columns, mm.
    """
    import itk

    image = itk.image_view_from_array(density)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((-(np.array(density.shape[::-1]) - 1) / 2 * spacing).tolist())
    kind = type(image)
    caster = itk.RayCastInterpolateImageFunction[kind, itk.D].New()
    identity = itk.Euler3DTransform[itk.D].New()
    caster.SetTransform(identity)
    caster.SetThreshold(0.0)
    caster.SetFocalPoint([0.0, -source, 0.0])
    caster.SetInputImage(image)
    resample = itk.ResampleImageFilter[kind, kind].New()
    resample.SetInput(image)
    resample.SetInterpolator(caster)
    resample.SetTransform(identity)
    resample.SetSize([shape[1], shape[0], 1])
    resample.SetOutputSpacing([pitch[1], pitch[0], 1.0])
    resample.SetOutputOrigin([(shape[1] - 1) / 2 * pitch[1], detector - source, (shape[0] - 1) / 2 * pitch[0]])
    resample.SetOutputDirection(itk.matrix_from_array(np.array([[-1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])))
    return resample
