"""Agreement of predictions with one true class per case or voxel: top-k accuracy, macro F1, Dice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvl_core.engine.masks import LABELS, voxel_counts

__all__ = ["dice", "macro_f1", "top_k_accuracy"]


def top_k_accuracy(targets: ArrayLike, scores: ArrayLike, ks: Sequence[int] = (1,)) -> dict[int, float]:
    """Share of cases whose true class is among the k highest scores: k → accuracy in [0, 1].

    **Ties count against the case**: a class with the same score as the true one is ranked above it, so that equal
    scores for all classes are not right by the order of the columns.

    Args:
        targets: ``N``, the index of the true class.
        scores: ``N C``.
        ks: Each at least 1.

    Raises:
        ValueError: If shapes do not fit, there is no case, a target is no column, a score is NaN, or a k is below 1.
    """
    targets, scores = np.asarray(targets), np.asarray(scores)
    if targets.ndim != 1 or scores.ndim != 2 or len(targets) != len(scores) or len(targets) == 0:
        raise ValueError(f"targets {targets.shape} and scores {scores.shape}; expected N and N x classes, N at least 1")
    if (odd := ~np.isin(targets, np.arange(scores.shape[1]))).any():
        raise ValueError(f"targets: {targets[odd][0]} is none of the {scores.shape[1]} classes; use 0 to C - 1")
    if np.isnan(scores).any():
        raise ValueError(f"scores: NaN in row {np.isnan(scores).any(axis=1).argmax()}; every case needs all scores")
    if any(k < 1 for k in ks):
        raise ValueError(f"ks is {tuple(ks)}; every k is at least 1")
    own = scores[np.arange(len(scores)), targets.astype(int)]
    rank = (scores >= own[:, None]).sum(axis=1)
    return {int(k): float((rank <= k).mean()) for k in ks}


def macro_f1(targets: ArrayLike, predictions: ArrayLike) -> float:
    """Mean F1 over the classes that occur among targets or predictions (scikit-learn's ``f1_score``).

    For several labels per case use the F1 of `operating_points` and `average_metric`.

    Args:
        targets: ``N``, the true class.
        predictions: ``N``, the predicted class.

    Raises:
        ValueError: If the shapes are not both ``N``, or there is no case.
    """
    from sklearn.metrics import f1_score  # imports a second's worth of modules

    targets, predictions = np.asarray(targets), np.asarray(predictions)
    if targets.ndim != 1 or targets.shape != predictions.shape or len(targets) == 0:
        raise ValueError(f"targets {targets.shape} and predictions {predictions.shape}; expected N of each, at least 1")
    return float(f1_score(targets, predictions, average="macro"))


def dice(prediction: ArrayLike, target: ArrayLike, labels: Sequence[int] = (1,)) -> NDArray[np.float64]:
    r"""Dice overlap $2 |P \cap T| / (|P| + |T|)$ of each label of two label maps.

    Args:
        prediction: Label map of one case, whole numbers from 0 to 255, or booleans.
        target: Likewise, on the same grid.
        labels: Which labels; a binary mask has label 1.

    Returns:
        One value per label in [0, 1]; NaN where neither map holds the label (leave it out of averages: an organ outside
        the field of view is neither right nor wrong), 0 where only one does.

    Raises:
        ValueError: If the shapes differ, or a map or ``labels`` holds anything else.

    References:
        Dice, Ecology 26:297, 1945.
    """
    if any(not 0 <= label < LABELS for label in labels):
        raise ValueError(f"dice of labels {tuple(labels)}; give whole numbers from 0 to {LABELS - 1}")
    predicted, true, overlap = voxel_counts(prediction, target)[:, list(labels)]
    size = predicted + true
    return 2 * overlap / np.where(size > 0, size, np.nan)
