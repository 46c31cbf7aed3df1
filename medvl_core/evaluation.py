"""The evaluation of a trained model on held-out studies, beside its untrained self and chance."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.utils.data import DataLoader

from medvl_core import distributed
from medvl_core.comparison import Comparison, Context, Estimate, compare, write_evaluation
from medvl_core.engine.evaluating import PluginMetric
from medvl_core.engine.job import prepare_batch

__all__ = ["Evaluation"]

logger = logging.getLogger(__name__)


class Evaluation:
    """One pass per network over the same studies, then a table with intervals, CSVs and figures.

    Args:
        networks: Row name → model, in the order of the table. The last one is judged; tables and figures are its own.
        dataloader: Held-out studies, in order.
        evaluators: Evaluator plugins with ``intervals``, ``chance``, ``tables`` and ``figures``; ``None`` entries (a
            disabled config item) are left out.
        folder: Receives ``metrics.json``, ``comparison.md``, CSVs and figures.
        device: Where the networks run.
        n_resamples: Bootstrap resamples of subjects.
        seed: Of the resamples.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        dataloader: DataLoader[Any],
        evaluators: Sequence[Any],
        folder: str | Path,
        device: torch.device | str = "cpu",
        n_resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        self.networks = dict(networks)
        self.dataloader = dataloader
        self.evaluators = [evaluator for evaluator in evaluators if evaluator is not None]
        self.folder = Path(folder)
        self.device = device
        self.n_resamples = n_resamples
        self.seed = seed

    def run(self) -> Comparison:
        """Evaluate, print the table, write the files (first process only)."""
        rows: dict[str, dict[str, Estimate]] = {"chance": {}}
        for name, network in self.networks.items():
            numbers = self._pass(network)
            intervals: dict[str, tuple[float, float]] = {}
            for evaluator in self.evaluators:
                intervals |= evaluator.intervals(self.n_resamples, self.seed)
            rows[name] = {key: Estimate(value, *intervals[key]) for key, value in numbers.items() if key in intervals}
        for evaluator in self.evaluators:
            rows["chance"] |= {key: Estimate(value) for key, value in evaluator.chance().items()}
        metrics = [
            metric for evaluator in self.evaluators for metric in evaluator.metrics if metric.name in rows["chance"]
        ]
        comparison = compare(rows, self._context(), metrics)
        if distributed.rank() == 0:
            self._write(comparison)
        return comparison

    def _pass(self, network: nn.Module) -> dict[str, float]:
        metrics = {f"evaluator {i}": PluginMetric(evaluator) for i, evaluator in enumerate(self.evaluators)}
        engine = SupervisedEvaluator(
            device=torch.device(self.device),
            val_data_loader=self.dataloader,
            network=network.to(self.device),
            prepare_batch=prepare_batch,
            additional_metrics=None,
            decollate=False,
        )
        for name, metric in metrics.items():
            metric.attach(engine, name)
        engine.run()
        return dict(engine.state.metrics)

    def _context(self) -> Context:
        studies = self.dataloader.dataset.studies  # type: ignore[attr-defined]
        subjects = {study.subject_id for study in studies}
        return Context(n_studies=len(studies), n_subjects=len(subjects), n_resamples=self.n_resamples, seed=self.seed)

    def _write(self, comparison: Comparison) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tables: dict[str, Any] = {}
        figures: list[Path] = []
        for evaluator in self.evaluators:
            tables |= evaluator.tables(self.n_resamples, self.seed)
            figures += evaluator.figures(self.folder, self.n_resamples, self.seed)
        path = write_evaluation(self.folder, comparison, tables, figures)
        logger.info("held-out evaluation, written to %s\n%s", path.parent, comparison.text())
