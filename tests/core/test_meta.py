"""Tests of the repository itself: what must hold for every file on disk, also for those added later."""

from __future__ import annotations

import ast
import inspect
import json
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from medvl_core import hookspecs
from medvl_core.manager import GROUP, HOOKS, discover

ROOT = Path(__file__).parents[2]
CORE = ROOT / "medvl_core"
PLUGINS = {
    path.parent.name: path for path in sorted((ROOT / "plugins").rglob("plugin.py")) if "build" not in path.parts
}
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["medvl"]["layers"]
ROW = {package: row for row, packages in enumerate(LAYERS) for package in packages}
FOLDER = {package: ROOT / package if package == "medvl_core" else ROOT / "plugins" / package for package in ROW}
PAPERS = LAYERS[-1]
MODULES = [
    path
    for package in LAYERS[0] + LAYERS[1]
    for path in sorted(FOLDER[package].rglob("*.py"))
    if path.stem != "__init__"
]


def _tests_of(package: str) -> set[str]:
    """Names of the test files of one package."""
    short = package.removeprefix("medvl_")
    return {path.stem for path in (ROOT / "tests" / ("papers" if package in PAPERS else "") / short).rglob("test_*.py")}


def imported_packages(path: Path) -> set[str]:
    """Top-level names of every import in a file, also of those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_the_walks_find_something():
    assert {"medvl_baseline", "medvl_example"} <= set(PLUGINS)
    assert len(MODULES) > 10


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_has_a_test_file(path):
    """``a/b.py`` of a package is tested by ``test_a_b.py``, or a small folder ``a`` as a whole by ``test_a.py``."""
    package = next(name for name, folder in FOLDER.items() if path.is_relative_to(folder))
    parts = path.relative_to(FOLDER[package]).with_suffix("").parts
    names = {f"test_{'_'.join(parts[:depth])}" for depth in range(1, len(parts) + 1)}
    assert names & _tests_of(package), f"write one of {sorted(names)}"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_documented_signature(hook):
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    assert f"\n## `{hook}{signature}`\n" in (ROOT / "docs/reference/hooks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", PLUGINS)
def test_every_source_is_listed(package, monkeypatch):
    monkeypatch.syspath_prepend(PLUGINS[package].parents[1])
    point = EntryPoint(name=package.removeprefix("medvl_"), value=f"{package}.plugin", group=GROUP)
    page = (ROOT / "docs/reference/sources.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| `")}
    for component in discover([point], strict=True).components():
        assert f"`{component.full_name}`" in rows.get(f"`{component.spec.source}`", ""), component


@pytest.mark.parametrize("package", ROW)
def test_imports_go_down_the_layers(package):
    for path in FOLDER[package].rglob("*.py"):
        for other in imported_packages(path) & set(ROW) - {package}:
            assert ROW[other] < ROW[package], f"{path} imports {other}, which is no layer below {package}"


def test_every_package_has_its_layer():
    packages = {path.parent.name for path in (ROOT / "plugins").glob("medvl_*/__init__.py")}
    assert packages | {"medvl_core"} == set(ROW)


@pytest.mark.parametrize("package", PLUGINS)
def test_plugin_modules_import_specs_only(package):
    assert imported_packages(PLUGINS[package]) <= {"__future__", "functools", "medvl_core"}


def test_bundles_are_not_importable():
    assert list((ROOT / "monai_bundles").rglob("__init__.py")) == []


def test_no_file_is_called_utils():
    assert [path for folder in ("medvl_core", "plugins") for path in (ROOT / folder).rglob("utils.py")] == []


def lines(*paths: Path) -> int:
    """Lines of the Python files below these files and folders."""
    files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def test_core_is_thin():
    """Budgets that only ever go down. What two papers or the contract do not need belongs into a layer or a paper."""
    contract = sorted(CORE.glob("*.py"))
    assert len(contract) == 8
    assert lines(*contract) <= 1150
    assert lines(CORE / "testing") <= 1250
    assert lines(CORE) - lines(CORE / "testing") <= 4200


def formatted(value: object, indent: int = 0, width: int = 120) -> str:
    """JSON as a page holds it: one line for what fits, else one for each entry."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= width - 2 or not isinstance(value, (dict, list)) or not value:
        return line
    inner = " " * (indent + 4)
    if isinstance(value, list):
        rows = [inner + formatted(item, indent + 4, width) for item in value]
        return "[\n" + ",\n".join(rows) + "\n" + " " * indent + "]"
    rows = []
    for key, item in value.items():
        lead = indent + 4 + len(key) + 4
        fits = len(json.dumps(item, ensure_ascii=False)) + lead <= width - 2
        rows.append(f"{inner}{json.dumps(key)}: {formatted(item, lead if fits else indent + 4, width)}")
    return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"


def components(value: object) -> Iterator[dict[str, object]]:
    """Every component of a config."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield value
        for item in value.values():
            yield from components(item)
    elif isinstance(value, list):
        for item in value:
            yield from components(item)


@pytest.mark.parametrize(("bundle", "most"), [("x2ct", 320), ("cxr_cml", 320), ("ct_glip", 320), ("radclip", 400)])
def test_configs_are_pages(bundle, most):
    """A budget that only ever goes down, and a word on every component: section, equation, or why it is there."""
    config = json.loads((ROOT / "monai_bundles" / bundle / "configs/train.json").read_text(encoding="utf-8"))
    assert formatted(config).count("\n") + 1 <= most
    assert [part["_target_"] for part in components(config) if not part.get("_desc_")] == []
