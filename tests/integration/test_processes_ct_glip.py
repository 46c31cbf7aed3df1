"""CT-GLIP killed and resumed, and on two processes: as one uninterrupted process does."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch

from tests.bundles import running
from tests.integration.test_killed import _kill_until_done

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


def test_killed_job_resumes_to_identical_losses(tmp_path):
    whole, bundle = (running.copy_bundle(tmp_path / name, "ct_glip") for name in ("whole", "killed"))
    done = running.run(whole)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _kill_until_done(bundle, 2, 2, random.Random("ct_glip")) >= 1
    assert running.losses(bundle) == running.losses(whole)
    assert (bundle / "eval" / "comparison.md").read_text() == (whole / "eval" / "comparison.md").read_text()


@pytest.mark.distributed
def test_two_processes_align_organs_as_one_does(tmp_path):
    """Without masks to segment, whose Dice is one number per batch, the loss is a mean over scans."""
    one, two = (_aligned(tmp_path / name, n) for name, n in (("one", 1), ("two", 2)))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-3, atol=1e-4)


@pytest.mark.distributed
def test_two_processes_segment_and_evaluate(tmp_path):
    bundle = _trained(tmp_path, 2, ())
    assert (bundle / "eval" / "report.html").is_file()
    stages = sorted(run.info.run_name.rsplit("-", 1)[1] for run in running.runs(bundle))
    assert stages == ["alignment", "evaluation", "segmentation"]


def _aligned(folder, processes):
    plain = ("--optimizer#_target_", "torch.optim.SGD", "--learning_rate", "0.1")  # Adam follows rounding
    bundle = _trained(folder, processes, ("alignment_only.json",), *plain)
    return torch.load(bundle / "models" / "alignment_last.pt", weights_only=True)["objects"]["model"]


def _trained(folder, processes, overlays, *options):
    """A bundle trained in miniature, two scans per step."""
    bundle = running.copy_bundle(folder, "ct_glip")
    configs = ("train.json", *overlays, *(("multi_gpu_train.json",) if processes > 1 else ()))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    workers = ("--num_workers", "0", "--prepare_workers", "0")
    single = running.command(bundle, "--batch_size", str(2 // processes), *workers, *options, configs=configs)
    command = [sys.executable, *torchrun, *single[1:]]
    done = subprocess.run(
        command, cwd=bundle.parent, env=running.environment(), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return bundle
