from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from medvl_core.build import build_dataset
from medvl_core.bundle.overrides import misread_overrides, rename_old_keys, unread_overrides
from medvl_core.manager import PluginRecord, Registry, using
from medvl_core.specs import DatasetSpec

BUNDLES = Path(__file__).parents[2] / "monai_bundles"
CONFIG = {
    "table": None,
    "folder": None,
    "seed": 0,
    "dataset": {
        "name": "baseline/phantom",
        "options_for": {
            "baseline/phantom": {"seed": "@seed"},
            "baseline/folder": {"table": "@table", "seed": "@seed", "deep": [{"folder": "@folder"}]},
            "mine/other": {"folder": "$@folder + '/images'"},
        },
    },
}


def test_key_that_only_another_component_reads():
    (line,) = unread_overrides(CONFIG, ["table", "seed"])
    assert line == ("--table is for baseline/folder, not chosen; choose it by --dataset#name, or leave --table out")


def test_all_components_that_read_it_are_named():
    (line,) = unread_overrides(CONFIG, ["folder"])
    assert line.startswith("--folder is for baseline/folder, mine/other, not")


@pytest.mark.parametrize("name", ["baseline/folder", "@chosen", "$'baseline/' + @kind"])
def test_key_of_the_chosen_component_is_read(name):
    assert unread_overrides({**CONFIG, "dataset": {**CONFIG["dataset"], "name": name}}, ["table", "folder"]) == []


def test_key_read_elsewhere_too_is_read():
    assert unread_overrides({**CONFIG, "notes": "$print(@table)"}, ["table"]) == []


def test_key_that_nothing_reads_by_reference_is_left_alone():
    assert unread_overrides(CONFIG, ["dataset", "unknown"]) == []


@pytest.mark.parametrize(("bundle", "key"), [("x2ct", "table"), ("cxr_cml", "dataset_dir"), ("ct_glip", "text_folder")])
def test_bundles(bundle, key):
    config = json.loads((BUNDLES / bundle / "configs" / "train.json").read_text())
    assert [line.split()[0] for line in unread_overrides(config, [key, "seed", "epochs", "resume"])] == [f"--{key}"]


@pytest.fixture
def cohort():
    """An installed plugin ``mine`` with two data sets."""
    module = ModuleType("a_cohort_module")

    def make_cohort(dataset_dir, age=0):
        return dataset_dir, age

    def make_rows(path, folder=None):
        return path, folder

    module.make_cohort, module.make_rows = make_cohort, make_rows
    about = {"source": "medvl", "license": "Apache-2.0", "modalities": (), "has": (), "data_license": "-", "url": "-"}
    specs = tuple(
        DatasetSpec(name=name, factory=f"a_cohort_module:make_{name}", summary="s", **about)
        for name in ("cohort", "rows")
    )
    sys.modules[module.__name__] = module
    with using(Registry([PluginRecord(id="mine", specs=specs)])):
        yield {"_target_": "medvl_core.build_dataset", "name": "mine/cohort"}
    del sys.modules[module.__name__]


def test_an_option_is_offered_to_whichever_data_set_is_chosen(cohort):
    offers = {"folder": "@dataset_dir", "table": "@table", "age": "@age"}
    config = {"dataset": {**cohort, "offers": offers}, "dataset_dir": None, "table": None, "age": 0}
    (line,) = unread_overrides(config, ["dataset_dir", "table", "age"])
    assert line == (
        "--table is offered as table; mine/cohort has no such option; "
        "choose another by --dataset#name, or leave --table out"
    )
    assert build_dataset("mine/cohort", offers={"folder": "D", "table": "t.csv"}) == ("D", 0)
    assert build_dataset("mine/rows", offers={"folder": "D"}) == ("D", "D")


def test_who_reads_an_offered_option_is_named_where_the_bundle_lists_it(cohort):
    listed = {"medvl": {"components": {"dataset": ["mine/rows"]}}}
    offered = {**cohort, "offers": {"path": "@rows"}}
    (line,) = unread_overrides({"dataset": offered, "rows": None, "_meta_": listed}, ["rows"])
    assert line.startswith("--rows is offered as path; mine/cohort has no such option (mine/rows reads it); choose")


def test_an_offer_that_something_else_reads_too_is_read(cohort):
    config = {"dataset": {**cohort, "offers": {"table": "@table"}}, "notes": "$print(@table)"}
    assert unread_overrides(config, ["table"]) == []
    assert unread_overrides({"dataset": {**config["dataset"], "name": "$@which"}}, ["table"]) == []


def test_old_keys_take_their_new_places():
    new = {"encoder": {"_target_": "build", "name": "a"}, "stage": {"epochs": 3, "lr": 1}}
    aliases = {"old_encoder": "encoder", "teacher": "stage", "weights": "stage_weights", "unused": "x"}
    config = {**new, "_meta_": {"medvl": {"aliases": aliases}}}
    config |= {"old_encoder": {"name": "b"}, "teacher": {"epochs": 1}, "weights": "f.pt"}
    assert rename_old_keys(config) == [
        f"{old} is now {aliases[old]}; the old key goes with 0.2" for old in ("old_encoder", "teacher", "weights")
    ]
    del config["_meta_"]
    assert config == {
        "encoder": {"_target_": "build", "name": "b"},
        "stage": {"epochs": 1, "lr": 1},
        "stage_weights": "f.pt",
    }


def test_a_component_under_an_old_key_takes_the_place_of_the_other_one_whole():
    config = {"encoder": {"_target_": "build", "name": "a", "size": 3}, "old": {"_target_": "build", "name": "b"}}
    merged = config | {"_meta_": {"medvl": {"aliases": {"old": "encoder"}}}}
    rename_old_keys(merged)
    assert merged["encoder"] == {"_target_": "build", "name": "b"}


@pytest.mark.parametrize(
    ("value", "written"), [("true", "True"), ("false", "False"), ("None", "'$None'"), ("null", "'$None'")]
)
def test_words_that_arrive_as_something_else(value, written):
    (line,) = misread_overrides(
        {"resume": value, "epochs": "3", "shape": [1], "use_store": "True", "leak_guard": "$None"}
    )
    assert line == f"--resume {value} would not be read as {value}; write --resume {written}"
