"""The examples as a third party would ship them: built as wheels, installed elsewhere, found from there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from medvl_core.bundle.manifest import read_manifest
from medvl_core.specs import KINDS

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "plugins"
EXAMPLES = ("example", "example_bundle")
TINY = (
    *("--dataset#options_for#baseline/phantom", "{'n_subjects': 20, 'shape': [16, 16, 16]}"),
    *("--image_encoder#offers", "{'size': [32, 32], 'base_width': 4}"),
    *("--epochs", "1", "--train#trainer#batch_size", "4"),
)


def run(*arguments: object, path: Path | None = None, cwd: Path | None = None) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*filter(None, [path]), *filter(None, sys.path)]))}
    env |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that holds both installed wheels."""
    folder = tmp_path_factory.mktemp("examples")
    for name in EXAMPLES:
        ignored = shutil.ignore_patterns("build", "*.egg-info", "models", "eval", "cache", "mlruns*")
        shutil.copytree(PLUGINS / name, folder / name, ignore=ignored)
        run("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, folder / name)
    run("-m", "pip", "install", "-q", "--no-deps", "--target", folder / "installed", *folder.glob("*.whl"))
    return folder / "installed"


def test_they_are_listed_with_their_distributions(installed):
    listed = json.loads(
        run("-c", "from medvl_core.command.cli import main; main()", "plugins", "--json", path=installed)
    )
    found = {record["id"]: record for record in listed if record["id"] in EXAMPLES}
    assert [(one["distribution"], one["version"], one["status"]) for one in found.values()] == [
        ("medvl-example", "0.1.0", "loaded"),
        ("medvl-example-bundle", "0.1.0", "loaded"),
    ]
    assert [component["kind"] for component in found["example"]["components"]] == list(KINDS)


def test_it_builds_from_there(installed):
    code = (
        "import medvl_core, medvl_example; e = medvl_core.build_encoder('example/tiny_vit', width=16, heads=2);"
        "print(e.component, e.embed_dim, medvl_example.__file__)"
    )
    name, width, file = run("-c", code, path=installed).split()
    assert (name, width) == ("example/tiny_vit", "16")
    assert Path(file).is_relative_to(installed)


@pytest.mark.parametrize("name", EXAMPLES)
def test_their_own_tests_pass(name, installed):
    tests = installed.parent / name / "tests"
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, tests, path=installed)
    assert "passed" in output


def test_the_bundle_trains_with_its_own_loss(installed):
    bundle = installed.parent / "example_bundle"
    config = "example_bundle/configs/train.json"
    output = run("-m", "monai.bundle", "run", "--config_file", config, *TINY, path=installed, cwd=bundle)
    assert "train epoch 1/1" in output
    manifest = read_manifest(bundle / "example_bundle" / "models" / "manifest.json")
    assert manifest["plugins"]["example_bundle"]["status"] == "loaded"
    assert (bundle / "example_bundle" / "eval" / "comparison.md").is_file()


def test_medvls_own_wheel_holds_both_templates(tmp_path):
    for name in ("medvl_core", "plugins"):
        ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
        shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "source")
    run("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, tmp_path / "source")
    (wheel,) = tmp_path.glob("medvl-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    command = ("-c", "from medvl_core.command.cli import main; main()")
    for name, made in (("new-plugin", "medvl-mine"), ("new-bundle", "mine")):
        assert f"made {made}" in run(*command, name, "mine", path=tmp_path / "site", cwd=tmp_path)
    shipped = {
        path.relative_to(tmp_path / "site/medvl_tools") for path in tmp_path.glob("site/medvl_tools/template*/**/*")
    }
    for template, source in (("template", "example"), ("template_bundle", "example_bundle/example_bundle")):
        for path in (PLUGINS / source).rglob("*.*"):
            if path.suffix in (".md", ".py", ".toml", ".json", ".conf", ".txt"):
                assert Path(template, path.relative_to(PLUGINS / source)) in shipped
