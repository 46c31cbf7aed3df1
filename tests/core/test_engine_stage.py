"""A stage is MONAI's trainer with medvl's handlers; a job is what its stages share."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from medvl_core.build import build_encoder
from medvl_core.bundle.manifest import read_manifest
from medvl_core.engine import AlignmentLoss, AlignmentModel, Cohort, Job, Stage, Tower, set_seed, trained_part
from medvl_core.engine.weights import WeightsError, save_weights, weights_digest
from medvl_core.protocols import LossOutput
from medvl_core.specs import ImageInput, Metric
from medvl_imaging.images import ImageRows
from tests.core.engine_toy import Encoder, Pull

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


class Splits:
    """Eight studies to train on, four to validate."""

    label_names = ("a", "b")

    def __init__(self, studies):
        self.parts = {"train": studies[:8], "validation": studies[8:], "test": []}

    def studies(self, split):
        return self.parts[split]


class Rising:
    """A number for every validation; by default it rises to the second and falls from there."""

    def __init__(self, values=(1.0, 3.0, 2.0, 0.0), name="toy/skill", higher_is_better=True):
        self.values, self.passes = values, 0
        self.metrics = (Metric(name=name, higher_is_better=higher_is_better), Metric(name="toy/other"))

    def reset(self):
        pass

    def update(self, outputs):
        pass

    def compute(self):
        self.passes += 1
        return {self.metrics[0].name: self.values[self.passes - 1], "toy/other": 0.5}


def stage(folder, studies, evaluator=None, *, job=None, lr=0.05, loss=None, **options):
    set_seed(0)
    tower = Tower(Encoder(), None, embed_dim=4)
    cohort = Cohort(Splits(studies))
    rows = ImageRows("cxr", ImageInput(channels=1, size=(8, 8)))
    job = Job("toy", folder, {"image_tower": tower}, cohort, **(job or {}))
    options = {"best": "toy/skill", "max_epochs": 4, "batch_size": 4, "group_unique": False} | options
    made = Stage(
        job,
        "toy",
        AlignmentModel({"cxr": tower}),
        AlignmentLoss({"pull": loss or Pull()}),
        cohort.split("train", {"cxr": rows}),
        options.pop("validation", cohort.split("validation", {"cxr": rows})),
        optimizer=partial(torch.optim.AdamW, lr=lr),
        keep=tower,
        metrics={} if evaluator is None else {"toy": evaluator},
        **options,
    )
    digests: list[str] = []
    made.add_event_handler(Events.EPOCH_COMPLETED, lambda: digests.append(weights_digest(tower)))
    return made, tower, digests


def test_it_is_monais_trainer_and_its_handlers_stand_in_their_order(tmp_path, studies):
    schedule = partial(CosineAnnealingLR, eta_min=0.0)
    made, _, _ = stage(tmp_path, studies, Rising(), schedule=schedule, job={"store": tmp_path / "runs.db"})
    assert isinstance(made, SupervisedTrainer)
    made.fire_event(Events.STARTED)  # the checkpoint registers there, after every other
    wanted = ("ValidationHandler", "EpochLine", "TrackedRun", "ExactResume")
    owners = [getattr(handler, "__self__", handler) for handler, *_ in made._event_handlers[Events.EPOCH_COMPLETED]]
    found = [type(one).__name__ for one in owners if type(one).__name__ in wanted]
    assert tuple(dict.fromkeys(found)) == wanted
    owners = [getattr(handler, "__self__", handler) for handler, *_ in made._event_handlers[Events.ITERATION_COMPLETED]]
    assert any(isinstance(one, LrScheduleHandler) for one in owners)


def test_it_ends_with_the_best_weights_in_module_and_file(tmp_path, studies):
    made, tower, digests = stage(tmp_path, studies, Rising())
    made.fit()
    assert len(set(digests)) == 4
    assert not tower.training
    assert weights_digest(tower) == digests[1]
    assert {path.name for path in tmp_path.glob("*.pt")} == {"model.pt", "toy_last.pt", "toy_last_previous.pt"}


def test_a_number_that_should_fall_chooses_the_lowest(tmp_path, studies):
    made, tower, digests = stage(tmp_path, studies, Rising((3.0, 2.0, 1.0, 4.0), higher_is_better=False))
    made.fit()
    assert weights_digest(tower) == digests[2]


def test_the_lowest_validation_loss_chooses_and_patience_ends_the_stage(tmp_path, studies):
    made, _, digests = stage(tmp_path, studies, best="loss", lr=50.0, max_epochs=30, patience=2)
    losses = []
    made.evaluator.add_event_handler(Events.COMPLETED, lambda engine: losses.append(engine.state.metrics["loss"]))
    made.fit()
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 30
    assert weights_digest(made.keep) == digests[best]


def test_an_evaluator_in_anothers_place_chooses_by_its_first_number(tmp_path, studies, caplog):
    made, tower, digests = stage(tmp_path, studies, Rising(name="mine/number"))
    assert "toy: no evaluator has 'toy/skill'; the best weights are chosen by 'mine/number'" in caplog.text
    made.fit()
    assert weights_digest(tower) == digests[1]


def test_without_validation_the_last_weights_are_kept_not_those_of_an_earlier_job(tmp_path, studies, caplog):
    (tmp_path / "model.pt").write_bytes(b"of an earlier job")
    made, tower, digests = stage(tmp_path, studies, Rising(), validation=None, max_epochs=2)
    made.fit()
    assert "no validation ran in 2 epochs" in caplog.text
    assert weights_digest(tower) == digests[-1]


def test_given_weights_are_loaded_instead(tmp_path, studies):
    made, tower, digests = stage(tmp_path, studies, Rising())
    set_seed(9)
    other = Tower(Encoder(), None, embed_dim=4)
    made.fit(save_weights(other, tmp_path / "given.pt"))
    assert digests == []
    assert weights_digest(tower) == weights_digest(other)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (partial(CosineAnnealingLR, eta_min=0.0), 0.0),
        (partial(CosineAnnealingLR, T_max=16, eta_min=0.0), 0.025),
        (None, 0.05),
    ],
)
def test_the_number_of_all_steps_reaches_the_schedule_unless_given(tmp_path, studies, schedule, expected):
    made, _, _ = stage(tmp_path, studies, Rising(), schedule=schedule)
    made.fit()
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-9)


def test_a_plateau_of_the_validation_loss_lowers_the_rate(tmp_path, studies):
    class Constant(nn.Module):
        def forward(self, batch):
            return LossOutput(batch.embeddings["cxr"].sum() * 0 + 1, {"constant": torch.tensor(1.0)})

    schedule = partial(ReduceLROnPlateau, patience=0, factor=0.1)
    made, _, _ = stage(tmp_path, studies, Rising(), loss=Constant(), schedule=schedule, validate_loss=True)
    made.fit()
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.1**3)


def test_the_loss_is_told_once_what_it_lacks(tmp_path, studies):
    class Ages(Pull):
        component, needs = "mine/ages", ("age",)

    made, _, _ = stage(tmp_path, studies, Rising(), loss=Ages())
    with pytest.raises(ValueError, match=r"loss pull \(mine/ages\) needs 'age'; the batch has .*choose a dataset"):
        made.fit()


def test_a_job_tells_in_its_manifest_which_file_holds_which_part(tmp_path, studies):
    made, tower, _ = stage(tmp_path, studies, Rising())
    tower.encoder.component, tower.encoder.built_with = "toy/encoder", {}
    made.fit()
    made.job.finish()
    manifest = read_manifest(tmp_path / "manifest.json")
    part = manifest["parts"]["image_tower"]
    assert part["weights"] == {"file": "model.pt", "prefix": ""}
    assert manifest["components"] == {"image_tower.encoder": "toy/encoder"}
    assert manifest["labels"] == ["a", "b"]
    assert manifest["job"] == json.loads((tmp_path / "job.json").read_text())["job"]
    again = Job("toy", tmp_path, {}, Cohort(Splits(studies)), trained=True)
    assert again.id == made.job.id


def test_the_manifest_names_the_file_that_a_part_was_loaded_from_or_saved_to(tmp_path, studies):
    made, tower, _ = stage(tmp_path / "models", studies, Rising())
    elsewhere = save_weights(made.model, tmp_path / "other.pt")
    made.job.load(made.model, elsewhere)
    assert not tower.training
    made.job.finish()
    part = read_manifest(tmp_path / "models" / "manifest.json")["parts"]["image_tower"]
    assert part["weights"] == {"file": str(elsewhere), "prefix": "towers.cxr."}
    made.job.save(tower, "kept.pt")
    made.job.finish()
    part = read_manifest(tmp_path / "models" / "manifest.json")["parts"]["image_tower"]
    assert part["weights"] == {"file": "kept.pt", "prefix": ""}
    assert (tmp_path / "models" / "kept.pt").is_file()


def test_a_job_has_the_seed_of_its_cohort(tmp_path, studies):
    assert Job("toy", tmp_path, {}, Cohort(Splits(studies), seed=7)).seed == 7


def test_a_trained_job_that_is_not_there_is_refused(tmp_path, studies):
    with pytest.raises(FileNotFoundError, match="no manifest; train the bundle first"):
        Job("toy", tmp_path, {}, Cohort(Splits(studies)), trained=True)


def test_weights_of_another_shape_are_refused_when_loaded(tmp_path, studies):
    made, _, _ = stage(tmp_path, studies, Rising())
    with pytest.raises(WeightsError, match=r"other\.pt"):
        made.job.load(made.keep, save_weights(nn.Linear(2, 2), tmp_path / "other.pt"))


def test_a_part_that_no_stage_keeps_is_saved_where_it_is_random(tmp_path, studies):
    made, _tower, _ = stage(tmp_path, studies)
    frozen = Tower(build_encoder("baseline/resnet18_2d", size=(32, 32), base_width=4), None, None)
    made.job.parts["frozen"] = frozen
    made.job.finish()
    again = trained_part(tmp_path, "frozen")
    assert weights_digest(again) == weights_digest(frozen)


def test_what_was_frozen_after_the_stage_was_built_keeps_its_weights(tmp_path, studies):
    made, tower, _ = stage(tmp_path, studies, Rising(), max_epochs=1)
    tower.encoder.requires_grad_(False)
    for parameter in tower.encoder.parameters():
        parameter.grad = torch.ones_like(parameter)  # an earlier stage's last one
    before = weights_digest(tower.encoder)
    made.fit()
    assert weights_digest(tower.encoder) == before
