"""One CT-RATE volume of either release: raw stored values with their csv row (v1), or HU in a right header (v2)."""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medvl_core.study import Image
from medvl_imaging.readers.checks import ImageError, check_affine, check_ct
from medvl_imaging.readers.nifti import affine_of, read_stored
from medvl_x2ct.hounsfield import is_hu

__all__ = ["CtRateVolume", "MetadataRow", "gzip_digest"]

_VERSION = 1  # part of every fingerprint: raise it when load gives other values


@dataclass(frozen=True, slots=True)
class MetadataRow:
    """What the metadata table says about one volume, as its cells are.

    Args:
        where: Table and row, which every message starts with.
        slope: Of the rescale to HU.
        intercept: Of the rescale to HU; -1024, -8192 and others occur.
        xy_spacing: ``"[x, y]"`` in mm.
        z_spacing: In mm; blank or ``nan`` means that of x.
        position: ``ImagePositionPatient``, LPS.
        orientation: ``ImageOrientationPatient``, LPS.
    """

    where: str
    slope: str
    intercept: str
    xy_spacing: str
    z_spacing: str
    position: str
    orientation: str

    def rescale(self) -> tuple[float, float]:
        """Slope and intercept.

        Raises:
            ImageError: If one is no number or the slope 0.
        """
        slope, intercept = self._numbers("RescaleSlope", self.slope, 1) + self._numbers(
            "RescaleIntercept", self.intercept, 1
        )
        if slope == 0:
            raise ImageError(f"{self.where}: RescaleSlope is 0; correct the cell or exclude the volume")
        return slope, intercept

    def affine(self) -> np.ndarray:
        """Voxel index to RAS+ mm: x along the image's rows, y down its columns, z along their cross product.

        Raises:
            ImageError: If a cell does not hold the numbers it should, or they are no geometry.
        """
        x, y = self._numbers("XYSpacing", self.xy_spacing, 2)
        z = x if self.z_spacing.lower() in ("", "nan") else self._numbers("ZSpacing", self.z_spacing, 1)[0]
        axes = np.array(self._numbers("ImageOrientationPatient", self.orientation, 6)).reshape(2, 3)
        if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-3:
            raise ImageError(
                f"{self.where}: ImageOrientationPatient {self.orientation} is not two unit vectors at right angles; "
                "correct the cell or exclude the volume"
            )
        lps = np.eye(4)
        lps[:3, :3] = np.stack([axes[0] * x, axes[1] * y, np.cross(*axes) * z], 1)
        lps[:3, 3] = self._numbers("ImagePositionPatient", self.position, 3)
        return check_affine(Path(self.where), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)

    def _numbers(self, column: str, cell: str, n: int) -> tuple[float, ...]:
        try:
            value = ast.literal_eval(cell)
            numbers = tuple(float(v) for v in (value if isinstance(value, (list, tuple)) else [value]))
        except (ValueError, SyntaxError, TypeError):
            numbers = ()
        if len(numbers) != n or not np.isfinite(numbers).all():
            wanted = "a number" if n == 1 else f"a list of {n} numbers"
            raise ImageError(
                f"{self.where}: {column} is {cell!r}, not {wanted}; correct the cell or exclude the volume"
            )
        return numbers


@dataclass(frozen=True, slots=True)
class CtRateVolume:
    """A volume in HU and RAS+ geometry, whichever release its file is from.

    The folder's name says which release the file should be of; its voxels must agree. v1 is rescaled by the csv, once;
    v2 is never rescaled. A file that is HU already in a v1 folder, or raw in a v2 folder, is refused, and so is one
    that is HU neither way.

    Args:
        path: ``.nii.gz``.
        version: Release by the folder's name.
        row: Its metadata. Needed for v1; for v2 it only makes messages better.
    """

    path: Path
    version: Literal["v1", "v2"]
    row: MetadataRow | None

    def load(self) -> Image:
        """Read and check it: ``X Y Z`` float32, HU, and the affine.

        Raises:
            ImageError: If the file is damaged, or the release is in doubt. The message starts with path or table row.
        """
        stored, header = read_stored(self.path)
        if stored.ndim != 3 or min(stored.shape) < 2:
            raise ImageError(f"{self.path}: shape {stored.shape} is no volume; every axis needs at least 2 voxels")
        scaling = (float(header["scl_slope"]), float(header["scl_inter"]))
        if not np.isnan(scaling[0]) and scaling not in ((0.0, 0.0), (1.0, 0.0)):
            raise ImageError(
                f"{self.path}: its header rescales by {scaling[0]:g} and {scaling[1]:g}, which neither release "
                "of CT-RATE does; download the volume again"
            )
        array = self._fixed(stored) if self.version == "v2" else self._raw(stored)
        affine = affine_of(self.path, header) if self.version == "v2" else self._row().affine()
        return Image(check_ct(self.path, array), affine)

    def fingerprint(self) -> str:
        """Digest of the voxels' checksum and, for v1, of the csv cells that HU and geometry come from."""
        cells = astuple(self._row())[1:] if self.version == "v1" else ()
        content = json.dumps([_VERSION, self.version, gzip_digest(self.path), cells])
        return hashlib.sha256(content.encode()).hexdigest()

    def _fixed(self, stored: np.ndarray) -> np.ndarray:
        if stored.dtype.kind != "i":
            raise ImageError(
                f"{self.path}: voxels are {stored.dtype}, those of a _fixed (v2) volume signed integers in HU; "
                "download the volume again"
            )
        array = stored.astype(np.float32, order="F")
        if is_hu(array):
            return array
        reason = "they are HU neither as stored nor after the csv's rescale; exclude the volume"
        if self.row is not None and is_hu(_rescaled(stored, *self.row.rescale())):
            reason = (
                f"they are raw stored values ({self.row.where} makes HU of them), so this is a v1 file in a _fixed "
                "(v2) folder; move it to one without _fixed"
            )
        raise ImageError(f"{self.path}: values {stored.min():g} to {stored.max():g} are not HU: {reason}")

    def _raw(self, stored: np.ndarray) -> np.ndarray:
        slope, intercept = self._row().rescale()
        array = _rescaled(stored, slope, intercept)
        same = abs(slope - 1) < 1e-3 and abs(intercept) < 1  # then there is nothing to apply twice
        already = not same and is_hu(stored)
        if is_hu(array) and not already:
            return array
        found = f"values {stored.min():g} to {stored.max():g}"
        if already:
            raise ImageError(
                f"{self.path}: {found} are HU already, so {self._row().where} (slope {slope:g}, intercept "
                f"{intercept:g}) would rescale them twice: a v2 file in a v1 folder; move it to a folder named _fixed"
            )
        raise ImageError(
            f"{self.path}: {found} are HU neither as stored nor with slope {slope:g} and intercept {intercept:g} of "
            f"{self._row().where}; exclude the volume"
        )

    def _row(self) -> MetadataRow:
        if self.row is None:
            raise ImageError(f"{self.path}: raw stored values, and the metadata table has no row for it; add one")
        return self.row


def gzip_digest(path: Path) -> str:
    """Size and the checksum of the unpacked content, which gzip keeps in its last 8 bytes: one seek instead of a read.

    Hashing every byte of CT-RATE would read terabytes at each start. Reading the file verifies the checksum.

    Raises:
        FileNotFoundError: If there is no such file.
        ImageError: If it is not gzipped.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the dataset's folder")
    with path.open("rb") as file:
        magic, size = file.read(2), path.stat().st_size
        if magic != b"\x1f\x8b" or size < 18:
            raise ImageError(f"{path}: no gzip file of {size} bytes can be this short or start so; copy it again")
        file.seek(-8, 2)
        return f"{size}-{file.read(8).hex()}"


def _rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    array = stored.astype(np.float32, order="F")
    array *= np.float32(slope)
    array += np.float32(intercept)
    return array
