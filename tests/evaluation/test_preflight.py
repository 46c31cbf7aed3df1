"""What would fail after hours is one list before anything is trained, and looking for it changes nothing."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from medvl_core.build import build_pooling
from medvl_core.engine import AlignmentLoss, AlignmentModel, Cohort, Job, Stage, Text, Tower, set_seed
from medvl_core.protocols import EncoderOutput, LossOutput
from medvl_core.specs import ImageInput, Metric
from medvl_evaluation.preflight import PreflightError, rehearse
from medvl_imaging.images import ImageRows
from tests.core.engine_toy import Encoder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


class Splits:
    label_names = ()

    def __init__(self, studies):
        self.parts = {"train": studies[:8], "validation": studies[8:], "test": []}

    def studies(self, split):
        return self.parts[split]


class Normed(Encoder):
    """With statistics, and noise."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        output = super().forward(x)
        row = self.norm(output.pooled)
        return EncoderOutput(row[:, None], (1,), pooled=row)


class Cells(Encoder):
    """Four tokens that are the cells of a 2 x 2 grid."""

    component = "mine/cells"

    def forward(self, x):
        return EncoderOutput(super().forward(x).tokens.expand(-1, 4, -1), (2, 2))


class Bank(nn.Module):
    """Remembers how many rows it has seen, outside its ``state_dict``, and draws from every global generator."""

    def __init__(self, needs=()):
        super().__init__()
        self.seen, self.needs = [], needs

    def forward(self, batch):
        self.seen.append(len(batch.embeddings["cxr"]))
        noise = random.random() + float(np.random.rand()) + torch.rand(())
        value = -(noise * batch.embeddings["cxr"][:, 0]).mean()
        return LossOutput(value, {"bank": value})


class Judge:
    """Keeps everything it is shown."""

    def __init__(self, error=None):
        self.shown, self.error = [], error
        self.metrics = (Metric(name="judge/skill"),)

    def reset(self):
        self.shown.clear()

    def update(self, outputs):
        self.shown += outputs["study_id"]

    def compute(self):
        if self.error is not None:
            raise self.error
        return {"judge/skill": 1.0}


def stage(folder, studies, *, encoder=None, pooling=None, judge=None, loss=None, fields=None, **options):
    set_seed(0)
    tower = Tower(encoder or Normed(), pooling, embed_dim=4)
    cohort = Cohort(Splits(studies))
    fields = {"cxr": ImageRows("cxr", ImageInput(channels=1, size=(8, 8)))} | (fields or {})
    return Stage(
        Job("toy", folder, {"image_tower": tower}, cohort),
        "toy",
        AlignmentModel({"cxr": tower}),
        AlignmentLoss(loss or {"bank": Bank()}),
        cohort.split("train", fields),
        cohort.split("validation", fields),
        optimizer=torch.optim.AdamW,
        lr=0.05,
        keep=tower,
        metrics={"judge": judge or Judge()},
        **({"best": "judge/skill", "max_epochs": 2, "batch_size": 4, "group_unique": False} | options),
    )


def traces(made):
    states = [one.state_dict() for one in (made.model, made.loss, made.optimizer)]
    memories = [made.loss.losses["bank"].seen, made.metrics["judge"].shown, [m.training for m in made.model.modules()]]
    rng = torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()
    return copy.deepcopy(states), copy.deepcopy((memories, rng))


def test_it_leaves_no_trace(tmp_path, studies):
    made = stage(tmp_path / "a", studies)
    states, others = traces(made)
    rehearse(made, None)
    torch.testing.assert_close(traces(made)[0], states, rtol=0, atol=0)
    assert traces(made)[1] == others
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"job.json"}


def test_training_after_it_has_the_numbers_of_training_without(tmp_path, studies):
    weights = []
    for name in ("with", "without"):
        made = stage(tmp_path / name, studies)
        if name == "with":
            rehearse(made)
        made.fit()
        weights.append(made.model.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def lines(*parts):
    with pytest.raises(PreflightError) as caught:
        rehearse(*parts)
    assert caught.value.exit_code == 65
    first, *others = str(caught.value).split("\n  ")
    assert first == f"{len(others)} problem(s), nothing was trained:"
    return others


def test_all_problems_come_in_one_list(tmp_path, studies):
    class Reports:
        def texts(self, studies, rng):
            if studies[0].report is None:
                raise ValueError(f"{studies[0].study_id}: no report")
            return ["text"]

    rows = [replace(study, report=None) if i in (1, 9) else study for i, study in enumerate(studies)]
    rows[6] = replace(rows[6], images={})
    made = stage(
        tmp_path,
        rows,
        fields={"report": Text(Reports())},
        loss={"bank": Bank(), "age": Bank(("age",))},
        judge=Judge(ZeroDivisionError("no neighbours")),
    )
    assert lines(made) == [
        f"{rows[1].study_id}: no report",
        f"{rows[6].study_id}: has no cxr image, only []",
        "toy, training: loss age (Bank) needs 'age'; the batch has labels, metadata, report, scan_id, study_id, "
        "subject_id, text_group: choose a dataset that offers it as a field",
        f"{rows[9].study_id}: no report",
        "toy, validation, Judge: ZeroDivisionError: no neighbours",
    ]


def test_many_rows_are_counted(tmp_path, studies):
    made = stage(tmp_path, studies)
    bare = made.data_loader.dataset
    bare.studies = [replace(study, study_id=f"s{i}", images={}) for i, study in enumerate(studies * 3)]
    found = lines(made)
    assert len(found) == 21
    assert found[-1] == "... and 16 more rows like these"


def test_an_encoder_that_fails_on_its_input_is_named(tmp_path, studies):
    encoder = Encoder()
    encoder.component, encoder.layer = "mine/wide", nn.Linear(63, 8)
    found = lines(stage(tmp_path, studies, encoder=encoder))
    assert [line.partition("RuntimeError")[0] for line in found] == [
        "toy, training: mine/wide: ",
        "toy, validation: mine/wide: ",
    ]


def test_the_first_cell_of_a_grid_is_no_summary(tmp_path, studies):
    made = stage(tmp_path, studies, encoder=Cells(), pooling=build_pooling("baseline/cls"))
    assert lines(made)[0] == (
        "toy, training: baseline/cls takes the top-left patch: the 4 tokens of mine/cells are the cells of its grid "
        "(2, 2), no class token comes first; choose another pooling, e.g. baseline/mean"
    )
    rehearse(stage(tmp_path, studies, encoder=Cells(), pooling=build_pooling("baseline/mean")))


def test_what_an_earlier_stage_has_to_make_is_stood_in_for(tmp_path, studies):
    class Stored:
        def __call__(self, study, draw):
            raise KeyError("no stored row yet")

        def blank(self, study, draw):
            return torch.ones(4) / 2

    rehearse(stage(tmp_path, studies, fields={"ct_embedding": Stored()}))


def test_what_cannot_be_built_is_listed_with_the_rest(tmp_path, studies):
    from monai.bundle import ConfigParser

    config = {
        "imports": ["$from medvl_evaluation.preflight import rehearse"],
        "good": "$None",
        "bad": {"_target_": "medvl_core.build_loss", "name": "baseline/infonce", "pair": ["a", "b"], "qurey": 1},
        "worse": {"_target_": "medvl_core.build_loss", "name": "baseline/nothing"},
        "check": "$rehearse('good', 'bad', 'worse')",
    }
    with pytest.raises(RuntimeError) as caught:
        ConfigParser(config).get_parsed_content("check")
    problems = str(caught.value.__cause__).split("\n  ")
    assert problems[0] == "2 problem(s), nothing was trained:"
    assert problems[1].startswith("bad: baseline/infonce has no option 'qurey'")
    assert problems[2].startswith("worse: no loss is called 'baseline/nothing'")
