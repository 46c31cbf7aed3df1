"""Every metric against an independent oracle, largest deviation: ``python benchmarks/oracles.py``.

Prints the table of docs/reference/metrics.md and exits with 1 when a deviation is above its bound. Data are random with
ties and unknown labels where the metric allows them; the seeds are fixed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from scipy import stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from medvl_evaluation import metrics as ours
from medvl_evaluation.metrics.bootstrap import Statistic

ROUNDS = 30
Rows = list[tuple[str, str, float, float]]


def gap(found: object, expected: object) -> float:
    """Largest absolute difference; NaN in the same places is none, anywhere else it is infinite."""
    a, b = (np.asarray(values, dtype=float) for values in (found, expected))
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    return float(np.nanmax(np.abs(a - b), initial=0.0))


def cohort(seed: int, n: int = 150, classes: int = 5, levels: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels with unknowns, and two models' scores with ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, classes)) < np.geomspace(0.5, 0.05, classes)).astype(float)
    labels[:3] = [[1], [0], [1]]
    a = rng.standard_normal((n, classes)) + labels
    b = a + rng.standard_normal((n, classes))
    labels[3:][rng.random((n - 3, classes)) < 0.1] = np.nan
    return labels, np.round(a * levels) / levels, np.round(b * levels) / levels


def known(function: Callable[..., float], labels: np.ndarray, *columns: np.ndarray) -> list[float]:
    """An oracle of one class, column by column, unknown labels removed."""
    out = []
    for c in range(labels.shape[1]):
        keep = ~np.isnan(labels[:, c])
        out.append(function(labels[keep, c], *(values[keep, c] for values in columns)))
    return out


def worst(one: Callable[[int], float]) -> float:
    """Largest deviation over the seeds."""
    return max(one(seed) for seed in range(ROUNDS))


def areas() -> Rows:
    """AUROC and AUPRC, averages."""

    def per_class(seed: int, found: Callable[..., object], oracle: Callable[..., float]) -> float:
        labels, scores, _ = cohort(seed)
        return gap(found(labels, scores), known(oracle, labels, scores))

    def averages(seed: int) -> float:
        labels, scores = np.nan_to_num(cohort(seed)[0]), cohort(seed)[1]
        values = ours.auroc(labels, scores)
        found = [ours.average_metric(values, labels, how).value for how in ("macro", "weighted")]  # type: ignore[arg-type]
        found.append(ours.micro_auroc(labels, scores))
        return gap(found, [sk.roc_auc_score(labels, scores, average=how) for how in ("macro", "weighted", "micro")])

    return [
        ("`auroc`", "scikit-learn", worst(lambda s: per_class(s, ours.auroc, sk.roc_auc_score)), 1e-9),
        ("`auprc`", "scikit-learn", worst(lambda s: per_class(s, ours.auprc, sk.average_precision_score)), 1e-9),
        ("macro, weighted, micro AUROC", "scikit-learn", worst(averages), 1e-9),
    ]


def all_pairs(labels: np.ndarray, *models: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas and DeLong's covariances by the definition: every pair of a positive and a negative."""
    positive, negative = labels == 1, labels == 0
    wins = [(s[positive][:, None] > s[negative]) + 0.5 * (s[positive][:, None] == s[negative]) for s in models]
    v10, v01 = np.cov([w.mean(axis=1) for w in wins]), np.cov([w.mean(axis=0) for w in wins])
    return np.array([w.mean() for w in wins]), v10 / positive.sum() + v01 / negative.sum()


def delong() -> Rows:
    """DeLong's test, its interval, Holm's correction."""

    def test(seed: int) -> float:
        labels, a, b = cohort(seed)
        found = ours.delong_test(labels, a, b)
        deviations = []
        for c in range(labels.shape[1]):
            keep = ~np.isnan(labels[:, c])
            areas, cov = all_pairs(labels[keep, c], a[keep, c], b[keep, c])
            z = (areas[0] - areas[1]) / np.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])
            expected = [*areas, cov[0, 0], cov[1, 1], cov[0, 1], z, 2 * stats.norm.sf(abs(z))]
            entries = ("auc_a", "auc_b", "variance_a", "variance_b", "covariance", "z", "p_value")
            deviations.append(gap([getattr(found, entry)[c] for entry in entries], expected))
        return max(deviations)

    def holm(seed: int) -> float:
        p = np.random.default_rng(seed).random(12) ** 3
        steps = [[(p >= other).sum() * other for other in p[p <= own]] for own in p]
        return gap(ours.holm(p), [min(1, max(step)) for step in steps])

    return [
        ("`delong_test`, all entries", "definition over all pairs", worst(test), 1e-9),
        ("`holm`", "definition", worst(holm), 1e-12),
    ]


def bootstrap() -> Rows:
    """Intervals against a loop that materialises the same resamples."""

    def loop(seed: int, strata: bool) -> float:
        labels, a, b = (np.nan_to_num(values[:, :1]) for values in cohort(seed, 60))
        stratum = ours.label_strata(labels, rare=np.inf) if strata else np.zeros(60, dtype=int)
        statistic: Statistic = ours.difference_statistic(*(ours.areas_statistic(labels, s) for s in (a, b)))
        interval = ours.bootstrap_ci(statistic, 60, 40, seed, strata=stratum)
        rng, values = np.random.default_rng(seed), []
        for _ in range(40):
            groups = [np.flatnonzero(stratum == k) for k in np.unique(stratum)]
            rows = np.concatenate([group[rng.integers(len(group), size=len(group))] for group in groups])
            values.append(sk.roc_auc_score(labels[rows], a[rows]) - sk.roc_auc_score(labels[rows], b[rows]))
        return gap([interval.low[0, 3], interval.high[0, 3]], np.quantile(values, [0.025, 0.975]))

    return [
        (
            "`bootstrap_ci`, paired difference",
            "scikit-learn, same draws",
            worst(lambda s: loop(s, False)),
            1e-9,
        ),
        ("… stratified", "scikit-learn, same draws", worst(lambda s: loop(s, True)), 1e-9),
    ]


def retrieval() -> Rows:
    """Recall at k and median rank, several correct items per query."""

    def recall(seed: int) -> float:
        rng = np.random.default_rng(seed)
        groups = rng.integers(0, 20, 60)
        left, right = rng.standard_normal((2, 60, 16))
        unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (left, right)]
        order = np.argsort(-(unit[0] @ unit[1].T), axis=1)
        first = (groups[order] == groups[:, None]).argmax(axis=1)
        ranks = ours.retrieval_ranks(left, right, groups, groups)
        found = [*ours.recall_at_k(left, right, (1, 5, 10), groups, groups).values(), ours.median_rank(ranks)]
        return gap(found, [*((first < k).mean() for k in (1, 5, 10)), np.median(first + 1)])

    return [("`recall_at_k`, `median_rank`", "full sort in float64", worst(recall), 1e-12)]


def calibration() -> Rows:
    """Brier score, reliability curve, ECE."""

    def probabilities(seed: int) -> tuple[np.ndarray, np.ndarray]:
        labels, a, _ = cohort(seed)
        return labels, stats.norm.cdf(a)

    def brier(seed: int) -> float:
        labels, p = probabilities(seed)
        return gap(ours.brier_score(labels, p), known(sk.brier_score_loss, labels, p))

    def ece_of(y: np.ndarray, p: np.ndarray) -> float:
        observed, predicted = calibration_curve(y, p, n_bins=10)
        sizes = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], p), minlength=10)
        return float(np.abs(observed - predicted) @ sizes[sizes > 0] / len(y))

    def ece(seed: int) -> float:
        labels, p = probabilities(seed)
        return gap(ours.expected_calibration_error(labels, p), known(ece_of, labels, p))

    return [
        ("`brier_score`", "scikit-learn", worst(brier), 1e-12),
        ("`expected_calibration_error`, `reliability_curve`", "scikit-learn's calibration_curve", worst(ece), 1e-12),
    ]


def decisions() -> Rows:
    """Operating points, top-k accuracy, macro F1, Dice."""

    def points(seed: int) -> float:
        labels, scores, _ = cohort(seed)
        thresholds = ours.choose_thresholds(*cohort(seed + 1000)[:2])
        found = ours.operating_points(labels, scores, thresholds)
        called = np.where(scores >= thresholds, 1.0, 0.0)
        oracles = {
            "sensitivity": sk.recall_score,
            "specificity": lambda y, d: sk.recall_score(y, d, pos_label=0),
            "ppv": lambda y, d: sk.precision_score(y, d, zero_division=np.nan),
            "f1": sk.f1_score,
        }
        return max(gap(getattr(found, name), known(oracle, labels, called)) for name, oracle in oracles.items())

    def youden(seed: int) -> float:
        labels, scores, _ = cohort(seed)
        found = ours.operating_points(labels, scores, ours.choose_thresholds(labels, scores))

        def best(y: np.ndarray, s: np.ndarray) -> float:
            false, true, _ = sk.roc_curve(y, s)
            return float((true - false).max())

        return gap(found.sensitivity + found.specificity - 1, known(best, labels, scores))

    return [
        ("`operating_points`", "scikit-learn", worst(points), 1e-12),
        ("`choose_thresholds`, Youden", "scikit-learn's roc_curve", worst(youden), 1e-12),
    ]


def main() -> int:
    """Print the table; 1 when a metric left its bound."""
    rows = [row for part in (areas, delong, bootstrap, retrieval, calibration, decisions) for row in part()]
    lines = ["| metric | oracle | max deviation |", "| --- | --- | --- |"]
    lines += [f"| {metric} | {oracle} | {deviation:.0e} |" for metric, oracle, deviation, _ in rows]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(any(deviation > bound for _, _, deviation, bound in rows))


if __name__ == "__main__":
    sys.exit(main())
