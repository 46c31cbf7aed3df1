"""kill -9 at random instants: the resumed job has, step by step, the losses of an uninterrupted one."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.bundles import running

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def reference(request, tmp_path_factory):
    bundle = running.copy_bundle(tmp_path_factory.mktemp("whole"), request.param)
    done = running.run(bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    return bundle, _all_losses(bundle)


def _all_losses(bundle):
    return running.losses(bundle) | {
        (f"{stage} epoch", epoch): values for (stage, epoch), values in running.losses(bundle, "epoch_loss").items()
    }


def _kill_until_done(bundle, kills, workers, rng):
    """Start with --resume and kill after a random part of the working time, until done; returns the kills that hit."""
    hits = 0
    for _ in range(kills * 4):
        process = running.start(bundle, "--resume", "True", "--num_workers", str(workers))
        seen = ""
        if hits < kills:
            seen = _wait_for_work(process)
            time.sleep(rng.uniform(0, 4))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                hits += 1
        out = seen + process.communicate(timeout=500)[0]
        if process.returncode == 0:
            return hits
        assert process.returncode == -signal.SIGKILL, out
    raise AssertionError(f"not done after {kills * 4} starts")


def _wait_for_work(process):
    seen = ""
    for line in process.stdout:
        seen += line
        if "standardising" in line or "resumed" in line or " epoch 1/" in line or "no checkpoint" in line:
            break
    return seen


@pytest.mark.parametrize(
    ("reference", "kills", "workers"),
    [
        pytest.param("x2ct", 2, 2, id="two kills"),
        pytest.param("x2ct", 10, 0, id="ten kills", marks=pytest.mark.slow),
        pytest.param("x2ct", 10, 2, id="ten kills, two workers", marks=pytest.mark.slow),
        pytest.param("cxr_cml", 3, 0, id="cxr_cml, three kills", marks=pytest.mark.slow),
    ],
    indirect=["reference"],
)
def test_killed_job_resumes_to_identical_losses(reference, tmp_path, kills, workers):
    whole, expected = reference
    bundle = running.copy_bundle(tmp_path, whole.name)
    hits = _kill_until_done(bundle, kills, workers, random.Random(f"{kills} {workers}"))
    found = _all_losses(bundle)
    print(f"{hits} of {kills} kills hit; {len(found)} of {len(expected)} losses logged")
    assert hits >= 1
    assert any(stage.endswith(" epoch") for stage, _ in expected)
    assert found == expected
    assert all(len(values) == 1 for values in found.values())
    assert {run.info.status for run in running.runs(bundle)} == {"FINISHED"}
    weights = {path.name for path in (whole / "models").glob("*.pt") if "_last" not in path.name}
    assert "model.pt" in weights
    for name in weights:
        assert (bundle / "models" / name).stat().st_size == (whole / "models" / name).stat().st_size
    assert (bundle / "eval" / "comparison.md").read_text() == (whole / "eval" / "comparison.md").read_text()


def test_sigterm_ends_with_code_75_and_a_killed_run(tmp_path):
    bundle = running.copy_bundle(tmp_path)
    process = running.start(bundle, "--epochs", "200")
    for line in process.stdout:
        if "student epoch 2/" in line:
            process.terminate()
            break
    out = process.communicate(timeout=100)[0]
    assert process.returncode == 75, out
    assert "stopped by a signal" in out
    assert {run.info.run_name.rsplit("-", 1)[1]: run.info.status for run in running.runs(bundle)} == {
        "teacher": "FINISHED",
        "student": "KILLED",
    }
    assert (bundle / "models" / "student_last.pt").is_file()
