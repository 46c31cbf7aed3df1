"""Public sets of 2D images that come with tables."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medvl_baseline.datasets.image_table import ImageTable, find_table
from medvl_evaluation.splits.folds import Folds, with_folds
from medvl_imaging.tables import need_columns, read_table
from medvl_radclip.captions import modality_name, region_name
from medvl_radclip.classed import classed_table, existing, row

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["build_radimagenet", "build_rsna_pneumonia"]

_FILE = re.compile(r"radiology_ai/(CT|MR|US)/([^/]+)/([^/]+)/([^/]+)\.png")
_REGIONS = {"abd": "Abdomen", "af": "Ankle-Foot"}
_RSNA = {
    "Normal": "normal",
    "No Lung Opacity / Not Normal": "abnormal without lung opacity",
    "Lung Opacity": "lung opacity",
}


@with_folds("official")
def build_radimagenet(
    folder: str | Path,
    *,
    modalities: Sequence[str] = ("CT", "MR"),
    folds: Folds,
) -> ImageTable:
    """RadImageNet: 1.35 million key images; a class is ``"Abdomen CT normal"``: region, modality and finding.

    Reads ``RadiologyAI_{train,val,test}.csv`` and ``radiology_ai/CT/abd/normal/*.png``. File names tell no patients:
    other splits than the set's own may put one patient on both sides.

    Args:
        folder: Holds the tables and ``radiology_ai``.
        modalities: Of ``"CT"``, ``"MR"``, ``"US"``; RadCLIP leaves ultrasound out.
        folds: Five options, see ``medvl_evaluation.splits.folds.with_folds``; the ``"official"`` split is
            the three lists.

    Raises:
        FileNotFoundError: If a table or every image is missing.
        ValueError: If a row breaks a rule. The message starts with table and row.
    """
    folder = Path(folder)
    if not modalities or set(modalities) - {"CT", "MR", "US"}:
        raise ValueError(f"modalities are {tuple(modalities)}; choose from CT, MR, US")
    rows, official, numbers = [], [], []
    for name, list_ in (("train", "train"), ("val", "validation"), ("test", "test")):
        table = find_table(folder, f"RadiologyAI_{name}.csv")
        cells = read_table(table)
        need_columns(table, cells, ("filename", "label"))
        there = existing(f"{folder}/{file}" for file in cells["filename"])
        for (number, file), path in zip(cells["filename"].items(), there, strict=True):
            parts = _FILE.fullmatch(file)
            if parts is None:
                raise ValueError(
                    f"{table}, row {number}: filename is {file!r}; "
                    "it must be radiology_ai/CT/<anatomy>/<class>/<name>.png"
                )
            modality, anatomy, finding, _ = parts.groups()
            if modality in modalities:
                region = _REGIONS.get(anatomy, region_name(anatomy))
                words = (region, modality_name(modality), finding.replace("_", " "))
                rows.append(row(file, file, path, " ".join(words), words, modality_code=modality))
                official.append(list_)
                numbers.append(number)
    return classed_table(
        folder / "RadiologyAI_*.csv", rows, folds=folds, kind="picture", numbers=numbers, official=official
    )


@with_folds()
def build_rsna_pneumonia(
    folder: str | Path,
    *,
    folds: Folds,
) -> ImageTable:
    """RSNA Pneumonia Detection 2018: 26,684 chest radiographs (DICOM) in three classes; boxes are counted, not read.

    Args:
        folder: Holds ``stage_2_detailed_class_info.csv``, ``stage_2_train_labels.csv`` and ``stage_2_train_images``.
        folds: Five options, see ``medvl_evaluation.splits.folds.with_folds``.

    Raises:
        FileNotFoundError: If a table or every image is missing.
        ValueError: If a row breaks a rule, or the two tables disagree. The message starts with table and row.
    """
    folder = Path(folder)
    table, boxes = (folder / f"stage_2_{name}.csv" for name in ("detailed_class_info", "train_labels"))
    cells, targets = read_table(table), read_table(boxes)
    need_columns(table, cells, ("patientId", "class"))
    need_columns(boxes, targets, ("patientId", "Target"))
    classes = _per_patient(table, cells, "class", _RSNA)
    opaque = _per_patient(boxes, targets, "Target", ("0", "1"))
    counts = targets["patientId"].value_counts()
    rows, numbers = [], []
    there = existing(f"{folder}/stage_2_train_images/{patient}.dcm" for patient in classes)
    for (patient, (number, name)), path in zip(classes.items(), there, strict=True):
        if opaque.get(patient, (0, ""))[1] != ("1" if name == "Lung Opacity" else "0"):
            raise ValueError(
                f"{table}, row {number}: class of {patient!r} is {name!r}, its Target in {boxes.name} is "
                f"{opaque.get(patient, (0, 'missing'))[1]!r}; get both tables of one release"
            )
        words = ("Chest", "X-Ray", _RSNA[name])
        n_boxes = str(counts[patient]) if name == "Lung Opacity" else "0"
        rows.append(row(patient, patient, path, name, words, boxes=n_boxes))
        numbers.append(number)
    return classed_table(table, rows, folds=folds, kind="picture", numbers=numbers, classes=list(_RSNA))


def _per_patient(table: Path, cells: DataFrame, column: str, allowed: Collection[str]) -> dict[str, tuple[int, str]]:
    """Patient → its first row and the cell there; a box a row repeats it."""
    found: dict[str, tuple[int, str]] = {}
    for number, patient, cell in zip(cells.index, cells["patientId"], cells[column], strict=True):
        if cell not in allowed:
            raise ValueError(f"{table}, row {number}: {column} is {cell!r}; it must be one of {', '.join(allowed)}")
        first, before = found.setdefault(patient, (number, cell))
        if before != cell:
            raise ValueError(f"{table}, row {number}: {column} is {cell!r}, but {before!r} in row {first}; keep one")
    return found
