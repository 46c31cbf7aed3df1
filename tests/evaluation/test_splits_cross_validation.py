from __future__ import annotations

import json

import numpy as np
import pytest
from monai.bundle import ConfigParser
from sklearn.metrics import roc_auc_score

from medvl_core.study import Study
from medvl_evaluation.predictions import Predictions, read_predictions
from medvl_evaluation.splits.cross_validation import (
    InFolds,
    cross_validate,
    fold_studies,
    fold_table,
    pool_folds,
    summary_table,
)


class Cohort:
    """Thirty patients of two studies; every third patient is positive for "a", every fifth for "b"."""

    label_names = ("a", "b")

    def __init__(self, overlap: bool = False) -> None:
        self.overlap = overlap

    def studies(self, split):
        part = {"train": range(0, 20), "validation": range(20, 24), "test": range(24, 30)}[split]
        part = [*part, *([0] if self.overlap and split == "test" else [])]
        return [
            Study(
                study_id=f"{p:02d}{s}",
                subject_id=str(p),
                scan_id=f"{p:02d}{s}",
                images={},
                labels={"a": float(p % 3 == 0), "b": float(p % 5 == 0)},
            )
            for p in part
            for s in "xy"
        ]


def _fold(number: int, n: int = 12, positives: bool = True) -> Predictions:
    rng = np.random.default_rng(number)
    labels = (rng.random((n, 2)) < 0.4).astype(float)
    labels[:2] = [[1, 0], [0, 1]]
    if not positives:
        labels[:, 1] = 0
    ids = [f"{number}-{i}" for i in range(n)]
    return Predictions(ids, [f"{number}-{i // 2}" for i in range(n)], ("a", "b"), labels, rng.normal(size=(n, 2)))


def test_every_study_is_tested_once_and_patients_stay_whole():
    folds = [fold_studies(Cohort(), k) for k in range(5)]
    tested = [study.study_id for fold in folds for study in fold["test"]]
    assert sorted(tested) == sorted(f"{p:02d}{s}" for p in range(30) for s in "xy")
    for fold in folds:
        subjects = [{study.subject_id for study in fold[split]} for split in ("train", "validation", "test")]
        assert sum(map(len, subjects)) == len(set.union(*subjects)) == 30


def test_dataset_in_folds_has_the_splits_of_one_fold_and_keeps_its_labels():
    folded, parts = InFolds(Cohort(), 2, 5), fold_studies(Cohort(), 2)
    for split, part in parts.items():
        assert [study.study_id for study in folded.studies(split)] == [study.study_id for study in part]
    assert folded.label_names == ("a", "b")
    assert folded.fields == {}


def test_folds_follow_the_seed_alone():
    ids = [[s.study_id for s in fold_studies(Cohort(), 1, seed=seed)["test"]] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_fold_that_is_not_there():
    with pytest.raises(ValueError, match="fold is 5 of 5 folds; count them from 0"):
        fold_studies(Cohort(), 5)


def test_overlapping_splits_are_refused():
    with pytest.raises(ValueError, match="00x: is in two splits of the dataset"):
        fold_studies(Cohort(overlap=True), 0)


def test_pooling_compares_within_folds_only():
    one, other = _fold(1), _fold(2)
    shifted = Predictions(other.study_id, other.subject_id, other.classes, other.labels, 7 * other.scores + 100)
    plain, moved = pool_folds([one, other]), pool_folds([one, shifted])
    np.testing.assert_array_equal(plain.scores, moved.scores)
    assert 0 < plain.scores.min() < plain.scores.max() < 1
    own = plain.scores[: len(one.study_id)]
    assert roc_auc_score(one.labels[:, 0], own[:, 0]) == roc_auc_score(one.labels[:, 0], one.scores[:, 0])


def test_pooling_refuses_other_classes():
    other = Predictions(["x"], ["x"], ("a", "c"), np.zeros((1, 2)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"other classes: \('a', 'b'\) and \('a', 'c'\)"):
        pool_folds([_fold(1), other])


def test_class_without_positives_is_left_out_of_its_fold_and_counted():
    folds = [_fold(1), _fold(2, positives=False)]
    table = fold_table(folds, {"rare": ["b"]}).set_index(["fold", "group"])
    expected = roc_auc_score(folds[1].labels[:, 0], folds[1].scores[:, 0])
    assert table.loc[(1, "total"), "auroc"] == pytest.approx(expected)
    assert table.loc[(1, "total"), "classes_defined"] == 1
    assert np.isnan(table.loc[(1, "rare"), "auroc"])
    assert summary_table(folds, {"rare": ["b"]}, 20).set_index("group").loc["rare", "classes_defined_least"] == 0


def test_summary_against_scikit_learn():
    folds = [_fold(k) for k in range(3)]
    row = summary_table(folds, {}, n_resamples=50).iloc[0]
    means = [roc_auc_score(fold.labels, fold.scores, average="macro") for fold in folds]
    pooled = pool_folds(folds)
    assert row["auroc_mean"] == pytest.approx(np.mean(means))
    assert row["auroc_sd"] == pytest.approx(np.std(means, ddof=1))
    assert row["auroc_pooled"] == pytest.approx(roc_auc_score(pooled.labels, pooled.scores, average="macro"))
    assert row["pooled_low"] < row["auroc_pooled"] < row["pooled_high"]


def test_undefined_interval_stays_undefined():
    row = summary_table([_fold(1, positives=False)], {"rare": ["b"]}, n_resamples=20).set_index("group").loc["rare"]
    assert np.isnan([row["auroc_pooled"], row["pooled_low"], row["pooled_high"]]).all()


def test_each_fold_runs_the_config_anew_and_the_files_can_be_compared(tmp_path):
    call = "$folds.cross_validate(2, ['steps'], 'found', @ckpt_dir, @folder, {'rare': ['b']}, 20)"
    config = {
        "imports": [
            "$import medvl_evaluation.splits.cross_validation as folds",
            "$import tests.evaluation.test_splits_cross_validation as here",
        ],
        "fold": 0,
        "ckpt_dir": str(tmp_path / "models"),
        "folder": str(tmp_path / "out"),
        "state": "$[]",
        "steps": ["$@state.append(@fold)", "$@state.append(@ckpt_dir)"],
        "found": "$here._checked(@state, @fold, @ckpt_dir)",
        "run": call,
    }
    summary = ConfigParser(config).get_parsed_content("run")
    assert list(summary["group"]) == ["total", "rare"]
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        *("folds.csv", "summary.csv", "summary.md", "metrics.json", "zero_shot_predictions.csv"),
        *("fold_0_predictions.csv", "fold_1_predictions.csv"),
    }
    assert json.loads((out / "metrics.json").read_text())["tables"] == ["zero_shot_predictions.csv"]
    assert len(read_predictions(out / "zero_shot_predictions.csv").study_id) == 24
    assert "rare 1 of 1" in (out / "summary.md").read_text()


def _checked(state, fold, ckpt_dir):
    """The fold's predictions, if its steps ran in order on objects of its own."""
    assert state == [fold, ckpt_dir]
    assert ckpt_dir.endswith(f"fold_{fold}")
    return _fold(fold)


def test_config_without_a_fold_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs the config keys \['fold', 'ckpt_dir', 'found', 'steps'\]"):
        cross_validate(2, ["steps"], "found", tmp_path, tmp_path)
