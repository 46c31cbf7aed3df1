"""A third party's wheel in a throw-away folder trains x2ct with a component of each kind; no file of ours changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.bundles import running

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


OVERRIDES = {
    "image_encoder": "tiny_vit",
    "image_pooling": "weighted_mean",
    "loss#losses#cxr_report": "age_aware",  # needs the age, which balls offers
    "captions": "random_sentences",
    "to_ct": "pair_cosine",
    "dataset": "balls",
}


def test_a_component_of_each_kind_goes_into_x2ct_by_an_override(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(running.ROOT / "plugins" / "example", source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(source)]
    subprocess.run(wheel, check=True, capture_output=True)
    site = tmp_path / "site"
    (built,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(built)], check=True)

    bundle = running.copy_bundle(tmp_path)
    files = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    names = [word for slot, name in OVERRIDES.items() for word in (f"--{slot}#name", f"example/{name}")]
    done = subprocess.run(
        running.command(bundle, *names, "--epochs", "1", "--stage1#epochs", "1"),
        cwd=bundle.parent,
        env={**running.environment(), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((bundle / "models" / "manifest.json").read_text())
    assert manifest["components"]["image_tower.encoder"] == "example/tiny_vit"
    assert manifest["components"]["image_tower.pooling"] == "example/weighted_mean"
    assert manifest["labels"] == ["Lung nodule"]
    assert "cxr_to_ct/cosine" in json.loads((bundle / "eval" / "metrics.json").read_text())["rows"]["trained"]
    assert manifest["plugins"]["example"]["status"] == "loaded"
    assert all(path.read_bytes() == content for path, content in files.items())
