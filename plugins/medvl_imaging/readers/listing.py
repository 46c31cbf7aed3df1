"""Which files are images: the one place that knows their endings, and what their first bytes say.

Readers, inference and data sets ask here, so that a search finds what the readers take: DICOM files have any name.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

__all__ = [
    "Format",
    "bare_name",
    "content_format",
    "format_of",
    "image_files",
    "named_format",
    "scan_paths",
    "series_folders",
    "volume_paths",
]

Format = Literal["picture", "nifti", "nrrd", "dicom", "directory"]
"""``"directory"`` is the index of a DICOM medium (DICOMDIR, DIRFILE), which has no pixels."""

logger = logging.getLogger(__name__)

_ENDINGS: dict[str, Format] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg"), "picture"),
    **dict.fromkeys((".nii.gz", ".nii"), "nifti"),
    ".nrrd": "nrrd",
    **dict.fromkeys((".dcm", ".dicom", ".ima"), "dicom"),
}
_INDEX = b"1.2.840.10008.1.3.10"  # Media Storage Directory Storage
_MARKS: tuple[tuple[int, bytes, Format], ...] = (
    (128, b"DICM", "dicom"),  # first: anything may stand in the preamble
    (0, b"\x89PNG\r\n", "picture"),
    (0, b"\xff\xd8\xff", "picture"),
    (0, b"NRRD000", "nrrd"),
    (344, b"n+1\0", "nifti"),
    (4, b"n+2\0", "nifti"),
)


def named_format(name: str) -> Format | None:
    """What the ending of a file's name says, or ``None``."""
    return "directory" if name.lower() == "dicomdir" else _ENDINGS.get(_ending(name.lower()))


def bare_name(path: str | Path) -> str:
    """The file's name without the ending of an image: ``ct.nii.gz`` → ``ct``."""
    name = Path(path).name
    return name[: -len(_ending(name))] if named_format(name) in ("picture", "nifti", "nrrd", "dicom") else name


def content_format(path: Path) -> Format | None:
    """What a file's first bytes say, unpacked where they are gzipped; ``None`` for other files.

    Raises:
        OSError: If it cannot be read.
    """
    if not path.is_file():  # a pipe would wait for a writer
        return None
    with path.open("rb") as file:
        head = file.read(1024)
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 1024)
        except zlib.error:
            return None
    found = next((kind for start, mark, kind in _MARKS if head[start : start + len(mark)] == mark), None)
    return "directory" if found == "dicom" and _INDEX in head else found


def format_of(path: Path) -> Format | None:
    """What a file's first bytes say; its name where they say nothing, as those of a damaged file."""
    return content_format(path) or named_format(path.name)


def image_files(folder: str | Path) -> dict[Path, Format]:
    """The images at any depth, sorted. An ending is believed; a file without a known one is looked into.

    Hidden files and folders, indexes of DICOM media, empty folders and unreadable files are passed over and counted in
    the log; other files are ignored.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; check the path")
    passed: Counter[str] = Counter()
    found: dict[Path, Format] = {}
    for path in sorted(_visible(folder, passed)):
        try:
            kind = named_format(path.name) or content_format(path)
        except OSError:
            passed["unreadable files"] += 1
            continue
        if kind == "directory":
            passed["indexes of a DICOM medium"] += 1
        elif kind is not None:
            found[path] = kind
    if said := [f"{what}: {n}" for what, n in passed.items() if n]:
        logger.info("%s: passed over %s", folder, ", ".join(said))
    return found


def series_folders(files: Mapping[Path, Format]) -> dict[Path, list[Path]]:
    """Folders of DICOM files among those of `image_files`, sorted, with these files."""
    found: dict[Path, list[Path]] = {}
    for path, kind in files.items():
        if kind == "dicom":
            found.setdefault(path.parent, []).append(path)
    return found


def slice_folders(files: Mapping[Path, Format]) -> dict[Path, list[Path]]:
    """Folders with more than one slice of CT, MR or PET, with these files; their headers are read."""
    from medvl_imaging.readers.dicom import SCANS, modality_of  # pydicom takes a moment

    own = {
        where: [path for path in paths if modality_of(path) in SCANS] for where, paths in series_folders(files).items()
    }
    return {where: paths for where, paths in own.items() if len(paths) > 1}


def scan_paths(files: Mapping[Path, Format]) -> list[Path]:
    """`volume_paths` without the folders that hold nothing but radiographs, which are counted in the log."""
    from medvl_imaging.readers.dicom import RADIOGRAPHY, modality_of

    folders = series_folders(files)
    films = {where for where, own in folders.items() if all(modality_of(path) in RADIOGRAPHY for path in own)}
    if films:
        logger.info("folders of radiographs, passed over as they are no scans: %d", len(films))
    return [path for path in volume_paths(files) if path not in films]


def volume_paths(files: Mapping[Path, Format]) -> list[Path]:
    """What may be a volume among `image_files`: NIfTI and NRRD files and folders of DICOM files, sorted."""
    return sorted([*(path for path, kind in files.items() if kind in ("nifti", "nrrd")), *series_folders(files)])


def _visible(folder: str | Path, passed: Counter[str]) -> Iterator[Path]:
    for where, folders, names in os.walk(folder, followlinks=True):
        passed["empty folders"] += not folders and not names
        for hidden in [name for name in (*folders, *names) if name[0] == "."]:
            passed["hidden files and folders"] += 1
            (folders if hidden in folders else names).remove(hidden)
        yield from (Path(where, name) for name in names)


def _ending(name: str) -> str:
    """The last part of a name, ``.nii.gz`` whole."""
    return name[-7:] if name.lower().endswith(".nii.gz") else os.path.splitext(name)[1]
