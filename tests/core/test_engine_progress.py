from __future__ import annotations

import re

import pytest

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
