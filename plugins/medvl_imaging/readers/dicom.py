"""DICOM: one CT or MR series in a folder, and single radiographs. pydicom parses, checks and decodes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread

from medvl_imaging.readers.checks import ImageError, check_affine, check_budget
from medvl_imaging.readers.listing import content_format, named_format
from medvl_imaging.readers.with_itk import read_itk

__all__ = ["RADIOGRAPHY", "SCANS", "modality_of", "read_dicom_radiograph", "read_series", "series_files"]

RADIOGRAPHY = frozenset({"CR", "DX", "RG", "DR"})
SCANS = ("CT", "MR", "PT")
_EXECUTABLE = (b"MZ", b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe")
_IDENTITY = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality", "NumberOfFrames")
_PIXELS = ("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_NEEDED = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "RescaleSlope",
    "RescaleIntercept",
)


def modality_of(path: Path) -> str:
    """``"CT"``, ``"DX"``, ...; blank where the header does not say."""
    try:
        with _quiet():
            return str(dcmread(path, stop_before_pixels=True, specific_tags=["Modality"]).get("Modality") or "")
    except Exception:  # malformed files raise many types; the reader says what is wrong
        return ""


def series_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, sorted by name.

    Raises:
        ImageError: If there is none, or a file that should be one is not.
    """
    kept = []
    for file in sorted(f for f in folder.iterdir() if f.is_file() and f.name[0] != "." and f.name != "DICOMDIR"):
        kind = content_format(file)
        if kind == "dicom":
            kept.append(file)
        elif kind is None and (named_format(file.name) == "dicom" or not file.suffix):
            raise ImageError(
                f"{file}: not a DICOM file (no DICM mark, {file.stat().st_size} bytes); copy the series again"
            )
    if not kept:
        raise ImageError(
            f"{folder}: holds no DICOM image; name the folder of one series (a DICOMDIR alone has no pixels)"
        )
    return kept


def read_series(folder: Path, *, modality: str | None = "CT") -> tuple[np.ndarray, np.ndarray]:
    """One series as a volume, ordered by position.

    Args:
        folder: Holds the files of the series.
        modality: What it has to be; ``None``: CT, MR or PET.

    Returns:
        ``X Y Z`` after rescale, float32, and the RAS+ affine.

    Raises:
        ImageError: If files are damaged, the folder holds not exactly one upright series, or the geometry has gaps.
    """
    slices = [(file, _parse(file)) for file in series_files(folder)]
    for file, header in slices:
        _check_slice(file, header, SCANS if modality is None else (modality,))
    _check_same(folder, [header for _, header in slices])
    first = slices[0][1]
    if len(slices) < 2:
        raise ImageError(f"{folder}: one slice is no volume; name the folder of the whole series")
    right, down = np.split(np.array(first.ImageOrientationPatient, float), 2)
    normal = np.cross(right, down)
    slices.sort(key=lambda item: float(np.dot(np.array(item[1].ImagePositionPatient, float), normal)))
    corner = np.array([header.ImagePositionPatient for _, header in slices], float)
    step = _slice_step(folder, corner, normal)
    rows, columns = (float(s) for s in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([right * columns, down * rows, step], 1)
    affine[:3, 3] = corner[0]
    affine = check_affine(folder, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    check_budget(folder, (first.Rows, first.Columns, len(slices)), 4)
    volume = np.empty((len(slices), first.Rows, first.Columns), np.float32)
    for target, (file, header) in zip(volume, slices, strict=True):
        target[:] = _pixels(file) * np.float32(header.RescaleSlope) + np.float32(header.RescaleIntercept)
    return volume.transpose(2, 1, 0), affine


def read_dicom_radiograph(path: Path, *, any_modality: bool = False) -> np.ndarray:
    """Pixels after modality LUT, VOI LUT or window, and inversion of MONOCHROME1: larger is more attenuation.

    Args:
        path: The file.
        any_modality: Also take what is no radiograph, such as one slice of a CT or MR.

    Returns:
        ``H W``, float32.

    Raises:
        ImageError: If the file is damaged or no single-frame radiograph.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    header = _parse(path)
    modality, photometric = header.get("Modality", ""), header.get("PhotometricInterpretation", "")
    known = any_modality or modality in RADIOGRAPHY
    if not known or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(
            f"{path}: modality {modality!r}, {photometric!r}; a radiograph is CR, DX, RG or DR in MONOCHROME1 or 2"
        )
    if int(header.get("NumberOfFrames", None) or 1) != 1:
        raise ImageError(f"{path}: holds {header.NumberOfFrames} frames; export the one to use as its own file")
    stored = _pixels(path)
    try:
        with _quiet():
            array = np.asarray(apply_voi_lut(apply_modality_lut(stored, header), header), np.float32)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise ImageError(
            f"{path}: rescale or window cannot be applied ({error}); correct the tags or export as PNG"
        ) from error
    return array.max() + array.min() - array if photometric == "MONOCHROME1" else array


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom warns about values that break the standard yet read well; what matters is checked here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pydicom\.")
        yield


def _parse(path: Path) -> Dataset:
    with path.open("rb") as file:
        preamble = file.read(4)
    if preamble.startswith(_EXECUTABLE):
        raise ImageError(
            f"{path}: its preamble starts an executable program; do not run it, rewrite the first 128 bytes as zeros"
        )
    try:
        with _quiet():
            header = dcmread(path, stop_before_pixels=True)
            for name in (*_IDENTITY, *_PIXELS, *_NEEDED):
                header.get(name)  # parsed on first access: meet a malformed value here. Deep sequences stay unread
    except Exception as error:  # malformed files raise many types, deep nesting RecursionError
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ImageError(f"{path}: malformed DICOM header ({reason[:120]}); export the file again") from error
    return header


def _check_slice(file: Path, header: Dataset, allowed: tuple[str, ...]) -> None:
    modality = header.get("Modality")
    if modality not in allowed:
        raise ImageError(
            f"{file}: modality {modality!r} in a {' or '.join(allowed)} series; move objects of other kinds away"
        )
    if int(header.get("NumberOfFrames", None) or 1) != 1:
        raise ImageError(
            f"{file}: multi-frame DICOM is not read; convert the series to NIfTI (for example with dcm2niix)"
        )
    needed = _NEEDED if modality == "CT" else _NEEDED[:5]
    missing = [name for name in needed if header.get(name) in (None, "")]
    if missing:
        raise ImageError(
            f"{file}: {', '.join(missing)} missing; without it position or HU is unknown, export the series again"
        )
    header.RescaleSlope = header.get("RescaleSlope", 1)
    header.RescaleIntercept = header.get("RescaleIntercept", 0)
    geometry = [*header.ImagePositionPatient, *header.ImageOrientationPatient, *header.PixelSpacing]
    numbers = np.array([*geometry, header.RescaleSlope, header.RescaleIntercept], float)
    if len(numbers) != 13 or not np.isfinite(numbers).all() or (numbers[9:11] <= 0).any() or numbers[11] == 0:
        raise ImageError(
            f"{file}: position, orientation, spacing or rescale {numbers.tolist()} is unusable; export it again"
        )
    axes = numbers[3:9].reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-3:
        raise ImageError(
            f"{file}: ImageOrientationPatient {axes.ravel().tolist()} is not two unit vectors at right angles; "
            "export it again"
        )
    stored, allocated = header.get("BitsStored", 0), header.get("BitsAllocated", 0)
    if not 1 <= stored <= allocated or header.get("HighBit") != stored - 1:
        raise ImageError(
            f"{file}: BitsStored {stored}, HighBit {header.get('HighBit')}, BitsAllocated {allocated} disagree; "
            "export it again"
        )


def _check_same(folder: Path, headers: list[Dataset]) -> None:
    """One patient, one series, one grid. Ids are counted, not shown: they may name a person."""
    for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns", "PixelSpacing"):
        n = len({str(header.get(name, "")) for header in headers})
        if n > 1:
            raise ImageError(
                f"{folder}: {len(headers)} files have {n} different values of {name}; "
                "put each series into its own folder"
            )
    orientation = np.array([header.ImageOrientationPatient for header in headers], float)
    if np.ptp(orientation, axis=0).max() > 1e-3:
        raise ImageError(
            f"{folder}: slices are oriented differently (a localizer among them?); keep one stack of parallel slices"
        )
    uids = [str(uid) for header in headers if (uid := header.get("SOPInstanceUID"))]
    if len(set(uids)) < len(uids):
        raise ImageError(f"{folder}: {len(uids) - len(set(uids))} files repeat a SOPInstanceUID; remove the copies")


def _slice_step(folder: Path, corner: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Vector from slice to slice, when all gaps are equal and along the normal."""
    steps = np.diff(corner, axis=0)
    along = steps @ normal
    usual = float(np.median(along))
    if along.min() < 1e-3:
        at = float(corner[int(along.argmin())] @ normal)
        raise ImageError(
            f"{folder}: two slices at the same position {at:.2f} mm; remove the copy or separate the two series"
        )
    if np.abs(along - usual).max() > max(0.05 * usual, 0.02):
        worst = int(np.abs(along - usual).argmax())
        at = float(corner[worst] @ normal)
        raise ImageError(
            f"{folder}: gap of {along[worst]:.2f} mm after {at:.2f} mm, elsewhere {usual:.2f}; "
            "a slice is missing, export again"
        )
    tilt = np.rad2deg(np.arctan2(np.linalg.norm(steps - along[:, None] * normal, axis=1), along).max())
    if tilt > 0.5:
        raise ImageError(
            f"{folder}: slices are shifted {tilt:.1f} degrees from the normal (gantry tilt); "
            "resample to an upright grid first"
        )
    return (corner[-1] - corner[0]) / (len(corner) - 1)


def _pixels(path: Path) -> np.ndarray:
    """Stored values ``H W``; compressions that pydicom cannot decode go through ITK."""
    try:
        with _quiet():
            dataset = dcmread(path)
            array = dataset.pixel_array
    except NotImplementedError:
        array = None
    except Exception as error:  # decoders raise many types on damaged data
        if "missing dependencies" not in str(error):
            raise ImageError(
                f"{path}: pixels cannot be decoded ({str(error).splitlines()[0][:120]}); export the file again"
            ) from error
        array = None
    return _itk_pixels(path) if array is None else array


def _itk_pixels(path: Path) -> np.ndarray:
    header = dcmread(path, stop_before_pixels=True)
    try:
        array = np.asarray(read_itk(path))[0]
    except RuntimeError as error:
        raise ImageError(
            f"{path}: pixels cannot be decoded ({str(error).splitlines()[-1]}); decompress the file first"
        ) from error
    # ITK applies the rescale; callers do it themselves.
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    return (array - intercept) / slope
