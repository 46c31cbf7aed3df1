"""PadChest on disk."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from medvl_baseline.datasets.image_table import ImageTable, find_table, keep_views, listed_files
from medvl_core.errors import did_you_mean
from medvl_evaluation.splits.folds import Folds, with_folds
from medvl_imaging.tables import need_columns, read_table

__all__ = ["build_padchest"]

_COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "MethodLabel", "Labels")
_METADATA = {"Projection": "view", "PatientSex_DICOM": "sex", "PatientBirth": "birth_year"}
_UNUSABLE = {"exclude", "suboptimal study"}
_NO_FINDING = {"unchanged"}  # says how two studies compare


@with_folds()
def build_padchest(
    folder: str | Path,
    *,
    views: Sequence[str] | None = ("PA", "AP", "AP_horizontal"),
    label_names: Sequence[str] = (),
    min_images: int = 50,
    labelled_by: Literal["any", "physician"] = "any",
    rare: Sequence[str] = (),
    folds: Folds,
) -> ImageTable:
    """PadChest: 160,861 radiographs of 67,625 patients, findings in English from Spanish reports.

    Reads ``PADCHEST_chest_x_ray_images_labels_160K*.csv`` (or ``.csv.gz``) and the PNGs in ``folder`` itself, in
    ``images`` or in the folders ``0`` to ``54``. Rows without labels and those that say ``exclude`` or ``suboptimal
    study`` are left out. The images have 16 bits: give a CLIP encoder ``window=None``.

    Args:
        folder: Folder with the table.
        views: ``Projection`` to keep; ``None`` keeps all.
        label_names: Labels, in order. Empty takes those of at least ``min_images`` of the rows kept, by name.
        min_images: See ``label_names``.
        labelled_by: ``"physician"`` keeps the rows that were read by one; the others were labelled by a network.
        rare: Labels to report as a group of their own.
        folds: Five options, see ``medvl_evaluation.splits.folds.with_folds``; the set has no ``"official"`` split.

    Raises:
        FileNotFoundError: If the table or every image is missing.
        ValueError: If a row breaks a rule or a label does not occur. The message starts with the table.

    References:
        Bustos et al., PadChest, arXiv:1901.07441.
    """
    if labelled_by not in ("any", "physician"):
        raise ValueError(f"labelled_by is {labelled_by!r}; choose 'any' or 'physician'")
    folder = Path(folder)
    table = find_table(folder, "PADCHEST_chest_x_ray_images_labels_160K*.csv")
    rows = read_table(table)
    need_columns(table, rows, _COLUMNS)
    rows = keep_views(table, rows, "Projection", views)
    if labelled_by == "physician":
        rows = rows[rows["MethodLabel"].eq("Physician")]
    found = [_findings(table, number, cell) for number, cell in rows["Labels"].items()]
    usable = np.array([bool(names) and not names & _UNUSABLE for names in found], dtype=bool)
    rows, found = rows[usable], [names - _NO_FINDING for names, good in zip(found, usable, strict=True) if good]
    columns = _label_names(table, found, label_names, min_images)
    labels = pd.DataFrame(
        [[name in names for name in columns] for names in found], columns=columns, index=rows.index, dtype="float32"
    )
    folders = [folder, folder / "images", *(folder / number for number in sorted(set(rows["ImageDir"])))]
    files = listed_files(path for path in folders if path.is_dir())
    films = rows.rename(columns=_METADATA)[[name for old, name in _METADATA.items() if old in rows]]
    films["study"] = rows["ImageID"].str.removesuffix(".png")
    films["subject"], films["scan"] = rows["PatientID"], rows["StudyID"]
    films["path"] = [files.get(name, "") for name in rows["ImageID"]]
    return ImageTable(table, films, labels, folds=folds, rare=rare)


def _findings(table: Path, number: int, cell: str) -> set[str]:
    """Names in a cell such as ``"['normal', ' pacemaker']"``."""
    if cell in ("", "nan"):
        return set()
    try:
        names = ast.literal_eval(cell)
    except (SyntaxError, ValueError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{table}, row {number}: Labels is {cell!r}; it must be a list such as ['normal']")
    return {name.strip() for name in names} - {""}


def _label_names(table: Path, found: Sequence[set[str]], given: Sequence[str], min_images: int) -> list[str]:
    counts = Counter(name for names in found for name in names)
    for name in given:
        if name not in counts:
            raise ValueError(f"{table}: no image kept has the label {name!r}{did_you_mean(name, counts)}")
    names = list(given) or sorted(name for name, count in counts.items() if count >= min_images)
    if not names:
        raise ValueError(f"{table}: no label has {min_images} images; lower min_images")
    return names
