from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from medvl_core.command import new_plugin
from medvl_core.command.new_plugin import create_plugin, template_folder
from medvl_core.errors import MedvlError
from medvl_core.manager import GROUP, discover


def test_the_copy_is_a_plugin_under_the_new_name(tmp_path, monkeypatch):
    made = create_plugin("my_lab", tmp_path / "there")
    project = tomllib.loads((made / "pyproject.toml").read_text())
    assert project["project"]["name"] == "medvl-my-lab"
    assert project["project"]["entry-points"][GROUP] == {"my_lab": "medvl_my_lab.plugin"}
    monkeypatch.syspath_prepend(made)
    found = discover([EntryPoint(name="my_lab", value="medvl_my_lab.plugin", group=GROUP)], strict=True)
    assert [component.full_name for component in found.components()] == ["my_lab/tiny_vit"]


def test_no_trace_of_the_example_is_left(tmp_path):
    made = create_plugin("mine", tmp_path / "there")
    names = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert {"pyproject.toml", "README.md", "medvl_mine/plugin.py", "tests/test_contract.py"} <= names
    for path in made.rglob("*.*"):
        if path.is_file():
            assert "medvl_example" not in path.read_text()
            assert "example/" not in path.read_text()


def test_built_files_are_not_copied(tmp_path, monkeypatch):
    source = tmp_path / "template"
    for name in ("pyproject.toml", "build/lib/x.py", "medvl_example.egg-info/a.toml", ".venv/x.py", "m/__init__.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("")
    monkeypatch.setattr(new_plugin, "template_folder", lambda: source)
    made = create_plugin("mine", tmp_path / "there")
    assert {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()} == {
        "pyproject.toml",
        "m/__init__.py",
    }


@pytest.mark.parametrize("name", ["", "Mine", "my-lab", "1st", "a/b"])
def test_id_must_be_an_identifier(name, tmp_path):
    with pytest.raises(MedvlError, match="not lower snake case"):
        create_plugin(name, tmp_path / "there")


def test_id_must_be_free(tmp_path):
    with pytest.raises(MedvlError, match="'baseline' is taken"):
        create_plugin("baseline", tmp_path / "there", taken=["baseline"])


def test_nothing_is_overwritten(tmp_path):
    with pytest.raises(MedvlError, match="exists already"):
        create_plugin("mine", tmp_path)


def test_packaged_template_comes_before_the_checkouts(tmp_path, monkeypatch):
    package = tmp_path / "medvl_core"
    (tmp_path / "plugins/example").mkdir(parents=True)
    monkeypatch.setattr(new_plugin, "__file__", str(package / "command" / "new_plugin.py"))
    with pytest.raises(MedvlError, match="template is missing"):
        template_folder()
    (tmp_path / "plugins/example/pyproject.toml").touch()
    assert template_folder() == Path(tmp_path / "plugins/example")
    (package / "template").mkdir(parents=True)
    (package / "template/pyproject.toml").touch()
    assert template_folder() == package / "template"
