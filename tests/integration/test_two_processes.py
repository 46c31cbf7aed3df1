"""Two gloo processes train the bundles as one process does on the same global batch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.bundles import running

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


def test_two_processes_log_the_losses_of_one(tmp_path):
    # Dropout masks are drawn per process, so they cannot be those of one process on the whole batch.
    plain = ("--text_encoder#options_for#baseline/bert_small#dropout", "0.0")
    one = running.copy_bundle(tmp_path / "one")
    done = running.run(one, "--batch_size", "4", *plain)
    assert done.returncode == 0, done.stdout + done.stderr

    two = running.copy_bundle(tmp_path / "two")
    single = running.command(two, "--batch_size", "2", *plain, configs=("train.json", "multi_gpu_train.json"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *single[1:]]
    done = subprocess.run(
        torchrun, cwd=two.parent, env=running.environment(), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr

    expected, found = running.losses(one), running.losses(two)
    assert found.keys() == expected.keys()
    for step, (value,) in expected.items():
        assert list(found[step]) == pytest.approx([value], rel=1e-5), step
    stages = sorted(run.info.run_name.rsplit("-", 1)[1] for run in running.runs(two))
    assert stages == ["evaluation", "student", "teacher"]
    assert {run.info.status for run in running.runs(two)} == {"FINISHED"}
    lines = [line for line in done.stdout.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert sum("student epoch 1/3" in line for line in lines) == 1, done.stdout
    assert len(lines) == len(set(lines)), done.stdout


def _train_cxr_cml(folder: Path, batch_size: int, processes: int) -> dict[str, dict[str, torch.Tensor]]:
    """State of model and loss after training in miniature; dropout masks are drawn per process, so there are none."""
    bundle = running.copy_bundle(folder, "cxr_cml")
    configs = ["train.json", "multi_gpu_train.json"][:processes]
    files = [str(bundle / "configs" / name) for name in configs] + [str(running.ROOT / "tests/data/tiny_cxr_cml.json")]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    options = ["--batch_size", str(batch_size), "--text_encoder#options_for#baseline/bert_small#dropout", "0.0"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "monai.bundle", "run", "--config_file", str(files), *options],
        cwd=bundle.parent,
        env=running.environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (bundle / "eval" / "report.html").is_file()
    state = torch.load(bundle / "models" / "train_last.pt", weights_only=True)["objects"]
    return {name: state[name] for name in ("model", "loss")}


@pytest.mark.slow
def test_two_processes_end_with_the_weights_and_the_bank_of_one(tmp_path):
    one, two = _train_cxr_cml(tmp_path / "one", 4, 1), _train_cxr_cml(tmp_path / "two", 2, 2)
    assert bool(one["loss"]["losses.metric.mixture.fitted"])
    for name, weights in one["model"].items():
        if not name.endswith(("k_proj.bias", "key.bias")):  # attention does not depend on these: AdamW follows rounding
            torch.testing.assert_close(two["model"][name], weights, rtol=1e-2, atol=2e-4)
    for name in ("step", "bank.seen", "bank.ring", "mixture.fitted"):
        name = f"losses.metric.{name}"
        torch.testing.assert_close(two["loss"][name], one["loss"][name], rtol=1e-2, atol=1e-3)
