"""One entry per kind of image, and the lazy source that datasets hand out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from medvl_core.study import Image
from medvl_imaging.readers.checks import ImageError, check_ct, check_finite
from medvl_imaging.readers.listing import format_of

__all__ = ["VERSION", "FileSource", "read_radiograph", "read_volume"]

Content = Literal["ct", "mr", "scan", "labels"]
VERSION = 1
"""Part of every fingerprint: raise it when a reader gives other voxels or pixels for the same file."""


def read_volume(path: str | Path, *, content: Content = "ct") -> Image:
    """Read a volume: NIfTI (``.nii``, ``.nii.gz``), NRRD, or the folder of one DICOM series.

    Args:
        path: The file or folder.
        content: ``"ct"`` demands HU and sets values below -1024 HU, such as padding outside the scanner's circle, to
            -1024. ``"mr"`` takes any finite values that are not all equal, and so does ``"scan"``: CT, MR and PET in
            their own units. ``"labels"`` takes whole numbers from 0 to 255.

    Returns:
        ``X Y Z`` float32 (labels: uint8) and the RAS+ affine.

    Raises:
        FileNotFoundError: If there is no such path.
        ImageError: If the image is damaged or not what it should be. The message starts with the path.
    """
    path = _existing(path)
    kind = None if path.is_dir() else format_of(path)
    if path.is_dir():
        from medvl_imaging.readers.dicom import read_series

        array, affine = read_series(path, modality={"mr": "MR", "scan": None}.get(content, "CT"))
    elif kind == "nifti":
        from medvl_imaging.readers.nifti import read_nifti

        array, affine = read_nifti(path)
    elif kind == "nrrd":
        from medvl_imaging.readers.nrrd import read_nrrd

        array, affine = read_nrrd(path)
    else:
        raise ImageError(f"{path}: unknown volume format; give .nii, .nii.gz, .nrrd or the folder of a DICOM series")
    if array.ndim != 3 or min(array.shape) < 2:
        raise ImageError(f"{path}: shape {array.shape} is no volume; every axis needs at least 2 voxels")
    if content == "ct":
        array = check_ct(path, array)
    elif content in ("mr", "scan"):
        check_finite(path, array)
    else:
        array = _labels(path, array)
    return Image(array, affine)


def read_radiograph(path: str | Path, *, any_modality: bool = False) -> Image:
    """Read a radiograph: PNG, JPEG, DICOM, or NIfTI with one slice.

    DICOM: modality and VOI LUT or window applied, MONOCHROME1 inverted. PNG and JPEG cannot state which end is
    attenuation: export them with bright bones.

    Args:
        path: The file.
        any_modality: Take a DICOM slice of a CT or MR too.

    Returns:
        ``H W`` float32, row 0 at the top, larger is more attenuation; no affine.

    Raises:
        FileNotFoundError: If there is no such file.
        ImageError: If the image is damaged, constant or of another kind. The message starts with the path.
    """
    path = _existing(path)
    if path.is_dir():
        raise ImageError(f"{path}: is a folder; a radiograph is one file")
    kind = format_of(path)
    if kind == "nifti":
        from medvl_imaging.readers.film import read_nifti_radiograph

        array = read_nifti_radiograph(path)
    elif kind == "picture":
        from medvl_imaging.readers.film import read_picture

        array = read_picture(path)
    elif kind == "dicom":
        from medvl_imaging.readers.dicom import read_dicom_radiograph

        array = read_dicom_radiograph(path, any_modality=any_modality)
    elif kind == "directory":
        raise ImageError(f"{path}: is the index of a DICOM medium and has no pixels; name the image files")
    else:
        raise ImageError(f"{path}: unknown radiograph format; give .png, .jpg, .nii, .nii.gz or a DICOM file")
    check_finite(path, array)
    return Image(array)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; check the path in the table and its root")
    return path


def _labels(path: Path, array: np.ndarray) -> np.ndarray:
    labels = array.astype(np.uint8)
    if not np.array_equal(labels, array):
        raise ImageError(
            f"{path}: values {array.min():g} to {array.max():g} are no labels; whole numbers from 0 to 255 are"
        )
    return labels


@dataclass(frozen=True, slots=True)
class FileSource:
    """An image on disk, read when asked for.

    Args:
        path: File, or folder of a DICOM series.
        kind: ``"volume"`` for CT in HU, ``"mr"``, ``"scan"`` for a volume of any modality in its own units,
            ``"labels"`` for organ maps; ``"radiograph"``, ``"picture"`` for a 2D image of any modality.
    """

    path: Path
    kind: Literal["volume", "mr", "scan", "labels", "radiograph", "picture"]

    def load(self) -> Image:
        """Read and check it."""
        if self.kind == "radiograph":
            return read_radiograph(self.path)
        if self.kind == "picture":
            return read_radiograph(self.path, any_modality=True)
        return read_volume(self.path, content="ct" if self.kind == "volume" else self.kind)

    def fingerprint(self) -> str:
        """SHA-256 of the kind, the readers' version and the bytes; of a folder, its files in the order of their names.

        Remembered in this process for as long as size and modification time stay the same.
        """
        path = _existing(self.path)
        files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
        stats = tuple((str(f), (s := f.stat()).st_size, s.st_mtime_ns) for f in files)
        return _digest(self.kind, stats)


@lru_cache(maxsize=1 << 16)
def _digest(kind: str, files: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256(f"{kind} {VERSION}".encode())
    for name, _, _ in files:
        with open(name, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
