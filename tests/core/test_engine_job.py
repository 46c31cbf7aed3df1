from __future__ import annotations

import re
from types import SimpleNamespace

import torch
from ignite.engine import Events

from medvl_core.engine import prepare_batch, set_seed, start_job, train_or_load
from medvl_core.engine.weights import save_weights, weights_digest
from tests.core.engine_toy import stage


def test_fresh_job_forgets_old_checkpoints_and_a_resume_keeps_its_name(tmp_path):
    (tmp_path / "student_last.pt").write_bytes(b"old")
    (tmp_path / "thresholds.csv").write_bytes(b"of other weights")
    (tmp_path / "model.pt").write_bytes(b"weights")
    first = start_job(tmp_path, resume=False, name="x2ct")
    assert re.fullmatch(r"x2ct-\d{8}-\d{6}-\d+", first)
    assert not (tmp_path / "student_last.pt").exists()
    assert not (tmp_path / "thresholds.csv").exists()
    assert (tmp_path / "model.pt").exists()
    (tmp_path / "student_last.pt").write_bytes(b"new")
    assert start_job(tmp_path, resume=True, name="x2ct") == first
    assert (tmp_path / "student_last.pt").exists()


def test_resume_without_a_job_starts_one(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert start_job(tmp_path, resume=True, name="x2ct").startswith("x2ct-")
    assert "nothing to resume yet" in caplog.text


def test_given_weights_replace_a_stage(tmp_path, studies):
    trainer, losses, model = stage(tmp_path, studies)
    set_seed(99)
    other = stage(tmp_path, studies, seed=7)[2].towers["cxr"]
    path = save_weights(other, tmp_path / "given.pt")
    train_or_load(trainer, None, model.towers["cxr"], tmp_path / "best.pt", path)
    assert losses == []
    assert weights_digest(model.towers["cxr"]) == weights_digest(other)


def test_trained_stage_ends_with_its_best_weights(tmp_path, studies):
    class BestAtTwo:
        """The metric rises to the second epoch and falls from there."""

        def __init__(self):
            self.epochs = 0

        def reset(self):
            pass

        def update(self, outputs):
            pass

        def compute(self):
            self.epochs += 1
            return {"first_axis": -abs(self.epochs - 2.0)}

    trainer, losses, model = stage(tmp_path, studies, evaluator=BestAtTwo())
    tower = model.towers["cxr"]
    digests = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: digests.append(weights_digest(tower)))
    train_or_load(trainer, SimpleNamespace(state=SimpleNamespace(best_metric_epoch=2)), tower, tmp_path / "best.pt")
    assert len(losses) == 12
    assert not tower.training
    assert len(set(digests)) == 4
    assert weights_digest(tower) == digests[1]


def test_without_validation_the_last_weights_are_kept_not_those_of_an_earlier_job(tmp_path, studies, caplog):
    trainer, _, model = stage(tmp_path / "stage", studies, epochs=1)
    tower = model.towers["cxr"]
    (tmp_path / "best.pt").write_bytes(b"of an earlier job")
    train_or_load(trainer, SimpleNamespace(state=SimpleNamespace(best_metric_epoch=-1)), tower, tmp_path / "best.pt")
    assert "no validation ran in 1 epochs" in caplog.text
    last = torch.load(tmp_path / "best.pt", weights_only=True)
    assert all(torch.equal(last[key], value) for key, value in tower.state_dict().items())


def test_batch_moves_its_tensors_only():
    moved, target = prepare_batch({"cxr": torch.zeros(1), "study_id": ["a"]}, "meta")
    assert moved["cxr"].device.type == "meta"
    assert moved["study_id"] == ["a"]
    assert target is None
