"""What the sets of this plugin have in common: one image a study, one class, words for its caption."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from medvl_baseline.datasets.image_table import ImageTable
from medvl_core.study import ImageSource
from medvl_evaluation.splits.folds import Folds
from medvl_imaging.readers import FileSource

__all__ = ["classed_table", "existing", "row"]


def row(
    study: str,
    subject: str,
    path: str,
    label: str,
    words: tuple[str, str, str],
    *,
    scan: str | None = None,
    **metadata: str,
) -> dict[str, str]:
    """A row of :func:`classed_table`.

    Args:
        study: Its id.
        subject: The patient.
        path: The file; blank where it is not there.
        label: The class.
        words: Region, modality and condition of the caption; a blank condition means there is none.
        scan: The acquisition; ``None``: the study's own.
        metadata: Further columns.
    """
    region, modality, condition = words
    ids = {"study": study, "subject": subject, "scan": scan or study, "path": path, "label": label}
    return ids | {"region": region, "modality": modality, "condition": condition or "none"} | metadata


def classed_table(
    table: Path,
    rows: Sequence[Mapping[str, str]],
    *,
    folds: Folds,
    kind: Literal["picture", "volume", "scan"] | Callable[[str], ImageSource],
    numbers: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    official: Sequence[str] | None = None,
) -> ImageTable:
    """Studies of ``rows``, their class as one label each.

    Args:
        table: The table or folder, for messages.
        rows: From :func:`row`.
        folds: How to split.
        kind: Of the files; or a function from path to 2D image.
        numbers: Row of each in the table. ``None``: counted from 1.
        classes: Order of the labels. ``None``: by name.
        official: Split of each row, for the mode ``"official"``.

    Raises:
        FileNotFoundError: If there is no row, or no row has a file.
        ValueError: If an id is blank or repeated.
    """
    if not rows:
        raise FileNotFoundError(f"{table}: no image here; give the folder of the set")
    films = pd.DataFrame(list(rows), index=range(1, len(rows) + 1) if numbers is None else list(numbers)).fillna("")
    found = films.pop("label")
    names = sorted(set(found)) if classes is None else list(classes)
    one_hot = pd.Categorical(found, names).codes[:, None] == np.arange(len(names))
    return ImageTable(
        table,
        films,
        pd.DataFrame(one_hot, columns=names, index=films.index),
        folds=folds,
        official=official,
        modality="volume" if kind in ("volume", "scan") else "image",
        source=kind if callable(kind) else partial(_file, kind),
    )


def existing(paths: Iterable[str]) -> Iterator[str]:
    """Each path, or a blank where there is no such file. Every folder is listed once: sets have a million files."""
    listed: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        yield path if name in listed[folder] else ""


def _file(kind: Any, path: str) -> ImageSource:
    return FileSource(Path(path), kind)
