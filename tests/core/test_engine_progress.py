from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace

import pytest
from ignite.engine import Events

from medvl_core.engine import tell_written
from tests.core.engine_toy import stage


def test_one_line_per_epoch_with_loss_and_validation(tmp_path, studies, caplog):
    trainer, losses, _ = stage(tmp_path, studies, epochs=2)
    with caplog.at_level("INFO", logger="medvl_core.engine.progress"):
        trainer.run()
    lines = [record.getMessage() for record in caplog.records if record.name == "medvl_core.engine.progress"]
    assert len(lines) == 2
    mean = sum(value for _, value in losses[3:]) / 3
    assert re.fullmatch(rf"toy epoch 2/2: loss {mean:.4f}, first_axis -?\d\.\d{{3}} \(\d+\.\d s\)", lines[1])
    assert trainer.state.metrics["epoch_loss"] == pytest.approx(mean)


def _steps_of_20_s(folder, studies, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("medvl_core.engine.progress.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    trainer, _, _ = stage(folder, studies, epochs=2)

    def work():
        clock[0] += 20

    trainer.add_event_handler(Events.ITERATION_STARTED, work)
    return trainer


def test_every_half_minute_a_line_says_where_the_run_is_and_how_long_it_will_take(
    tmp_path, studies, monkeypatch, caplog
):
    trainer = _steps_of_20_s(tmp_path, studies, monkeypatch)
    with caplog.at_level("INFO", logger="medvl_core.engine.progress"):
        trainer.run()
    steps = [record.getMessage() for record in caplog.records if "step" in record.getMessage()]
    assert steps == [
        "toy epoch 1/2, step 2/3: about 0:01:20 left",
        "toy epoch 2/2, step 1/3: about 0:00:40 left",
        "toy epoch 2/2, step 3/3: about 0:00:00 left",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("rank", [0, 1])
def test_terminal_shows_a_bar_of_the_first_process(tmp_path, studies, monkeypatch, caplog, rank):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Terminal())
        patched.setattr("medvl_core.engine.progress.distributed", SimpleNamespace(rank=lambda: rank))
        trainer = _steps_of_20_s(tmp_path, studies, monkeypatch)
        shown = sys.stdout
    with caplog.at_level("INFO"):
        trainer.run()
    assert "step" not in caplog.text
    assert ("toy [1/2]:  step " in shown.getvalue()) == (rank == 0)
    assert ("left=0:01:20" in shown.getvalue()) == (rank == 0)
    assert ("toy validation [2/2]:  step " in shown.getvalue()) == (rank == 0)


def test_job_ends_with_what_it_wrote_where(tmp_path, caplog):
    (tmp_path / "models" / "old").mkdir(parents=True)
    for name in ("model.pt", "old/model.pt"):
        (tmp_path / "models" / name).write_bytes(bytes(1_500_000))
    (tmp_path / "mlruns.db").write_bytes(bytes(200_000))
    with caplog.at_level("INFO"):
        tell_written(tmp_path / "models", tmp_path / "eval", tmp_path / "mlruns.db")
    assert [record.getMessage() for record in caplog.records] == [
        f"written: {tmp_path}/models (3.0 MB in 2 files)",
        f"written: {tmp_path}/mlruns.db (0.2 MB)",
    ]
