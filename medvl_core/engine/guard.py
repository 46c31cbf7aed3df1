"""No NaN ever reaches a weight: the loss is checked before the backward pass, the gradient before the step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents

from medvl_core.engine import distributed
from medvl_core.errors import EXIT_DATA, MedvlError

__all__ = ["GuardStep", "NonFiniteError"]


class NonFiniteError(MedvlError, ArithmeticError):
    """A loss or gradient that is NaN or infinite; the message names the studies of the batch."""

    exit_code = EXIT_DATA


class GuardStep:
    """Stops the run at a non-finite loss or gradient, and clips the gradient's norm.

    The optimiser has not stepped when it raises: weights and checkpoints keep their last good values. With ``amp`` the
    gradient is unscaled before it is clipped, and one that is not finite is the scaler's to skip while its scale is
    above 1: too large a scale is the usual reason, and it is halved.

    Args:
        parameters: The trained parameters, all of them the trainer's optimiser's.
        max_norm: Upper bound of the gradient's L2 norm; ``None`` only checks it.
        average: Average gradients over processes first, where no ``DistributedDataParallel`` does.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], max_norm: float | None = None, average: bool = False
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.max_norm, self.average = max_norm, average

    def attach(self, engine: Engine) -> None:
        """Register on MONAI's trainer."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._check_embeddings)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._check_loss)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._check_gradient)

    @staticmethod
    def _check_embeddings(engine: Any) -> None:
        """A bad embedding belongs to one study: it is named alone."""
        for modality, rows in engine.state.output["pred"].embeddings.items():
            finite = torch.isfinite(rows).all(dim=1)
            if not finite.all():
                ids, bad = engine.state.batch["study_id"], (~finite).nonzero().flatten()
                scan = engine.state.output["pred"].extras.get("scan")  # rows of regions name their scan
                owners = (bad if scan is None else scan[bad]).tolist()
                studies = ", ".join(dict.fromkeys(ids[row] for row in owners))
                raise NonFiniteError(
                    f"{studies}: the {modality} embedding is not finite in step {engine.state.iteration}; "
                    "the step was not taken, look at the input of these studies"
                )

    def _check_loss(self, engine: Any) -> None:
        loss = engine.state.output["loss"]
        if not torch.isfinite(loss):
            raise NonFiniteError(self._message(engine, f"the loss is {loss.item()}"))

    def _check_gradient(self, engine: Any) -> None:
        if self.average and distributed.world_size() > 1:
            distributed.average_gradients(self.parameters)
        scaler = engine.scaler if engine.amp else None
        if scaler is not None:
            scaler.unscale_(engine.optimizer)  # remembers what it found, and skips the step if that was not finite
        trained = [one for one in self.parameters if one.requires_grad]  # some may be frozen since
        norm = torch.nn.utils.clip_grad_norm_(trained, self.max_norm or float("inf"))
        if not torch.isfinite(norm) and (scaler is None or scaler.get_scale() <= 1):  # a disabled scaler's is 1
            raise NonFiniteError(self._message(engine, f"the gradient's norm is {norm.item()}"))

    @staticmethod
    def _message(engine: Any, what: str) -> str:
        studies = ", ".join(engine.state.batch.get("study_id", ["unknown"]))
        return (
            f"step {engine.state.iteration}: {what} in the batch of studies {studies}; "
            "the step was not taken, look at these studies or lower the learning rate"
        )
