"""Operating points: thresholds chosen on validation data, and what they give on other data."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvl_evaluation.metrics.classification import check_labels_and_scores, operating_counts

__all__ = ["OperatingPoints", "choose_thresholds", "operating_points"]

Rule = Literal["youden", "f1", "sensitivity", "specificity"]


class OperatingPoints(NamedTuple):
    """Per class, ``C`` each; NaN where the denominator is 0 (no positives, nothing called positive)."""

    threshold: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    specificity: NDArray[np.float64]
    ppv: NDArray[np.float64]
    npv: NDArray[np.float64]
    f1: NDArray[np.float64]


def choose_thresholds(
    labels: ArrayLike, scores: ArrayLike, rule: Rule = "youden", target: float | None = None
) -> NDArray[np.float64]:
    """One threshold per class from *validation* data; chosen on the test set, the numbers would be too good.

    Args:
        labels: ``N C``; 1, 0, or NaN = unknown.
        scores: ``N C``, larger = more likely positive.
        rule: ``"youden"``: largest sensitivity + specificity. ``"f1"``: largest F1. ``"sensitivity"``: the highest
            threshold that reaches ``target`` sensitivity; ``"specificity"``: the lowest that keeps ``target``
            specificity.
        target: In (0, 1], for the last two rules only.

    Returns:
        ``C``: a score is called positive from its threshold on. Among equally good ones the highest; ``inf`` (nothing
        is positive) where even the highest score breaks ``target`` specificity. NaN for a class without positives or
        without negatives.

    Raises:
        ValueError: If the data is unusable (see `check_labels_and_scores`), or ``rule`` and ``target`` do not fit.
    """
    needs_target = rule in ("sensitivity", "specificity")
    if rule not in ("youden", "f1", "sensitivity", "specificity") or needs_target != (target is not None):
        raise ValueError(f"rule={rule!r} with target={target}; 'sensitivity' and 'specificity' need one, others do not")
    if target is not None and not 0 < target <= 1:
        raise ValueError(f"target {rule} is {target}; give a share above 0 and at most 1")
    labels, scores = check_labels_and_scores(labels, scores)
    columns = range(labels.shape[1])
    return np.array([_threshold(labels[:, c], scores[:, c], rule, target) for c in columns], dtype=float)


def operating_points(labels: ArrayLike, scores: ArrayLike, thresholds: ArrayLike) -> OperatingPoints:
    """Sensitivity, specificity, predictive values and F1 of each class at its threshold.

    Args:
        labels: ``N C``; 1, 0, or NaN = unknown, which is left out.
        scores: ``N C``.
        thresholds: ``C``, from `choose_thresholds` on other data. A NaN threshold gives NaN in every entry.

    Returns:
        See `OperatingPoints`. Predictive values hold at the prevalence of this data only.

    Raises:
        ValueError: If the data is unusable (see `check_labels_and_scores`) or there is not one threshold per class.
    """
    labels, scores = check_labels_and_scores(labels, scores)
    thresholds = np.asarray(thresholds, dtype=float)
    if thresholds.shape != labels.shape[1:]:
        raise ValueError(f"{thresholds.shape} thresholds for {labels.shape[1]} classes; give one per class")
    called = scores >= thresholds
    true, false = ((labels == 1) & called).sum(axis=0), ((labels == 0) & called).sum(axis=0)
    n_true, n_false = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    usable = np.where(np.isnan(thresholds), np.nan, 1.0)

    def share(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return usable * part / np.where(whole > 0, whole, np.nan)

    return OperatingPoints(
        threshold=thresholds,
        sensitivity=share(true, n_true),
        specificity=share(n_false - false, n_false),
        ppv=share(true, true + false),
        npv=share(n_false - false, n_true - true + n_false - false),
        f1=share(2 * true, true + false + n_true),
    )


def _threshold(labels: NDArray[Any], scores: NDArray[Any], rule: Rule, target: float | None) -> float:
    known = ~np.isnan(labels)
    labels, scores = labels[known], scores[known]
    true, false = operating_counts(labels, scores)
    if len(true) == 0 or true[-1] == 0 or false[-1] == 0:
        return np.nan
    levels = np.unique(scores)[::-1]
    sensitivity, specificity = true / true[-1], 1 - false / false[-1]
    if rule == "youden":
        return levels[np.argmax(true * false[-1] - false * true[-1])]  # whole numbers: equal ones compare as equal
    if rule == "f1":
        return levels[np.argmax(2 * true / (true + false + true[-1]))]
    if rule == "sensitivity":
        return levels[np.argmax(sensitivity >= target)]
    kept = np.flatnonzero(specificity >= target)
    return levels[kept[-1]] if len(kept) else np.inf
