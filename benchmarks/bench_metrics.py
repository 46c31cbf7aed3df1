"""AUROC, AUPRC and their bootstrap against scikit-learn: ``python benchmarks/bench_metrics.py``.

Peers take turns in one process; read ratios, not times. The scikit-learn bootstrap runs a hundredth of the resamples
and is scaled (its name says so). Results go to ``benchmarks/results/metrics.csv``.
"""

from __future__ import annotations

import argparse

import numpy as np
from rounds import measure, write_results
from sklearn.metrics import average_precision_score, roc_auc_score

from medvl_core.metrics import areas_statistic, auroc_auprc, bootstrap_ci

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


def main() -> None:
    """Time every peer at every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--classes", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
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
        bootstraps = {
            "medvl": lambda y=labels, s=scores: bootstrap_ci(areas_statistic(y, s), len(y), RESAMPLES),
            "scikit-learn loop (x 100)": lambda y=labels, s=scores: sklearn_bootstrap(y, s, RESAMPLES // 100),
        }
        scale = {"scikit-learn loop (x 100)": 100.0}
        title = f"bootstrap of both, {RESAMPLES} resamples, {case}"
        results += measure(title, bootstraps, min(3, arguments.rounds), reference="medvl", scale=scale)
    write_results("metrics", results)


if __name__ == "__main__":
    main()
