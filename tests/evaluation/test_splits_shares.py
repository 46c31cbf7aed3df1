"""Splits: patients whole, shares met, labels balanced, seeds decide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl_evaluation.splits.shares import few_shot, k_folds, split_by_patient

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


def cohort(seed: int, n: int = 600, classes: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Long-tailed labels of patients with one to four studies."""
    rng = np.random.default_rng(seed)
    patients = np.repeat([f"p{i}" for i in range(n)], rng.integers(1, 5, n))[:n]
    return patients, (rng.random((n, classes)) < 0.4 * 0.6 ** np.arange(classes)).astype(float)


def assert_partition(split, patients) -> None:
    rows = np.concatenate(list(split.values()))
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(patients)))
    holders = [set(patients[part]) for part in split.values()]
    assert sum(map(len, holders)) == len(set(patients)), "a patient is in two parts"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(60, 200), labelled=st.booleans())
def test_every_row_once_and_every_patient_whole(seed, n, labelled):
    patients, labels = cohort(seed, n)
    split = split_by_patient(patients, SHARES, labels if labelled else None, seed)
    assert_partition(split, patients)
    assert all((np.diff(rows) > 0).all() for rows in split.values())


def test_shares_and_labels_are_met_better_than_by_chance():
    patients, labels = cohort(0)
    labels[np.random.default_rng(1).random(labels.shape) < 0.05] = np.nan
    split = split_by_patient(patients, SHARES, labels)
    totals = np.nansum(labels, axis=0)
    for name, rows in split.items():
        assert len(rows) / len(patients) == pytest.approx(SHARES[name], abs=0.01)
        assert np.abs(np.nansum(labels[rows], axis=0) - SHARES[name] * totals).max() <= 2.5, name
    at_random = [split_by_patient(patients, SHARES, seed=seed)["test"] for seed in range(20)]
    worst = [np.abs(np.nansum(labels[rows], axis=0) - 0.2 * totals).max() for rows in at_random]
    assert np.median(worst) >= 4


def test_single_rows_follow_the_published_algorithm():
    """Every label of independent rows lies within one of its share (equal shares, as the paper's experiments)."""
    rng = np.random.default_rng(3)
    labels = (rng.random((200, 5)) < [0.5, 0.3, 0.1, 0.05, 0.02]).astype(int)
    split = split_by_patient(np.arange(200), dict.fromkeys("abcde", 0.2), labels)
    counts = np.array([labels[rows].sum(axis=0) for rows in split.values()])
    assert (np.ptp(counts[:, 2:], axis=0) <= 1).all(), "rare labels differ by one at most"
    assert (np.ptp(counts, axis=0) <= 4).all()


def test_a_label_of_two_patients_reaches_two_parts():
    labels = np.zeros((50, 1))
    labels[[7, 31]] = 1
    split = split_by_patient(np.arange(50), {"train": 0.5, "test": 0.5}, labels)
    assert labels[split["train"]].sum() == labels[split["test"]].sum() == 1


def test_seed_decides():
    patients, labels = cohort(5)
    one, same, other = (split_by_patient(patients, SHARES, labels, seed) for seed in (1, 1, 2))
    assert all((one[name] == same[name]).all() for name in SHARES)
    assert set(one["test"]) != set(other["test"])
    state = np.random.get_state()[1].copy()
    k_folds(patients, labels=labels)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_few_shot_subsets_are_nested_and_stratified():
    patients, labels = cohort(7, 2000)
    subsets = few_shot(patients, (0.1, 0.01, 1), labels)
    assert list(subsets) == [0.01, 0.1, 1.0]
    assert set(subsets[0.01]) < set(subsets[0.1]) < set(subsets[1.0])
    assert len(subsets[1.0]) == 2000
    for fraction, rows in subsets.items():
        assert len(rows) == pytest.approx(2000 * fraction, abs=3)
        assert np.abs(labels[rows].sum(axis=0) - fraction * labels.sum(axis=0)).max() <= 3.5
        assert not set(patients[rows]) & set(np.delete(patients, rows))
    assert list(few_shot(patients, [0.5], labels)) == [0.5]


def test_five_folds_of_70_10_20():
    patients, labels = cohort(9)
    folds = k_folds(patients, labels=labels)
    assert len(folds) == 5
    for fold in folds:
        assert_partition(fold, patients)
        for name, rows in fold.items():
            assert len(rows) / len(patients) == pytest.approx(SHARES[name], abs=0.015)
            assert np.abs(labels[rows].sum(axis=0) - SHARES[name] * labels.sum(axis=0)).max() <= 4
    np.testing.assert_array_equal(np.sort(np.concatenate([fold["test"] for fold in folds])), np.arange(len(patients)))
    assert len({tuple(fold["val"]) for fold in folds}) == 5
    assert list(k_folds(patients, 3, 0)[0]) == ["train", "test"]


def test_large_patients_do_not_tip_the_shares():
    sizes = np.array([40, 30, 20, *[1] * 110])
    split = split_by_patient(np.repeat(np.arange(len(sizes)), sizes), SHARES)
    assert [len(split[name]) for name in SHARES] == [140, 20, 40]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_by_patient([1, 2], {"a": 0.5, "b": 0.6}), "sum to 1.1; give positive shares"),
        (lambda: split_by_patient([1, 2], {"a": 1.5, "b": -0.5}), "give positive shares"),
        (lambda: split_by_patient([1, 1], {"a": 0.5, "b": 0.5}), r"1 patients leave \['.'\] empty"),
        (lambda: split_by_patient([], {"a": 1.0}), r"patients \(0,\)"),
        (lambda: split_by_patient([1, 2], {"a": 1.0}, [[1], [0], [1]]), r"patients \(2,\) and labels \(3, 1\)"),
        (lambda: few_shot([1, 2], [0.0, 0.5]), "each above 0 and at most 1"),
        (lambda: few_shot(np.arange(10), [0.01]), r"leave \['0.01'\] empty"),
        (lambda: k_folds(np.arange(10), 1), "k=1"),
        (lambda: k_folds(np.arange(10), 2, 0.5), "leave a share to train on"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
