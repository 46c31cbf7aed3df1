"""Thresholds and operating points against scikit-learn and every threshold tried."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from medvl_evaluation.metrics import choose_thresholds, operating_points


def cohort(seed: int, n: int = 40, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, classes)) < 0.4).astype(float)
    scores = np.round((rng.standard_normal((n, classes)) + labels) * 4) / 4
    labels[rng.random((n, classes)) < 0.1] = np.nan
    labels[:2] = [[0], [1]]
    return labels, scores


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_points_equal_scikit_learn(seed):
    labels, scores = cohort(seed)
    thresholds = np.array([0.25, -1.0, 9.0])
    points = operating_points(labels, scores, thresholds)
    for c, threshold in enumerate(thresholds):
        known = ~np.isnan(labels[:, c])
        y, called = labels[known, c], (scores[known, c] >= threshold).astype(float)
        assert points.sensitivity[c] == pytest.approx(recall_score(y, called), abs=1e-12)
        assert points.specificity[c] == pytest.approx(recall_score(y, called, pos_label=0), abs=1e-12)
        assert points.f1[c] == pytest.approx(f1_score(y, called), abs=1e-12)
        values = points.ppv[c], points.npv[c]
        expected = [precision_score(y, called, pos_label=k, zero_division=np.nan) for k in (1, 0)]
        assert values == pytest.approx(expected, abs=1e-12, nan_ok=True)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), target=st.sampled_from([0.5, 0.9, 1.0]))
def test_thresholds_are_the_best_of_all(seed, target):
    labels, scores = cohort(seed, classes=1)
    levels = np.unique(scores[~np.isnan(labels)])[::-1]
    every = [operating_points(labels, scores, [level]) for level in levels]
    sensitivity, specificity, f1 = (
        np.array([getattr(p, name)[0] for p in every]) for name in ("sensitivity", "specificity", "f1")
    )
    best = [p[0] for p in (choose_thresholds(labels, scores, rule) for rule in ("youden", "f1"))]
    chosen = operating_points(labels, scores, best[:1]), operating_points(labels, scores, best[1:])
    assert chosen[0].sensitivity + chosen[0].specificity == pytest.approx((sensitivity + specificity).max(), abs=1e-12)
    assert chosen[1].f1 == pytest.approx(f1.max(), abs=1e-12)
    assert choose_thresholds(labels, scores, "sensitivity", target) == levels[sensitivity >= target].max()
    kept = levels[specificity >= target]
    assert choose_thresholds(labels, scores, "specificity", target) == (kept.min() if len(kept) else np.inf)


def test_threshold_from_validation_is_kept_on_other_data():
    validation, test = cohort(1, 200), cohort(2, 200)
    thresholds = choose_thresholds(*validation)
    points = operating_points(*test, thresholds)
    np.testing.assert_array_equal(points.threshold, thresholds)
    own = operating_points(*test, choose_thresholds(*test))
    assert (own.sensitivity + own.specificity >= points.sensitivity + points.specificity).all()


def test_classes_without_both_sides():
    labels, scores = np.array([[1, 0, np.nan], [1, 0, np.nan]]), np.array([[0.1, 0.2, 0.3], [0.3, 0.4, 0.5]])
    thresholds = choose_thresholds(labels, scores)
    assert np.isnan(thresholds).all()
    points = operating_points(labels, scores, thresholds)
    assert all(np.isnan(values).all() for values in points)
    points = operating_points(labels, scores, [0.2, 0.3, 0.0])
    np.testing.assert_array_equal(points.sensitivity, [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(points.specificity, [np.nan, 0.5, np.nan])


@pytest.mark.parametrize(
    ("rule", "target", "message"),
    [
        ("youden", 0.9, "rule='youden' with target=0.9; 'sensitivity' and 'specificity' need one"),
        ("sensitivity", None, "rule='sensitivity' with target=None"),
        ("sensitivity", 1.2, "target sensitivity is 1.2; give a share above 0"),
        ("best", None, "rule='best'"),
    ],
)
def test_bad_rules(rule, target, message):
    with pytest.raises(ValueError, match=message):
        choose_thresholds([[0], [1]], [[0.1], [0.2]], rule, target)


def test_one_threshold_per_class():
    with pytest.raises(ValueError, match=r"\(2,\) thresholds for 1 classes"):
        operating_points([[0], [1]], [[0.1], [0.2]], [0.1, 0.2])
