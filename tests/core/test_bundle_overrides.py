from __future__ import annotations

import json
from pathlib import Path

import pytest

from medvl_core.bundle.overrides import misread_overrides, unread_overrides

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


@pytest.mark.parametrize(
    ("value", "written"), [("true", "True"), ("false", "False"), ("None", "'$None'"), ("null", "'$None'")]
)
def test_words_that_arrive_as_something_else(value, written):
    (line,) = misread_overrides(
        {"resume": value, "epochs": "3", "shape": [1], "use_store": "True", "leak_guard": "$None"}
    )
    assert line == f"--resume {value} would not be read as {value}; write --resume {written}"
