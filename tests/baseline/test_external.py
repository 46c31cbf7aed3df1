from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medvl_baseline.external import ExternalValidation
from medvl_core.protocols import Evaluator, Scores
from medvl_evaluation.abilities import Learns, ability
from medvl_evaluation.evaluators.linear_probe import LinearProbe
from medvl_evaluation.evaluators.retrieval import Retrieval
from medvl_evaluation.evaluators.zero_shot import ZeroShot
from tests.evaluation.evaluator_data import outputs

COLUMNS = ("arterial", "nodule", "coronary", "Hernia", "other")
CLASSES = ("Calcification", "Lung nodule", "Hernia")
MAP = {"Calcification": ["arterial", "coronary"], "Lung nodule": ["nodule"]}


@pytest.fixture
def label_map(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps(MAP))
    return tmp_path / "map.json"


def theirs() -> tuple[dict, dict]:
    """The same studies in the other data set's labels, and in ours."""
    ours = outputs(signal=0.5)
    labels = ours["labels"].clone()
    columns = torch.stack([torch.zeros(60), labels[:, 1], labels[:, 0], labels[:, 2], torch.ones(60)], dim=1)
    columns[:10, 0] = columns[:10, 2].clone()  # some calcifications are in both, the others in one
    columns[10:20, 0] = torch.nan  # unknown unless the other source is 1
    labels[10:20, 0][labels[10:20, 0] == 0] = torch.nan
    return ours | {"labels": columns}, ours | {"labels": labels}


def test_it_gives_what_the_evaluator_gives_on_the_merged_labels(label_map, tmp_path):
    other, ours = theirs()
    made, direct = ExternalValidation(ZeroShot(CLASSES, "cxr"), COLUMNS, label_map), ZeroShot(CLASSES, "cxr")
    made.update(other)
    direct.update(ours)
    assert isinstance(made, Evaluator)
    assert made.compute() == {f"external/{name}": value for name, value in direct.compute().items()}
    assert made.intervals(20) == {f"external/{name}": value for name, value in direct.intervals(20).items()}
    assert made.chance() == {f"external/{name}": value for name, value in direct.chance().items()}
    assert [metric.unit for metric in made.metrics] == [metric.unit for metric in direct.metrics]
    tables = made.tables(20)
    assert set(tables) == {"external_zero_shot_per_class", "external_zero_shot_predictions", "external_label_map"}
    assert tables["external_label_map"]["sources"].tolist() == ["arterial | coronary", "nodule", "Hernia"]
    np.testing.assert_array_equal(ability(made, Scores).predictions().labels, ours["labels"].numpy())
    (folder := tmp_path / "figures").mkdir()
    assert sorted(made.figures(folder, 20)) == sorted(folder.iterdir())
    assert {path.name for path in folder.iterdir()} >= {"external_zero_shot_roc.png"}


def test_probe_learns_on_one_data_set_and_is_tested_on_the_other(label_map):
    probe = LinearProbe(CLASSES, "cxr", scheme="train", folds=1, fitting={"learning_rate": 0.1})
    made = ExternalValidation(probe, COLUMNS, label_map)
    ability(made, Learns).learn([outputs(seed=9, n=80, who="q")])
    made.update(theirs()[0])
    assert made.compute()["external/linear_probe_100/auroc_macro"] > 0.8
    made.reset()
    with pytest.raises(ValueError, match="has collected no study"):
        made.compute()


def test_unusable_maps_and_labels(label_map):
    with pytest.raises(ValueError, match=r"map\.json: label 'Lung nodule' is made from 'nodule', which is no source"):
        ExternalValidation(ZeroShot(CLASSES, "cxr"), ("arterial", "coronary", "Hernia"), label_map)
    made = ExternalValidation(ZeroShot(CLASSES, "cxr"), COLUMNS, label_map)
    with pytest.raises(ValueError, match=r"labels have shape \(60, 3\) for 5 source columns"):
        made.update(outputs())
    with pytest.raises(ValueError, match="ExternalValidation needs labels"):
        made.update(outputs() | {"labels": None})
    with pytest.raises(ValueError, match="Retrieval has no classes"):
        ExternalValidation(Retrieval("cxr", "ct"), COLUMNS, label_map)


def test_a_misspelt_target_does_not_fall_back_to_a_column(tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"lung": ["a"], "Hernia": ["a"]}), encoding="utf-8")
    judge = SimpleNamespace(classes=("lung", "hernia"))
    with pytest.raises(ValueError, match=r"map\.json: target 'Hernia' is no class, and class 'hernia' is no target"):
        ExternalValidation(judge, ("a", "hernia"), path)
    ExternalValidation(SimpleNamespace(classes=("lung",)), ("a", "hernia"), path)  # a map for more classes than these
