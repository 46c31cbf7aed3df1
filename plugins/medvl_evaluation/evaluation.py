"""The evaluation of a trained model on held-out studies, beside its untrained self and chance."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.utils.data import DataLoader

from medvl_core.engine import distributed
from medvl_core.engine.evaluating import PluginMetric
from medvl_core.engine.job import prepare_batch
from medvl_core.engine.loading import study_loader
from medvl_core.engine.progress import Steps
from medvl_core.engine.stage import Job
from medvl_core.errors import OptionError
from medvl_core.protocols import Evaluator, Predicts, Scores
from medvl_evaluation.abilities import Learns, ReadsTexts, ability
from medvl_evaluation.collecting import collect_outputs
from medvl_evaluation.comparison import Comparison, Context, Estimate, compare, write_evaluation
from medvl_evaluation.page import VALIDATION, CaseCollector, write_case_files, write_provenance, write_report
from medvl_evaluation.predictions import Predictions
from medvl_evaluation.tracking import track_evaluation

__all__ = ["Evaluation", "predict"]

logger = logging.getLogger(__name__)


def predict(
    network: nn.Module, dataloader: DataLoader[Any], evaluator: Any, device: torch.device | str = "cpu"
) -> Predictions:
    """Scores of the loader's studies by one evaluator, without files and figures.

    Raises:
        OptionError: If it does not score, before the network has run.
    """
    scoring = ability(evaluator, Scores)
    if scoring is None:
        raise OptionError(f"predict: {type(evaluator).__name__} has no predictions(); give one that scores studies")
    evaluator.reset()
    for batch in collect_outputs(network, dataloader, device):
        evaluator.update(batch)
    found: Predictions = scoring.predictions()
    return found


class Evaluation:
    """One pass per network over the same studies, then a table with intervals, CSVs, figures and a report.

    Args:
        job: Of which device, seed, manifest, MLflow store and validation studies are taken. On those the report's
            operating points are chosen, scored by the last network; without any on the evaluated studies, and the
            report says so.
        networks: Row name → model, in the order of the table. The last one is judged; tables and figures are its own.
            One with ``embed_text`` (a trained text tower) lends it to the evaluators that embed prompts.
        dataloader: Held-out studies, in order.
        evaluators: Evaluator plugins; ``None`` entries (a disabled config item) are left out. One that learns
            (`medvl_evaluation.abilities.Learns`) is first given each network's outputs for the studies of its loader.
        folder: Receives ``metrics.json``, ``comparison.md``, CSVs, figures and ``report.html``.
        n_resamples: Bootstrap resamples of subjects.
        bundle: The bundle's folder, for the report's header.
        show_text: Keep report text and show excerpts beside the cases. Off, no file of the evaluation holds any.
        against: The evaluation folder of another run on the same studies, for the report's paired tests.
        name: Of its MLflow run.

    Raises:
        OptionError: If one is no evaluator; the message names the members that it lacks.
        ValueError: If two evaluators report a metric of the same name.
    """

    def __init__(
        self,
        job: Job,
        networks: Mapping[str, nn.Module],
        dataloader: DataLoader[Any],
        evaluators: Sequence[Any],
        folder: str | Path,
        n_resamples: int = 1000,
        bundle: str | Path | None = None,
        show_text: bool = False,
        against: str | Path | None = None,
        name: str = "evaluation",
    ) -> None:
        self.job, self.name = job, name
        self.networks = dict(networks)
        self.dataloader = dataloader
        self.evaluators = [evaluator for evaluator in evaluators if evaluator is not None]
        for evaluator in self.evaluators:
            if not isinstance(evaluator, Evaluator):
                raise OptionError(
                    f"Evaluation: {type(evaluator).__name__} lacks {', '.join(_lacking(evaluator))}; give an evaluator "
                    "with all members of medvl_core.protocols.Evaluator"
                )
        names = [metric.name for evaluator in self.evaluators for metric in evaluator.metrics]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two evaluators report {', '.join(twice)}; give one of them a prefix of its own")
        self.folder = Path(folder)
        self.device, self.seed = job.device, job.seed
        self.validation = list(job.studies.get("validation", ()))
        self.n_resamples = n_resamples
        self.bundle = bundle
        self.show_text = show_text
        self.against = against
        self._cases = CaseCollector()
        self._own_text: dict[int, Any] = {}

    def run(self) -> Comparison:
        """Evaluate, print the table, write the files (first process only)."""
        rows: dict[str, dict[str, Estimate]] = {"chance": {}}
        validation: dict[str, Any] = {}
        for name, network in self.networks.items():
            self._use_text_tower(network)
            self._teach(network)
            if name == list(self.networks)[-1]:
                validation = self._validation_predictions(network)
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
            self._write(comparison, validation)
        return comparison

    def _use_text_tower(self, network: nn.Module) -> None:
        """A network with a text tower of its own is judged with that one; others with the evaluators' own."""
        embed_text = network.embed_text if isinstance(network, ReadsTexts) else None
        for evaluator in self.evaluators:
            if (reader := ability(evaluator, ReadsTexts)) is not None:
                own = self._own_text.setdefault(id(reader), reader.embed_text)  # what it came with
                reader.embed_text = own if embed_text is None else embed_text

    def _validation_predictions(self, network: nn.Module) -> dict[str, Any]:
        """File stem → scores of the validation studies, of every evaluator that predicts."""
        scoring: list[Any] = [one for one in self.evaluators if isinstance(one, Predicts)]
        if not self.validation or not scoring:
            return {}
        dataset = copy.copy(self.dataloader.dataset)  # the same images and labels, of other studies
        dataset.studies = self.validation  # type: ignore[attr-defined]
        loader = study_loader(dataset, self.dataloader.batch_sampler.batch_size)  # type: ignore[arg-type, union-attr]
        outputs = collect_outputs(network, loader, self.device)
        for evaluator in scoring:
            evaluator.reset()
            for batch in outputs:
                evaluator.update(batch)
        return {f"{VALIDATION}{one.stem}_predictions": one.predictions().table() for one in scoring}

    def _teach(self, network: nn.Module) -> None:
        outputs: dict[int, list[dict[str, Any]]] = {}
        for evaluator in self.evaluators:
            learner = ability(evaluator, Learns)
            if learner is None or learner.train is None:
                continue
            if (key := id(learner.train)) not in outputs:  # probes of several kinds share one pass
                outputs[key] = collect_outputs(network, learner.train, self.device)
            learner.learn(outputs[key])

    def _pass(self, network: nn.Module) -> dict[str, float]:
        collectors = [*self.evaluators, self._cases]
        metrics = {f"evaluator {i}": PluginMetric(evaluator) for i, evaluator in enumerate(collectors)}
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
        Steps("held-out evaluation").attach(engine)
        engine.run()
        return dict(engine.state.metrics)

    def _context(self) -> Context:
        studies = self.dataloader.dataset.studies  # type: ignore[attr-defined]
        subjects = {study.subject_id for study in studies}
        return Context(n_studies=len(studies), n_subjects=len(subjects), n_resamples=self.n_resamples, seed=self.seed)

    def _write(self, comparison: Comparison, validation: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tables: dict[str, Any] = dict(validation)
        figures: list[Path] = []
        for evaluator in self.evaluators:
            tables |= evaluator.tables(self.n_resamples, self.seed)
            figures += evaluator.figures(self.folder, self.n_resamples, self.seed)
        path = write_evaluation(self.folder, comparison, tables, figures)
        write_provenance(self.folder, self.bundle, self.job.manifest)
        write_case_files(self.folder, self._cases, self.dataloader.dataset, self.show_text)  # type: ignore[arg-type]
        write_report(self.folder, self.show_text, self.against)
        if (tracking := self.job.tracking(self.name)) is not None:
            track_evaluation(**tracking, folder=self.folder, manifest=self.job.manifest)
        logger.info("held-out evaluation, written to %s\n%s", path.parent, comparison.text())


def _lacking(evaluator: Any) -> list[str]:
    members = [name for name in vars(Evaluator) if not name.startswith("_")]
    return [name for name in members if not hasattr(evaluator, name)]
