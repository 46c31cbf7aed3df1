"""A voxel grid with body coordinates, on which soft-edged shapes are painted inside their bounding boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Box", "Canvas", "Grid", "Numbers", "Placement", "turn"]

Box = tuple[slice, slice, slice]
Numbers = Sequence[float] | np.ndarray
AIR_HU = -1000.0


@dataclass(frozen=True, slots=True)
class Grid:
    """Voxels of a volume: ``shape``, ``spacing`` in mm and the RAS+ position ``origin`` of the first voxel's centre."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]

    @property
    def affine(self) -> np.ndarray:
        """Voxel index to RAS+ millimetres, 4 x 4."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = self.origin
        return affine

    def axis(self, d: int) -> np.ndarray:
        """Voxel centres along axis ``d`` in mm."""
        return self.origin[d] + self.spacing[d] * np.arange(self.shape[d])


@dataclass(frozen=True, slots=True)
class Placement:
    """How body coordinates (mm, the reference anatomy) lie in the scanner.

    Args:
        scale: Size of the body per axis.
        rotation: Rotation about the long axis, radians.
        lean: Shift of x and y per mm of z.
        shift: Position of the body's origin, mm.
        scoliosis: Sideways bend, mm.
        kyphosis: Backward bend towards both ends, mm.
    """

    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rotation: float = 0.0
    lean: tuple[float, float] = (0.0, 0.0)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scoliosis: float = 0.0
    kyphosis: float = 0.0

    def bend(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the bends add to body x and y at body height ``z``."""
        return self.scoliosis * np.sin(z / 70.0), self.kyphosis * np.square((z + 20.0) / 120.0)

    def to_body(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scanner coordinates to body coordinates; the arrays broadcast."""
        z = (z - self.shift[2]) / self.scale[2]
        x, y = x - self.shift[0], y - self.shift[1]
        cos, sin = np.cos(self.rotation), np.sin(self.rotation)
        bend_x, bend_y = self.bend(z)
        body_x = (cos * x + sin * y) / self.scale[0] + (bend_x - self.lean[0] * z)
        body_y = (cos * y - sin * x) / self.scale[1] + (bend_y - self.lean[1] * z)
        return body_x, body_y, z

    def to_scanner(self, points: np.ndarray) -> np.ndarray:
        """Body coordinates ``N 3`` to scanner coordinates ``N 3``: the inverse of ``to_body``."""
        x, y, z = np.asarray(points, float).T
        bend_x, bend_y = self.bend(z)
        x = (x - bend_x + self.lean[0] * z) * self.scale[0]
        y = (y - bend_y + self.lean[1] * z) * self.scale[1]
        cos, sin = np.cos(self.rotation), np.sin(self.rotation)
        placed = [
            cos * x - sin * y + self.shift[0],
            sin * x + cos * y + self.shift[1],
            z * self.scale[2] + self.shift[2],
        ]
        return np.stack(placed, axis=1)


def turn(about_x: float = 0.0, about_y: float = 0.0, about_z: float = 0.0) -> np.ndarray:
    """Rotation matrix, 3 x 3, from angles in degrees."""
    matrix = np.eye(3)
    for d, angle in enumerate(np.radians([about_x, about_y, about_z])):
        i, j = (d + 1) % 3, (d + 2) % 3
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        matrix = step @ matrix
    return matrix


class Canvas:
    """HU values, organ labels and body coordinates of one volume.

    Args:
        grid: The voxels.
        placement: Where the body lies.

    Attributes:
        hu: ``X Y Z`` float32.
        labels: ``X Y Z`` uint8.
        x: Body coordinates of the voxels, mm: ``x`` and ``y`` are ``X Y Z``, ``z`` is ``1 1 Z``.
        edge: Width of a surface's soft edge in body mm: about one voxel.
    """

    def __init__(self, grid: Grid, placement: Placement) -> None:
        self.grid, self.placement = grid, placement
        self.hu = np.full(grid.shape, AIR_HU, np.float32)
        self.labels = np.zeros(grid.shape, np.uint8)
        axes = [grid.axis(0)[:, None, None], grid.axis(1)[None, :, None], grid.axis(2)[None, None, :]]
        x, y, z = placement.to_body(*(axis.astype(np.float32) for axis in axes))
        self.x, self.y = (np.ascontiguousarray(np.broadcast_to(a, grid.shape), np.float32) for a in (x, y))
        self.z = z.astype(np.float32)
        self.edge = float(np.prod(grid.spacing) / np.prod(placement.scale)) ** (1 / 3)
        self._bends = [(float(b.min()), float(b.max())) for b in self._bends_of(z)]

    def _bends_of(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bend_x, bend_y = self.placement.bend(z)
        return bend_x - self.placement.lean[0] * z, bend_y - self.placement.lean[1] * z

    def box(self, low: Numbers, high: Numbers) -> Box:
        """Voxels that hold the body-coordinate box ``low`` to ``high``, with a margin of one edge."""
        placed = self.placement
        spans = [
            (
                np.array([low[d] - self.edge - self._bends[d][1], high[d] + self.edge - self._bends[d][0]])
                * placed.scale[d]
            )
            for d in (0, 1)
        ]
        u, v = np.meshgrid(*spans)
        cos, sin = np.cos(placed.rotation), np.sin(placed.rotation)
        corners = [
            cos * u - sin * v,
            sin * u + cos * v,
            np.array([low[2] - self.edge, high[2] + self.edge]) * placed.scale[2],
        ]
        slices = []
        for d, corner in enumerate(corners):
            lo, hi = (
                (np.array([corner.min(), corner.max()]) + placed.shift[d]) - self.grid.origin[d]
            ) / self.grid.spacing[d]
            n = self.grid.shape[d]
            slices.append(slice(min(max(int(np.floor(lo)), 0), n), min(max(int(np.ceil(hi)) + 1, 0), n)))
        return slices[0], slices[1], slices[2]

    def at(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Body coordinates of the voxels of ``box``."""
        return self.x[box], self.y[box], self.z[:, :, box[2]]

    def share(self, distance: np.ndarray) -> np.ndarray:
        """Signed distance (mm, negative inside) to the share of the voxel inside, in [0, 1]."""
        return np.clip(0.5 - distance / self.edge, 0.0, 1.0)

    def paint(
        self,
        box: Box,
        share: np.ndarray,
        hu: float | np.ndarray,
        label: int | None = None,
    ) -> None:
        """Blend ``hu`` into the voxels of ``box`` by ``share``; voxels at least half inside get ``label``."""
        view = self.hu[box]
        view += share * (hu - view)
        if label is not None:
            self.labels[box][share >= 0.5] = label

    def ellipsoid(self, center: Numbers, radii: Numbers, rotation: np.ndarray | None = None) -> tuple[Box, np.ndarray]:
        """Voxels around an ellipsoid and its share of each."""
        center, radii = np.asarray(center, float), np.asarray(radii, float)
        reach = radii if rotation is None else np.sqrt(np.square(rotation * radii).sum(1))
        box = self.box(center - reach, center + reach)
        offsets = [a - np.float32(c) for a, c in zip(self.at(box), center, strict=True)]
        if rotation is not None:
            axes = rotation.T.astype(np.float32)
            offsets = [axes[i, 0] * offsets[0] + axes[i, 1] * offsets[1] + axes[i, 2] * offsets[2] for i in range(3)]
        q = np.sqrt(sum(np.square(o / np.float32(r)) for o, r in zip(offsets, radii, strict=True)))
        return box, self.share((q - 1) * np.float32(3 / (1 / radii).sum()))

    def column(self, z: Numbers, x: Numbers, y: Numbers, radius: Numbers, flat: float = 1.0) -> tuple[Box, np.ndarray]:
        """A tube that runs along z through knots (``z`` increasing); ``flat`` scales its y radius."""
        r = max(radius)
        box = self.box((min(x) - r, min(y) - r * flat, z[0]), (max(x) + r, max(y) + r * flat, z[-1]))
        bx, by, bz = self.at(box)
        cx, cy, cr = (np.interp(bz, z, knots).astype(np.float32) for knots in (x, y, radius))
        distance = np.sqrt(np.square(bx - cx) + np.square((by - cy) / np.float32(flat))) - cr
        ends = np.maximum(np.float32(z[0]) - bz, bz - np.float32(z[-1]))
        return box, self.share(np.maximum(distance, ends))

    def chain(self, points: Sequence[Numbers] | np.ndarray, radius: Numbers | float) -> tuple[Box, np.ndarray]:
        """A tapered tube through ``points``, evaluated segment by segment."""
        points = np.asarray(points, float)
        radii = np.broadcast_to(np.asarray(radius, float), len(points))
        box = self.box((points - radii[:, None]).min(0), (points + radii[:, None]).max(0))
        starts = [s.start for s in box]
        distance = np.full([s.stop - s.start for s in box], np.float32(self.edge), np.float32)
        for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            part = self.box(np.minimum(a - ra, b - rb), np.maximum(a + ra, b + rb))
            inner = tuple(slice(s.start - o, s.stop - o) for s, o in zip(part, starts, strict=True))
            offsets = [c - np.float32(p) for c, p in zip(self.at(part), a, strict=True)]
            along = (b - a).astype(np.float32)
            t = sum(o * v for o, v in zip(offsets, along, strict=True)) / max(float(along @ along), 1e-6)
            t = np.clip(t, 0.0, 1.0)
            near = np.sqrt(sum(np.square(o - t * v) for o, v in zip(offsets, along, strict=True)))
            view = distance[inner]
            np.minimum(view, near - (np.float32(ra) + t * np.float32(rb - ra)), out=view)
        return box, self.share(distance)

    def splat(self, points: np.ndarray, volumes: np.ndarray) -> np.ndarray:
        """Share of each voxel filled by bodies smaller than it, of ``volumes`` mm3 at body ``points`` ``N 3``.

        Returns:
            ``X Y Z`` float32 in [0, 1].
        """
        position = (self.placement.to_scanner(points) - self.grid.origin) / self.grid.spacing
        base = np.floor(position).astype(int)
        weight = position - base
        part = np.asarray(volumes, float) * float(np.prod(self.placement.scale)) / float(np.prod(self.grid.spacing))
        total = np.zeros(int(np.prod(self.grid.shape)))
        for corner in np.ndindex(2, 2, 2):
            index = base + corner
            inside = ((index >= 0) & (index < self.grid.shape)).all(1)
            w = np.where(corner, weight, 1 - weight).prod(1) * part
            flat = np.ravel_multi_index(tuple(index[inside].T), self.grid.shape)
            total += np.bincount(flat, w[inside], minlength=len(total))
        return np.minimum(total, 1.0).astype(np.float32).reshape(self.grid.shape)

    def field(self, rng: np.random.Generator, pitch: float, box: Box | None = None) -> np.ndarray:
        """Smooth noise with unit variance at knots ``pitch`` mm apart in the scanner: equal in all reconstructions."""
        count = int(np.ceil(560 / pitch)) + 1
        value = rng.standard_normal((count, count, count), dtype=np.float32)
        for d in range(3):
            at = (self.grid.axis(d)[box[d] if box else slice(None)] + 280) / pitch
            low = np.clip(np.floor(at).astype(int), 0, count - 2)
            t = (at - low).astype(np.float32).reshape([-1 if i == d else 1 for i in range(3)])
            first = value.take(low, axis=d)
            value = first + t * (value.take(low + 1, axis=d) - first)
        return value
