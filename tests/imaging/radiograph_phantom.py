"""Ellipsoids whose line integrals are known: a chest in miniature, without symmetry."""

import numpy as np

# centre in mm, half axes in mm, density added (water is 1)
ELLIPSOIDS = (
    ((0, 0, 0), (84, 62, 85), 1.0),
    ((-35, -5, 6), (28, 40, 55), -0.75),
    ((35, -5, 6), (28, 40, 55), -0.75),
    ((12, 14, -10), (24, 22, 28), 0.3),
    ((0, -40, 0), (10, 10, 80), 0.6),
    ((-40, 10, 20), (9, 9, 9), 0.7),
)


def voxels(shape, spacing, fine=3) -> np.ndarray:
    """HU on a grid around the origin; each voxel is the mean of ``fine``³ samples."""
    lines = [((np.arange(fine * n) + 0.5) / fine - n / 2) * s for n, s in zip(shape, spacing, strict=True)]
    density = np.zeros(shape, np.float32)
    for centre, half, value in ELLIPSOIDS:
        x, y, z = (
            (((line - c) / h) ** 2).astype(np.float32).reshape([-1 if d == axis else 1 for d in range(3)])
            for axis, (line, c, h) in enumerate(zip(lines, centre, half, strict=True))
        )
        inside = x + y + z <= 1
        n = shape
        density += value * inside.reshape(n[0], fine, n[1], fine, n[2], fine).mean((1, 3, 5), dtype=np.float32)
    return 1000 * density - 1000


def integrals(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Integral of the density along the lines from ``source`` through ``target`` (``... 3`` in mm), in mm of water."""
    ray = target - source
    total = np.zeros(ray.shape[:-1])
    for centre, half, value in ELLIPSOIDS:
        p, d = (source - np.array(centre)) / half, ray / np.array(half, float)
        a, b, c = (d * d).sum(-1), (p * d).sum(-1), (p * p).sum(-1) - 1
        total += value * 2 * np.sqrt(np.clip(b * b - a * c, 0, None)) / a * np.linalg.norm(ray, axis=-1)
    return total
