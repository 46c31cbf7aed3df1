"""Accuracy, recall and F1 of decisions, as a statistic of study weights: the value and its bootstrap from one place."""

from __future__ import annotations

import numpy as np

from medvl_evaluation.metrics.bootstrap import Statistic

__all__ = ["DECISIONS", "class_decisions", "decision_statistic", "mean_defined"]

DECISIONS = ("accuracy", "recall_macro", "f1_macro")
"""Columns of `decision_statistic`."""


def decision_statistic(labels: np.ndarray, decided: np.ndarray, exclusive: bool) -> Statistic:
    r"""Accuracy, macro recall and macro F1 of decisions.

    $F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c)$. Classes without positives are left out of recall and F1.

    Args:
        labels: ``N C``; 1, 0 or NaN (unknown, left out).
        decided: ``N C``, 1 or 0.
        exclusive: Whether each study has one class: accuracy is then the share of studies with the right class, and
            otherwise the mean over classes of the share of right decisions.

    Returns:
        Weights ``N R`` → ``R 3``, the columns of `DECISIONS`.
    """
    known = ~np.isnan(labels)
    parts = [known & (labels == y) & (decided == d) for y, d in ((1, 1), (0, 1), (1, 0), (0, 0))]

    def statistic(weights: np.ndarray) -> np.ndarray:
        true, false, missed, right = (part.T.astype(np.float64) @ weights for part in parts)  # C R each
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = true / (true + missed)
            f1 = np.where(true + missed > 0, 2 * true / (2 * true + false + missed), np.nan)
            if exclusive:
                accuracy = true.sum(axis=0) / (true + missed).sum(axis=0)
            else:
                accuracy = mean_defined((true + right) / (true + false + missed + right))
        return np.stack([accuracy, mean_defined(recall), mean_defined(f1)], axis=1)

    return statistic


def class_decisions(labels: np.ndarray, decided: np.ndarray) -> dict[str, np.ndarray]:
    """Counts, recall, precision and F1 of every class, ``C`` each; NaN where not defined."""
    true = ((labels == 1) & (decided == 1)).sum(axis=0)
    n_positive, n_decided = (labels == 1).sum(axis=0), (~np.isnan(labels) & (decided == 1)).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = true / n_positive, true / n_decided
        f1 = np.where(n_positive > 0, 2 * true / (n_positive + n_decided), np.nan)
    return {"n_positive": n_positive, "n_decided": n_decided, "recall": recall, "precision": precision, "f1": f1}


def mean_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis, entries without a value (NaN) left out; NaN where there is none."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=0) / np.where(defined.any(axis=0), defined.sum(axis=0), np.nan)
