"""No NaN ever reaches a weight: the loss is checked before the backward pass, the gradient before the step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents

from medvl_core.errors import EXIT_DATA, MedvlError

__all__ = ["GuardStep", "NonFiniteError"]


class NonFiniteError(MedvlError, ArithmeticError):
    """A loss or gradient that is NaN or infinite; the message names the studies of the batch."""

    exit_code = EXIT_DATA


class GuardStep:
    """Stops the run at a non-finite loss or gradient, and clips the gradient's norm.

    The optimiser has not stepped when it raises: weights and checkpoints keep their last good values.

    Args:
        parameters: The trained parameters.
        max_norm: Upper bound of the gradient's L2 norm; ``None`` only checks it.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], max_norm: float | None = None) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.max_norm = max_norm

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
        if engine.amp and engine.scaler is not None:  # gradients are still scaled here, and the scaler skips bad steps
            return
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm or float("inf"))
        if not torch.isfinite(norm):
            raise NonFiniteError(self._message(engine, f"the gradient's norm is {norm.item()}"))

    @staticmethod
    def _message(engine: Any, what: str) -> str:
        studies = ", ".join(engine.state.batch.get("study_id", ["unknown"]))
        return (
            f"step {engine.state.iteration}: {what} in the batch of studies {studies}; "
            "the step was not taken, look at these studies or lower the learning rate"
        )
