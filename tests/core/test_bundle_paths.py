from __future__ import annotations

import json

import pytest

from medvl_core.bundle.paths import bundle_root, config_files


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    (tmp_path / "x2ct" / "configs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "x2ct"


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "--config_file", "x2ct/configs/train.json"],
        ["run", "--config_file=x2ct/configs/train.json", "--epochs", "1"],
        ["run", "--config-file", "x2ct/configs/train.json"],
        ["run", "--config_file", "['x2ct/configs/train.json', 'elsewhere/evaluate.json']"],
    ],
)
def test_root_from_the_parent_folder(bundle, argv):
    assert bundle_root(argv) == str(bundle)


def test_root_from_inside_is_the_same(bundle, monkeypatch):
    monkeypatch.chdir(bundle)
    assert bundle_root(["run", "--config_file", "configs/train.json"]) == str(bundle)


def test_root_from_an_args_file(bundle):
    (bundle.parent / "args.json").write_text(json.dumps({"config_file": ["x2ct/configs/train.json"]}))
    assert bundle_root(["run", "--args_file", "args.json"]) == str(bundle)


def test_without_a_config_the_current_folder(bundle):
    assert bundle_root(["something"]) == str(bundle.parent)
    assert config_files(["run", "--epochs", "1"]) == []
