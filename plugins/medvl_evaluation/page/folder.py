"""An evaluation folder, read whole: everything a report may say comes from these files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvl_evaluation.page.cases import Cases, EvaluationFilesError, read_cases, read_pictures
from medvl_evaluation.predictions import Predictions, read_predictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CASES", "PICTURES", "PROVENANCE", "VALIDATION", "EvaluationFolder", "read_folder"]

CASES, PICTURES, PROVENANCE = "cases.npz", "pictures.npz", "provenance.json"
VALIDATION = "validation_"
"""Prefix of the predictions on the validation studies, from which operating points are chosen."""

_PREDICTIONS = "_predictions"
_NAMES = ("class", "decided", "group", "wording", "study_id", "subject_id")
"""Columns of tables that are names, whatever they look like."""


@dataclass(frozen=True, kw_only=True)
class EvaluationFolder:
    """What an evaluation wrote.

    Args:
        path: The folder.
        metrics: ``metrics.json``.
        provenance: ``provenance.json``: ``"bundle"`` and ``"manifest"``; empty when it was not written.
        tables: File stem → table, without the predictions.
        predictions: Evaluator → scores of the test studies.
        validation: Likewise of the validation studies.
        cases: Embeddings of the test studies, or ``None``.
        pictures: Study id → small grey picture.
    """

    path: Path
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    validation: Mapping[str, Predictions] = field(default_factory=dict)
    cases: Cases | None = None
    pictures: Mapping[str, Any] = field(default_factory=dict)


def read_folder(path: str | Path) -> EvaluationFolder:
    """Read an evaluation folder.

    Raises:
        FileNotFoundError: If there is no ``metrics.json``, or a table that it lists is gone.
        EvaluationFilesError: If a file is damaged. The message starts with its path.
    """
    path = Path(path)
    if not (path / "metrics.json").is_file():
        raise FileNotFoundError(f"{path}: holds no metrics.json; give the folder of an evaluation (eval/)")
    metrics = _read_metrics(path / "metrics.json")
    stems = [name.removesuffix(".csv") for name in metrics.get("tables", ())]
    predictions = {stem: _predictions(path / f"{stem}.csv") for stem in stems if stem.endswith(_PREDICTIONS)}
    return EvaluationFolder(
        path=path,
        metrics=metrics,
        provenance=_read_json(path / PROVENANCE) if (path / PROVENANCE).is_file() else {},
        tables={stem: _table(path / f"{stem}.csv") for stem in stems if stem not in predictions},
        predictions={
            stem.removesuffix(_PREDICTIONS): table
            for stem, table in predictions.items()
            if not stem.startswith(VALIDATION)
        },
        validation={
            stem.removeprefix(VALIDATION).removesuffix(_PREDICTIONS): table
            for stem, table in predictions.items()
            if stem.startswith(VALIDATION)
        },
        cases=read_cases(path / CASES) if (path / CASES).is_file() else None,
        pictures=read_pictures(path / PICTURES),
    )


def _read_metrics(path: Path) -> dict[str, Any]:
    metrics = _read_json(path)
    needed = {"context": dict, "rows": dict, "metrics": dict, "verdicts": dict, "candidate": str, "tables": list}
    if lost := [name for name, kind in needed.items() if not isinstance(metrics.get(name), kind)]:
        raise EvaluationFilesError(f"{path}: has no usable {', '.join(lost)}; run the evaluation again")
    return metrics


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvaluationFilesError(f"{path}: damaged ({error}); run the evaluation again") from error
    if not isinstance(content, dict):
        raise EvaluationFilesError(f"{path}: holds no object; run the evaluation again")
    return content


def _predictions(path: Path) -> Predictions:
    try:
        return read_predictions(path)
    except ValueError as error:
        raise EvaluationFilesError(str(error)) from error


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        # a class may be called None or 1
        return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(_NAMES, str))
    except ValueError as error:  # pandas' ParserError and EmptyDataError, and undecodable bytes
        raise EvaluationFilesError(f"{path}: not a CSV table ({error}); run the evaluation again") from error
