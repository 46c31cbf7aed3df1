"""AUROC, AUPRC and their bootstrap against scikit-learn, DeLong's test against MLstatkit and the definition.

``python benchmarks/bench_metrics.py [--sizes 500 5000 50000] [--classes 40] [--rounds 3]``. Peers take turns in one
process; read ratios, not times. The scikit-learn bootstrap runs a few resamples only and is scaled (its name says so).
MLstatkit is optional. DeLong's p-values are compared with those of the definition over all pairs; the largest
difference is logged. Results go to ``benchmarks/results/metrics.csv``.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable

import numpy as np
from rounds import logger, measure, write_results
from scipy.special import ndtr
from sklearn.metrics import average_precision_score, roc_auc_score

from medvl_evaluation.metrics import areas_statistic, auroc_auprc, bootstrap_ci, delong_test

RESAMPLES = 1000


def cohort(n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Long-tailed labels, and scores that know a little of them."""
    rng = np.random.default_rng(0)
    labels = (rng.random((n, classes)) < np.clip(0.3 * 0.87 ** np.arange(classes), 0.02, None)).astype(np.uint8)
    return labels, (rng.standard_normal((n, classes)) + 1.2 * labels).astype(np.float32)


def sklearn_areas(labels: np.ndarray, scores: np.ndarray) -> None:
    """Both areas of every class."""
    roc_auc_score(labels, scores, average=None)
    average_precision_score(labels, scores, average=None)


def sklearn_bootstrap(labels: np.ndarray, scores: np.ndarray, resamples: int) -> None:
    """A loop over materialised resamples, both areas."""
    rng = np.random.default_rng(0)
    for _ in range(resamples):
        rows = rng.integers(len(labels), size=len(labels))
        defined = labels[rows].any(axis=0)
        sklearn_areas(labels[rows][:, defined], scores[rows][:, defined])


def delong_by_pairs(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """P-value of one class from every (positive, negative) pair, O(n^2), in blocks of positives."""
    placements = []
    for scores in (a, b):
        positive, negative = scores[labels == 1], scores[labels == 0]
        v10, v01 = np.empty(len(positive)), np.zeros(len(negative))
        for start in range(0, len(positive), 256):
            block = positive[start : start + 256, None]
            wins = (block > negative) + 0.5 * (block == negative)
            v10[start : start + 256] = wins.mean(axis=1)
            v01 += wins.sum(axis=0)
        placements.append((v10, v01 / len(positive)))
    differences = [placements[0][side] - placements[1][side] for side in (0, 1)]
    variance = sum(d.var(ddof=1) / len(d) for d in differences)
    return float(2 * ndtr(-abs(differences[0].mean()) / np.sqrt(variance)))


def bench_delong(n: int, classes: int, rounds: int) -> list[dict[str, object]]:
    """One class, then all classes."""
    labels, a = cohort(n, classes)
    b = a + (0.1 * np.random.default_rng(1).standard_normal(a.shape)).astype(np.float32)
    rows: list[dict[str, object]] = []
    for chosen in (slice(0, 1), slice(None)):
        y, p, q = (np.ascontiguousarray(values[:, chosen]) for values in (labels, a, b))
        peers: dict[str, Callable[[], object]] = {"medvl": lambda y=y, p=p, q=q: delong_test(y, p, q)}
        if importlib.util.find_spec("MLstatkit"):
            from MLstatkit import Delong_test

            peers["MLstatkit"] = lambda y=y, p=p, q=q: [
                Delong_test(y[:, c].astype(int), p[:, c].astype(float), q[:, c].astype(float))
                for c in range(y.shape[1])
            ]
        rows += measure(f"DeLong, {y.shape[1]} classes x {n}", peers, rounds, reference="medvl")
    slow = [delong_by_pairs(labels[:, c], a[:, c], b[:, c]) for c in range(classes)]
    gap = np.abs(delong_test(labels, a, b).p_value - slow).max()
    logger.info("largest difference of %d p-values to the definition over all pairs: %.1e", classes, gap)
    return rows


def main() -> None:
    """Time every peer at every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 5000, 50000])
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    results = []
    for n in arguments.sizes:
        labels, scores = cohort(n, arguments.classes)
        case = f"{arguments.classes} classes x {n}"
        areas = {
            "medvl": lambda y=labels, s=scores: auroc_auprc(y, s),
            "scikit-learn": lambda y=labels, s=scores: sklearn_areas(y, s),
        }
        results += measure(f"AUROC + AUPRC, {case}", areas, arguments.rounds, reference="medvl")
        drawn = 20 if n <= 5000 else 2
        peer = f"scikit-learn loop (x {RESAMPLES // drawn})"
        bootstraps = {
            "medvl": lambda y=labels, s=scores: bootstrap_ci(areas_statistic(y, s), len(y), RESAMPLES),
            peer: lambda y=labels, s=scores, k=drawn: sklearn_bootstrap(y, s, k),
        }
        title = f"bootstrap of both, {RESAMPLES} resamples, {case}"
        rounds = 1 if n > 5000 else arguments.rounds
        results += measure(title, bootstraps, rounds, reference="medvl", scale={peer: RESAMPLES / drawn})
    results += bench_delong(max(arguments.sizes), arguments.classes, arguments.rounds)
    write_results("metrics", results)


if __name__ == "__main__":
    main()
