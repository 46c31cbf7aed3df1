"""kill -9 at random instants of RadCLIP's two stages: the losses are those of an uninterrupted run."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.bundles import running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


def test_killed_job_resumes_to_identical_losses(tmp_path):
    whole, bundle = (running.copy_bundle(tmp_path / name, "radclip") for name in ("whole", "killed"))
    done = running.run(whole)
    assert done.returncode == 0, done.stdout + done.stderr
    rng = random.Random(0)
    for line in ("stage1 epoch 1/", "resumed ", "adapter epoch 1/"):  # the second may lie in either stage
        _kill_after(bundle, line, rng.uniform(0, 1))
    done = running.run(bundle, "--resume", "True")
    assert done.returncode == 0, done.stdout + done.stderr
    assert running.losses(bundle) == running.losses(whole)
    assert {run.info.status for run in running.runs(bundle)} == {"FINISHED"}
    comparison = [(one / "eval" / "comparison.md").read_text() for one in (bundle, whole)]
    assert comparison[0] == comparison[1]


def _kill_after(bundle, said, seconds):
    """Start or go on, and kill so long after a line of the log."""
    process = running.start(bundle, "--resume", "True")
    assert any(said in line for line in process.stdout), said
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL
