"""Calibration of probabilities: reliability curve, expected calibration error, Brier score."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvl_evaluation.metrics.classification import check_labels_and_scores

__all__ = ["Reliability", "brier_score", "expected_calibration_error", "reliability_curve"]


class Reliability(NamedTuple):
    """Bins of a reliability curve, lowest probability first; NaN where a bin is empty.

    ``predicted`` and ``observed`` are the mean probability and the share of positives in each bin, ``count`` its size.
    """

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    count: NDArray[np.int64]  # type: ignore[assignment]


def reliability_curve(
    labels: ArrayLike,
    probabilities: ArrayLike,
    n_bins: int = 10,
    binning: Literal["uniform", "quantile"] = "uniform",
) -> Reliability:
    """Observed share of positives against the predicted probability, for one class.

    Args:
        labels: ``N``; 1, 0, or NaN = unknown, which is left out.
        probabilities: ``N`` in [0, 1].
        n_bins: Number of bins.
        binning: ``"uniform"``: bins of equal width, closed above (as in Guo et al.), the first on both sides.
            ``"quantile"``: bins of equal count up to one; equal probabilities may fall into two bins.

    Returns:
        One entry per bin.

    Raises:
        ValueError: If shapes differ, a probability is NaN or outside [0, 1], or ``n_bins`` or ``binning`` is unusable.
    """
    if n_bins < 1 or binning not in ("uniform", "quantile"):
        raise ValueError(f"n_bins={n_bins}, binning={binning!r}; give at least one bin, and 'uniform' or 'quantile'")
    labels, probabilities = _checked(np.asarray(labels)[..., None], np.asarray(probabilities)[..., None])
    known = ~np.isnan(labels[:, 0])
    y, p = labels[known, 0].astype(float), probabilities[known, 0].astype(float)
    if binning == "uniform":
        bins = np.searchsorted(np.linspace(0, 1, n_bins + 1)[1:-1], p)
    else:
        bins = np.empty(len(p), dtype=int)
        bins[np.argsort(p, kind="stable")] = np.arange(len(p)) * n_bins // max(len(p), 1)
    count = np.bincount(bins, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        predicted, observed = (np.bincount(bins, weights=v, minlength=n_bins) / count for v in (p, y))
    return Reliability(predicted, observed, count)


def expected_calibration_error(
    labels: ArrayLike,
    probabilities: ArrayLike,
    n_bins: int = 10,
    binning: Literal["uniform", "quantile"] = "uniform",
) -> NDArray[np.float64]:
    r"""$\sum_b \frac{n_b}{n} |\text{observed}_b - \text{predicted}_b|$ of each class, over the bins of its curve.

    It depends on the number of bins, and small bins lift it: name both beside the value.

    Args:
        labels: ``N C``; 1, 0, or NaN = unknown.
        probabilities: ``N C`` in [0, 1].
        n_bins: See `reliability_curve`.
        binning: See `reliability_curve`.

    Returns:
        ``C``, 0 at best; NaN for a class without known labels.

    Raises:
        ValueError: As `reliability_curve`.

    References:
        Guo et al., On calibration of modern neural networks, arXiv:1706.04599 (there for the top class); here of the
        positive class.
    """
    labels, probabilities = _checked(labels, probabilities)
    errors = np.full(labels.shape[1], np.nan)
    for c in range(labels.shape[1]):
        predicted, observed, count = reliability_curve(labels[:, c], probabilities[:, c], n_bins, binning)
        if (total := count.sum()) > 0:
            errors[c] = np.nansum(count * np.abs(observed - predicted)) / total
    return errors


def brier_score(labels: ArrayLike, probabilities: ArrayLike) -> NDArray[np.float64]:
    """Mean squared difference of probability and label of each class, ``C``, 0 at best.

    Args:
        labels: ``N C``; 1, 0, or NaN = unknown, which is left out.
        probabilities: ``N C`` in [0, 1].

    Returns:
        ``C``; NaN for a class without known labels.

    Raises:
        ValueError: If shapes differ or a probability is NaN or outside [0, 1].

    References:
        Brier, Monthly Weather Review 78:1, 1950.
    """
    labels, probabilities = _checked(labels, probabilities)
    known = ~np.isnan(labels)
    squares = np.where(known, (probabilities.astype(float) - labels) ** 2, 0.0)
    with np.errstate(invalid="ignore"):
        return squares.sum(axis=0) / known.sum(axis=0)


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    labels, probabilities = check_labels_and_scores(labels, probabilities)
    outside = (probabilities < 0) | (probabilities > 1)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ValueError(
            f"probabilities: {probabilities[row, column]} in row {row}, column {column} is outside [0, 1]; "
            "calibration needs probabilities, not cosines or logits"
        )
    return labels, probabilities
