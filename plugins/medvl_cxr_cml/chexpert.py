"""CheXpert on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from medvl_baseline.datasets.image_table import ImageTable, check_ids, find_table, keep_views, label_column
from medvl_core.engine.loading import rng_for
from medvl_core.errors import did_you_mean
from medvl_evaluation.splits.folds import Folds, with_folds
from medvl_imaging.tables import need_columns, read_table

__all__ = ["CHEXPERT_LABELS", "build_chexpert"]

Policy = Literal["unknown", "zero", "one"]
_POLICIES: Mapping[str, float] = {"unknown": np.nan, "zero": 0.0, "one": 1.0}
_VALUES = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0}
_UNCERTAIN = ("-1", "-1.0")

CHEXPERT_LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_METADATA = {"Sex": "sex", "Age": "age", "Frontal/Lateral": "view", "AP/PA": "projection"}


@with_folds()
def build_chexpert(
    folder: str | Path,
    *,
    views: Sequence[str] | None = ("Frontal",),
    uncertain: Policy | Mapping[str, Policy] = "unknown",
    blank: Policy = "zero",
    exactly_one_of: Sequence[str] = (),
    per_label: int | None = None,
    rare: Sequence[str] = (),
    folds: Folds,
) -> ImageTable:
    """CheXpert: 224,316 radiographs of 65,240 patients, 14 labels that may be uncertain.

    ``Path`` starts with the name of the release (``CheXpert-v1.0-small/train/...``), which is stripped: ``folder`` is
    that release under any name, with ``train.csv``, ``valid.csv``, ``train`` and ``valid`` inside.

    Args:
        folder: The release.
        views: ``Frontal/Lateral`` to keep; ``None`` keeps both.
        uncertain: What -1 becomes: ``"unknown"``, ``"zero"`` or ``"one"`` (U-Ignore, U-Zeros, U-Ones), for all labels
            or label by label; labels not named are ``"unknown"``.
        blank: What a blank becomes: the report does not mention the label.
        exactly_one_of: Keep images with exactly one of these labels positive, and only these labels; in them uncertain
            and blank count as 0.
        per_label: With ``exactly_one_of``: draw this many images of each label.
        rare: Labels to report as a group of their own.
        folds: Five options, see ``medvl_evaluation.splits.folds.with_folds``; ``split="patients"`` takes
            ``train.csv``, ``"official"`` tests on ``valid.csv``. ``seed`` draws ``per_label`` too.

    Raises:
        FileNotFoundError: If a table or every image is missing.
        ValueError: If a row breaks a rule or there are too few images of a label. The message starts with the table.

    Note:
        RadCLIP's five-class set is ``exactly_one_of`` Pneumothorax, Pleural Effusion, Edema, Atelectasis and Lung
        Lesion with 1000 ``per_label``. The paper does not say how its 5,000 images were chosen: this is our reading.

    References:
        Irvin et al., CheXpert, arXiv:1901.07031.
    """
    folder = Path(folder)
    read = _reader(uncertain, blank, exactly_one_of, per_label)
    names = list(exactly_one_of or CHEXPERT_LABELS)
    parts = [_part(folder, "train", views, names, read)]
    if folds.split == "official":
        parts.append(_part(folder, "valid", views, names, read))
    table = parts[0][0]
    films, labels = (pd.concat([part[k] for part in parts]) for k in (1, 2))
    official = np.repeat(["train", "test"][: len(parts)], [len(part[1]) for part in parts])
    if exactly_one_of:
        kept = (labels.sum(axis=1) == 1).to_numpy() & films["path"].ne("").to_numpy()
        films, labels, official = films[kept], labels[kept], official[kept]
        if per_label is not None:
            rows = _drawn(table, labels, per_label, folds.seed)
            films, labels, official = films.iloc[rows], labels.iloc[rows], official[rows]
    return ImageTable(table, films, labels, folds=folds, rare=rare, official=official.tolist())


def _part(
    folder: Path,
    name: str,
    views: Sequence[str] | None,
    labels: Sequence[str],
    read: Callable[[str, str, str], float],
) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    table = find_table(folder, f"{name}.csv")
    rows = read_table(table)
    need_columns(table, rows, ("Path", *_METADATA, *CHEXPERT_LABELS))
    rows = keep_views(table, rows, "Frontal/Lateral", views)
    inner = rows["Path"].str.extract(r"^(?:.*/)?((?:train|valid)/(patient\d+)/study\d+)/([^/]+)\.jpg$")
    if (odd := inner[0].isna()).any():
        row = rows.index[odd.to_numpy().argmax()]
        raise ValueError(
            f"{table}, row {row}: Path is {rows['Path'][row]!r}; it must end in train/patientN/studyN/view.jpg"
        )
    study = inner[0] + "/" + inner[2]
    films = rows[list(_METADATA)].rename(columns=_METADATA)
    films["study"], films["subject"], films["scan"] = study, inner[1], inner[0]
    films["path"] = [path if os.path.exists(path := f"{folder}/{name}.jpg") else "" for name in study]
    check_ids(table, films)
    columns = {label: label_column(table, rows, label, read) for label in labels}
    return table, films, pd.DataFrame(columns, index=rows.index)


def _reader(
    uncertain: Policy | Mapping[str, Policy], blank: Policy, exactly_one_of: Sequence[str], per_label: int | None
) -> Callable[[str, str, str], float]:
    chosen = dict.fromkeys(CHEXPERT_LABELS, uncertain) if isinstance(uncertain, str) else dict(uncertain)
    for label in (*chosen, *exactly_one_of):
        if label not in CHEXPERT_LABELS:
            raise ValueError(f"CheXpert has no label {label!r}{did_you_mean(label, CHEXPERT_LABELS)}")
    if unknown := sorted({blank, *chosen.values()} - set(_POLICIES)):
        raise ValueError(f"CheXpert policy is {', '.join(unknown)}; choose from {', '.join(_POLICIES)}")
    if per_label is not None and not exactly_one_of:
        raise ValueError(f"per_label is {per_label} without exactly_one_of; name the labels to draw from")
    if exactly_one_of:
        chosen, blank = dict.fromkeys(exactly_one_of, "zero"), "zero"

    def read(where: str, name: str, cell: str) -> float:
        if cell in _VALUES:
            return _VALUES[cell]
        if cell in _UNCERTAIN:
            return _POLICIES[chosen.get(name, "unknown")]
        if cell == "":
            return _POLICIES[blank]
        raise ValueError(f"{where}: {name} is {cell!r}; CheXpert's labels are 1, 0, -1 or blank")

    return read


def _drawn(table: Path, labels: pd.DataFrame, per_label: int, seed: int) -> np.ndarray:
    """Rows of a draw without replacement, ascending."""
    rows = []
    for name in labels:
        there = np.flatnonzero(labels[name] == 1)
        if len(there) < per_label:
            raise ValueError(f"{table}: {len(there)} images have {name} alone; lower per_label from {per_label}")
        rows.append(rng_for(seed, "per_label", name).choice(there, per_label, replace=False))
    return np.sort(np.concatenate(rows))
