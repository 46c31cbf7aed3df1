from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import EntryPoint

import pytest

from medvl_core.errors import MedvlError
from medvl_core.manager import GROUP, discover
from medvl_core.specs import KINDS
from medvl_tools import new_plugin
from medvl_tools.new_bundle import create_bundle
from medvl_tools.new_plugin import create_plugin, template_folder


@pytest.mark.parametrize(
    ("kinds", "components"),
    [
        (["encoder"], ["encoder my_lab/tiny_vit"]),
        (["loss", "dataset"], ["loss my_lab/age_aware", "dataset my_lab/balls"]),
        (["pooling"], ["pooling my_lab/weighted_mean"]),
        (["text_source"], ["text_source my_lab/random_sentences"]),
        (["evaluator"], ["evaluator my_lab/pair_cosine"]),
    ],
)
def test_the_copy_is_a_plugin_of_these_kinds_under_the_new_name(kinds, components, tmp_path, monkeypatch):
    made = create_plugin("my_lab", tmp_path / "there", kinds=kinds)
    project = tomllib.loads((made / "pyproject.toml").read_text())
    assert project["project"]["name"] == "medvl-my-lab"
    assert project["project"]["entry-points"][GROUP] == {"my_lab": "medvl_my_lab.plugin"}
    monkeypatch.syspath_prepend(made)
    for module in [name for name in sys.modules if name.startswith("medvl_my_lab")]:
        monkeypatch.delitem(sys.modules, module)
    found = discover([EntryPoint(name="my_lab", value="medvl_my_lab.plugin", group=GROUP)], strict=True)
    assert [f"{component.kind} {component.full_name}" for component in found.components()] == components
    modules = {component.spec.factory.split(":")[0].split(".")[1] for component in found.components()}
    assert {path.stem for path in (made / "medvl_my_lab").glob("*.py")} == {"__init__", "plugin", *modules}
    assert {path.stem for path in (made / "tests").glob("*.py")} == {"test_contract", *(f"test_{m}" for m in modules)}
    assert ("extras" in (made / "tests/test_contract.py").read_text()) == ("loss" in kinds)
    rows = re.findall(r"^\| (\w+) \| `\w+\.py`", (made / "README.md").read_text(), flags=re.MULTILINE)
    assert rows == kinds


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(MedvlError, match="'los' is no kind of component; did you mean 'loss'"):
        create_plugin("mine", tmp_path / "there", kinds=["los"])


def test_the_example_has_every_kind():
    point = EntryPoint(name="example", value="medvl_example.plugin", group=GROUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(template_folder())
        assert [component.kind for component in discover([point], strict=True).components()] == list(KINDS)


def test_no_trace_of_the_example_is_left(tmp_path):
    made = create_plugin("mine", tmp_path / "there", kinds=list(KINDS))
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


@pytest.mark.parametrize("create", [create_plugin, create_bundle])
@pytest.mark.parametrize("name", ["", "Mine", "my-lab", "1st", "a/b"])
def test_id_must_be_an_identifier(create, name, tmp_path):
    with pytest.raises(MedvlError, match="not lower snake case"):
        create(name, tmp_path / "there")


def test_id_must_be_free(tmp_path):
    with pytest.raises(MedvlError, match="'baseline' is taken"):
        create_plugin("baseline", tmp_path / "there", taken=["baseline"])


@pytest.mark.parametrize("create", [create_plugin, create_bundle])
def test_nothing_is_overwritten(create, tmp_path):
    with pytest.raises(MedvlError, match="exists already"):
        create("mine", tmp_path)


def test_packaged_template_comes_before_the_checkouts(tmp_path, monkeypatch):
    package = tmp_path / "plugins" / "medvl_tools"
    monkeypatch.setattr(new_plugin, "__file__", str(package / "new_plugin.py"))
    with pytest.raises(MedvlError, match="template is missing"):
        template_folder()
    (tmp_path / "plugins/example").mkdir(parents=True)
    assert template_folder() == tmp_path / "plugins/example"
    (package / "template").mkdir(parents=True)
    assert template_folder() == package / "template"
