"""Sets whose classes stand in the names of folders and files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal

from medvl_baseline.datasets.image_table import ImageTable
from medvl_core.errors import did_you_mean
from medvl_evaluation.splits.folds import Folds, with_folds
from medvl_imaging.readers.listing import image_files, volume_paths
from medvl_radclip.captions import parse_name
from medvl_radclip.classed import classed_table, row

__all__ = ["build_class_folders", "build_class_volumes", "build_crystal_clean"]

Words = str | Mapping[str, str]

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_CRYSTAL = {
    "N": ("Normal", "normal"),
    "G": ("Glioma", "glioma tumor"),
    "M": ("Meningioma", "meningioma tumor"),
    "P": ("Pituitary", "pituitary tumor"),
}


def _pictures(folder: Path) -> list[Path]:
    return [path for path, kind in image_files(folder).items() if kind in ("picture", "dicom")]


def _volumes(folder: Path) -> list[Path]:
    return volume_paths(image_files(folder))


@with_folds()
def _class_files(
    listed: Callable[[Path], Sequence[Path]],
    kind: Literal["picture", "scan"],
    folder: str | Path,
    *,
    label: str | None = None,
    subject: str | None = None,
    captions: bool = False,
    region: Words = "",
    modality: Words = "",
    condition: Words | None = None,
    files: str = "*",
    folds: Folds,
) -> ImageTable:
    r"""Files at any depth below ``folder`` whose class stands in their path; other files are ignored.

    Args:
        listed: Folder → its files, or the folders of its DICOM series, which are named by the folder.
        kind: What they are.
        folder: The set.
        label: Regular expression on a file's path below ``folder``; its first group that matched is the class, e.g.
            ``r"_(bacteria|virus)_|(NORMAL)"``. ``None``: the class is the name of the folder that holds the file.
        subject: Likewise for the patient, e.g. ``r"(person\d+)"``; a file without a match is a patient of its own.
        captions: Classes are whole captions, ``"Abdomen CT prostate lesion"``, as the folders that RadCLIP was trained
            on; region, modality and condition are taken from them.
        region: Region, for captions; or class → region.
        modality: Modality, or class → modality.
        condition: Class → words of the caption, blank for none. ``None``: the class, underscores as blanks.
        files: Only paths of this pattern (``fnmatch``), e.g. ``"*_image.nii.gz"``.
        folds: Five options, see ``medvl_evaluation.splits.folds.with_folds``; ``split="official"`` where the
            path has a folder ``train``, ``val`` or ``test`` (also ``training``, ``validation``, ...).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a path does not match ``label``, or an option names no class. The message starts with the path.
    """
    folder = Path(folder)
    paths = {path.relative_to(folder).as_posix(): path for path in listed(folder)}
    paths = {name: path for name, path in paths.items() if fnmatchcase(name, files)}
    found = {name: _class(folder / name, name, label) for name in paths}
    if found:
        _check_words(folder, (region, modality, condition), set(found.values()))
    rows = []
    for name, path in paths.items():
        class_ = found[name]
        spoken = _parsed(path, class_) if captions else _words(class_, region, modality, condition)
        owner = (_group(subject, name) if subject else None) or name
        rows.append(row(name, owner, str(path), class_, spoken))
    official = [_stated(path, name) for name, path in paths.items()] if folds.split == "official" else None
    return classed_table(folder, rows, folds=folds, kind=kind, official=official)


build_class_folders = partial(_class_files, _pictures, "picture")
"""Images (PNG, JPEG, DICOM) at any depth, see ``_class_files``."""

build_class_volumes = partial(_class_files, _volumes, "scan")
"""Volumes (NIfTI, NRRD, folders of one DICOM series) at any depth: CT, MR or PET in their own units."""


@with_folds()
def build_crystal_clean(
    folder: str | Path,
    *,
    augmented: bool = True,
    folds: Folds,
) -> ImageTable:
    """Crystal Clean: brain MR slices, normal or with one of three tumours.

    Copies with a suffix (``N_438_VF_.jpg``: flipped, noisy, rotated ...) share subject and scan with the image of that
    number, so they never meet it across splits. There are no patient ids: two slices of one patient may.

    Args:
        folder: The set, or its ``Data`` folder.
        augmented: Keep the copies.
        folds: Five options, see ``medvl_evaluation.splits.folds.with_folds``.

    Raises:
        FileNotFoundError: If there is no image.
        ValueError: If a file is not named as the set names them.
    """
    folder = Path(folder)
    rows = []
    for path in _pictures(folder):
        parts = re.fullmatch(r"([NGMP])_(\d+)(?:_([A-Z_]+?)_?)?", path.stem)
        if parts is None:
            raise ValueError(f"{path}: not named like N_1.jpg or G_12_VF_.jpg; remove it or use radclip/class_folders")
        letter, number, copy = parts.groups()
        if copy and not augmented:
            continue
        original = f"{letter}_{number}"
        name, condition = _CRYSTAL[letter]
        words = ("Brain", "MRI", condition)
        rows.append(row(path.stem, original, str(path), name, words, scan=original, copy=copy or ""))
    classes = [name for name, _ in _CRYSTAL.values()]
    return classed_table(folder, rows, folds=folds, kind="picture", classes=classes)


def _class(path: Path, name: str, label: str | None) -> str:
    if label is None:
        return path.parent.name
    found = _group(label, name)
    if found is None:
        raise ValueError(f"{path}: label {label!r} matches nothing in it; correct it, or leave the file out with files")
    return found


def _group(pattern: str, name: str) -> str | None:
    match = re.search(pattern, name)
    return next((group for group in match.groups() if group), None) if match else None


def _check_words(folder: Path, words: Sequence[Words | None], classes: set[str]) -> None:
    for option, given in zip(("region", "modality", "condition"), words, strict=True):
        for name in given if isinstance(given, Mapping) else ():
            if name not in classes:
                raise ValueError(f"{folder}: {option} names {name!r}, which is no class{did_you_mean(name, classes)}")


def _words(class_: str, region: Words, modality: Words, condition: Words | None) -> tuple[str, str, str]:
    if condition is None:
        condition = class_.replace("_", " ")
    one, two, three = (
        words if isinstance(words, str) else words.get(class_, "") for words in (region, modality, condition)
    )
    return one, two, three


def _parsed(path: Path, class_: str) -> tuple[str, str, str]:
    try:
        return parse_name(class_)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _stated(path: Path, name: str) -> str:
    for part in reversed(name.lower().split("/")[:-1]):
        if part in _SPLITS:
            return _SPLITS[part]
    raise ValueError(f"{path}: no folder train, val or test in its path; use split='patients'")
