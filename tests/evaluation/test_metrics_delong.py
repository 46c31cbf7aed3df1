"""DeLong's test against published examples, the O(n²) definition, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from medvl_evaluation.metrics import auroc, bootstrap_ci, delong_test, holm
from medvl_evaluation.metrics.bootstrap import areas_statistic, difference_statistic

# DeLong et al. 1988, the 43 patients with all three tests: albumin, total protein, 10 - Kantor-Gerstner score, outcome.
TABLE = """
    3.0 5.8 0 0  3.2 6.3 5 1  3.9 6.8 7 1  2.8 4.8 4 0  3.2 5.8 7 1  0.9 4.0 5 0  2.5 5.7 2 0  1.6 5.6 5 1
    3.8 5.7 5 1  3.7 6.7 4 1  3.2 5.4 6 1  3.8 6.6 4 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 6 1  3.6 6.7 6 0
    2.3 4.4 4 1  4.2 7.6 6 0  4.0 6.6 4 0  3.5 5.8 4 1  3.8 6.8 3 1  3.0 4.7 2 0  4.5 7.4 5 1  3.7 7.4 5 1
    3.1 6.6 4 1  4.1 8.2 4 1  4.3 7.0 5 1  4.3 6.5 6 1  3.2 5.1 5 1  2.6 4.7 4 1  3.3 6.8 4 0  1.7 4.0 3 0
    3.7 6.1 5 1  3.3 6.3 3 1  4.2 7.7 4 1  3.5 6.2 5 1  2.9 5.7 1 0  2.1 4.8 3 1  2.8 6.2 2 0  4.0 7.0 3 1
    3.3 5.7 4 1  3.7 6.9 5 1  3.6 6.6 5 1
"""
SURGERY = np.array(TABLE.split(), dtype=float).reshape(-1, 4)


def slow(labels, scores, clusters=None):
    """Areas and covariances of the models from all pairs, one at a time in float64; Obuchowski's form with clusters."""
    clusters = np.arange(len(labels)) if clusters is None else np.asarray(clusters)
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n = len(positive), len(negative)
    wins = np.array([[[(s[p] > s[q]) + 0.5 * (s[p] == s[q]) for q in negative] for p in positive] for s in scores])
    areas = wins.mean(axis=(1, 2))
    v10, v01 = wins.mean(axis=2) - areas[:, None], wins.mean(axis=1) - areas[:, None]
    names = sorted(set(clusters[np.concatenate([positive, negative])]))
    x = np.array([v10[:, clusters[positive] == name].sum(axis=1) for name in names]) / m
    y = np.array([v01[:, clusters[negative] == name].sum(axis=1) for name in names]) / n
    i10, i01, i = len(set(clusters[positive])), len(set(clusters[negative])), len(names)
    return areas, i10 / (i10 - 1) * x.T @ x + i01 / (i01 - 1) * y.T @ y + i / (i - 1) * (x.T @ y + y.T @ x)


def models(seed: int, n: int = 40, levels: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two correlated scores with ties; two rows of each label at least."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(float)
    labels[:4] = [0, 1, 0, 1]
    a = rng.standard_normal(n) + labels
    return labels, np.round(a * levels) / levels, np.round((a + rng.standard_normal(n)) * levels) / levels


@pytest.mark.parametrize(
    ("column", "area", "error", "low", "high"),
    [(0, 0.7366, 0.0927, 0.5549, 0.9182), (2, 0.7258, 0.1028, 0.5243, 0.9273), (1, 0.6478, 0.1000, 0.4518, 0.8439)],
)
def test_published_areas(column, area, error, low, high):
    """SAS/STAT's worked example of DeLong's data prints these."""
    found = delong_test(SURGERY[:, 3], SURGERY[:, column], SURGERY[:, column])
    assert [found.auc_a, found.variance_a**0.5, *found.ci_a] == pytest.approx([area, error, low, high], abs=6e-5)


@pytest.mark.parametrize(
    ("column", "difference", "error", "low", "high", "chi_square", "p"),
    [(0, 0.0108, 0.0953, -0.1761, 0.1976, 0.0127, 0.9102), (1, -0.0780, 0.1046, -0.2830, 0.1271, 0.5554, 0.4561)],
)
def test_published_comparisons(column, difference, error, low, high, chi_square, p):
    found = delong_test(SURGERY[:, 3], SURGERY[:, column], SURGERY[:, 2])
    assert [found.difference, *found.ci_difference] == pytest.approx([difference, low, high], abs=6e-5)
    assert [found.z**2, found.p_value] == pytest.approx([chi_square, p], abs=6e-5)
    assert abs(found.difference / found.z) == pytest.approx(error, abs=6e-5)


def test_published_ratings():
    """Hanley and McNeil 1982: 109 CTs in five grades; area and DeLong interval as Stata's manual prints them."""
    grades = np.concatenate([np.repeat(np.arange(5), counts) for counts in ([33, 6, 6, 11, 2], [3, 2, 2, 11, 33])])
    found = delong_test(np.repeat([0, 1], [58, 51]), grades, grades)
    assert [found.auc_a, found.variance_a**0.5] == pytest.approx([0.8932, 0.0307], abs=5e-5)
    assert found.ci_a == pytest.approx((0.83295, 0.95339), abs=5e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), levels=st.sampled_from([1, 4, 1000]), clustered=st.booleans())
def test_everything_equals_all_pairs(seed, levels, clustered):
    labels, a, b = models(seed, levels=levels)
    clusters = np.random.default_rng(seed).integers(0, 15, len(labels)) if clustered else None
    areas, covariance = slow(labels, (a, b), clusters)
    found = delong_test(labels, a, b, clusters=clusters)
    assert [found.auc_a, found.auc_b] == pytest.approx(areas, abs=1e-12)
    assert [found.auc_a, found.auc_b] == pytest.approx([roc_auc_score(labels, a), roc_auc_score(labels, b)], abs=1e-9)
    assert [found.variance_a, found.covariance, found.variance_b] == pytest.approx(
        covariance[np.triu_indices(2)], abs=1e-12
    )
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if error > 1e-9:
        assert found.z == pytest.approx((areas[0] - areas[1]) / error, abs=1e-9)
        assert found.p_value == pytest.approx(2 * norm.sf(abs(areas[0] - areas[1]) / error), abs=1e-12)
    reach = norm.ppf(0.975) * error
    assert found.ci_difference == pytest.approx((found.difference - reach, found.difference + reach), abs=1e-9)
    reach = norm.ppf(0.975) * np.sqrt(covariance[0, 0])
    assert found.ci_a == pytest.approx((max(areas[0] - reach, 0), min(areas[0] + reach, 1)), abs=1e-9)


def matrices(n: int = 60, classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    columns = [models(seed, n) for seed in range(classes)]
    labels, a, b = (np.stack(values, axis=1) for values in zip(*columns, strict=True))
    labels[np.random.default_rng(0).random(labels.shape) < 0.15] = np.nan
    return labels, a, b


def test_classes_are_tested_one_by_one_without_unknown_labels():
    labels, a, b = matrices()
    found = delong_test(labels, a, b)
    np.testing.assert_allclose(found.auc_a, auroc(labels, a), atol=1e-12)
    for c in range(labels.shape[1]):
        known = ~np.isnan(labels[:, c])
        alone = delong_test(labels[known, c], a[known, c], b[known, c])
        assert [found.z[c], found.p_value[c], found.ci_b[1][c]] == pytest.approx(
            [alone.z, alone.p_value, alone.ci_b[1]], abs=1e-12
        )
        assert alone.p_holm == alone.p_value
    np.testing.assert_array_equal(found.p_holm, holm(found.p_value))


def test_micro_takes_the_entries_of_one_row_together():
    labels, a, b = matrices()
    rows = np.repeat(np.arange(len(labels)), labels.shape[1])
    known = ~np.isnan(labels.ravel())
    areas, covariance = slow(labels.ravel()[known], (a.ravel()[known], b.ravel()[known]), rows[known])
    found = delong_test(labels, a, b, average="micro")
    assert [found.auc_a, found.auc_b, found.variance_a, found.variance_b, found.covariance] == pytest.approx(
        [*areas, covariance[0, 0], covariance[1, 1], covariance[0, 1]], abs=1e-12
    )
    doubled = delong_test(*(np.repeat(values, 2, 1) for values in (labels, a, b)), average="micro")
    assert doubled.variance_a == pytest.approx(found.variance_a, abs=1e-12), "a repeated column adds no information"


def test_clusters_by_name_and_of_one_row_each():
    labels, a, b = models(3)
    plain = delong_test(labels, a, b)
    named = delong_test(labels, a, b, clusters=[f"p{i}" for i in range(len(labels))])
    assert named.variance_a == pytest.approx(plain.variance_a, abs=1e-12)
    assert named.p_value == pytest.approx(plain.p_value, abs=1e-12)
    copied = delong_test(*(np.repeat(v, 5) for v in (labels, a, b)), clusters=np.repeat(np.arange(len(labels)), 5))
    assert copied.variance_a == pytest.approx(plain.variance_a, rel=0.01), "copies of a patient add no information"
    naive = delong_test(*(np.repeat(v, 5) for v in (labels, a, b)))
    assert naive.variance_a < 0.25 * plain.variance_a


def test_agrees_with_the_paired_bootstrap():
    labels, a, b = models(11, n=300, levels=1000)
    found = delong_test(labels, a, b)
    paired = difference_statistic(*(areas_statistic(labels[:, None], s[:, None]) for s in (a, b)))
    interval = bootstrap_ci(paired, len(labels), 2000, seed=1)
    assert [interval.low[0, 3], interval.high[0, 3]] == pytest.approx(found.ci_difference, abs=0.012)


def test_level_of_the_test_under_equal_models():
    """Two models equally good: p below 0.05 in about 5 % of cohorts."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        labels = (rng.random(120) < 0.4).astype(int)
        signal = rng.standard_normal(120) + labels
        hits += delong_test(labels, signal + rng.standard_normal(120), signal + rng.standard_normal(120)).p_value < 0.05
    assert 8 <= hits <= 36


def test_where_there_is_no_test():
    labels = np.array([[0, 1, 1, 0, 0, 1, 0, 1], [1] * 8, [0] * 8, [0, 0, 0, 0, 0, 0, 0, 1], [np.nan] * 8]).T
    a = np.repeat(np.arange(8.0)[:, None], 5, axis=1)
    found = delong_test(labels, a, a)
    assert found.p_value[0] == 1
    assert found.z[0] == 0
    assert np.isnan(found.auc_a[[1, 2, 4]]).all()
    assert np.isnan(found.p_value[[1, 2, 3, 4]]).all(), "one positive has no variance"
    assert found.auc_a[3] == 1
    assert found.p_holm[0] == 1
    opposite = delong_test([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1])
    assert (opposite.auc_a, opposite.auc_b, opposite.difference) == (1, 0, 1)
    assert np.isnan([opposite.z, opposite.p_value]).all(), "variance 0 and a difference: no test"


def test_holm():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, np.nan, 0.6, 0.02]), [1, np.nan, 1, 0.06])
    assert holm(0.2) == 0.2
    rng = np.random.default_rng(0)
    p = rng.random(9) ** 3
    for adjusted, own in zip(holm(p), p, strict=True):
        steps = [(p >= other).sum() * other for other in p[p <= own]]
        assert adjusted == pytest.approx(min(1, max(steps)), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0, 1], [0.1, 0.2], [0.1]), {}, r"labels \(2,\) and scores \(1,\) must have the same shape"),
        (([0, 1], [0.1, np.nan], [0.1, 0.2]), {}, "NaN in column"),
        (([0, 2], [0.1, 0.3], [0.1, 0.2]), {}, "holds 2 in row 1; use 1, 0 or NaN"),
        (([0, 1], [0.1, 0.3], [0.1, 0.2]), {"level": 1}, "level=1, average=None; give a level between"),
        (([0, 1], [0.1, 0.3], [0.1, 0.2]), {"average": "macro"}, "None or 'micro'"),
        (([0, 1], [0.1, 0.3], [0.1, 0.2]), {"clusters": [1]}, "1 clusters for 2 rows"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        delong_test(*arguments, **options)
