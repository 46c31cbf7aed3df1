r"""Rays from a point: a cone beam, one slice of the volume after the other.

Along a ray the integral is the sum over the slices that the ray crosses, each read by bilinear interpolation and
weighted by the slice's spacing over the cosine of the ray (Joseph, IEEE Trans Med Imaging 1982). Seen from the source,
a slice that is parallel to the detector is the detector's grid, magnified: rows and columns separate,
$\sum_k R_k V_k C_k^T$ with band matrices $R_k, C_k$ of two taps per line. Thirty-two lines at a time touch a narrow
window of the slice, so both products are dense ones of small blocks.

A turned patient is a turned tube and detector. Rays from a point do not care where they are caught: they are traced to
a detector parallel to the slices, and that picture is resampled where the turned detector's pixels meet it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import grid_sample

from medvl_imaging.radiograph.anatomy import BASIS, Laid
from medvl_imaging.radiograph.parallel import clip_into
from medvl_imaging.radiograph.threads import in_threads

__all__ = ["Tube", "cone_picture", "ray_means"]

_SLICES = 16  # a chunk of them is clipped, then projected while it lies in the cache
_BLOCK = 32  # detector lines that share a window: more waste multiplications, fewer waste calls


@dataclass(frozen=True, slots=True)
class Tube:
    """Source, detector and the patient's pose between them.

    Args:
        source_detector_mm: Distance from the source to the detector.
        source_isocentre_mm: Distance from the source to the isocentre, where the centre of the volume lies.
        rotation_deg: Turn of the patient about the left-right, front-back and head-foot axes, in this order.
        shift_mm: Shift of the patient to the right, the front and the head.

    Raises:
        ValueError: If the isocentre is not between source and detector, or a number is not finite.
    """

    source_detector_mm: float
    source_isocentre_mm: float
    rotation_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if not 0 < self.source_isocentre_mm < self.source_detector_mm < np.inf:
            raise ValueError(
                f"source_isocentre_mm {self.source_isocentre_mm}, source_detector_mm {self.source_detector_mm}; "
                "the isocentre lies between source and detector"
            )
        for name, three in (("rotation_deg", self.rotation_deg), ("shift_mm", self.shift_mm)):
            if np.shape(three) != (3,) or not np.isfinite(three).all():
                raise ValueError(f"{name} is {three}; three finite numbers, for left-right, front-back, head-foot")

    def in_patient(self, points: np.ndarray, view: str) -> np.ndarray:
        """Points of the room as seen by the patient: ``... 3``, mm along ray, row, column from the isocentre."""
        basis = BASIS[view]
        turn = Rotation.from_euler("xyz", self.rotation_deg, degrees=True).as_matrix()
        return (points - np.array(self.shift_mm) @ basis) @ (basis.T @ turn @ basis)


def cone_picture(
    laid: Laid, view: str, tube: Tube, shape: Sequence[int], hu_clip: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Mean HU along each ray, and the length over which it was taken.

    The detector shows the extent of the volume at the isocentre. The outermost rays leave the scan through its sides,
    and there its outermost voxels are taken to go on: the body above and below, air around it.

    Args:
        laid: The volume.
        view: Its view.
        tube: The geometry.
        shape: Pixels of the detector, ``(H, W)``.
        hu_clip: Range that voxels are clipped to first.

    Returns:
        Mean HU and path length in mm, ``H W`` each, float32.

    Raises:
        ValueError: If the source is inside the volume.
    """
    extent = laid.extent_mm
    magnification = tube.source_detector_mm / tube.source_isocentre_mm
    source = tube.in_patient(np.array([-tube.source_isocentre_mm, 0.0, 0.0]), view)
    if source[0] > -extent[0] / 2:
        raise ValueError(
            f"the source is {-source[0]:.0f} mm from the middle of a volume {extent[0]:.0f} mm deep; move it away"
        )
    rows, columns = ((np.arange(n) + 0.5) / n - 0.5 for n in shape)
    detector = np.empty((*shape, 3))
    detector[..., 0] = tube.source_detector_mm - tube.source_isocentre_mm
    detector[..., 1] = magnification * extent[1] * rows[:, None]
    detector[..., 2] = magnification * extent[2] * columns
    rays = tube.in_patient(detector, view) - source
    middle = source[1:] - source[0] * rays[..., 1:] / rays[..., :1]  # where they cross the middle slice, H W 2
    path = extent[0] * np.linalg.norm(rays, axis=-1) / rays[..., 0]
    if any(tube.rotation_deg):
        mean = _turned(laid, source, middle, hu_clip)
    else:
        mean = ray_means(laid, source, middle[:, 0, 0], middle[0, :, 1], hu_clip)
    return mean, torch.from_numpy(path.astype(np.float32))


def _turned(laid: Laid, source: np.ndarray, middle: np.ndarray, hu_clip: tuple[float, float]) -> Tensor:
    """Trace to a detector parallel to the slices, at the same pitch, and read it where the turned pixels meet it."""
    low, high = middle.min((0, 1)), middle.max((0, 1))
    pitch = [np.abs(np.diff(middle[..., d], axis=d)).mean() for d in (0, 1)]
    lines = [np.arange(lo - 2 * p, hi + 2 * p, p) for lo, hi, p in zip(low, high, pitch, strict=True)]
    straight = ray_means(laid, source, lines[0], lines[1], hu_clip)
    at = [(2 * (middle[..., d] - lines[d][0]) / (lines[d][-1] - lines[d][0])) - 1 for d in (1, 0)]  # x before y
    grid = torch.from_numpy(np.stack(at, -1).astype(np.float32))
    return grid_sample(straight[None, None], grid[None], mode="bicubic", align_corners=True)[0, 0]


def ray_means(
    laid: Laid, source: np.ndarray, rows: np.ndarray, columns: np.ndarray, hu_clip: tuple[float, float]
) -> Tensor:
    """Mean over the slices of the volume's values along each ray.

    Args:
        laid: The volume, ``ray row column``.
        source: Where the rays start: mm along ray, row and column from the centre of the volume.
        rows: Where they cross the middle slice: mm from the centre, per row of the picture.
        columns: The same per column.
        hu_clip: Range that voxels are clipped to first.

    Returns:
        ``rows columns``, float32.
    """
    n = laid.volume.shape
    depth = laid.signs[0] * (np.arange(n[0]) - (n[0] - 1) / 2) * laid.spacing_mm[0]
    reach = ((depth - source[0]) / -source[0])[:, None]  # 1 on the middle slice
    lines = []
    for d, middle in ((1, rows), (2, columns)):
        at = source[d] + (middle - source[d]) * reach
        at = laid.signs[d] * at / laid.spacing_mm[d] + (n[d] - 1) / 2
        lines.append(np.clip(at, 0, n[d] - 1))
    swap = laid.volume.stride(1) < laid.volume.stride(2)  # the slower axis first, as it lies in memory
    volume = laid.volume
    if swap:
        volume, lines = volume.transpose(1, 2), lines[::-1]

    def part(start: int, stop: int) -> Tensor:
        now = slice(start, stop)
        return _project(volume[now], (lines[0][now], lines[1][now]), hu_clip)

    total = torch.stack(in_threads(part, n[0], _SLICES)).sum(0)
    return (total.T if swap else total) / n[0]


def _project(volume: Tensor, lines: tuple[np.ndarray, np.ndarray], hu_clip: tuple[float, float]) -> Tensor:
    """Sum over the slices k of R_k V_k C_k^T, with lines ``slice line`` in voxels."""
    shape = volume.shape[1:]
    counts = [line.shape[1] for line in lines]
    padded = [-(-count // _BLOCK) * _BLOCK for count in counts]
    slices = torch.empty(_SLICES, *shape)
    half = torch.empty(_SLICES, padded[0], shape[1])
    total = torch.zeros(padded[0], padded[1])
    for k in range(0, len(volume), _SLICES):
        now = clip_into(slices, volume[k : k + _SLICES], hu_clip)
        then = half[: len(now)]
        for block, (first, weights) in enumerate(_bands(lines[0][k : k + _SLICES], shape[0])):
            window = now[:, first : first + weights.shape[2]]
            torch.bmm(weights, window, out=then[:, block * _BLOCK : (block + 1) * _BLOCK])
        for block, (first, weights) in enumerate(_bands(lines[1][k : k + _SLICES], shape[1])):
            window = then[:, :, first : first + weights.shape[2]]
            total[:, block * _BLOCK : (block + 1) * _BLOCK].addbmm_(window, weights.transpose(1, 2))
    return total[: counts[0], : counts[1]]


def _bands(at: np.ndarray, n: int) -> list[tuple[int, Tensor]]:
    """Per block of lines: where its window begins, and its weights ``slice line window``.

    Args:
        at: Position of each line in each slice, ``slice line``, within [0, n - 1].
        n: Voxels of the axis.
    """
    at = np.pad(at, ((0, 0), (0, -at.shape[1] % _BLOCK)), mode="edge").reshape(len(at), -1, _BLOCK)
    first = np.minimum(at.astype(np.int64), n - 2)
    begin, end = first.min((0, 2)), first.max((0, 2)) + 2
    width = int((end - begin).max())
    begin = np.minimum(begin, n - width)
    index = torch.from_numpy(first - begin[:, None])[..., None]
    share = torch.from_numpy((at - first).astype(np.float32))[..., None]
    weights = torch.zeros(*at.shape, width)
    weights.scatter_(3, index, 1 - share).scatter_(3, index + 1, share)
    return [(int(b), weights[:, i]) for i, b in enumerate(begin)]
