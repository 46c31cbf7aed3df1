from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ignite.engine import Events

from medvl_core.engine.resume import _read_verified
from medvl_core.engine.weights import WeightsError, weights_digest
from tests.core.engine_toy import stage, use_scaler


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


def _epoch_losses(trainer):
    found = {}

    def read(engine):
        found[engine.state.epoch] = engine.state.metrics["epoch_loss"]

    trainer.add_event_handler(Events.EPOCH_COMPLETED, read)
    return found


def _cut_in_an_epoch(folder, studies):
    """A run that died after 8 of its 12 steps, two in the third epoch."""
    killed, _, _ = stage(folder, studies, every=1)
    _die_at(killed, 9, Events.ITERATION_STARTED)
    with pytest.raises(Killed, match="gone"):
        killed.run()
    return stage(folder, studies, resume=True)[0]


def test_loss_of_a_resumed_epoch_is_over_all_its_steps(tmp_path, studies):
    whole, _, _ = stage(tmp_path / "whole", studies)
    expected = _epoch_losses(whole)
    whole.run()
    resumed = _cut_in_an_epoch(tmp_path / "cut", studies)
    found = _epoch_losses(resumed)
    resumed.run()
    assert found == {3: expected[3], 4: expected[4]}


def test_checkpoint_without_the_losses_of_its_epoch_loads(tmp_path, studies):
    resumed = _cut_in_an_epoch(tmp_path, studies)
    content = torch.load(tmp_path / "toy_last.pt", weights_only=True)
    del content["epoch_losses"]
    torch.save(content, tmp_path / "toy_last.pt")
    found = _epoch_losses(resumed)
    losses = []
    resumed.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item())
    )
    resumed.run()
    assert found[3] == losses[0]


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


def test_other_studies_or_another_order_are_refused(tmp_path, studies):
    stage(tmp_path, studies, epochs=1)[0].run()
    for other in ([*studies[:-1], replace(studies[-1], study_id="new")], studies[::-1]):
        with pytest.raises(ValueError, match="cannot resume exactly: digest of the study ids in their order was"):
            stage(tmp_path, other, resume=True)[0].run()


def test_other_batch_of_as_many_steps_is_refused(tmp_path, studies):
    stage(tmp_path, studies[:8], epochs=1)[0].run()
    other = stage(tmp_path, studies[:8], epochs=2, batch_size=3, resume=True)[0]
    with pytest.raises(ValueError, match="cannot resume exactly: studies per step was 4 and is now 3"):
        other.run()


def _flip(path, place):
    damaged = bytearray(path.read_bytes())
    damaged[place if place < 0 else len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)


def test_both_damaged_is_an_error_and_the_files_stay(tmp_path, studies):
    stage(tmp_path, studies, epochs=2)[0].run()
    files = [tmp_path / "toy_last.pt", tmp_path / "toy_last_previous.pt"]
    for path in files:
        _flip(path, 0)
    before = [path.read_bytes() for path in files]
    again, losses, _ = stage(tmp_path, studies, resume=True)
    with pytest.raises(WeightsError, match=r"toy_last.pt and .*toy_last_previous.pt: damaged.* delete to start anew"):
        again.run()
    assert losses == []
    assert [path.read_bytes() for path in files] == before


def test_full_disk_after_a_damaged_newest_leaves_the_good_one_before(tmp_path, studies, monkeypatch):
    stage(tmp_path, studies, epochs=2)[0].run()
    newest, previous = tmp_path / "toy_last.pt", tmp_path / "toy_last_previous.pt"
    _flip(newest, 0)
    good = previous.read_bytes()

    def full(content, path):
        raise OSError(f"{path}: could not be written")

    with monkeypatch.context() as patched:
        patched.setattr("medvl_core.engine.resume.atomic_save", full)
        with pytest.raises(OSError, match="could not be written"):
            stage(tmp_path, studies, epochs=3, resume=True)[0].run()
    assert previous.read_bytes() == good
    resumed, losses, _ = stage(tmp_path, studies, epochs=2, resume=True)
    resumed.run()
    assert [step for step, _ in losses] == [4, 5, 6]


def test_every_byte_that_is_changed_is_a_damaged_checkpoint(tmp_path):
    """Of the directory at the end of the file, where it is not the content's checksum that tells."""
    path = tmp_path / "one_last.pt"
    torch.save({"weights": torch.arange(4.0), "step": 3}, path)
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")
    kinds = set()
    for place in range(start, len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        try:
            _read_verified(path)
        except WeightsError as error:
            kinds.add(type(error.__cause__).__name__)
    assert "UnicodeDecodeError" in kinds
    assert len(kinds) > 2


@pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning")  # MONAI's autocast
def test_scale_of_mixed_precision_is_resumed(tmp_path, studies):
    def scaled(**options):
        made = stage(tmp_path, studies, **options)
        use_scaler(made[0], 64.0)
        return made

    scaled(epochs=1)[0].run()
    resumed, _, _ = scaled(epochs=2, resume=True)
    seen = []
    resumed.add_event_handler(Events.ITERATION_STARTED(once=4), lambda engine: seen.append(engine.scaler.state_dict()))
    resumed.run()
    assert (seen[0]["scale"], seen[0]["_growth_tracker"]) == (128.0, 1)
    with pytest.raises(ValueError, match="cannot resume exactly: amp was True and is now False"):
        stage(tmp_path, studies, resume=True)[0].run()
