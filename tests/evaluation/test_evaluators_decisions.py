from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from medvl_evaluation.evaluators.decisions import class_decisions, decision_statistic, mean_defined


def multilabel():
    rng = np.random.default_rng(0)
    labels, decided = (rng.random((2, 30, 4)) < 0.4).astype(float)
    labels[:, 3] = 0
    labels[rng.random((30, 4)) < 0.1] = np.nan
    return labels, decided


def by_scikit_learn(labels, decided, repeat):
    rows = []
    for y, d in zip(labels.T, decided.T, strict=True):
        known = ~np.isnan(y)
        y, d = np.repeat(y[known], repeat[known]), np.repeat(d[known], repeat[known])
        lacking = not y.any()
        rows.append((accuracy_score(y, d), *(np.nan if lacking else f(y, d) for f in (recall_score, f1_score))))
    return np.nanmean(rows, axis=0)


def test_several_labels_equal_scikit_learn_under_weights():
    labels, decided = multilabel()
    weights = np.random.default_rng(1).integers(1, 4, (30, 5))
    found = decision_statistic(labels, decided, exclusive=False)(weights.astype(np.float32))
    for r, repeat in enumerate(weights.T):
        np.testing.assert_allclose(found[r], by_scikit_learn(labels, decided, repeat), rtol=1e-12)


def test_per_class_counts():
    labels, decided = multilabel()
    found = class_decisions(labels, decided)
    known = ~np.isnan(labels[:, 0])
    assert found["f1"][0] == pytest.approx(f1_score(labels[known, 0], decided[known, 0]))
    assert np.isnan(found["f1"][3])
    assert np.isnan(found["recall"][3])
    assert found["n_positive"][3] == 0


def test_mean_of_nothing_is_nan_without_a_warning():
    np.testing.assert_array_equal(mean_defined(np.array([[1.0, np.nan], [np.nan, np.nan]])), [1.0, np.nan])
