"""Tests of the repository itself: what must hold for every file on disk, also for those added later."""

from __future__ import annotations

import ast
import inspect
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
MODULES = [path for path in sorted(CORE.rglob("*.py")) if path.name != "__init__.py"]
TESTS = {path.stem for path in (ROOT / "tests/core").rglob("test_*.py")}


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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CORE)))
def test_every_core_module_has_a_test_file(path):
    """``a/b.py`` is tested by ``test_a_b.py``, or a small package ``a`` as a whole by ``test_a.py``."""
    parts = path.relative_to(CORE).with_suffix("").parts
    names = {f"test_{'_'.join(parts[:depth])}" for depth in range(1, len(parts) + 1)}
    assert names & TESTS, f"write one of {sorted(names)}"


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


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_core_never_imports_a_plugin(path):
    assert not imported_packages(path) & set(PLUGINS)


@pytest.mark.parametrize("package", PLUGINS)
def test_plugins_never_import_each_other(package):
    for path in PLUGINS[package].parent.rglob("*.py"):
        assert not imported_packages(path) & (set(PLUGINS) - {package}), path


@pytest.mark.parametrize("package", PLUGINS)
def test_plugin_modules_import_specs_only(package):
    assert imported_packages(PLUGINS[package]) <= {"__future__", "medvl_core"}


def test_bundles_are_not_importable():
    assert list((ROOT / "monai_bundles").rglob("__init__.py")) == []


def test_no_file_is_called_utils():
    assert [path for folder in ("medvl_core", "plugins") for path in (ROOT / folder).rglob("utils.py")] == []
