"""Commands for authors of plugins and bundles."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from medvl_core.command import cli
from medvl_core.errors import MedvlError
from medvl_core.manager import registry
from tests.command_line import invoke


def test_plugins_lists_every_component():
    result = invoke("plugins")
    assert result.exit_code == 0
    for component in registry().components():
        assert component.full_name in result.output


def test_plugins_shows_broken_ones_with_the_reason(with_broken):
    result = invoke("plugins")
    assert result.exit_code == 65
    assert "broken: theirs (other 3): ImportError: no [x]" in result.output


def test_plugins_as_json(with_broken):
    records = {record["id"]: record for record in json.loads(invoke("plugins", "--json").output)}
    assert records["theirs"]["reason"] == "ImportError: no [x]"
    assert {"kind": "pooling", "name": "baseline/mean", "summary": "Mean over valid tokens"} in (
        records["baseline"]["components"]
    )


def test_show_gives_options_source_licence_and_lines_that_run():
    output = invoke("show", "attention").output
    lines = dict(line.split(None, 1) for line in output.splitlines() if line.startswith("  ") and len(line.split()) > 1)
    assert lines["license"] == "Apache-2.0"
    assert "embed_dim (required)" in output
    assert "heads = 8" in output
    python = output.split("in Python")[1].splitlines()[0].strip()
    config = json.loads(output.split("in a config")[1].strip())
    assert python == "medvl_core.build_pooling('baseline/attention', embed_dim=16)"
    assert config == {"_target_": "medvl_core.build_pooling", "name": "baseline/attention", "embed_dim": 16}


@pytest.mark.parametrize(
    ("name", "message"),
    [("atention", "no pooling is called 'atention'; did you mean 'attention'"), ("zzz", "'medvl plugins' lists all")],
)
def test_show_of_an_unknown_name(name, message):
    result = invoke("show", name)
    assert isinstance(result.exception, MedvlError)
    assert message in str(result.exception)


def test_doctor(with_broken):
    result = invoke("doctor", "--json")
    assert result.exit_code == 65
    assert json.loads(result.output)["plugins"]["theirs (other 3)"] == "broken, ImportError: no [x]"
    assert "versions" in invoke("doctor").output


def test_bundle_check_exits_65_and_lists(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/train.json").write_text('{"epochs": 1}')
    result = invoke("bundle", "check", str(tmp_path), "--override", "epoch", "--override", "epochs")
    assert result.exit_code == 65
    assert "LICENSE: is missing" in result.output
    assert "--override: no config has the key 'epoch'; did you mean 'epochs'?" in result.output
    listed = json.loads(invoke("bundle", "check", str(tmp_path), "--json").output)
    assert {"where": "LICENSE", "message": "is missing"} in listed


@pytest.mark.parametrize("override", [[], ["--override", "epochs"]])
@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("train", "{", "configs/train.json: is not JSON"),
        ("train", '[{"epochs": 1}]', "configs/train.json: must hold one JSON object"),
        ("train", '{"a": {"_target_": ["x"]}}', "configs/train.json::a::_target_: ['x'] is not the name of"),
        ("metadata", '{"medvl": {"components": ["x"]}}', 'medvl::components: is ["x"], no object of lists'),
    ],
)
def test_bundle_check_lists_damaged_files(name, text, expected, override, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / f"configs/{name}.json").write_text(text)
    monkeypatch.setattr(sys, "argv", ["medvl", "bundle", "check", str(tmp_path), *override])
    with pytest.raises(SystemExit, match="65"):
        cli.main()
    assert expected in capsys.readouterr().out


def test_new_plugin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "made medvl-my-lab" in invoke("new-plugin", "my_lab").output
    assert Path("medvl-my-lab/medvl_my_lab/encoders.py").is_file()
    invoke("new-plugin", "mine", "there", "--kind", "loss", "--kind", "dataset")
    assert {path.stem for path in Path("there/medvl_mine").iterdir()} == {"__init__", "plugin", "losses", "datasets"}
