"""Calibration against scikit-learn and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from medvl_evaluation.metrics import brier_score, expected_calibration_error, reliability_curve


def cohort(seed: int, n: int = 200, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.random((n, classes))
    labels = (rng.random((n, classes)) < p**1.5).astype(float)
    labels[rng.random((n, classes)) < 0.1] = np.nan
    return labels, p


def slow_ece(labels, probabilities, n_bins):
    """One entry at a time."""
    bins = [[] for _ in range(n_bins)]
    for y, p in zip(labels, probabilities, strict=True):
        if not np.isnan(y):
            bins[max(math.ceil(p * n_bins), 1) - 1].append((y, p))
    total = sum(map(len, bins))
    gaps = [abs(sum(y for y, _ in b) - sum(p for _, p in b)) for b in bins if b]
    return sum(gaps) / total if total else np.nan


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(1, 60), n_bins=st.integers(1, 20))
def test_expected_calibration_error_equals_a_loop(seed, n, n_bins):
    labels, p = cohort(seed, n)
    expected = [slow_ece(y, q, n_bins) for y, q in zip(labels.T, p.T, strict=True)]
    np.testing.assert_allclose(expected_calibration_error(labels, p, n_bins), expected, atol=1e-12)


def test_curve_equals_scikit_learn_where_bins_hold_studies():
    labels, p = (values[:, 0] for values in cohort(0))
    known = ~np.isnan(labels)
    observed, predicted = calibration_curve(labels[known], p[known], n_bins=8)
    curve = reliability_curve(labels, p, 8)
    np.testing.assert_allclose(curve.observed[curve.count > 0], observed, atol=1e-12)
    np.testing.assert_allclose(curve.predicted[curve.count > 0], predicted, atol=1e-12)
    assert curve.count.sum() == known.sum()


def test_quantile_bins_have_equal_counts_also_with_ties():
    labels, p = np.tile([0, 1], 20), np.repeat([0.1, 0.2], 20)
    curve = reliability_curve(labels, p, 8, "quantile")
    np.testing.assert_array_equal(curve.count, 5)
    np.testing.assert_allclose(curve.predicted, np.repeat([0.1, 0.2], 4), atol=1e-12)
    labels, p = (np.nan_to_num(values)[:, 1] for values in cohort(1))
    order, curve = np.argsort(p), reliability_curve(labels, p, 4, "quantile")
    np.testing.assert_allclose(curve.predicted, p[order].reshape(4, 50).mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(curve.observed, labels[order].reshape(4, 50).mean(axis=1), atol=1e-12)


def test_brier_equals_scikit_learn():
    labels, p = cohort(2)
    expected = [brier_score_loss(y[~np.isnan(y)], q[~np.isnan(y)]) for y, q in zip(labels.T, p.T, strict=True)]
    np.testing.assert_allclose(brier_score(labels, p), expected, atol=1e-12)


def test_edges_empty_bins_and_unknown_classes():
    curve = reliability_curve([0, 1, 1], [0.0, 0.5, 1.0], 2)
    np.testing.assert_array_equal(curve.count, [2, 1])
    np.testing.assert_array_equal(curve.observed, [0.5, 1])
    assert np.isnan(reliability_curve([1], [0.9], 2).observed[0])
    nothing = np.full((3, 1), np.nan)
    assert np.isnan(expected_calibration_error(nothing, np.zeros((3, 1)))).all()
    assert np.isnan(brier_score(nothing, np.zeros((3, 1)))).all()
    assert reliability_curve([], [], 3, "quantile").count.tolist() == [0, 0, 0]


def test_a_calibrated_model_has_no_error_and_an_overconfident_one_has():
    rng = np.random.default_rng(0)
    p = rng.random((40_000, 1))
    labels = rng.random(p.shape) < p
    assert expected_calibration_error(labels, p)[0] < 0.01
    assert expected_calibration_error(labels, p > 0.5)[0] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("labels", "probabilities", "options", "message"),
    [
        ([0, 1], [0.1, 1.5], {}, r"probabilities: 1.5 in row 1, column 0 is outside \[0, 1\].*not cosines"),
        ([0, 1], [0.1, np.nan], {}, "NaN in column"),
        ([0, 1], [0.1], {}, "must both be studies x classes"),
        ([0, 1], [0.1, 0.2], {"n_bins": 0}, "n_bins=0"),
        ([0, 1], [0.1, 0.2], {"binning": "log"}, "'uniform' or 'quantile'"),
    ],
)
def test_bad_input(labels, probabilities, options, message):
    with pytest.raises(ValueError, match=message):
        reliability_curve(labels, probabilities, **options)


def test_cosines_are_no_probabilities_for_the_brier_score():
    with pytest.raises(ValueError, match=r"-0.2 in row 0, column 1"):
        brier_score([[0, 1]], [[0.3, -0.2]])
