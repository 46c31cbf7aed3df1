"""Part of a network held fixed for the first epochs."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from torch import nn

__all__ = ["FreezeUntil"]


class FreezeUntil:
    """Holds a module's weights fixed for the first epochs of a trainer, then frees them.

    The optimiser may know them from the start: a weight without a gradient is not stepped. Set anew at the start of
    every epoch, so a resumed run goes on as an uninterrupted one.

    Args:
        module: What is held.
        epochs: For how many epochs; 0 never holds it.

    Raises:
        ValueError: If ``epochs`` is negative.
    """

    def __init__(self, module: nn.Module, epochs: int) -> None:
        if epochs < 0:
            raise ValueError(f"FreezeUntil: epochs is {epochs}; at least 0")
        self.module, self.epochs = module, epochs

    def attach(self, engine: Engine) -> None:
        """Register on MONAI's trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._set)

    def _set(self, engine: Any) -> None:
        self.module.requires_grad_(engine.state.epoch > self.epochs)
