from __future__ import annotations

import numpy as np
import pytest

from medvl_core.protocols import Evaluator
from medvl_evaluation.abilities import Learns, ability
from medvl_evaluation.evaluators.linear_probe import LinearProbe
from medvl_evaluation.evaluators.retrieval import Retrieval
from medvl_evaluation.evaluators.subgroups import Subgroups
from medvl_evaluation.evaluators.zero_shot import ZeroShot
from medvl_evaluation.metrics import auroc
from tests.evaluation.evaluator_data import outputs, part

CLASSES = ("Nodule", "Hernia", "Effusion")


def made(batch=None, column="sex", **options) -> Subgroups:
    evaluator = Subgroups(ZeroShot(CLASSES, "cxr"), column, **options)
    evaluator.update(batch or outputs(120, signal=0.4))
    return evaluator


def worse_for_men():
    """Images of men say nothing."""
    batch, blind = outputs(200, signal=0.8), outputs(200, signal=0.0)
    men = np.array([entry["sex"] == "M" for entry in batch["metadata"]])
    batch["embeddings"]["cxr"][men] = blind["embeddings"]["cxr"][men]
    return batch


def test_each_group_has_the_area_of_its_own_studies():
    batch, evaluator = outputs(120, signal=0.4), made()
    scores = evaluator.evaluator.scores()
    sex = np.array([entry["sex"] for entry in batch["metadata"]])
    found = [auroc(batch["labels"].numpy()[sex == s], scores[sex == s]).mean() for s in "FM"]
    table = evaluator.tables(50)["subgroups_sex"]
    assert isinstance(evaluator, Evaluator)
    assert table["group"].tolist() == ["F", "M"]
    assert table["auroc_macro"].tolist() == pytest.approx(found)
    assert table["auroc_macro"].between(table["auroc_macro_low"], table["auroc_macro_high"]).all()
    values = evaluator.compute()
    assert values["subgroups_sex/auroc_macro_worst"] == pytest.approx(min(found))
    assert values["subgroups_sex/auroc_macro_gap"] == pytest.approx(abs(found[0] - found[1]))


def test_classes_that_a_group_lacks_are_left_out_of_all():
    batch = outputs(120, signal=0.4)
    women = np.array([entry["sex"] == "F" for entry in batch["metadata"]])
    batch["labels"][women, 1] = 0
    evaluator = made(batch)
    scores, labels = evaluator.evaluator.scores(), batch["labels"].numpy()
    found = [auroc(labels[group][:, [0, 2]], scores[group][:, [0, 2]]).mean() for group in (women, ~women)]
    table = evaluator.tables(20)["subgroups_sex"]
    assert table["auroc_macro"].tolist() == pytest.approx(found)
    assert table["n_classes"].tolist() == [2, 2]
    classes = evaluator.tables(20)["subgroups_sex_classes"]
    assert classes["auroc"].isna().sum() == 1


def test_a_planted_gap_stands_out_and_equal_groups_do_not(tmp_path):
    planted, equal = made(worse_for_men()), made(outputs(200, signal=0.8))
    name = "subgroups_sex/auroc_macro_gap"
    assert planted.compute()[name] > 0.2 > 2 * planted.chance()[name]
    assert planted.intervals(100)[name][0] > planted.chance()[name]
    assert planted.tables(20)["subgroups_sex"]["share_of_random"].max() == 0
    assert equal.tables(20)["subgroups_sex"]["share_of_random"].min() > 0.05
    (path,) = planted.figures(tmp_path, 20)
    assert path.name == "subgroups_sex.png"


def test_numbers_become_groups_by_bins():
    evaluator = made(column="age", bins=(40, 60))
    table = evaluator.tables(20)["subgroups_age"]
    assert table["group"].tolist() == ["below 40", "40 to below 60", "60 and more"]
    assert table["n_studies"].tolist() == [20, 40, 60]
    assert table["n_subjects"].tolist() == [10, 20, 30]


def test_small_groups_and_unknown_ones_are_listed_but_not_compared(tmp_path):
    batch = outputs(120)
    for i in range(30):
        batch["metadata"][i] = {} if i < 25 else {"sex": "X"}
    table = made(batch).tables(20)["subgroups_sex"].set_index("group")
    assert table["compared"].to_dict() == {"(not stated)": False, "F": True, "M": True, "X": False}
    assert table.loc["(not stated)", "n_studies"] == 25
    assert table["auroc_macro"].isna().to_dict() == {"(not stated)": True, "F": False, "M": False, "X": True}
    alone = made(batch, min_studies=100)
    assert np.isnan(list(alone.compute().values())).all()
    assert np.isnan(alone.chance()["subgroups_sex/auroc_macro_gap"])
    assert np.isnan(list(alone.intervals(20).values())).all()
    assert alone.figures(tmp_path) == []
    assert not alone.tables(20)["subgroups_sex"]["compared"].any()


def test_split_updates_and_reset():
    batch, evaluator = outputs(120, signal=0.4), made(outputs(60, seed=4))
    evaluator.reset()
    for rows in (slice(0, 50), slice(50, 120)):
        evaluator.update(part(batch, rows))
    assert evaluator.compute() == made().compute()
    assert evaluator.chance() == made().chance()


def test_it_stands_around_a_probe_too():
    probe = LinearProbe(CLASSES, "cxr", scheme="train", folds=1, fitting={"learning_rate": 0.1})
    evaluator = Subgroups(probe, "sex", prefix="probe_by_sex")
    assert ability(evaluator, Learns) is probe
    probe.learn([outputs(80, who="q", seed=3)])
    evaluator.update(outputs(120))
    assert evaluator.compute()["probe_by_sex/auroc_macro_worst"] > 0.8


def test_outputs_and_options_that_do_not_fit():
    with pytest.raises(ValueError, match=r"'age' has more than 20 values, .* give bins for numbers"):
        made(column="age")
    with pytest.raises(ValueError, match=r"^p000: sex is 'F', no number for the bins \[40\]"):
        made(bins=[40])
    with pytest.raises(ValueError, match="needs metadata in outputs"):
        made({key: value for key, value in outputs().items() if key != "metadata"})
    with pytest.raises(ValueError, match=r"Retrieval has no predictions\(\)"):
        Subgroups(Retrieval("cxr", "ct"), "sex")
    for options, message in (
        ({"bins": (60, 40)}, "give increasing edges"),
        ({"bins": ()}, "give increasing edges"),
        ({"min_studies": 0}, "at least 1"),
        ({"column": "?"}, "it names files"),
    ):
        with pytest.raises(ValueError, match=message):
            Subgroups(ZeroShot(CLASSES, "cxr"), **{"column": "sex", **options})


def test_a_column_that_no_study_has_is_refused():
    with pytest.raises(ValueError, match=r"no study has 'sexx' in its metadata, only \[.*'sex'.*; did you mean 'sex'"):
        made(column="sexx").compute()
