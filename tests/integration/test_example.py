"""The example as a third party would ship it: built as a wheel, installed elsewhere, found from there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medvl_core.specs import KINDS

EXAMPLE = Path(__file__).parents[2] / "plugins" / "example"


def run(*arguments: object, path: tuple[Path, ...] = ()) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, *filter(None, sys.path)]))}
    env |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that holds the installed wheel."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    run("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source")
    (wheel,) = folder.glob("medvl_example-*.whl")
    run("-m", "pip", "install", "-q", "--no-deps", "--target", folder / "installed", wheel)
    return folder / "installed"


def test_it_is_listed_with_its_distribution(installed):
    listed = json.loads(
        run("-c", "from medvl_core.command.cli import main; main()", "plugins", "--json", path=(installed,))
    )
    example = next(record for record in listed if record["id"] == "example")
    assert (example["distribution"], example["version"], example["status"]) == ("medvl-example", "0.1.0", "loaded")
    assert [component["kind"] for component in example["components"]] == list(KINDS)


def test_it_builds_from_there(installed):
    code = (
        "import medvl_core, medvl_example; e = medvl_core.build_encoder('example/tiny_vit', width=16, heads=2);"
        "print(e.component, e.embed_dim, medvl_example.__file__)"
    )
    name, width, file = run("-c", code, path=(installed,)).split()
    assert (name, width) == ("example/tiny_vit", "16")
    assert Path(file).is_relative_to(installed)


def test_its_own_tests_pass(installed):
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, EXAMPLE / "tests", path=(installed,))
    assert "passed" in output
