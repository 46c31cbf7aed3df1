"""What a user sees when a bundle run goes wrong: one line, and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CONFIG = {
    "imports": ["$import medvl_core", "$import medvl_core.bundle"],
    "epochs": 1,
    "encoder": {"_target_": "medvl_core.build_encoder", "name": "baseline/resnt18_2d"},
    "initialize": ["$medvl_core.bundle.install_excepthook()", "$medvl_core.bundle.check_overrides()"],
    "run": ["@encoder"],
}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--epoch", "ERROR initialize::1: no config has the key 'epoch'; did you mean 'epochs'?"),
        pytest.param(
            "--epochs",
            "ERROR encoder: no encoder is called 'baseline/resnt18_2d'; did you mean 'baseline/resnet18_2d'?",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_monai_bundle_run_ends_with_one_line_and_code_2(override, message, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/train.json").write_text(json.dumps(CONFIG))
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/train.json", override, "3"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "MEDVL_DEBUG": "0"},
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
