"""Top-k accuracy, macro F1 and Dice against scikit-learn and their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, top_k_accuracy_score

from medvl_evaluation.metrics import dice, macro_f1, top_k_accuracy


def test_top_k_equals_scikit_learn_without_ties():
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 6, 300), rng.standard_normal((300, 6))
    found = top_k_accuracy(targets, scores, (1, 2, 5, 6))
    for k in (1, 2, 5):
        assert found[k] == pytest.approx(top_k_accuracy_score(targets, scores, k=k, labels=np.arange(6)), abs=1e-12)
    assert found[6] == 1.0


def test_equal_scores_are_never_right():
    assert top_k_accuracy([0, 1, 2], np.zeros((3, 3)), (1, 2, 3)) == {1: 0.0, 2: 0.0, 3: 1.0}
    assert top_k_accuracy([0, 1], [[-1.0, -2.0], [-5.0, -0.5]]) == {1: 1.0}


@pytest.mark.parametrize(
    ("targets", "scores", "ks", "message"),
    [
        ([0, 3], np.zeros((2, 3)), (1,), "3 is none of the 3 classes"),
        ([0, -1], np.zeros((2, 3)), (1,), "-1 is none of the 3 classes"),
        ([0], np.zeros((2, 3)), (1,), r"targets \(1,\) and scores \(2, 3\)"),
        ([], np.zeros((0, 3)), (1,), "N at least 1"),
        ([0, 1], [[0, 1], [np.nan, 1]], (1,), "NaN in row 1"),
        ([0], [[0, 1]], (0,), "every k is at least 1"),
    ],
)
def test_top_k_rejects(targets, scores, ks, message):
    with pytest.raises(ValueError, match=message):
        top_k_accuracy(targets, scores, ks)


def test_macro_f1_equals_its_definition():
    rng = np.random.default_rng(0)
    targets, predictions = rng.integers(0, 4, 100), rng.integers(0, 5, 100)
    parts = []
    for name in range(5):
        hits = ((targets == name) & (predictions == name)).sum()
        parts.append(2 * hits / ((targets == name).sum() + (predictions == name).sum()))
    assert macro_f1(targets, predictions) == pytest.approx(np.mean(parts), abs=1e-12)
    assert macro_f1(["a", "b", "b"], ["a", "b", "a"]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"targets \(2,\) and predictions \(1,\)"):
        macro_f1([0, 1], [0])


def test_dice_is_the_f1_of_voxels():
    rng = np.random.default_rng(0)
    prediction, target = rng.integers(0, 3, (5, 6, 7)), rng.integers(0, 3, (5, 6, 7))
    expected = [f1_score(target.ravel() == k, prediction.ravel() == k) for k in (1, 2)]
    np.testing.assert_allclose(dice(prediction, target, (1, 2)), expected, atol=1e-12)
    assert dice(prediction == 1, target == 1) == pytest.approx(expected[0])


def test_dice_of_absent_labels():
    empty, full = np.zeros((2, 2), dtype=bool), np.ones((2, 2), dtype=bool)
    assert np.isnan(dice(empty, empty)[0])
    assert dice(empty, full)[0] == 0
    assert dice(full, full)[0] == 1


@pytest.mark.parametrize(
    ("prediction", "labels", "message"),
    [
        (np.zeros((2, 3), dtype=int), (1,), "masks differ in shape"),
        (np.full((2, 2), 0.4), (1,), "predicted mask holds float64"),
        (np.zeros((2, 2), dtype=int), (1, 256), r"dice of labels \(1, 256\)"),
    ],
)
def test_dice_rejects(prediction, labels, message):
    with pytest.raises(ValueError, match=message):
        dice(prediction, np.zeros((2, 2), dtype=int), labels)
