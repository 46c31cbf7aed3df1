"""Evaluator plugins inside MONAI's evaluator, and the best model on disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric

from medvl_core.engine import distributed
from medvl_core.engine.masks import voxel_counts
from medvl_core.engine.weights import save_weights
from medvl_core.protocols import Evaluator

__all__ = ["MeanLoss", "PluginMetric", "SaveBest", "plain_outputs"]

logger = logging.getLogger(__name__)


class PluginMetric(Metric):
    """An evaluator plugin as an Ignite metric: pass it as MONAI's ``key_val_metric`` or among ``additional_metrics``.

    Outputs of every process are collected before the plugin sees them, in the order of ranks, so uneven shards neither
    hang nor change the numbers. All of the plugin's numbers reach ``engine.state.metrics``.

    Args:
        evaluator: Built by ``build_evaluator``.
        key: Which of its numbers stands under the metric's own name, for choosing the best model. It must not be NaN:
            nothing is better than NaN, so the weights of that epoch would stay the best ones.
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
        self._outputs.append(plain_outputs(output))

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
        """Publish all numbers, and the key one under ``name``.

        Raises:
            ValueError: If the key is not among the numbers, or is NaN.
        """
        numbers = self.compute()
        engine.state.metrics.update(numbers)
        if self.key is None:
            return
        if self.key not in numbers:
            raise ValueError(f"metric {self.key!r} is not among those of this evaluator: {sorted(numbers)}")
        if math.isnan(numbers[self.key]):
            n = len(engine.data_loader.dataset)  # type: ignore[attr-defined]
            raise ValueError(
                f"metric {self.key!r}: NaN, so it cannot choose the best weights; as a rule no class has positives and "
                f"negatives among the {n} validation studies: enlarge the validation split or choose another key"
            )
        engine.state.metrics[name] = float(numbers[self.key])


class MeanLoss(Metric):
    """The loss over a validation pass, averaged over studies: for a schedule that waits for it to stop falling.

    Computed in eval mode, so that a loss with a memory (a bank of embeddings) does not take in validation studies.

    Args:
        loss: ``AlignmentLoss`` with ``gather="none"``: processes may hold unequal numbers of batches. The validation
            data need what it reads, e.g. a text.
    """

    def __init__(self, loss: torch.nn.Module) -> None:
        self.loss = loss
        self._sums = [0.0, 0]
        super().__init__(output_transform=lambda output: output)

    def reset(self) -> None:
        """Start anew."""
        self._sums = [0.0, 0]

    @torch.no_grad()
    def update(self, output: Mapping[str, Any]) -> None:
        """Add one batch of MONAI's evaluator."""
        training = self.loss.training
        self.loss.eval()
        try:
            value = self.loss(output["pred"]).item()
        finally:
            self.loss.train(training)
        n = len(output["image"]["study_id"])
        self._sums = [self._sums[0] + n * value, self._sums[1] + n]

    def iteration_completed(self, engine: Engine) -> None:
        """Collect; Ignite's own version would demand tensors."""
        self.update(engine.state.output)  # type: ignore[arg-type]

    def compute(self) -> float:
        """The mean over the studies of all processes."""
        sums = distributed.gather_objects(self._sums)
        return float(sum(total for total, _ in sums) / max(1, sum(n for _, n in sums)))


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


def plain_outputs(output: Mapping[str, Any]) -> dict[str, Any]:
    """What evaluators are fed: ids, metadata, labels and embeddings of one batch, on the CPU; masks are counted."""
    batch, prediction = output["image"], output["pred"]
    plain = {key: batch[key] for key in ("study_id", "subject_id", "scan_id", "metadata") if key in batch}
    plain["embeddings"] = {name: rows.detach().float().cpu() for name, rows in prediction.embeddings.items()}
    if "labels" in batch:
        plain["labels"] = batch["labels"].detach().cpu()
    if "predicted_masks" in (extras := getattr(prediction, "extras", {})):
        # counted here: the masks of all cases would not fit in memory
        cases = zip(batch["study_id"], extras["predicted_masks"], batch["true_masks"], strict=True)
        plain["voxel_counts"] = [_counts(*case) for case in cases]
        plain |= {key: batch[key] for key in ("voxel_ml",) if key in batch}
    return plain


def _counts(study: str, predicted: torch.Tensor, true: torch.Tensor) -> np.ndarray:
    try:
        return voxel_counts(predicted.cpu().numpy(), true.cpu().numpy())
    except ValueError as error:
        raise ValueError(f"{study}: {error}") from error
