"""Bootstrap intervals, resampled by patient, from statistics of row weights.

A resample is never materialised: it is a weight per row, how often the row's patient was drawn. A statistic takes the
weights of many resamples at once, ``N R``, and reads the data (sorted once) with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import ndtri

from medvl_core.metrics.classification import check_labels_and_scores

__all__ = ["Interval", "Statistic", "areas_statistic", "bootstrap_ci", "median_rank_statistic", "recall_statistic"]

Statistic = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Weights ``N R`` (whole numbers) → one value, or one array of values, per resample: ``R`` or ``R ...``."""

_WEIGHTS_PER_CHUNK = 2**21


class Interval(NamedTuple):
    """Bounds in the shape of the statistic, and how many resamples had no value there and were left out."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    left_out: NDArray[np.int64]


def bootstrap_ci(
    statistic: Statistic,
    units: int | ArrayLike,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    method: Literal["percentile", "standard_error"] = "percentile",
) -> Interval:
    """Bootstrap interval of a statistic; whole patients are drawn, with replacement.

    Args:
        statistic: See `Statistic`. A paired difference of two models is a statistic too: both read the same weights.
        units: Number of independent rows, or the patient of each row, ``N``: rows of one patient are drawn together.
        n_resamples: Resamples R.
        seed: The same seed gives the same resamples for every statistic over the same units.
        level: Confidence level.
        method: ``"percentile"``: the middle share ``level`` of the resamples. ``"standard_error"``: the statistic
            itself plus and minus the resamples' standard deviation times the normal quantile; not clipped. Needed for
            AUPRC: a positive drawn twice lifts the precision, so percentiles lie too high.

    Returns:
        The bounds. A resample whose value is NaN (it drew no positive of a rare class) is left out there and counted.
        NaN bounds when none is left, or with fewer than two patients.

    Raises:
        ValueError: If there are no units, ``n_resamples`` or ``level`` is out of range, or ``method`` is unknown.

    Note:
        Random scores, 24 classes of prevalence 0.03 to 0.4, 120 studies, level 0.95: the percentile interval of macro
        AUPRC covered its expectation in 72 % of 150 cohorts and lay above it in 28 %; ``"standard_error"`` covered 96 %
        and lay above in 1 %. For macro AUROC they covered 93 % and 91 %. No bootstrap helps a class with very few
        positives: when two positives happen to come first, the interval of AUROC is [1, 1].
    """
    if method not in ("percentile", "standard_error"):
        raise ValueError(f"bootstrap method is {method!r}; choose 'percentile' or 'standard_error'")
    patients = np.arange(units) if isinstance(units, int | np.integer) else np.asarray(units)
    if len(patients) == 0 or n_resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"bootstrap over {len(patients)} rows with n_resamples={n_resamples}, level={level}; "
            "needs at least one row and one resample, and a level between 0 and 1"
        )
    ids, row_of = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    size = max(1, _WEIGHTS_PER_CHUNK // len(patients))
    values = np.concatenate(
        [
            np.asarray(statistic(_draw(rng, len(ids), min(size, n_resamples - start))[row_of]), dtype=float)
            for start in range(0, n_resamples, size)
        ]
    )
    if len(ids) < 2:
        values = np.full_like(values, np.nan)
    left_out = np.isnan(values).sum(axis=0)
    if method == "percentile":
        low, high = _by_column(values, lambda kept: np.quantile(kept, [(1 - level) / 2, (1 + level) / 2]))
        return Interval(low, high, left_out)
    observed = np.asarray(statistic(np.ones((len(patients), 1), dtype=np.float32)), dtype=float)[0]
    reach = ndtri((1 + level) / 2) * _by_column(values, lambda kept: [kept.std(), kept.std()])[0]
    return Interval(observed - reach, observed + reach, left_out)


def _draw(rng: np.random.Generator, n: int, resamples: int) -> NDArray[np.float32]:
    counts = np.empty((n, resamples), dtype=np.float32)
    for r in range(resamples):
        counts[:, r] = np.bincount(rng.integers(n, size=n), minlength=n)
    return counts


def _by_column(values: NDArray[np.float64], summary: Callable[[NDArray[np.float64]], ArrayLike]) -> NDArray[np.float64]:
    """Two numbers from the defined resamples of every column, ``2 ...``; NaN where none is defined."""
    flat = values.reshape(len(values), -1)
    defined = ~np.isnan(flat)
    out = np.full((2, flat.shape[1]), np.nan)
    for column in np.flatnonzero(defined.any(axis=0)):
        out[:, column] = summary(flat[defined[:, column], column])
    return out.reshape(2, *values.shape[1:])


class _WeightedCurve:
    """AUROC and AUPRC of one class (or of pooled classes) under row weights, as sparse matrix products.

    G distinct scores of positives, ascending. A negative lies below group g from its ``right`` group on, and at or
    below it from its ``left`` group on, so cumulative sums over groups of two weighted histograms of the negatives give
    all that both areas need. ``rows`` names the study of each entry: pooling classes needs no copy of the weights.
    """

    def __init__(self, labels: NDArray, scores: NDArray, rows: NDArray, n_rows: int) -> None:
        positive, negative = labels == 1, labels == 0
        groups, group_of = np.unique(scores[positive], return_inverse=True)

        def histogram(group: NDArray, entries: NDArray) -> sparse.csr_matrix:
            ones = np.ones(len(group), dtype=np.float32)
            return sparse.csr_matrix((ones, (group, rows[entries])), shape=(len(groups) + 1, n_rows))

        left = np.searchsorted(groups, scores[negative], side="left")
        right = np.searchsorted(groups, scores[negative], side="right")
        self.positives = histogram(group_of, positive)
        self.below = histogram(right, negative)
        self.at_or_below = self.below if (left == right).all() else histogram(left, negative)

    def __call__(self, weights: NDArray[np.float32]) -> tuple[NDArray, NDArray, NDArray]:
        """AUROC, AUPRC and total weight of the positives, ``R`` each."""
        positives = (self.positives @ weights).astype(np.float64)
        below = np.cumsum(self.below @ weights, axis=0, dtype=np.float64)
        at_or_below = below
        if self.at_or_below is not self.below:
            at_or_below = np.cumsum(self.at_or_below @ weights, axis=0, dtype=np.float64)
        true = np.cumsum(positives[::-1], axis=0)[::-1]
        n_true, n_false = true[0], below[-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = true / (true + n_false - below)
            area = np.einsum("gr,gr->r", positives, below + at_or_below) / (2 * n_true * n_false)
            average_precision = np.einsum("gr,gr->r", positives, np.nan_to_num(precision)) / n_true
        average_precision[n_false == 0] = np.nan
        return area, average_precision, n_true


def areas_statistic(labels: ArrayLike, scores: ArrayLike) -> Statistic:
    """AUROC and AUPRC, averaged and per class, as a statistic for `bootstrap_ci`.

    Args:
        labels: ``N C``; 1, 0, or NaN = unknown.
        scores: ``N C``.

    Returns:
        Weights ``N R`` → ``R 2 (3 + C)``: AUROC and AUPRC; macro, support-weighted and micro average, then the classes.
        A class that a resample leaves without positives or negatives is NaN there and is left out of its macro and
        weighted average.

    Raises:
        ValueError: As `check_labels_and_scores` says.
    """
    labels, scores = check_labels_and_scores(labels, scores)
    n_rows, n_classes = labels.shape
    rows = np.arange(n_rows)
    curves = [_WeightedCurve(labels[:, c], scores[:, c], rows, n_rows) for c in range(n_classes)]
    pooled = _WeightedCurve(labels.ravel(), scores.ravel(), np.repeat(rows, n_classes), n_rows)

    def statistic(weights: NDArray[np.float32]) -> NDArray[np.float64]:
        out = np.empty((weights.shape[1], 2, 3 + n_classes))
        support = np.empty((weights.shape[1], 1, n_classes))
        for c, curve in enumerate(curves):
            out[:, 0, 3 + c], out[:, 1, 3 + c], support[:, 0, c] = curve(weights)
        classes = out[:, :, 3:]
        defined = ~np.isnan(classes)
        with np.errstate(invalid="ignore"):
            for column, share in enumerate((defined.astype(float), support * defined)):
                out[:, :, column] = (np.nan_to_num(classes) * share).sum(axis=2) / share.sum(axis=2)
        out[:, 0, 2], out[:, 1, 2], _ = pooled(weights)
        return out

    return statistic


def recall_statistic(ranks: ArrayLike, ks: Sequence[int]) -> Statistic:
    """Recall at each k as a statistic: ranks ``P`` → weights ``P R`` → ``R K``."""
    hits = np.asarray(ranks)[None, :] <= np.asarray(ks)[:, None]
    return lambda weights: (hits.astype(float) @ weights / weights.sum(axis=0)).T


def median_rank_statistic(ranks: ArrayLike) -> Statistic:
    """Median rank as a statistic: ranks ``P`` → weights ``P R`` → ``R``."""
    ranks = np.asarray(ranks, dtype=float)
    order = np.argsort(ranks)

    def statistic(weights: NDArray[np.float32]) -> NDArray[np.float64]:
        reached = np.cumsum(weights[order], axis=0, dtype=np.float64)
        half = reached[-1] / 2
        lower, upper = (reached >= half).argmax(axis=0), (reached > half).argmax(axis=0)
        return (ranks[order][lower] + ranks[order][upper]) / 2

    return statistic
