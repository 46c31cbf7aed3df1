"""Panels of findings: the table per finding, its curves, the calibration of its probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from medvl_evaluation.metrics import (
    OperatingPoints,
    brier_score,
    choose_thresholds,
    expected_calibration_error,
    operating_points,
    reliability_curve,
)
from medvl_evaluation.page.figures import Curves, curve_grid, reliability
from medvl_evaluation.page.folder import EvaluationFolder
from medvl_evaluation.page.panels import LABEL_COLUMNS, Panel, area, number

if TYPE_CHECKING:
    import pandas as pd

    from medvl_evaluation.predictions import Predictions

__all__ = ["calibration", "curves", "label_tables", "points_of"]

_PER_CLASS = "_per_class"
_MOST_CURVES = 16
_MOST_DRAWN = 80  # some 35 kB each
_FEW = 10
_AXES = (
    "Blue: true against false positive rate; orange: precision against recall, all from 0 to 1. Dashed: chance. "
    "Above each panel its area and interval."
)


def points_of(folder: EvaluationFolder, name: str) -> OperatingPoints:
    """Operating points of the evaluator ``name`` on the test studies: Youden's, chosen on the validation studies.

    Without validation predictions they are chosen on the test studies themselves, which flatters them.
    """
    told, chosen_on = folder.predictions[name], _chosen_on(folder, name)
    return operating_points(told.labels, told.scores, choose_thresholds(chosen_on.labels, chosen_on.scores))


def _chosen_on(folder: EvaluationFolder, name: str) -> Predictions:
    told = folder.predictions[name]
    return folder.validation.get(name, told).sorted(told.classes)


def _shown_thresholds(folder: EvaluationFolder, name: str) -> list[float]:
    """As probabilities where there are some: a threshold is one of the scores, so its case tells."""
    chosen_on = _chosen_on(folder, name)
    if chosen_on.probabilities is None:
        return points_of(folder, name).threshold.tolist()
    places = [
        np.flatnonzero(column == t)
        for column, t in zip(chosen_on.scores.T, points_of(folder, name).threshold, strict=True)
    ]
    return [chosen_on.probabilities[rows[0], c] if len(rows) else math.nan for c, rows in enumerate(places)]


def label_tables(folder: EvaluationFolder) -> list[Panel]:
    """A table per evaluator that wrote one row per class."""
    named = {stem.removesuffix(_PER_CLASS): table for stem, table in folder.tables.items() if stem.endswith(_PER_CLASS)}
    named = {name: table for name, table in named.items() if set(LABEL_COLUMNS) <= set(table)}
    if not named:
        return [Panel("labels", "Findings", missing="no evaluator wrote a table per finding")]
    several = len(named) > 1
    return [
        _label_table(folder, name, table, f"Findings: {name.replace('_', ' ')}" if several else "Findings")
        for name, table in named.items()
    ]


def _label_table(folder: EvaluationFolder, name: str, table: pd.DataFrame, title: str) -> Panel:
    training = folder.provenance.get("manifest", {}).get("data", {}).get("train", {}).get("labels", {})
    extras = _extras(folder, name)
    rows = [
        _label_row(row, extras.get(row["class"], {}), training.get(row["class"])) for row in table.to_dict("records")
    ]
    few = f"Italic: fewer than {_FEW} positives, too few for the interval. Click a column to sort; – is not defined."
    return Panel("labels", title, {"rows": rows}, (*(_operating_note(folder, name) if extras else ()), few))


def _extras(folder: EvaluationFolder, name: str) -> dict[str, dict[str, float]]:
    """Class → what only predictions of single cases tell."""
    if name not in folder.predictions:
        return {}
    told, points = folder.predictions[name], points_of(folder, name)
    errors = np.full(len(told.classes), math.nan)
    if told.probabilities is not None:
        errors = expected_calibration_error(told.labels, told.probabilities)
    columns = (_shown_thresholds(folder, name), points.sensitivity, points.specificity, errors)
    keys = ("threshold", "sensitivity", "specificity", "ece")
    return {
        c: dict(zip(keys, map(float, values), strict=True)) for c, *values in zip(told.classes, *columns, strict=True)
    }


def _label_row(row: Mapping[str, Any], extra: Mapping[str, float], train: Any) -> dict[str, Any]:
    """Sort keys under the column's name, and their texts under ``<name>_text``."""
    known = row["n_positive"] + row["n_negative"]
    shares = {
        "prevalence": row["n_positive"] / known if known else math.nan,
        "train": train["positive"] / train["known"] if train and train["known"] else math.nan,
    }
    plain = {"chance": row.get("auprc_chance", math.nan)}
    plain |= {key: extra.get(key, math.nan) for key in ("threshold", "sensitivity", "specificity", "ece")}
    areas = {name: _interval(row, name) for name in ("auroc", "auprc")}
    texts = {
        **{key: _percent(value) for key, value in shares.items()},
        **{key: number(value) for key, value in plain.items()},
        **{key: area(*values) for key, values in areas.items()},
    }
    return {
        "name": str(row["class"]),
        "n_positive": row["n_positive"],
        "n_negative": row["n_negative"],
        "few": row["n_positive"] < _FEW,
        **shares,
        **plain,
        **{key: values[0] for key, values in areas.items()},
        **{f"{key}_text": text for key, text in texts.items()},
        "marks": areas["auroc"],
    }


def _interval(row: Mapping[str, Any], name: str) -> list[float]:
    return [row[name], *(row.get(f"{name}_{bound}", math.nan) for bound in ("low", "high"))]


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def _operating_note(folder: EvaluationFolder, name: str) -> tuple[str, ...]:
    if name in folder.validation:
        n = len(folder.validation[name].study_id)
        where = f"chosen on the {n} validation studies"
    else:
        where = (
            "CHOSEN ON THESE TEST STUDIES for lack of validation scores, so sensitivity and specificity are optimistic"
        )
    return (f"Threshold: largest sensitivity + specificity, {where}.",)


def curves(folder: EvaluationFolder) -> Panel:
    """ROC and precision-recall curves of the most frequent findings; the others folded away."""
    title = "ROC and precision-recall curves"
    drawn = _curves(folder)
    if not drawn:
        return Panel("curves", title, missing="no predictions of single cases with positives and negatives")
    shown, rest = drawn[:_MOST_CURVES], drawn[_MOST_CURVES:_MOST_DRAWN]
    # the layout of one large grid takes time with the square of its panels
    folded = [curve_grid(rest[i : i + _MOST_CURVES]) for i in range(0, len(rest), _MOST_CURVES)]
    content = {"figure": curve_grid(shown), "rest": folded, "n_rest": len(rest)}
    few = f"The {len(shown)} findings with the most positives. " if rest else ""
    if more := len(drawn[_MOST_DRAWN:]):
        few += f"{more} rarer ones are in the table of findings alone. "
    return Panel("curves", title, content, (f"{few}{_AXES}",))


def _curves(folder: EvaluationFolder) -> list[Curves]:
    """Most frequent first."""
    if not folder.predictions:
        return []
    name, told = next(iter(folder.predictions.items()))
    areas = folder.tables.get(f"{name}{_PER_CLASS}")
    rows = {} if areas is None else {row["class"]: row for row in areas.to_dict("records")}
    found = []
    for c in np.argsort(-(told.labels == 1).sum(axis=0), kind="stable"):
        known = ~np.isnan(told.labels[:, c])
        labels, row = told.labels[known, c], rows.get(told.classes[c])
        if 0 < labels.sum() < len(labels):
            texts = [area(*_interval(row, kind)) if row and kind in row else "" for kind in ("auroc", "auprc")]
            found.append(Curves(str(told.classes[c]), labels, told.scores[known, c], *texts))
    return found


def calibration(folder: EvaluationFolder) -> Panel:
    """Reliability of all findings together."""
    title = "Calibration"
    told = next((one for one in folder.predictions.values() if one.probabilities is not None), None)
    if told is None or told.probabilities is None or np.isnan(told.labels).all():
        return Panel("calibration", title, missing="no probabilities were written (scores alone have no calibration)")
    labels, probabilities = told.labels.reshape(-1, 1), told.probabilities.reshape(-1, 1)
    predicted, observed, count = reliability_curve(labels[:, 0], probabilities[:, 0])
    filled = count > 0
    error, brier = (float(measure(labels, probabilities)[0]) for measure in (expected_calibration_error, brier_score))
    share = float(np.nanmean(labels))
    note = (
        f"All findings together, 10 bins: ECE {number(error)}, Brier score {number(brier)} "
        f"({number(share * (1 - share))} for the prevalence alone). Area of a point: share of cases."
    )
    figure = reliability(predicted[filled], observed[filled], count[filled] / count.sum())
    return Panel("calibration", title, {"figure": figure}, (note,))
