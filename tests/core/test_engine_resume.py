from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from medvl_core.weights import weights_digest
from tests.core.engine_toy import stage


class Killed(BaseException):
    """Stands for a process that is gone between two instructions."""


def _die_at(trainer, step, event):
    def die(engine):
        if engine.state.iteration == step:
            raise Killed("gone")

    trainer.add_event_handler(event, die)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("step", "event", "every", "first_resumed"),
    [
        (1, Events.ITERATION_COMPLETED, None, 1),
        (5, Events.ITERATION_STARTED, None, 4),
        (6, Events.EPOCH_COMPLETED, None, 4),
        (8, Events.ITERATION_COMPLETED, 1, 8),
        (10, Events.ITERATION_STARTED, 2, 10),
    ],
)
def test_killed_and_resumed_run_has_the_losses_of_an_uninterrupted_one(
    tmp_path, studies, workers, step, event, every, first_resumed
):
    whole, losses, model = stage(tmp_path / "whole", studies)
    whole.run()
    assert len(losses) == 12

    killed, before, _ = stage(tmp_path / "cut", studies, workers=workers, every=every)
    _die_at(killed, step, event)
    with pytest.raises(Killed, match="gone"):
        killed.run()
    resumed, after, resumed_model = stage(tmp_path / "cut", studies, workers=workers, every=every, resume=True, seed=0)
    resumed.run()

    assert sorted(set(before + after)) == losses
    assert after[0][0] == first_resumed
    assert weights_digest(resumed_model) == weights_digest(model)


def test_best_model_survives_a_resume_with_worse_epochs(tmp_path, studies):
    first, _, _ = stage(tmp_path, studies, epochs=2)
    first.run()
    best = (tmp_path / "best.pt").read_bytes()
    content = torch.load(tmp_path / "toy_last.pt", weights_only=True)
    content["best_metric"] = 2.0  # no later epoch can reach a mean above 1
    torch.save(content, tmp_path / "toy_last.pt")
    longer, losses, _ = stage(tmp_path, studies, epochs=4, resume=True)
    longer.run()
    assert [step for step, _ in losses] == list(range(7, 13))
    assert (tmp_path / "best.pt").read_bytes() == best


def test_finished_run_resumes_to_nothing(tmp_path, studies):
    stage(tmp_path, studies)[0].run()
    again, losses, _ = stage(tmp_path, studies, resume=True)
    again.run()
    assert losses == []


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, studies, caplog):
    _, losses, _ = whole = stage(tmp_path / "whole", studies)
    whole[0].run()
    cut, _, _ = stage(tmp_path / "cut", studies)
    _die_at(cut, 9, Events.ITERATION_COMPLETED)
    with pytest.raises(Killed, match="gone"):
        cut.run()
    path = tmp_path / "cut" / "toy_last.pt"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    resumed, after, _ = stage(tmp_path / "cut", studies, resume=True)
    with caplog.at_level("WARNING"):
        resumed.run()
    assert "toy_last.pt: damaged checkpoint" in caplog.text
    assert after == losses[3:]


def test_changed_setting_is_refused(tmp_path, studies):
    stage(tmp_path, studies, epochs=1)[0].run()
    other, _, _ = stage(tmp_path, studies, resume=True, seed=1)
    with pytest.raises(ValueError, match="cannot resume exactly: seed was 0 and is now 1"):
        other.run()
