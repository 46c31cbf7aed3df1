"""DeLong's variance of the AUROC and his test of two paired AUROCs, per class and micro, also for clustered rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from medvl_evaluation.metrics.classification import check_labels_and_scores

__all__ = ["DeLongTest", "delong_test", "holm"]


class DeLongTest(NamedTuple):
    """Two paired AUROCs: every entry is one number, or an array of ``C``; intervals are (low, high).

    ``difference`` is a - b, and ``z`` its size in standard errors. ``p_holm`` is ``p_value`` after Holm's correction
    for the number of classes tested.
    """

    auc_a: Any
    auc_b: Any
    variance_a: Any
    variance_b: Any
    covariance: Any
    difference: Any
    z: Any
    p_value: Any
    p_holm: Any
    ci_a: tuple[Any, Any]
    ci_b: tuple[Any, Any]
    ci_difference: tuple[Any, Any]


def delong_test(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    level: float = 0.95,
    average: Literal["micro"] | None = None,
    clusters: ArrayLike | None = None,
) -> DeLongTest:
    r"""Two-sided test that two models, scored on the same rows, have the same AUROC. O(C N log N).

    $z = (\hat\theta_a - \hat\theta_b) / \sqrt{S_{aa} + S_{bb} - 2 S_{ab}}$ with the covariances S of [1], from the
    mid-ranks of [2]. With clusters, S is that of [3]; rows alone in their cluster give [1] again.

    Args:
        labels: ``N`` or ``N C``; 1, 0, or NaN = unknown, which is left out of that class.
        scores_a: As ``labels``; larger = more likely positive.
        scores_b: Likewise, of the other model.
        level: Confidence level of the intervals.
        average: ``"micro"`` pools the known (row, class) entries. The entries of one row (or cluster) are not
            independent and are not taken to be; ``labels.ravel()`` and scores alike give the naive version.
        clusters: Patient of each row, ``N``: rows of one patient are not independent. ``None``: every row is.

    Returns:
        See `DeLongTest`. NaN for a class without positives or negatives. Variances, z and p are NaN with fewer than two
        clusters that hold positives, or negatives; z and p also where the variance is 0 but the difference is not (two
        perfect opposites): there is no test. Intervals of areas are clipped to [0, 1]; at an AUROC of 1 the variance is
        0, which says nothing about the next sample.

    Raises:
        ValueError: If shapes differ, a score is NaN, ``level`` or ``average`` is out of range.

    References:
        [1] DeLong et al., Biometrics 44:837, 1988, doi:10.2307/2531595. [2] Sun and Xu, IEEE Signal Processing Letters
        21:1389, 2014, doi:10.1109/LSP.2014.2337313. [3] Obuchowski, Biometrics 53:567, 1997, doi:10.2307/2533958. No
        code consulted.
    """
    areas, covariance = _estimate(labels, (scores_a, scores_b), level, average, clusters)
    difference, variance = areas[0] - areas[1], covariance[2, 2]
    error = np.sqrt(variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(np.isnan(error) | (error > 0), difference / error, np.where(difference == 0, 0.0, np.nan))
    p_value = 2 * ndtr(-np.abs(z))
    reach = ndtri((1 + level) / 2) * error
    entries = (*areas, covariance[0, 0], covariance[1, 1], covariance[0, 1], difference, z, p_value, holm(p_value))
    pairs = [_bounds(area, covariance[i, i], level) for i, area in enumerate(areas)]
    pairs.append((difference - reach, difference + reach))
    one = average == "micro" or np.ndim(labels) == 1
    unpack: Callable[[Any], Any] = (lambda values: values[0]) if one else (lambda values: values)
    return DeLongTest(*map(unpack, entries), *((unpack(low), unpack(high)) for low, high in pairs))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjustment of p-values for their number; NaN entries stay NaN and are not counted.

    References:
        Holm, Scandinavian Journal of Statistics 6:65, 1979.
    """
    flat = np.ravel(np.asarray(p_values, dtype=float))
    adjusted = np.full(len(flat), np.nan)
    tested = np.flatnonzero(~np.isnan(flat))
    order = tested[np.argsort(flat[tested])]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(flat[order] * np.arange(len(order), 0, -1)))
    return adjusted.reshape(np.shape(p_values))


def _bounds(area: NDArray[Any], variance: NDArray[Any], level: float) -> tuple[NDArray[Any], NDArray[Any]]:
    reach = ndtri((1 + level) / 2) * np.sqrt(variance)
    return (area - reach).clip(0, 1), (area + reach).clip(0, 1)


def _estimate(
    labels: ArrayLike,
    scores: tuple[ArrayLike, ArrayLike],
    level: float,
    average: str | None,
    clusters: ArrayLike | None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Areas ``2 C`` and covariances ``3 3 C``, the third of the difference."""
    if not 0 < level < 1 or average not in (None, "micro"):
        raise ValueError(f"level={level}, average={average!r}; give a level between 0 and 1, and None or 'micro'")
    labels = np.asarray(labels)
    columns = labels[:, None] if labels.ndim == 1 else labels
    checked = []
    for values in map(np.asarray, scores):
        if values.shape != labels.shape:
            raise ValueError(f"labels {labels.shape} and scores {values.shape} must have the same shape")
        checked.append(check_labels_and_scores(columns, values.reshape(columns.shape))[1])
    rows = None if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    if rows is not None and len(rows) != len(labels):
        raise ValueError(f"{len(rows)} clusters for {len(labels)} rows; give one for each row")
    if average == "micro":
        rows = np.repeat(np.arange(len(labels)) if rows is None else rows, columns.shape[1])
        columns, checked = columns.reshape(-1, 1), [values.reshape(-1, 1) for values in checked]
    classes = [_one_class(columns[:, c], [values[:, c] for values in checked], rows) for c in range(columns.shape[1])]
    return np.stack([areas for areas, _ in classes], axis=-1), np.stack([cov for _, cov in classes], axis=-1)


def _one_class(
    labels: NDArray[Any], scores: list[NDArray[Any]], rows: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    known = ~np.isnan(labels)
    positive, rows = labels[known] == 1, None if rows is None else rows[known]
    m, n = int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0:
        return np.full(2, np.nan), np.full((3, 3), np.nan)
    parts = np.stack([_placements(positive, values[known], m, n) for values in scores], axis=1)
    areas = parts[positive].mean(axis=0)
    residuals = (parts - areas) / np.where(positive, m, n)[:, None]
    residuals = np.column_stack([residuals, residuals[:, 0] - residuals[:, 1]])
    return areas, _covariance(residuals, positive, rows)


def _placements(positive: NDArray[np.bool_], scores: NDArray[Any], m: int, n: int) -> NDArray[np.float64]:
    """Share of the other side that each row is ranked right against, ties half: (rank in all - in own side) / size.

    Both mid-ranks come from one sort, so that only counts of the other side up to each tie group remain.
    """
    order = np.argsort(scores)
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    positives = np.cumsum(positive[order])[ends]
    negatives = ends + 1 - positives
    group = np.empty(len(order), dtype=np.intp)
    group[order] = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1))
    below = [(through + np.append(0, through[:-1])) / 2 for through in (positives, negatives)]
    return np.where(positive, below[1][group] / n, 1 - below[0][group] / m)


def _covariance(residuals: NDArray[Any], positive: NDArray[np.bool_], rows: NDArray[Any] | None) -> NDArray[np.float64]:
    sides = [residuals[side] for side in (positive, ~positive)]
    present = [len(side) for side in sides]
    if rows is not None:
        clusters, size = (rows[positive], rows[~positive]), rows.max() + 1
        sides = [_sums(side, own, size) for side, own in zip(sides, clusters, strict=True)]
        present = [np.unique(own).size for own in clusters]
    if min(present) < 2:
        return np.full((residuals.shape[1],) * 2, np.nan)
    total = sum(k / (k - 1) * side.T @ side for k, side in zip(present, sides, strict=True))
    if rows is None:
        return total
    k, cross = np.unique(rows).size, sides[0].T @ sides[1]
    return total + k / (k - 1) * (cross + cross.T)


def _sums(residuals: NDArray[Any], rows: NDArray[Any], n_rows: int) -> NDArray[np.float64]:
    """Sum per cluster, clusters x models."""
    return np.stack([np.bincount(rows, weights=column, minlength=n_rows) for column in residuals.T], axis=1)
