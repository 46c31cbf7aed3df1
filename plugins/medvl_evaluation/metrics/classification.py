"""Areas under the ROC and the precision-recall curve for multi-label matrices with unknown labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ClassAverage",
    "auprc",
    "auroc",
    "auroc_auprc",
    "average_groups",
    "average_metric",
    "chance_auprc",
    "check_labels_and_scores",
    "micro_auprc",
    "micro_auroc",
    "operating_counts",
]


class ClassAverage(NamedTuple):
    """An average over classes, and how many classes were left out because they had no value."""

    value: float
    left_out: int


def check_labels_and_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both as ``N C`` arrays that the metrics accept.

    Args:
        labels: 1, 0, or NaN where the label is unknown.
        scores: Larger = more likely positive. Infinite scores are fine.

    Raises:
        ValueError: If the shapes differ or are not ``N C``, a label is none of 1, 0, NaN, or a score is NaN (the
            message names the column), or either holds no numbers.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must both be studies x classes")
    for name, values in (("labels", labels), ("scores", scores)):
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{name}: hold {values.dtype} values; give numbers")
    odd = ~((labels == 0) | (labels == 1) | np.isnan(labels))
    if odd.any():
        row, column = np.argwhere(odd)[0]
        raise ValueError(f"labels: column {column} holds {labels[row, column]} in row {row}; use 1, 0 or NaN (unknown)")
    missing = np.isnan(scores).any(axis=0)
    if missing.any():
        raise ValueError(f"scores: NaN in column(s) {np.flatnonzero(missing).tolist()}; every study needs all scores")
    return labels, scores


def operating_counts(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and false positives at every distinct threshold, the highest first.

    Args:
        labels: ``N``, 1 or 0, all known.
        scores: ``N``.

    Returns:
        Cumulative true positives and false positives, one entry per distinct score: equal scores move together.
    """
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores)
    order = np.argsort(scores)[::-1]
    scores = scores[order]
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    true = np.cumsum(labels[order])[ends]
    return true, ends + 1 - true


def _areas(labels: NDArray[Any], scores: NDArray[Any]) -> tuple[float, float]:
    known = ~np.isnan(labels)
    true, false = operating_counts(labels[known], scores[known])
    if len(true) == 0 or true[-1] == 0 or false[-1] == 0:
        return np.nan, np.nan
    steps = np.diff(true, prepend=0)
    trapezoids = np.diff(false, prepend=0) @ (2 * true - steps)
    return trapezoids / (2 * true[-1] * false[-1]), steps @ (true / (true + false)) / true[-1]


def auroc_auprc(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both areas of every class from one sort per class: the way to get both. O(C N log N).

    Args:
        labels: ``N C``; 1, 0, or NaN = unknown, which is left out of that class.
        scores: ``N C``, larger = more likely positive.

    Returns:
        AUROC and AUPRC, ``C`` each, tied scores counted exactly. AUPRC is the average precision (a step function, no
        interpolation). A class without positives or without negatives gives NaN in both.

    Raises:
        ValueError: As `check_labels_and_scores` says.
    """
    labels, scores = check_labels_and_scores(labels, scores)
    pairs = [_areas(labels[:, c], scores[:, c]) for c in range(labels.shape[1])]
    areas = np.array(pairs, dtype=float).reshape(-1, 2)
    return areas[:, 0], areas[:, 1]


def auroc(labels: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Area under the ROC curve per class, ``C``: see `auroc_auprc`."""
    return auroc_auprc(labels, scores)[0]


def auprc(labels: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Average precision per class, ``C``: see `auroc_auprc`."""
    return auroc_auprc(labels, scores)[1]


def _pooled(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    labels, scores = check_labels_and_scores(labels, scores)
    return _areas(labels.ravel(), scores.ravel())


def micro_auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """AUROC over all known (study, class) entries pooled. It also rewards knowing which classes are frequent."""
    return float(_pooled(labels, scores)[0])


def micro_auprc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision over all known (study, class) entries pooled."""
    return float(_pooled(labels, scores)[1])


def average_metric(values: ArrayLike, labels: ArrayLike, how: Literal["macro", "weighted"] = "macro") -> ClassAverage:
    """Average a per-class metric; classes without a value (NaN) are left out and counted.

    Args:
        values: ``C``.
        labels: ``N C``, as given to the metric.
        how: ``"macro"`` weighs classes equally, ``"weighted"`` by their number of positives.

    Returns:
        The average, NaN when no class has a value, and the number of classes left out.

    Raises:
        ValueError: If the class counts differ or ``how`` is unknown.
    """
    values, labels = np.asarray(values, dtype=float), np.asarray(labels)
    if values.shape != labels.shape[1:]:
        raise ValueError(f"values {values.shape} and labels {labels.shape} differ in their number of classes")
    if how not in ("macro", "weighted"):
        raise ValueError(f"how is {how!r}; choose 'macro' or 'weighted'; micro averages have functions of their own")
    defined = ~np.isnan(values)
    weights = np.nansum(labels, axis=0) if how == "weighted" else np.ones(len(values))
    total = weights[defined].sum()
    value = float(values[defined] @ weights[defined] / total) if total > 0 else float("nan")
    return ClassAverage(value, int((~defined).sum()))


def average_groups(
    values: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    how: Literal["macro", "weighted"] = "macro",
) -> dict[str, ClassAverage]:
    """`average_metric` over named groups of classes: rare and base, or head, medium and tail.

    Args:
        values: ``C``, a metric per class.
        labels: ``N C``, as given to the metric.
        classes: Name of each column.
        groups: Group → names of its classes. Groups may overlap and need not cover all classes.
        how: See `average_metric`.

    Returns:
        Group → its average and how many of its classes had no value.

    Raises:
        ValueError: If a group is empty or names an unknown class, or the class counts differ.
    """
    column = {name: c for c, name in enumerate(classes)}
    values, labels = np.asarray(values, dtype=float), np.asarray(labels)
    if len(column) != len(values):
        raise ValueError(f"{len(column)} different class names for {len(values)} values; give one name per class")
    averages = {}
    for group, names in groups.items():
        unknown = [name for name in names if name not in column]
        if unknown or not names:
            raise ValueError(f"class group {group!r} names {unknown or 'no class'}; choose among {sorted(column)}")
        chosen = [column[name] for name in names]
        averages[group] = average_metric(values[chosen], labels[:, chosen], how)
    return averages


def chance_auprc(n_positive: int, n_total: int) -> float:
    r"""Expected average precision of a random order.

    $\frac{1}{n}\left[H_n + \frac{m - 1}{n - 1}(n - H_n)\right]$ for m positives among n, H the harmonic number. It
    tends to the prevalence m / n for many studies and lies well above it for few (0.16 for 5 of 50): there the
    prevalence is too low a bar.

    Args:
        n_positive: m.
        n_total: n.

    Returns:
        The expectation; NaN without positives or without negatives, as `auprc` has it.

    References:
        Bestgen, Exact expected average precision of the random baseline, 2015, doi:10.1515/pralin-2015-0007. Derived
        here from the hypergeometric distribution; no code consulted.
    """
    if not 0 < n_positive < n_total:
        return float("nan")
    harmonic = float((1.0 / np.arange(1, n_total + 1)).sum())
    return (harmonic + (n_positive - 1) / (n_total - 1) * (n_total - harmonic)) / n_total
