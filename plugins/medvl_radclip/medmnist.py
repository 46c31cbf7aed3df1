"""MedMNIST: images and labels of a whole set in one npz file."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from medvl_baseline.datasets.image_table import ImageTable
from medvl_core.study import Image, ImageSource
from medvl_evaluation.splits.folds import Folds, with_folds

__all__ = ["ArraySource", "build_medmnist"]

_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class ArraySource:
    """One image of an array of a npz file, which is kept in memory once read.

    Args:
        file: The npz file.
        array: Name of the array.
        index: Row of the image.
    """

    file: Path
    array: str
    index: int

    def load(self) -> Image:
        """``H W``, ``H W 3`` or ``X Y Z`` float32; a volume's voxels are taken for cubes of 1 mm in RAS."""
        pixels = _arrays(self.file, self.file.stat().st_mtime_ns)[self.array][self.index].astype(np.float32)
        return Image(pixels, np.eye(4) if pixels.ndim == 3 and pixels.shape[-1] != 3 else None)

    def fingerprint(self) -> str:
        """SHA-256 of its pixels."""
        pixels = _arrays(self.file, self.file.stat().st_mtime_ns)[self.array][self.index]
        return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


@with_folds("official")
def build_medmnist(
    file: str | Path,
    *,
    classes: Sequence[str],
    region: str = "",
    modality: str = "",
    folds: Folds,
) -> ImageTable:
    """A MedMNIST file: ``{train,val,test}_images`` and ``_labels``. There are no patient ids.

    Args:
        file: E.g. ``pneumoniamnist_224.npz``; 3D files give volumes.
        classes: Name of each class number, in order; or of each label column where images have several.
        region: For captions.
        modality: For captions.
        folds: Five options, see ``medvl_evaluation.splits.folds.with_folds``; the ``"official"`` split is
            the file's own three parts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it lacks an array, or labels and classes do not fit. The message starts with the file.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; give a MedMNIST npz")
    arrays = _arrays(file, file.stat().st_mtime_ns)
    rows, labels, official = [], [], []
    for part, list_ in _SPLITS.items():
        images, numbers = _part(file, arrays, part)
        labels.append(_one_hot(file, part, numbers, classes))
        names = [f"{part}_images/{i}" for i in range(len(images))]
        rows += [{"study": name, "subject": name, "scan": name, "path": name} for name in names]
        official += [list_] * len(images)
    films = pd.DataFrame(rows, index=range(1, len(rows) + 1)).assign(region=region, modality=modality)
    return ImageTable(
        file,
        films,
        pd.DataFrame(np.concatenate(labels), columns=list(classes), index=films.index),
        folds=folds,
        official=official,
        modality="volume" if arrays["train_images"].ndim == 4 and arrays["train_images"].shape[-1] != 3 else "image",
        source=lambda path: _source(file, path),
    )


@lru_cache(maxsize=2)
def _arrays(file: Path, modified_ns: int) -> Mapping[str, np.ndarray]:
    try:
        with file.open("rb") as opened, np.load(opened) as content:
            return dict(content)
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file}: no npz file of arrays ({error}); fetch it again") from error


def _part(file: Path, arrays: Mapping[str, np.ndarray], part: str) -> tuple[np.ndarray, np.ndarray]:
    for name in (f"{part}_images", f"{part}_labels"):
        if name not in arrays:
            raise ValueError(f"{file}: no array {name} among {', '.join(arrays)}; is it a MedMNIST file?")
    images, numbers = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    if images.ndim not in (3, 4) or numbers.ndim != 2 or len(images) != len(numbers):
        raise ValueError(
            f"{file}: {part}_images {images.shape} and {part}_labels {numbers.shape} do not belong together; "
            "labels have one row per image"
        )
    return images, numbers


def _one_hot(file: Path, part: str, numbers: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    count = len(classes)
    if numbers.shape[1] > 1:
        good = numbers.shape[1] == count and np.isin(numbers, (0, 1)).all()
        found = numbers
    else:
        good = bool(((numbers >= 0) & (numbers < count)).all())
        found = numbers == np.arange(count)
    if not good:
        raise ValueError(
            f"{file}: {part}_labels {numbers.shape} go from {numbers.min()} to {numbers.max()}; "
            f"{count} classes are named, name every class or label column"
        )
    return found.astype(bool)


def _source(file: Path, path: str) -> ImageSource:
    array, index = path.split("/")
    return ArraySource(file, array, int(index))
