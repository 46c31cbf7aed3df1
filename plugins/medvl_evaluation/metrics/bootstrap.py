"""Bootstrap intervals, resampled by patient, from statistics of row weights.

A resample is never materialised: it is a weight per row, how often the row's patient was drawn. A statistic takes the
weights of many resamples at once, ``N R``, and reads the data (sorted once) with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import ndtri

from medvl_evaluation.metrics.classification import check_labels_and_scores

__all__ = [
    "Interval",
    "Statistic",
    "areas_statistic",
    "bootstrap_ci",
    "difference_statistic",
    "label_strata",
    "median_rank_statistic",
    "recall_statistic",
]

Statistic = Callable[[NDArray[Any]], NDArray[np.float64]]
"""Weights ``N R`` (whole numbers) → one value, or one array of values, per resample: ``R`` or ``R ...``."""

_WEIGHTS_PER_CHUNK = 2**21
_MOST_REDRAWS = 20
_GROUPS_PER_BLOCK = 1024


class Interval(NamedTuple):
    """Bounds in the shape of the statistic, and how many of ``n_resamples`` had no value there and were drawn anew."""

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
    strata: ArrayLike | None = None,
) -> Interval:
    """Bootstrap interval of a statistic; whole patients are drawn, with replacement.

    Args:
        statistic: See `Statistic`. `difference_statistic` compares two models on the same resamples.
        units: Number of independent rows, or the patient of each row, ``N``: rows of one patient are drawn together.
        n_resamples: Resamples R.
        seed: The same seed gives the same resamples for every statistic over the same units.
        level: Confidence level.
        method: ``"percentile"``: the middle share ``level`` of the resamples. ``"standard_error"``: the statistic
            itself plus and minus the resamples' standard deviation times the normal quantile; not clipped. Needed for
            AUPRC: a positive drawn twice lifts the precision, so percentiles lie too high.
        strata: Stratum of each row, ``N``: as many patients are drawn from each as it has. `label_strata` makes strata
            that keep rare classes in.

    Returns:
        The bounds, always from ``n_resamples`` values: a resample whose value is NaN (it drew no positive of a rare
        class) is counted and another one drawn for that value (20 times ``n_resamples`` in all at most). NaN bounds
        where the statistic of the data itself is NaN, or with fewer than two patients.

    Raises:
        ValueError: If there are no units, ``n_resamples`` or ``level`` is out of range, ``method`` is unknown, or a
            patient lies in two strata.

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
    members = _members(strata, ids, row_of)
    rng = np.random.default_rng(seed)
    size = max(1, _WEIGHTS_PER_CHUNK // len(patients))

    def draw(n: int) -> NDArray[np.float64]:
        chunks = [min(size, n - start) for start in range(0, n, size)]
        return np.concatenate([np.asarray(statistic(_draw(rng, members, k)[row_of]), dtype=float) for k in chunks])

    observed = np.asarray(statistic(np.ones((len(patients), 1), dtype=np.float32)), dtype=float)[0]
    values = draw(n_resamples)
    left_out = np.isnan(values).sum(axis=0)
    if len(ids) < 2:
        nothing = np.full(observed.shape, np.nan)
        return Interval(nothing, nothing, np.full(observed.shape, n_resamples))
    while (lacking := n_resamples - _fewest(values, observed)) > 0 and len(values) < _MOST_REDRAWS * n_resamples:
        values = np.concatenate([values, draw(lacking)])
    if method == "percentile":
        tails = [(1 - level) / 2, (1 + level) / 2]
        low, high = _by_column(values, lambda kept: np.quantile(kept[:n_resamples], tails))
        return Interval(low, high, left_out)
    spread = _by_column(values, lambda kept: np.repeat(kept[:n_resamples].std(), 2))[0]
    reach = ndtri((1 + level) / 2) * spread
    return Interval(observed - reach, observed + reach, left_out)


def label_strata(labels: ArrayLike, units: ArrayLike | None = None, rare: float = 3) -> NDArray[np.int64]:
    """Strata for `bootstrap_ci` that keep rare classes in every resample.

    Patients that hold the same rare findings form a stratum; the others together form one. A class is rare where fewer
    than ``rare`` patients hold a positive (or a negative) of it. A commoner one is missed by one resample in 20 at
    most, which is then drawn anew for that class, while an average over classes goes without the class.

    Args:
        labels: ``N C``; 1, 0, or NaN = unknown.
        units: Patient of each row, ``N``; ``None``: every row its own.
        rare: See above. ``inf`` fixes the number of positives and negatives: right for one class, and no resample is
            degenerate; too narrow for many (see the note).

    Returns:
        Stratum of each row, ``N``.

    Note:
        Strata of one or two patients hardly vary. 24 classes of prevalence 0.03 to 0.4, 120 studies, random scores,
        level 0.95, by standard error: the interval of macro AUROC covered 0.5 in 97 % of 100 cohorts without strata, in
        94 % with ``rare=3``, 90 % with 6, 79 % with 10.
    """
    labels = np.asarray(labels)
    patient = np.arange(len(labels)) if units is None else np.unique(np.asarray(units), return_inverse=True)[1]
    sides = np.concatenate([labels == 1, labels == 0], axis=1)
    holds = np.zeros((patient.max(initial=-1) + 1, sides.shape[1]), dtype=bool)
    np.logical_or.at(holds, patient, sides)
    counts = holds.sum(axis=0)
    few = holds[:, (counts > 0) & (counts < rare)]
    stratum = np.unique(few, axis=0, return_inverse=True)[1] if few.size else np.zeros(len(holds), dtype=np.int64)
    return stratum[patient]


def difference_statistic(first: Statistic, second: Statistic) -> Statistic:
    """First minus second on the same resamples: paired, when both read the same rows in the same order."""
    return lambda weights: first(weights) - second(weights)


def _members(strata: ArrayLike | None, ids: NDArray[Any], row_of: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Patients of each stratum."""
    if strata is None:
        return [np.arange(len(ids))]
    code = np.unique(np.asarray(strata), return_inverse=True)[1]
    if code.shape != row_of.shape:
        raise ValueError(f"strata has shape {code.shape} for {len(row_of)} rows; give one stratum for each row")
    of_patient = np.empty(len(ids), dtype=np.intp)
    of_patient[row_of] = code
    if (split := of_patient[row_of] != code).any():
        raise ValueError(f"patient {ids[row_of[split.argmax()]]!s} has rows in two strata; use label_strata")
    return [np.flatnonzero(of_patient == stratum) for stratum in range(code.max() + 1)]


def _draw(rng: np.random.Generator, members: list[NDArray[np.intp]], resamples: int) -> NDArray[np.float32]:
    counts = np.empty((sum(map(len, members)), resamples), dtype=np.float32)
    for r in range(resamples):
        for patients in members:
            drawn = rng.integers(len(patients), size=len(patients))
            counts[patients, r] = np.bincount(drawn, minlength=len(patients))
    return counts


def _fewest(values: NDArray[np.float64], observed: NDArray[np.float64]) -> int:
    """Fewest resamples with a value, over the entries that have one in the data itself."""
    counts = (~np.isnan(values)).sum(axis=0)
    return int(np.min(counts[~np.isnan(observed)], initial=len(values)))


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
    Blocks of groups bound the memory of the sums.
    """

    def __init__(self, labels: NDArray[Any], scores: NDArray[Any], rows: NDArray[Any], n_rows: int) -> None:
        positive, negative = labels == 1, labels == 0
        groups, group_of = np.unique(scores[positive], return_inverse=True)

        def histogram(group: NDArray[Any], entries: NDArray[Any], bins: int) -> sparse.csr_matrix:
            ones = np.ones(len(group), dtype=np.float32)
            return sparse.csr_matrix((ones, (group, rows[entries])), shape=(bins, n_rows))

        left = np.searchsorted(groups, scores[negative], side="left")
        right = np.searchsorted(groups, scores[negative], side="right")
        known = positive | negative
        self.totals = histogram(positive[known].astype(int), known, 2)
        tables = [histogram(group_of, positive, len(groups) + 1), histogram(right, negative, len(groups) + 1)]
        if (left != right).any():  # ties between the sides
            tables.append(histogram(left, negative, len(groups) + 1))
        starts = range(0, len(groups), _GROUPS_PER_BLOCK)
        self.blocks = [[table[k : min(k + _GROUPS_PER_BLOCK, len(groups))] for table in tables] for k in starts]

    def __call__(self, weights: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """AUROC, AUPRC and total weight of the positives, ``R`` each."""
        n_false, n_true = (self.totals @ weights).astype(np.float64)
        sums = np.zeros((3, weights.shape[1]))  # of positives, negatives below, negatives at or below
        area, average_precision = np.zeros((2, weights.shape[1]))
        for block in self.blocks:
            found = [(table @ weights).astype(np.float64) for table in block]
            running = [np.cumsum(table, axis=0) + before for table, before in zip(found, sums, strict=False)]
            positives, below, at_or_below = found[0], running[1], running[-1]
            true = n_true - running[0] + positives
            area += np.einsum("gr,gr->r", positives, below + at_or_below)
            hits = positives * true  # 0 where the group was not drawn: its precision, perhaps 0 / 0, does not count
            average_precision += np.divide(hits, true + n_false - below, out=hits, where=hits > 0).sum(axis=0)
            sums = np.stack([running[0][-1], below[-1], at_or_below[-1]])
        with np.errstate(invalid="ignore", divide="ignore"):
            area /= 2 * n_true * n_false
            average_precision /= np.where(n_false > 0, n_true, np.nan)
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
