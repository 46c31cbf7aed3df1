"""Evaluator plugins inside MONAI's evaluator, and the best model on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric

from medvl_core import distributed
from medvl_core.protocols import Evaluator
from medvl_core.weights import save_weights

__all__ = ["PluginMetric", "SaveBest"]

logger = logging.getLogger(__name__)


class PluginMetric(Metric):
    """An evaluator plugin as an Ignite metric: pass it as MONAI's ``key_val_metric`` or among ``additional_metrics``.

    Outputs of every process are collected before the plugin sees them, in the order of ranks, so uneven shards neither
    hang nor change the numbers. All of the plugin's numbers reach ``engine.state.metrics``.

    Args:
        evaluator: Built by ``build_evaluator``.
        key: Which of its numbers stands under the metric's own name, for choosing the best model.
    """

    def __init__(self, evaluator: Evaluator, key: str | None = None) -> None:
        self.evaluator = evaluator
        self.key = key
        self._outputs: list[dict[str, Any]] = []
        super().__init__(output_transform=lambda output: output)

    def reset(self) -> None:
        """Forget what was collected."""
        self._outputs = []

    def update(self, output: Mapping[str, Any]) -> None:
        """Collect one batch of MONAI's evaluator."""
        self._outputs.append(_plain(output))

    def iteration_completed(self, engine: Engine) -> None:
        """Collect; Ignite's own version would demand tensors."""
        self.update(engine.state.output)  # type: ignore[arg-type]

    def compute(self) -> dict[str, float]:
        """Give everything collected, from all processes, to the plugin."""
        self.evaluator.reset()
        for outputs in distributed.gather_objects(self._outputs):
            for output in outputs:
                self.evaluator.update(output)
        return self.evaluator.compute()

    def completed(self, engine: Engine, name: str) -> None:
        """Publish all numbers, and the key one under ``name``."""
        numbers = self.compute()
        if self.key is not None and self.key not in numbers:
            raise ValueError(f"metric {self.key!r} is not among those of this evaluator: {sorted(numbers)}")
        engine.state.metrics.update(numbers)
        if self.key is not None:
            engine.state.metrics[name] = float(numbers[self.key])


class SaveBest:
    """Writes a module's weights whenever the validation's key metric has improved. Attach it to the evaluator.

    Args:
        path: ``.pt`` or ``.safetensors``.
        module: Whose weights.
    """

    def __init__(self, path: str | Path, module: torch.nn.Module) -> None:
        self.path = Path(path)
        self.module = module

    def attach(self, engine: Engine) -> None:
        """Register on MONAI's evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _save(self, engine: Any) -> None:
        if engine.state.best_metric_epoch == engine.state.epoch and distributed.rank() == 0:
            save_weights(self.module, self.path)


def _plain(output: Mapping[str, Any]) -> dict[str, Any]:
    batch, prediction = output["image"], output["pred"]
    plain = {key: batch[key] for key in ("study_id", "subject_id", "scan_id") if key in batch}
    plain["embeddings"] = {name: rows.detach().float().cpu() for name, rows in prediction.embeddings.items()}
    if "labels" in batch:
        plain["labels"] = batch["labels"].detach().cpu()
    return plain
