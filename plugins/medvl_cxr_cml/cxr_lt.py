"""CXR-LT 2024 labels on MIMIC-CXR-JPG images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medvl_baseline.datasets.image_table import ImageTable, keep_views, label_column
from medvl_evaluation.splits.folds import Folds, with_folds
from medvl_imaging.tables import need_columns, read_label, read_table

__all__ = ["CXR_LT_LABELS", "CXR_LT_RARE", "build_cxr_lt"]

CXR_LT_LABELS = (
    "Adenopathy",
    "Atelectasis",
    "Azygos Lobe",
    "Calcification of the Aorta",
    "Cardiomegaly",
    "Clavicle Fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged Cardiomediastinum",
    "Fibrosis",
    "Fissure",
    "Fracture",
    "Granuloma",
    "Hernia",
    "Hydropneumothorax",
    "Infarction",
    "Infiltration",
    "Kyphosis",
    "Lobar Atelectasis",
    "Lung Lesion",
    "Lung Opacity",
    "Mass",
    "Nodule",
    "Normal",
    "Pleural Effusion",
    "Pleural Other",
    "Pleural Thickening",
    "Pneumomediastinum",
    "Pneumonia",
    "Pneumoperitoneum",
    "Pneumothorax",
    "Pulmonary Embolism",
    "Pulmonary Hypertension",
    "Rib Fracture",
    "Round(ed) Atelectasis",
    "Subcutaneous Emphysema",
    "Support Devices",
    "Tortuous Aorta",
    "Tuberculosis",
)
"""The 40 labels of task 1, as the table spells them."""

CXR_LT_RARE = (
    "Azygos Lobe",
    "Clavicle Fracture",
    "Fibrosis",
    "Hydropneumothorax",
    "Infarction",
    "Kyphosis",
    "Lobar Atelectasis",
    "Pleural Other",
    "Pneumomediastinum",
    "Pneumoperitoneum",
    "Pulmonary Hypertension",
    "Round(ed) Atelectasis",
)
"""The 12 rare labels of CXR-CML, by name: counts of a part of the data would give other ones."""

_SPELLINGS = {"Rounded Atelectasis": "Round(ed) Atelectasis"}
_COLUMNS = ("dicom_id", "subject_id", "study_id", "ViewPosition", "fpath")


@with_folds()
def build_cxr_lt(
    table: str | Path,
    root: str | Path,
    *,
    views: Sequence[str] | None = ("AP", "PA"),
    rare: Sequence[str] = CXR_LT_RARE,
    folds: Folds,
) -> ImageTable:
    """CXR-LT 2024: 40 labels of MIMIC-CXR-JPG radiographs, 28 base and 12 rare, in ``label_groups``.

    Args:
        table: ``train_labeled.csv`` of CXR-LT 2024 (or ``.csv.gz``).
        root: The MIMIC-CXR-JPG folder, which holds ``files/p10/...``.
        views: ``ViewPosition`` to keep. A missing view is not taken for a frontal one. ``None`` keeps all.
        rare: Labels of the group ``"rare"``.
        folds: Five options, see ``medvl_evaluation.splits.folds.with_folds``; the set has no ``"official"`` split.

    Raises:
        FileNotFoundError: If the table or every image is missing.
        ValueError: If a row breaks a rule. The message starts with the table and names the row.

    References:
        Holste et al., CXR-LT 2024, arXiv:2506.07984. Johnson et al., MIMIC-CXR-JPG, arXiv:1901.07042.
    """
    table, root = Path(table), Path(root)
    rows = read_table(table).rename(columns=_SPELLINGS)
    need_columns(table, rows, (*_COLUMNS, *CXR_LT_LABELS))
    rows = keep_views(table, rows, "ViewPosition", views)
    labels = pd.DataFrame(
        {name: label_column(table, rows, name, read_label) for name in CXR_LT_LABELS}, index=rows.index
    )
    films = pd.DataFrame(
        {
            "study": rows["dicom_id"],
            "subject": rows["subject_id"],
            "scan": "s" + rows["study_id"].str.removeprefix("s"),  # tables of MIMIC-CXR-JPG write it without
            "path": [path if os.path.exists(path := f"{root}/{name}") else "" for name in rows["fpath"]],
            "view": rows["ViewPosition"],
        }
    )
    return ImageTable(table, films, labels, folds=folds, rare=rare)
