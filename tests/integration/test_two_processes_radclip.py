"""Two gloo processes train both stages of RadCLIP as one process does on the same global batch."""

from __future__ import annotations

import pytest

from tests.bundles import running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


def test_two_processes_log_the_losses_of_one(tmp_path):
    # Dropout masks are drawn per process. Validation compares within a process's batch, so of two epochs either may be
    # the better one.
    plain = ("--dropout", "0.0", "--stage1#epochs", "1")
    one = running.copy_bundle(tmp_path / "one", "radclip")
    done = running.run(one, "--stage1#batch_size", "8", "--batch_size", "8", *plain)
    assert done.returncode == 0, done.stdout + done.stderr

    two = running.copy_bundle(tmp_path / "two", "radclip")
    halves = ("--stage1#batch_size", "4", "--batch_size", "4", *plain)
    done = running.run(two, *halves, configs=("train.json", "multi_gpu_train.json"), processes=2)
    assert done.returncode == 0, done.stdout + done.stderr

    expected, found = running.losses(one), running.losses(two)
    assert {stage for stage, _ in expected} == {"stage1", "adapter"}
    assert found.keys() == expected.keys()
    for step, (value,) in expected.items():
        assert list(found[step]) == pytest.approx([value], rel=1e-4), step
    stages = sorted(run.info.run_name.rsplit("-", 1)[1] for run in running.runs(two))
    assert stages == ["adapter", "evaluation", "stage1"]
    assert {run.info.status for run in running.runs(two)} == {"FINISHED"}
