"""Painters that the findings share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvl_phantom.canvas import Box, Numbers
from medvl_phantom.findings import LOBES
from medvl_phantom.torso import Scene

__all__ = ["cloud", "in_ellipsoid", "lobe_points", "pellets"]


def cloud(
    scene: Scene, center: Numbers, radii: Numbers, rng: np.random.Generator, soft: float = 0.35
) -> tuple[Box, np.ndarray]:
    """An ellipsoid with a ragged, soft border: ``soft`` is the border's width as a share of the radius."""
    reach = np.asarray(radii, float) * 1.45
    box = scene.canvas.box(np.asarray(center) - reach, np.asarray(center) + reach)
    offsets = zip(scene.canvas.at(box), center, radii, strict=True)
    q = np.sqrt(sum(np.square((a - np.float32(c)) / np.float32(r)) for a, c, r in offsets))
    ragged = 1 - q + np.float32(0.28) * scene.canvas.field(rng, 16.0, box)
    return box, np.clip(ragged / np.float32(soft), 0.0, 1.0)


def pellets(
    scene: Scene,
    points: np.ndarray,
    radii: np.ndarray,
    hu: float,
    within: Sequence[int] | None = None,
    label: int | None = None,
) -> None:
    """Paint small balls; those below a voxel fill their share of it.

    Args:
        scene: Where.
        points: Body coordinates ``N 3``.
        radii: mm, ``N``.
        hu: Their density.
        within: Labels of voxels that may change, or all.
        label: Label of the voxels they fill, or unchanged.
    """
    canvas = scene.canvas
    small = radii < 0.62 * canvas.edge
    if small.any():
        share = canvas.splat(points[small], 4 / 3 * np.pi * radii[small] ** 3)
        index = np.nonzero(share)
        part = share[index] * (1.0 if within is None else np.isin(canvas.labels[index], within))
        canvas.hu[index] += part.astype(np.float32) * (np.float32(hu) - canvas.hu[index])
    for point, radius in zip(points[~small], radii[~small], strict=True):
        box, share = canvas.ellipsoid(point, (radius, radius, radius))
        share = share * (True if within is None else np.isin(canvas.labels[box], within))
        canvas.paint(box, share, hu, label)


def in_ellipsoid(
    rng: np.random.Generator, center: np.ndarray, radii: np.ndarray, rotation: np.ndarray, n: int
) -> np.ndarray:
    """``n`` points inside an ellipsoid, ``n 3``."""
    direction = rng.standard_normal((n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return center + (direction * rng.random((n, 1)) ** (1 / 3) * radii) @ rotation.T


def lobe_points(rng: np.random.Generator, lobes: Sequence[str], n: int) -> np.ndarray:
    """``n`` places, spread over ``lobes`` in turn, ``n 3``."""
    centers, spreads = zip(*(LOBES[lobes[i % len(lobes)]][:2] for i in range(n)), strict=True)
    return np.array(centers) + np.clip(rng.standard_normal((n, 3)), -1.6, 1.6) * np.array(spreads)
