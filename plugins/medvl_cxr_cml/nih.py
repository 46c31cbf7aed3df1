"""NIH ChestX-ray14 on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medvl_baseline.datasets.image_table import ImageTable, find_table, keep_views, listed_files
from medvl_core.errors import did_you_mean
from medvl_evaluation.splits.folds import Folds, with_folds
from medvl_imaging.tables import need_columns, read_table

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["NIH_LABELS", "build_nih_chestxray14"]

NIH_LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural Thickening",
    "Hernia",
)
"""The 14 findings in the order of the paper, with a blank in place of the table's underscore."""

_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "View Position")
_METADATA = {"View Position": "view", "Patient Age": "age", "Patient Gender": "sex", "Patient Sex": "sex"}
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}


@with_folds()
def build_nih_chestxray14(
    folder: str | Path,
    *,
    views: Sequence[str] | None = None,
    rare: Sequence[str] = (),
    folds: Folds,
) -> ImageTable:
    """NIH ChestX-ray14: 112,120 frontal radiographs of 30,805 patients with 14 findings, mined from reports.

    Reads ``Data_Entry_2017*.csv`` (or ``.csv.gz``) and the images of ``images``, ``images_001/images`` to
    ``images_012/images``. Labels are found by file name, so any part of the images will do. "No Finding" is a row
    without positive label.

    Args:
        folder: Folder with the table.
        views: Keep ``"PA"`` or ``"AP"`` only.
        rare: Labels to report as a group of their own.
        folds: Five options, see ``medvl_evaluation.splits.folds.with_folds``; ``split="official"`` reads
            ``train_val_list.txt`` and ``test_list.txt``.

    Raises:
        FileNotFoundError: If the table, the lists or every image is missing.
        ValueError: If a row breaks a rule, or an image is in no row. The message starts with the file.

    References:
        Wang et al., ChestX-ray8, arXiv:1705.02315.
    """
    folder = Path(folder)
    table = find_table(folder, "Data_Entry_2017*.csv")
    rows = read_table(table)
    need_columns(table, rows, _COLUMNS)
    files = listed_files(
        inner if (inner := path / "images").is_dir() else path
        for path in sorted(folder.glob("images*"))
        if path.is_dir()
    )
    if unknown := sorted(set(files) - set(rows["Image Index"])):
        raise ValueError(
            f"{files[unknown[0]]}: is in no row of {table.name}, nor are {len(unknown) - 1} more; remove them"
        )
    rows = keep_views(table, rows, "View Position", views)
    films = rows.rename(columns=_METADATA)[sorted({name for old, name in _METADATA.items() if old in rows})]
    films["study"] = films["scan"] = rows["Image Index"].str.removesuffix(".png")
    films["subject"] = rows["Patient ID"]
    films["path"] = [files.get(name, "") for name in rows["Image Index"]]
    official = _official(folder, table, rows) if folds.split == "official" else None
    return ImageTable(table, films, _labels(table, rows), folds=folds, rare=rare, official=official)


def _labels(table: Path, rows: DataFrame) -> DataFrame:
    import pandas as pd

    matrix = np.zeros((len(rows), len(NIH_LABELS)), np.float32)
    columns = {name.replace(" ", "_"): i for i, name in enumerate(NIH_LABELS)}
    for i, (number, cell) in enumerate(rows["Finding Labels"].items()):
        if cell == "No Finding":
            continue
        for name in cell.split("|"):
            if name not in columns:
                raise ValueError(
                    f"{table}, row {number}: Finding Labels is {cell!r}; {name!r} is none of the 14"
                    f"{did_you_mean(name, columns)}"
                )
            matrix[i, columns[name]] = 1
    return pd.DataFrame(matrix, columns=list(NIH_LABELS), index=rows.index)


def _official(folder: Path, table: Path, rows: DataFrame) -> list[str]:
    place: dict[str, str] = {}
    for split, name in _LISTS.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such list; copy it there, or split='patients'")
        for image in path.read_text(encoding="utf-8").split():
            if place.setdefault(image, split) != split:
                raise ValueError(f"{path}: {image} is in {_LISTS['train']} too; get the lists again")
    for number, image in rows["Image Index"].items():
        if image not in place:
            raise ValueError(f"{table}, row {number}: {image} is in neither official list; get the lists again")
    return [place[image] for image in rows["Image Index"]]
