from __future__ import annotations

import math

import pytest

from medvl_core.engine import MeanLoss, PluginMetric
from medvl_core.engine.evaluating import plain_outputs
from medvl_core.protocols import AlignmentBatch
from tests.core.engine_toy import FirstAxis, stage


def test_all_numbers_of_the_plugin_reach_the_engine_and_the_key_one_its_name(tmp_path, studies):
    trainer, _, _ = stage(tmp_path, studies, epochs=1)
    trainer.run()
    metrics = trainer.state.metrics
    assert metrics["validation/n"] == len(studies)
    assert metrics["validation/key"] == metrics["validation/first_axis"]
    assert (tmp_path / "best.pt").is_file()


def test_unknown_key_is_named():
    class Engine:
        state = type("State", (), {"metrics": {}})()

    metric = PluginMetric(FirstAxis(), "typo")
    import torch

    batch = AlignmentBatch({"cxr": torch.eye(2)}, torch.tensor(1.0))
    metric.update({"image": {"study_id": ["a", "b"]}, "pred": batch})
    with pytest.raises(ValueError, match=r"metric 'typo' is not among those of this evaluator: \['first_axis', 'n'\]"):
        metric.completed(Engine(), "key")


@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
def test_key_that_is_nan_stops_the_first_validation(tmp_path, studies):
    class Undefined(FirstAxis):
        def compute(self):
            return {"first_axis": float("nan"), "n": float(len(self.ids))}

    trainer, _, _ = stage(tmp_path, studies, evaluator=Undefined())
    message = "metric 'first_axis': NaN.* among the 12 validation studies: enlarge the validation split or choose"
    with pytest.raises(ValueError, match=message):
        trainer.run()
    assert trainer.state.epoch == 1
    assert not (tmp_path / "best.pt").exists()


def test_nan_beside_the_key_is_published(tmp_path, studies):
    class PartlyUndefined(FirstAxis):
        def compute(self):
            return super().compute() | {"n": float("nan")}

    trainer, _, _ = stage(tmp_path, studies, evaluator=PartlyUndefined(), epochs=1)
    trainer.run()
    assert math.isnan(trainer.state.metrics["validation/n"])


def test_outputs_are_detached_fp32_and_on_the_cpu():
    import torch

    rows = torch.eye(2, dtype=torch.bfloat16, requires_grad=True)
    plain = plain_outputs(
        {
            "image": {"study_id": ["a", "b"], "labels": torch.zeros(2, 1)},
            "pred": AlignmentBatch({"cxr": rows}, rows[0, 0]),
        }
    )
    assert plain["embeddings"]["cxr"].dtype == torch.float32
    assert not plain["embeddings"]["cxr"].requires_grad
    assert set(plain) == {"study_id", "labels", "embeddings"}


def test_masks_are_reduced_to_counts_of_voxels():
    import torch

    true = torch.zeros(2, 2, 2, 2, dtype=torch.uint8)
    true[1] = 3
    predicted = true.clone()
    predicted[1, 0] = 0
    rows = torch.eye(2)
    plain = plain_outputs(
        {
            "image": {"study_id": ["a", "b"], "true_masks": true, "voxel_ml": torch.tensor([1.0, 2.0])},
            "pred": AlignmentBatch({"cxr": rows}, rows[0, 0], {"predicted_masks": predicted}),
        }
    )
    assert [counts[:, 3].tolist() for counts in plain["voxel_counts"]] == [[0, 0, 0], [4, 8, 4]]
    assert plain["voxel_ml"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("predicted", "message"), [((2, 2, 3), "^b: masks differ in shape"), ((2, 2), "^b: predicted mask holds float32")]
)
def test_masks_that_do_not_fit_name_the_study(predicted, message):
    import torch

    rows = torch.eye(2)
    batch = {"study_id": ["a", "b"], "true_masks": [torch.zeros(2, 2, dtype=torch.uint8)] * 2}
    masks = [batch["true_masks"][0], torch.rand(predicted)]
    with pytest.raises(ValueError, match=message):
        plain_outputs({"image": batch, "pred": AlignmentBatch({"cxr": rows}, rows[0, 0], {"predicted_masks": masks})})


def test_mean_loss_weighs_studies_alike_and_rests_in_eval_mode():
    import torch

    class Loss(torch.nn.Module):
        def forward(self, batch):
            assert not self.training
            return batch.embeddings["cxr"].mean()

    loss = Loss()
    metric = MeanLoss(loss)
    for values in ([1.0, 1.0, 1.0], [5.0]):
        batch = AlignmentBatch({"cxr": torch.tensor(values)[:, None]}, torch.tensor(1.0))
        metric.update({"image": {"study_id": list(map(str, values))}, "pred": batch})
    assert metric.compute() == 2.0
    assert loss.training
    metric.reset()
    assert metric.compute() == 0.0
