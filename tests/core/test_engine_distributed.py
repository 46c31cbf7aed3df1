from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from medvl_core.engine import distributed

SCRIPT = Path(__file__).parents[1] / "data" / "two_processes.py"


def test_one_process_is_its_own_world():
    rows = torch.ones(3, requires_grad=True)
    assert distributed.gather_rows(rows) is rows
    assert distributed.gather_objects("x") == ["x"]
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


@pytest.mark.parametrize(
    ("rank", "shown"),
    [
        (0, "epoch 1\ntoo small\n"),
        (1, r"\d\d:\d\d:\d\d process 1: too small\n\S+ process 1: (?s:.*old name.*)"),
    ],
)
def test_only_the_first_process_logs_and_warnings_of_others_name_theirs(monkeypatch, rank, shown):
    stream = io.StringIO()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [logging.StreamHandler(stream)])
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    level = root.level
    root.setLevel(logging.INFO)
    try:
        distributed.speak_once()
        logging.getLogger("medvl_core.engine.progress").info("epoch 1")
        logging.getLogger("medvl_core.engine.progress").warning("too small")
        if rank:
            with warnings.catch_warnings(action="always"):
                warnings.warn("old name", FutureWarning, stacklevel=1)
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
    assert re.fullmatch(shown, stream.getvalue())


@pytest.mark.distributed
def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path):
    out = tmp_path / "two.pt"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(SCRIPT),
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}  # never by the host's name
    done = subprocess.run(command, timeout=300, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two = torch.load(out, weights_only=True)

    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import two_processes
    finally:
        sys.path.remove(str(SCRIPT.parent))
    model = two_processes.make_model()
    loss = two_processes.step(model, two_processes.make_batch())
    assert two["loss"] == pytest.approx(loss, abs=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(two["gradients"][name], parameter.grad, rtol=1e-5, atol=1e-6)
    assert two["uneven"] == [4, 3]
    assert two["plain"].tolist() == [0, 0, 1, 1]
