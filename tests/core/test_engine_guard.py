from __future__ import annotations

import pytest
import torch
from monai.engines import IterationEvents

from medvl_core.engine import NonFiniteError
from medvl_core.weights import weights_digest
from tests.core.engine_toy import stage


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_non_finite_step_is_not_taken_and_the_studies_are_named(tmp_path, studies, value, where):
    trainer, losses, model = stage(tmp_path, studies)
    seen = {}

    def poison_loss(engine):
        if engine.state.iteration == 5:
            seen["weights"] = weights_digest(model)
            seen["studies"] = engine.state.batch["study_id"]
            if where == "loss":
                engine.state.output["loss"] = engine.state.output["loss"] * value
            else:
                engine.state.output["loss"].register_hook(lambda gradient: gradient * value)

    # before GuardStep's own handler
    trainer._event_handlers[IterationEvents.LOSS_COMPLETED].insert(0, (poison_loss, (trainer,), {}))
    with pytest.raises(
        NonFiniteError, match=r"step 5: .*(loss is|norm is) -?(nan|inf).*look at these studies"
    ) as error:
        trainer.run()
    assert all(study in str(error.value) for study in seen["studies"])
    assert weights_digest(model) == seen["weights"]
    assert len(losses) == 4
    saved = torch.load(tmp_path / "toy_last.pt", weights_only=True)["objects"]["model"]
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_study_with_a_bad_embedding_is_named_alone(tmp_path, studies):
    trainer, _, model = stage(tmp_path, studies)
    forward = model.towers["cxr"].forward
    seen = {}

    def poisoned(x):
        rows = forward(x)
        if trainer.state.iteration == 4:
            seen.update(weights=weights_digest(model), bad=trainer.state.batch["study_id"][2])
            rows = rows * torch.tensor([1, 1, float("nan"), 1])[: len(rows), None]
        return rows

    model.towers["cxr"].forward = poisoned
    with pytest.raises(NonFiniteError, match=r"^study\d+: the cxr embedding is not finite in step 4") as error:
        trainer.run()
    assert str(error.value).startswith(seen["bad"] + ":")
    assert weights_digest(model) == seen["weights"]


def test_norm_is_clipped(tmp_path, studies):
    trainer, _, model = stage(tmp_path, studies, epochs=1)
    norms = []
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED,
        lambda: norms.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
        ),
    )
    trainer.run()
    assert max(norms) <= 1.0 + 1e-5
