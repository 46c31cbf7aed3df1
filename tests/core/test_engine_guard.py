from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.engines import IterationEvents

from medvl_core.engine import NonFiniteError
from medvl_core.engine.weights import weights_digest
from tests.core.engine_toy import stage, use_scaler

CUDA_IS_NOT_THERE = pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning")  # MONAI's autocast


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


def _norms(trainer, model):
    """Receives the gradient's norm of every step, as the optimiser sees it."""
    norms = []
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED,
        lambda: norms.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
        ),
    )
    return norms


def test_norm_is_clipped(tmp_path, studies):
    trainer, _, model = stage(tmp_path, studies, epochs=1)
    norms = _norms(trainer, model)
    trainer.run()
    assert max(norms) <= 1.0 + 1e-5


@CUDA_IS_NOT_THERE
def test_with_amp_the_unscaled_gradient_is_clipped(tmp_path, studies):
    plain, _, model = stage(tmp_path / "plain", studies, epochs=1)
    amp, losses, scaled_model = stage(tmp_path / "amp", studies, epochs=1)
    use_scaler(amp, 1024.0)
    norms, scaled_norms = _norms(plain, model), _norms(amp, scaled_model)
    plain.run()
    amp.run()
    assert len(losses) == 3
    assert scaled_norms == pytest.approx(norms, rel=1e-5)
    assert max(scaled_norms) <= 1.0 + 1e-5


@CUDA_IS_NOT_THERE
@pytest.mark.parametrize(("scale", "raises"), [(1024.0, False), (1.0, True)])
def test_with_amp_an_overflow_is_the_scalers_to_skip_until_the_scale_is_1(tmp_path, studies, scale, raises):
    trainer, losses, model = stage(tmp_path, studies, epochs=1)
    use_scaler(trainer, scale)
    weights = {}

    def overflow(engine):
        if engine.state.iteration == 2:
            weights["before"] = weights_digest(model)
            engine.state.output["loss"].register_hook(lambda gradient: gradient * float("inf"))

    trainer._event_handlers[IterationEvents.LOSS_COMPLETED].insert(0, (overflow, (trainer,), {}))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda engine: weights.update(after=weights_digest(model))
    )
    if raises:
        with pytest.raises(NonFiniteError, match="step 2: the gradient's norm is"):
            trainer.run()
        assert weights_digest(model) == weights["before"]
    else:
        trainer.run()
        assert weights["after"] == weights["before"] != weights_digest(model)
        assert trainer.scaler.get_scale() == scale / 2
        assert len(losses) == 3
