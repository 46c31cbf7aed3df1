"""A bundle under one setting after the other."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from medvl_core.bundle.startup import OverrideError, unknown_override_keys
from medvl_evaluation.experiments import arguments, run_setting, setting

CONFIG = {
    "imports": ["$import pathlib"],
    "bundle_root": ".",
    "ckpt_dir": "models",
    "output_dir": "eval",
    "track": True,
    "resume": False,
    "value": 1,
    "table": None,
    "dataset": {"name": "baseline/phantom", "options_for": {"baseline/folder": {"table": "@table"}}},
    "run": [
        "$pathlib.Path(@output_dir).mkdir(parents=True, exist_ok=True)",
        "$(pathlib.Path(@output_dir) / 'metrics.json').write_text(str([@value, @track, @resume]))",
    ],
}
LOGGING = "[loggers]\nkeys=root\n[handlers]\nkeys=\n[formatters]\nkeys=\n[logger_root]\nlevel=INFO\nhandlers=\n"


@pytest.fixture
def train(tmp_path):
    """A bundle's train.json, whose run writes down what it was given."""
    configs = tmp_path / "bundle" / "configs"
    configs.mkdir(parents=True)
    (configs / "train.json").write_text(json.dumps(CONFIG))
    (configs / "metadata.json").write_text("{}")
    (configs / "logging.conf").write_text(LOGGING)
    return configs / "train.json"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("key=2", 2),
        ("key=[1, 2]", [1, 2]),
        ("key={'a': 1}", {"a": 1}),
        ("key={1, 2}", "{1, 2}"),
        ('key={"a": 0.4}', {"a": 0.4}),
        ("key=True", True),
        ("key=false", False),
        ("key=None", None),
        ("key=null", None),
        ("key=/data/a=b", "/data/a=b"),
        ("key=", ""),
    ],
)
def test_setting_reads_json_python_and_text(word, value):
    assert setting(word) == ("key", value)


def test_setting_without_equals_sign_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match="'epochs' is no setting; write key=value"):
        setting("epochs")


def test_finished_runs_are_kept_and_others_go_on(train, tmp_path):
    folder = tmp_path / "out"
    assert run_setting([train], folder, {"value": 2})
    written = folder / "eval" / "metrics.json"
    assert written.read_text() == "[2, False, True]"
    written.write_text("kept")
    assert not run_setting([train], folder, {"value": 2})
    assert written.read_text() == "kept"
    written.unlink()  # as when it was killed
    assert run_setting([train], folder, {"value": 2})
    assert written.read_text() == "[2, False, True]"


def test_run_of_other_settings_is_not_taken_for_this_one(train, tmp_path):
    run_setting([train], tmp_path, {"value": 2})
    with pytest.raises(OverrideError, match=r"\(value 2 before, 3 now\); give another --out"):
        run_setting([train], tmp_path, {"value": 3})
    (tmp_path / "eval" / "metrics.json").rename(tmp_path / "kept.json")
    with pytest.raises(OverrideError, match="or delete the folder"):  # it would go on from other checkpoints
        run_setting([train], tmp_path, {"value": 3})
    (tmp_path / "kept.json").rename(tmp_path / "eval" / "metrics.json")
    (tmp_path / "settings.json").unlink()
    assert not run_setting([train], tmp_path, {"value": 3})


def test_a_config_that_was_edited_is_another_setting(train, tmp_path):
    run_setting([train], tmp_path, {})
    train.write_text(json.dumps({**CONFIG, "value": 4}))
    with pytest.raises(OverrideError, match=r"configs/train\.json"):
        run_setting([train], tmp_path, {})


def test_every_bundle_has_the_keys_that_are_always_set():
    own = {"bundle_root", "ckpt_dir", "output_dir", "cache_dir", "seed", "track", "resume"}
    files = sorted(Path(__file__).parents[2].glob("monai_bundles/*/configs/train.json"))
    assert len(files) >= 4
    for file in files:
        assert unknown_override_keys([file], own) == [], file


def test_setting_of_no_config_is_refused_before_anything_runs(train, tmp_path):
    with pytest.raises(OverrideError, match="no config has the key 'valeu'"):
        run_setting([train], tmp_path / "out", {"valeu": 2})
    with pytest.raises(OverrideError, match="table is for baseline/folder, not chosen"):
        run_setting([train], tmp_path / "out", {"table": "a.csv"})
    assert not (tmp_path / "out").exists()


def test_scripts_share_where_runs_go_their_seeds_and_settings(tmp_path):
    read = arguments("What it does.", "examples:\n  as they are", "gets a folder per seed", seeds=(4, 5)).parse_args
    plain = read(["--out", str(tmp_path)])
    assert (plain.out, plain.seeds, plain.set) == (tmp_path, [4, 5], [])
    given = read(["--out", "x", "--seeds", "1", "--set", "epochs=2", "dataset::name=mine/cohort"])
    assert (given.seeds, dict(given.set)) == ([1], {"epochs": 2, "dataset::name": "mine/cohort"})
