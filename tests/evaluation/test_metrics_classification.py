"""AUROC, AUPRC and their averages against scikit-learn and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, roc_auc_score

from medvl_evaluation import metrics

SHAPE = st.tuples(st.integers(1, 30), st.integers(1, 4))


def matrices(levels: int) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Labels with unknowns, and scores of so few levels that most tie."""
    values = st.sampled_from([0.0, 1.0, np.nan])
    scores = st.integers(0, levels).map(lambda value: value / levels)
    return SHAPE.flatmap(
        lambda shape: st.tuples(arrays(float, shape, elements=values), arrays(float, shape, elements=scores))
    )


def sklearn_per_class(labels: np.ndarray, scores: np.ndarray, metric) -> list[float]:
    """The oracle, one class at a time, unknown labels removed."""
    out = []
    for y, s in zip(labels.T, scores.T, strict=True):
        known = ~np.isnan(y)
        defined = len(set(y[known])) == 2
        out.append(metric(y[known], s[known]) if defined else np.nan)
    return out


@settings(max_examples=200, deadline=None)
@given(matrices(levels=4))
def test_areas_equal_sklearn_with_ties_and_unknown_labels(data):
    labels, scores = data
    np.testing.assert_allclose(
        metrics.auroc(labels, scores), sklearn_per_class(labels, scores, roc_auc_score), rtol=0, atol=1e-9
    )
    expected = sklearn_per_class(labels, scores, average_precision_score)
    np.testing.assert_allclose(metrics.auprc(labels, scores), expected, rtol=0, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(matrices(levels=50))
def test_micro_areas_pool_known_entries(data):
    labels, scores = data
    flat = labels.reshape(-1, 1), scores.reshape(-1, 1)
    np.testing.assert_allclose(
        metrics.micro_auroc(labels, scores), sklearn_per_class(*flat, roc_auc_score)[0], atol=1e-9
    )
    np.testing.assert_allclose(
        metrics.micro_auprc(labels, scores), sklearn_per_class(*flat, average_precision_score)[0], atol=1e-9
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_every_score_dtype_and_infinite_scores(dtype):
    labels = np.array([[0, 1, 1, 0, 1]]).T
    scores = np.array([[0, 5, 3, 3, 9]], dtype=dtype).T
    assert metrics.auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    if np.issubdtype(dtype, np.floating):
        scores[[0, 4]] = [[-np.inf], [np.inf]]
        assert metrics.auroc(labels, scores) == pytest.approx((2 + 1 + 0.5 + 2) / 6, abs=1e-12)


def test_area_is_the_share_of_ordered_pairs():
    """AUROC by its definition: pairs in the right order, ties half."""
    rng = np.random.default_rng(0)
    labels, scores = rng.random(60) < 0.3, rng.integers(0, 8, 60)
    wins = [(p > n) + 0.5 * (p == n) for p, n in itertools.product(scores[labels], scores[~labels])]
    assert metrics.auroc(labels[:, None], scores[:, None])[0] == pytest.approx(np.mean(wins), abs=1e-12)


def test_class_without_positives_or_negatives_is_nan_and_counted():
    labels = np.array([[0, 1, 1, np.nan], [1, 1, 0, np.nan]])
    scores = np.array([[0.1, 0.5, 0.9, 0.2], [0.2, 0.4, 0.1, 0.3]])
    areas, precisions = metrics.auroc_auprc(labels, scores)
    np.testing.assert_array_equal(areas, [1, np.nan, 1, np.nan])
    np.testing.assert_array_equal(precisions, [1, np.nan, 1, np.nan])
    assert metrics.average_metric(areas, labels) == (1.0, 2)


def test_no_studies_give_nan():
    assert np.isnan(metrics.auroc(np.zeros((0, 2)), np.zeros((0, 2)))).all()


def test_averages_equal_sklearn():
    rng = np.random.default_rng(1)
    labels, scores = (rng.random((80, 5)) < [0.5, 0.3, 0.2, 0.1, 0.4]).astype(int), rng.random((80, 5))
    values = metrics.auprc(labels, scores)
    assert metrics.average_metric(values, labels, "macro").value == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )
    weighted = average_precision_score(labels, scores, average="weighted")
    assert metrics.average_metric(values, labels, "weighted").value == pytest.approx(weighted, abs=1e-12)
    assert metrics.micro_auprc(labels, scores) == pytest.approx(
        average_precision_score(labels, scores, average="micro"), abs=1e-12
    )


def test_average_without_any_value_is_nan():
    value, left_out = metrics.average_metric([np.nan, np.nan], np.zeros((3, 2)), "weighted")
    assert np.isnan(value)
    assert left_out == 2


def test_operating_counts_move_ties_together():
    true, false = metrics.operating_counts([1, 0, 1, 0], [0.9, 0.5, 0.5, 0.1])
    np.testing.assert_array_equal(true, [1, 2, 2])
    np.testing.assert_array_equal(false, [0, 1, 2])


@pytest.mark.parametrize(("m", "n"), [(1, 5), (2, 6), (3, 7), (6, 7)])
def test_chance_auprc_is_the_mean_over_all_orders(m, n):
    labels = [np.isin(np.arange(n), chosen) for chosen in itertools.combinations(range(n), m)]
    mean = np.mean([average_precision_score(y, np.arange(n)) for y in labels])
    assert metrics.chance_auprc(m, n) == pytest.approx(mean, abs=1e-12)


def test_chance_auprc_tends_to_the_prevalence():
    assert metrics.chance_auprc(20_000, 100_000) == pytest.approx(0.2, abs=2e-4)
    assert metrics.chance_auprc(5, 50) == pytest.approx(0.164, abs=1e-3)
    assert np.isnan(metrics.chance_auprc(0, 10))
    assert np.isnan(metrics.chance_auprc(10, 10))


def test_named_groups_of_classes():
    labels = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [1, 0, 0, np.nan], [1, 0, 0, 1]])
    values = [0.9, np.nan, 0.6, 0.7]
    groups = {"base": ["edema", "mass"], "rare": ["hernia"], "all": ["edema", "hernia", "mass", "nodule"]}
    found = metrics.average_groups(values, labels, ["edema", "hernia", "mass", "nodule"], groups)
    assert found["base"] == (pytest.approx(0.75), 0)
    assert np.isnan(found["rare"].value)
    assert found["rare"].left_out == 1
    assert found["all"] == metrics.average_metric(values, labels)
    weighted = metrics.average_groups(values, labels, ["edema", "hernia", "mass", "nodule"], groups, "weighted")
    assert weighted["base"].value == pytest.approx((3 * 0.9 + 2 * 0.6) / 5)


@pytest.mark.parametrize(
    ("classes", "groups", "message"),
    [
        (["a", "b"], {"rare": ["c"]}, r"class group 'rare' names \['c'\]; choose among \['a', 'b'\]"),
        (["a", "b"], {"rare": []}, "class group 'rare' names no class"),
        (["a", "a"], {"rare": ["a"]}, "1 different class names for 2 values"),
    ],
)
def test_groups_that_do_not_fit(classes, groups, message):
    with pytest.raises(ValueError, match=message):
        metrics.average_groups([0.5, 0.6], np.zeros((3, 2)), classes, groups)


def test_nan_score_names_the_column():
    scores = np.zeros((3, 4))
    scores[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN in column\(s\) \[2\]"):
        metrics.auroc(np.zeros((3, 4)), scores)


def test_label_other_than_0_1_nan_is_rejected():
    with pytest.raises(ValueError, match=r"column 1 holds -1.0 in row 2; use 1, 0 or NaN"):
        metrics.auroc([[0, 1], [1, 0], [1, -1.0]], np.zeros((3, 2)))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"labels \(3, 2\) and scores \(3, 1\)"):
        metrics.auprc(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"values \(3,\) and labels \(4, 2\)"):
        metrics.average_metric(np.zeros(3), np.zeros((4, 2)))


def test_unknown_average_is_rejected():
    with pytest.raises(ValueError, match="choose 'macro' or 'weighted'"):
        metrics.average_metric([0.5], np.zeros((3, 1)), "micro")


@pytest.mark.parametrize("values", [[["yes"]], [[None]]])
def test_words_are_refused(values):
    with pytest.raises(ValueError, match=r"labels: hold .* values; give numbers"):
        metrics.auroc(values, [[0.5]])
    with pytest.raises(ValueError, match=r"scores: hold .* values; give numbers"):
        metrics.auroc([[1]], values)
