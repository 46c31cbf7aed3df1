from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

from medvl_evaluation.splits.folds import Folds, split_rows, with_folds

TABLE = Path("table.csv")
SUBJECTS = np.array([f"p{i // 2}" for i in range(40)])
LABELS = (np.arange(40)[:, None] // 2 % 2 == [0, 1]).astype(float)


def test_folds_of_patients_test_every_row_once():
    parts = [split_rows(TABLE, SUBJECTS, LABELS, Folds(fold=fold, n_folds=4)) for fold in range(4)]
    assert np.array_equal(np.sort(np.concatenate([part["test"] for part in parts])), np.arange(40))
    for part in parts:
        people = [set(SUBJECTS[rows]) for rows in part.values()]
        assert sum(map(len, people)) == len(set.union(*people)) == 20
        assert len(part["validation"]) == 4


def test_official_lists_are_taken_as_they_are():
    official = np.repeat(["train", "validation", "test"], [20, 8, 12])
    parts = split_rows(TABLE, SUBJECTS, LABELS, Folds("official"), official)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 20, "validation": 8, "test": 12}
    assert np.array_equal(official[parts["validation"]], ["validation"] * 8)


def test_official_lists_without_validation_give_a_share_of_the_other_patients():
    official = np.repeat(["train", "test"], [30, 10])
    parts = split_rows(TABLE, SUBJECTS, LABELS, Folds("official", validation_share=0.1), official)
    assert np.array_equal(parts["test"], np.arange(30, 40))
    assert len(parts["validation"]) == 4
    assert not len(split_rows(TABLE, SUBJECTS, LABELS, Folds("official", validation_share=0), official)["validation"])


@pytest.mark.parametrize(
    ("official", "message"),
    [
        (None, "table.csv: this set has no official split; use split='patients'"),
        (np.repeat(["train", "test"], [21, 19]), r"patients \['p10'\] are in the official training and test lists"),
        (
            np.repeat(["train", "validation", "test"], [20, 9, 11]),
            r"patients \['p14'\] are in the official validation and test lists",
        ),
    ],
)
def test_official_lists_that_cannot_be_are_refused(official, message):
    with pytest.raises(ValueError, match=message):
        split_rows(TABLE, SUBJECTS, LABELS, Folds("official"), official)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "random"}, "split is 'random'; choose one of patients, official"),
        ({"fold": 5}, "fold is 5 of 5 folds"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Folds(**options)


def test_a_factory_with_folds_shows_and_takes_their_options():
    @with_folds("official")
    def build(folder: str, *, views: int = 2, folds: Folds):
        return folder, views, folds

    shown = {name: option.default for name, option in inspect.signature(build).parameters.items()}
    folds = {"split": "official", "fold": 0, "n_folds": 5, "validation_share": 0.1, "seed": 0}
    assert shown == {"folder": inspect.Parameter.empty, "views": 2, **folds}
    assert build("here") == ("here", 2, Folds("official"))
    assert build("here", views=1, split="patients", fold=3, seed=7) == ("here", 1, Folds("patients", 3, seed=7))
    with pytest.raises(TypeError, match="unexpected keyword argument 'folde'"):
        build("here", folde=1)
