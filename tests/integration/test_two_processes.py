"""Two gloo processes train the bundle as one process does on the same global batch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.bundles import running

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


def test_two_processes_log_the_losses_of_one(tmp_path):
    # Dropout masks are drawn per process, so they cannot be those of one process on the whole batch.
    plain = ("--report_encoder#options_for#baseline/bert_small#dropout", "0.0")
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
