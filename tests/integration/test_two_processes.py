"""Two gloo processes train the bundles as one process does on the same global batch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.bundles import running

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


# Dropout masks are drawn per process, so they cannot be those of one process on the whole batch. RadCLIP's validation
# compares within a process's batch, so of two epochs either may be the better one.
BUNDLES = {
    "x2ct": (("--text_encoder#options_for#baseline/bert_small#dropout", "0.0"), ("--batch_size",), 4, 1e-5),
    "radclip": (("--dropout", "0.0", "--stage1#epochs", "1"), ("--stage1#batch_size", "--batch_size"), 8, 1e-4),
}
STAGES = {"x2ct": ["student", "teacher"], "radclip": ["adapter", "stage1"]}


@pytest.mark.parametrize("name", ["x2ct", pytest.param("radclip", marks=pytest.mark.slow)])
def test_two_processes_log_the_losses_of_one(tmp_path, name):
    plain, sizes, batch_size, relative = BUNDLES[name]
    trained = []
    for processes, configs in ((1, ("train.json",)), (2, ("train.json", "multi_gpu_train.json"))):
        bundle = running.copy_bundle(tmp_path / str(processes), name)
        batches = [word for size in sizes for word in (size, str(batch_size // processes))]
        done = running.run(bundle, *batches, *plain, configs=configs, processes=processes)
        assert done.returncode == 0, done.stdout + done.stderr
        trained.append(bundle)

    expected, found = map(running.losses, trained)
    assert {stage for stage, _ in expected} == set(STAGES[name])
    assert found.keys() == expected.keys()
    for step, (value,) in expected.items():
        assert list(found[step]) == pytest.approx([value], rel=relative), step
    runs = running.runs(trained[1])
    assert sorted(run.info.run_name.rsplit("-", 1)[1] for run in runs) == sorted([*STAGES[name], "evaluation"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    lines = [line for line in done.stdout.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert sum(f"{STAGES[name][0]} epoch 1/" in line for line in lines) == 1, done.stdout
    assert len(lines) == len(set(lines)), done.stdout
    assert sum("written: " in line for line in lines) == 4  # models, eval, cache, mlruns.db


def _train_cxr_cml(folder: Path, batch_size: int, processes: int) -> dict[str, dict[str, torch.Tensor]]:
    """State of model and loss after training in miniature; dropout masks are drawn per process, so there are none."""
    bundle = running.copy_bundle(folder, "cxr_cml")
    configs = ("train.json", "multi_gpu_train.json")[:processes]
    options = ("--batch_size", str(batch_size), "--text_encoder#options_for#baseline/bert_small#dropout", "0.0")
    done = running.run(bundle, *options, configs=configs, processes=processes)
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
