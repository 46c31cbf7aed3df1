"""One line per epoch in the log: stage, epoch, loss, the validation's key numbers, seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine, Events

__all__ = ["EpochLine"]

logger = logging.getLogger(__name__)


class EpochLine:
    """Logs the mean loss of each epoch and the named validation metrics.

    The losses so far are ``engine.state.epoch_losses``, which `ExactResume` keeps: a resumed epoch's mean is over all.

    Args:
        stage: Name shown at the start of the line.
        evaluator: Validation engine whose metrics are shown. List this handler after the one that runs it.
        metrics: Which of its metrics.
    """

    def __init__(self, stage: str, evaluator: Engine | None = None, metrics: Sequence[str] = ()) -> None:
        self.stage = stage
        self.evaluator = evaluator
        self.metrics = tuple(metrics)
        self._began = 0.0

    def attach(self, engine: Engine) -> None:
        """Register on MONAI's trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)

    def _reset(self, engine: Any) -> None:
        if engine.state.iteration % engine.state.epoch_length == 0:  # else resumed within the epoch
            engine.state.epoch_losses = []
        self._began = time.perf_counter()

    def _collect(self, engine: Any) -> None:
        engine.state.epoch_losses.append(engine.state.output["loss"].item())

    def _log(self, engine: Any) -> None:
        state = engine.state
        loss = sum(state.epoch_losses) / len(state.epoch_losses)
        state.metrics["epoch_loss"] = loss
        shown = [f"loss {loss:.4f}"]
        if self.evaluator is not None and self.evaluator.state.epoch == state.epoch:  # validated in this epoch
            values = self.evaluator.state.metrics
            state.metrics.update(
                {f"validation/{name}": value for name, value in values.items() if isinstance(value, float)}
            )
            shown += [f"{name} {values[name]:.3f}" for name in self.metrics if name in values]
        took = time.perf_counter() - self._began
        logger.info("%s epoch %d/%d: %s (%.1f s)", self.stage, state.epoch, state.max_epochs, ", ".join(shown), took)
