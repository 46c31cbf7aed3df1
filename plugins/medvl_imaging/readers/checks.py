"""What holds for every image, whatever its format."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["ImageError", "check_affine", "check_budget", "check_ct", "check_finite", "gunzip"]

MAX_BYTES = 8 << 30
"""Largest image read, decompressed: a header may declare anything."""

_AIR = -1024.0
_SPACING_MM = (0.01, 50.0)
_MAX_SHEAR = np.sin(np.deg2rad(0.5))


class ImageError(ValueError):
    """A file that cannot be used as the image it is named as. The message is one line that starts with its path."""


def gunzip(path: Path, packed: bytes, limit: int) -> bytes:
    """Decompress to the end and check CRC and length; stop once ``limit`` bytes are passed.

    Raises:
        ImageError: If the stream is cut, damaged or longer than ``limit``.
    """
    parts, left = [], limit + 1
    while packed:
        stream = zlib.decompressobj(wbits=31)  # 31: gzip only, and zlib compares CRC and length itself
        try:
            parts.append(stream.decompress(packed, left))
        except zlib.error as error:
            raise ImageError(f"{path}: damaged gzip data ({error}); copy the file again from its source") from error
        left -= len(parts[-1])
        if left <= 0:
            raise ImageError(
                f"{path}: decompresses to more than the {limit:,} bytes its header declares; the file is damaged"
            )
        if not stream.eof:
            raise ImageError(
                f"{path}: gzip stream ends too early after {len(parts[-1]):,} bytes; "
                "copy the file again from its source"
            )
        packed = stream.unused_data.lstrip(b"\0")
    return b"".join(parts) if len(parts) != 1 else parts[0]


def check_budget(path: Path, shape: Sequence[int], itemsize: int) -> int:
    """Bytes of an image of this shape.

    Raises:
        ImageError: If a size is below 1 or the image would exceed ``MAX_BYTES``.
    """
    n_bytes = itemsize
    for n in shape:
        n_bytes *= int(n)
    if any(n < 1 for n in shape) or n_bytes > MAX_BYTES:
        raise ImageError(
            f"{path}: header declares the shape {tuple(map(int, shape))}; "
            f"sizes are at least 1 and {MAX_BYTES >> 30} GiB in all"
        )
    return n_bytes


def check_affine(path: Path, affine: np.ndarray) -> np.ndarray:
    """The affine as float64 4 x 4, when it is finite, orthogonal to half a degree and spaced like an image.

    Raises:
        ImageError: If it is not.
    """
    affine = np.asarray(affine, np.float64)
    if not np.isfinite(affine).all():
        raise ImageError(
            f"{path}: affine contains NaN or Inf; orientation and spacing are unknown, export the image again"
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((spacing >= _SPACING_MM[0]) & (spacing <= _SPACING_MM[1])).all():
        text = " x ".join(f"{s:.4g}" for s in spacing)
        raise ImageError(
            f"{path}: spacing is {text} mm; it must lie in {_SPACING_MM[0]} to "
            f"{_SPACING_MM[1]} mm, check units and header"
        )
    axes = affine[:3, :3] / spacing
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if shear > _MAX_SHEAR:
        angle = np.rad2deg(np.arcsin(min(shear, 1)))
        raise ImageError(
            f"{path}: axes are {angle:.1f} degrees from orthogonal (singular or tilted gantry); "
            "resample to an upright grid first"
        )
    return affine


def check_finite(path: Path, array: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value.

    Raises:
        ImageError: If a value is NaN or Inf, or all are equal.
    """
    low, high = float(array.min()), float(array.max())  # both carry NaN and Inf on
    if not np.isfinite([low, high]).all():
        raise ImageError(
            f"{path}: {int((~np.isfinite(array)).sum()):,} values are NaN or Inf; "
            "export the image again or replace them"
        )
    if low == high:
        raise ImageError(f"{path}: every value is {low:g}; the image is empty, export it again")
    return low, high


def check_ct(path: Path, array: np.ndarray) -> np.ndarray:
    """A CT in HU; in place, values below -1024 HU (padding outside the scanner's circle) become -1024.

    Raises:
        ImageError: If the values cannot be HU. The rules: some value is below -20 and some above 0; the range spans
            at least 200 and lies within -8192 to 65535; at most 2 % of the voxels lie below -1200 without being the
            one padding value (a rescale intercept applied twice puts all lung there).
    """
    low, high = check_finite(path, array)
    fix = "apply RescaleSlope and RescaleIntercept once, or name the file under its true modality"
    if low > -20 or high < 0 or high - low < 200 or low < -8192 or high > 65535:
        raise ImageError(
            f"{path}: values {low:g} to {high:g} are no CT in HU (fat and air negative, tissue above 0); {fix}"
        )
    if low < -1200:
        sample = array[tuple(slice(None, None, max(n // 64, 1)) for n in array.shape)]
        odd = float(np.mean((sample < -1200) & (sample != low)))
        if odd > 0.02:
            raise ImageError(
                f"{path}: {odd:.0%} of the voxels lie between {low:g} and -1200, denser than nothing; {fix}"
            )
    if low < _AIR:
        np.maximum(array, np.float32(_AIR), out=array)
    return array
