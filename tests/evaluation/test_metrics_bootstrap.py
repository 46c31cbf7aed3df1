"""Weighted statistics against materialised resamples, and the intervals made from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from medvl_evaluation.metrics import (
    areas_statistic,
    auroc_auprc,
    average_metric,
    bootstrap_ci,
    difference_statistic,
    label_strata,
    median_rank_statistic,
    micro_auprc,
    micro_auroc,
    recall_statistic,
)


def cohort(seed: int, n: int, classes: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated labels and scores with unknown labels and ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, classes)) < np.linspace(0.5, 0.1, classes)).astype(float)
    scores = np.round((rng.standard_normal((n, classes)) + labels) * levels) / levels
    labels[rng.random((n, classes)) < 0.1] = np.nan
    return labels, scores


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(1, 25), classes=st.integers(1, 4), levels=st.sampled_from([1, 1000]))
def test_weights_equal_repeated_rows(seed, n, classes, levels):
    """A weight of 2 is the same as the row twice: areas of the materialised resample are the oracle."""
    labels, scores = cohort(seed, n, classes, levels)
    weights = np.random.default_rng(seed + 1).integers(0, 3, (n, 5)).astype(np.float32)
    out = areas_statistic(labels, scores)(weights)
    for column, result in zip(weights.T.astype(int), out, strict=True):
        rows = np.repeat(np.arange(n), column)
        y, s = labels[rows], scores[rows]
        for area, values, micro in zip(result, auroc_auprc(y, s), (micro_auroc(y, s), micro_auprc(y, s)), strict=True):
            np.testing.assert_allclose(area[3:], values, atol=1e-9)
            averages = [average_metric(values, y, how).value for how in ("macro", "weighted")]
            np.testing.assert_allclose(area[:3], [*averages, micro], atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), ranks=st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_rank_statistics_equal_repeated_rows(seed, ranks):
    weights = np.random.default_rng(seed).integers(0, 3, (len(ranks), 4)).astype(np.float32)
    weights[0] += 1
    recall, median = recall_statistic(ranks, (1, 5))(weights), median_rank_statistic(ranks)(weights)
    for column, r, m in zip(weights.T.astype(int), recall, median, strict=True):
        rows = np.repeat(ranks, column)
        np.testing.assert_allclose(r, [(rows <= 1).mean(), (rows <= 5).mean()], atol=1e-12)
        assert m == np.median(rows)


def test_interval_equals_a_plain_loop_over_resamples():
    """The same draws, materialised patient by patient, through scikit-learn."""
    labels, scores = np.random.default_rng(3).integers(0, 2, (60, 2)), cohort(3, 60, 2, 1000)[1]
    patients = np.repeat(np.arange(20), 3)
    interval = bootstrap_ci(areas_statistic(labels, scores), patients, n_resamples=50, seed=7)
    rng, values = np.random.default_rng(7), []
    for _ in range(50):
        drawn = rng.integers(20, size=20)
        rows = np.concatenate([np.flatnonzero(patients == p) for p in drawn])
        pairs = [(labels[rows, c], scores[rows, c]) for c in range(2)]
        values.append([[metric(*pair) for pair in pairs] for metric in (roc_auc_score, average_precision_score)])
    np.testing.assert_allclose(interval.low[:, 3:], np.quantile(values, 0.025, axis=0), atol=1e-9)
    np.testing.assert_allclose(interval.high[:, 3:], np.quantile(values, 0.975, axis=0), atol=1e-9)
    symmetric = bootstrap_ci(areas_statistic(labels, scores), patients, 50, 7, method="standard_error")
    reach = 1.959963984540054 * np.std(values, axis=0)
    observed = np.stack(auroc_auprc(labels, scores))
    np.testing.assert_allclose(symmetric.low[:, 3:], observed - reach, atol=1e-9)
    np.testing.assert_allclose(symmetric.high[:, 3:], observed + reach, atol=1e-9)


def test_seed_decides_and_chunks_do_not(monkeypatch):
    statistic = recall_statistic(np.arange(1, 41), (10,))
    first = bootstrap_ci(statistic, 40, n_resamples=64, seed=1)
    monkeypatch.setattr("medvl_evaluation.metrics.bootstrap._WEIGHTS_PER_CHUNK", 100)
    np.testing.assert_array_equal(bootstrap_ci(statistic, 40, n_resamples=64, seed=1), first)
    assert bootstrap_ci(statistic, 40, n_resamples=64, seed=2) != first


def test_global_generator_is_untouched():
    state = np.random.get_state()[1].copy()
    bootstrap_ci(recall_statistic([1, 2, 3], (1,)), 3, n_resamples=5)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_rows_of_one_patient_are_drawn_together():
    """Ten copies of each patient carry no more information than one; as single rows they would seem to."""
    ranks = np.random.default_rng(0).integers(1, 10, 30)
    alone = bootstrap_ci(recall_statistic(ranks, (5,)), 30, seed=0)
    copied = np.repeat(ranks, 10)
    clustered = bootstrap_ci(recall_statistic(copied, (5,)), np.repeat([f"p{i:02}" for i in range(30)], 10), seed=0)
    naive = bootstrap_ci(recall_statistic(copied, (5,)), 300, seed=0)
    np.testing.assert_allclose([clustered.low, clustered.high], [alone.low, alone.high], atol=1e-12)
    assert (naive.high - naive.low) < 0.5 * (alone.high - alone.low)


def test_degenerate_resamples_are_counted_and_drawn_anew():
    """One positive among 20: a resample misses it with probability (19/20)^20."""
    labels, scores = np.zeros((20, 2)), np.arange(40.0).reshape(20, 2)
    labels[10, 0] = 1
    interval = bootstrap_ci(areas_statistic(labels, scores), 20, n_resamples=2000)
    assert interval.left_out[0, 3] / 2000 == pytest.approx((19 / 20) ** 20, abs=0.04)
    assert interval.left_out[0, 4] == 2000
    assert np.isfinite([interval.low[0, 3], interval.high[0, 3]]).all()
    assert np.isnan([interval.low[0, 4], interval.high[0, 4]]).all()


def test_every_value_gets_all_its_resamples():
    """The interval of a class that few resamples hold equals one from a plain loop that draws until it has enough."""
    labels, scores = np.zeros((12, 1)), np.random.default_rng(0).random((12, 1))
    labels[[3]] = 1
    interval = bootstrap_ci(areas_statistic(labels, scores), 12, n_resamples=100, seed=5)
    rng, values = np.random.default_rng(5), []
    while len(values) < 100:
        rows = rng.integers(12, size=12)
        if labels[rows].any() and not labels[rows].all():
            values.append(roc_auc_score(labels[rows], scores[rows]))
    assert [interval.low[0, 3], interval.high[0, 3]] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(8, 60))
def test_strata_leave_no_resample_without_a_class(seed, n):
    labels, scores = cohort(seed, n, 5, 1000)
    patients = np.random.default_rng(seed).integers(0, max(n // 2, 1), n)
    strata = label_strata(labels, patients, rare=np.inf)
    drawn = []

    def spy(weights):
        drawn.append(weights)
        return areas_statistic(labels, scores)(weights)

    bootstrap_ci(spy, patients, n_resamples=40, seed=seed, strata=strata)
    weights = np.concatenate(drawn, axis=1)
    assert weights.shape[1] == 41, "nothing had to be drawn anew"
    for value in (0, 1):
        has = labels == value
        assert (weights.T @ has > 0).all(axis=0)[has.any(axis=0)].all()


def test_stratified_resamples_hold_the_sizes_of_the_strata():
    labels = np.repeat([[1.0], [0.0]], [7, 23], axis=0)
    seen = []
    bootstrap_ci(
        lambda weights: seen.append(weights) or weights[:7].sum(axis=0).astype(float),
        30,
        n_resamples=50,
        strata=label_strata(labels, rare=np.inf),
    )
    weights = np.concatenate(seen, axis=1)
    np.testing.assert_array_equal(weights[:7].sum(axis=0), 7)
    np.testing.assert_array_equal(weights.sum(axis=0), 30)
    assert (weights[:, 1:] != weights[:, 1:2]).any(), "but the rows within them vary"


def test_only_rare_classes_make_strata():
    labels = np.zeros((100, 2))
    labels[:40, 0], labels[[1, 50], 1] = 1, 1
    np.testing.assert_array_equal(label_strata(labels, rare=2), 0)
    strata = label_strata(labels)
    assert np.unique(strata).size == 2
    assert set(np.flatnonzero(strata == strata[1])) == {1, 50}
    doubled = label_strata(np.repeat(labels, 2, axis=0), np.repeat(np.arange(100), 2))
    np.testing.assert_array_equal(doubled[::2], strata)


def test_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 1)) < 0.4).astype(int)
    a = rng.standard_normal((200, 1)) + labels
    b = a + 0.2 * rng.standard_normal((200, 1))
    one, two = areas_statistic(labels, a), areas_statistic(labels, b)
    paired = bootstrap_ci(difference_statistic(one, two), 200, 100, seed=3)
    alone = bootstrap_ci(one, 200, 100, seed=3)
    assert (paired.high - paired.low)[0, 3] < 0.5 * (alone.high - alone.low)[0, 3]
    same = bootstrap_ci(difference_statistic(one, one), 200, 50)
    np.testing.assert_array_equal(same.low, 0)
    rng, values = np.random.default_rng(3), []
    for _ in range(100):
        rows = rng.integers(200, size=200)
        values.append(roc_auc_score(labels[rows, 0], a[rows, 0]) - roc_auc_score(labels[rows, 0], b[rows, 0]))
    assert [paired.low[0, 3], paired.high[0, 3]] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-9)


def test_one_patient_has_no_interval():
    interval = bootstrap_ci(recall_statistic([1, 3], (1,)), ["a", "a"], n_resamples=10)
    assert np.isnan([interval.low, interval.high]).all()
    assert interval.left_out.tolist() == [10]


def test_standard_error_interval_of_random_scores_covers_chance():
    """Percentiles of average precision lie too high (duplicated positives); the standard-error interval does not."""
    rng, above = np.random.default_rng(0), {"percentile": 0, "standard_error": 0}
    truth, cohorts = [], []
    for _ in range(120):
        labels, scores = (rng.random((100, 12)) < 0.08).astype(int), rng.random((100, 12))
        truth.append(np.nanmean(auroc_auprc(labels, scores)[1]))
        cohorts.append(areas_statistic(labels, scores))
    for statistic in cohorts:
        for method in above:
            above[method] += bootstrap_ci(statistic, 100, 200, method=method).low[1, 0] > np.mean(truth)
    assert above["standard_error"] <= 8
    assert above["percentile"] > 2 * above["standard_error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 0}, "over 0 rows"),
        ({"units": 3, "n_resamples": 0}, "n_resamples=0"),
        ({"units": 3, "level": 1.0}, "level=1.0"),
        ({"units": 3, "method": "bca"}, "choose 'percentile' or 'standard_error'"),
        ({"units": 3, "strata": [0, 1]}, r"strata has shape \(2,\) for 3 rows"),
        ({"units": ["a", "b", "b"], "strata": [0, 0, 1]}, "patient b has rows in two strata"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ci(recall_statistic([1, 2, 3], (1,)), **arguments)
