"""A job, and its training stages: MONAI's trainer and evaluator with medvl's handlers in their order."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from medvl_core.bundle.manifest import read_manifest, run_manifest, write_manifest
from medvl_core.engine import distributed
from medvl_core.engine.alignment import AlignmentLoss
from medvl_core.engine.evaluating import MeanLoss, PluginMetric, SaveBest
from medvl_core.engine.guard import GuardStep
from medvl_core.engine.job import prepare_batch, start_job
from medvl_core.engine.loading import Cohort, StudyDataset, study_loader
from medvl_core.engine.parts import comes_back, describe
from medvl_core.engine.progress import EpochLine
from medvl_core.engine.resume import ExactResume
from medvl_core.engine.tracking import TrackedRun
from medvl_core.engine.weights import load_weights, save_weights

__all__ = ["Job", "Stage"]

logger = logging.getLogger(__name__)

_TOTALS = ("t_total", "T_max", "total_steps", "total_iters")
"""What schedules call the number of all steps."""


class Job:
    """What all stages and the evaluation of one run share: its name, folder, seed, device, tracking and manifest.

    Args:
        name: First part of the run's name, and the MLflow experiment: as a rule the bundle's.
        folder: Receives checkpoints, weights and ``manifest.json``.
        parts: Name → network. How each was built goes into the manifest, from which inference builds it again.
        cohort: Its studies; their labels go into the manifest.
        store: MLflow's SQLite file; ``None`` tracks nothing.
        seed: Of order and step noise; ``None``: the cohort's.
        resume: Whether to go on with the job recorded in the folder.
        trained: Whether the folder holds a finished job that is only read, as evaluation does: nothing is started.
        device: Where networks run.
        amp: Mixed precision: ``True`` for float16, or the name of a dtype, e.g. ``"bfloat16"``. Needs a GPU.
        val_interval: Epochs between validations.
        checkpoint_every: Steps between checkpoints within an epoch; ``None`` saves at the ends of epochs only.
        num_workers: Loader processes.
        details: Further entries of the manifest.
    """

    def __init__(
        self,
        name: str,
        folder: str | Path,
        parts: Mapping[str, nn.Module],
        cohort: Cohort,
        store: str | Path | None = None,
        *,
        seed: int | None = None,
        resume: bool = False,
        trained: bool = False,
        device: torch.device | str = "cpu",
        amp: bool | str = False,
        val_interval: int = 1,
        checkpoint_every: int | None = None,
        num_workers: int = 0,
        **details: Any,
    ) -> None:
        self.name, self.folder, self.parts, self.studies = name, Path(folder), dict(parts), cohort.studies
        self.store, self.resume, self.device = store, resume, torch.device(device)
        self.seed = cohort.seed if seed is None else seed
        self.amp, self.val_interval, self.every, self.num_workers = amp, val_interval, checkpoint_every, num_workers
        self.details = {"labels": list(cohort.label_names), **details}
        self._weights: dict[str, dict[str, str]] = {}
        self.id = read_manifest(self.folder / "manifest.json")["job"] if trained else start_job(folder, resume, name)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Made once, when first asked for: it reads the contents of all images."""
        parts = {name: describe(part, self.folder) for name, part in self.parts.items()}
        inner = {f"{name}.{path}": one for name, part in self.parts.items() for path, one in part.named_modules()}
        components = {path: one.component for path, one in inner.items() if hasattr(one, "component")}
        own: dict[str, Any] = {"parts": parts, "components": components, "job": self.id, **self.details}
        return run_manifest(seed=self.seed, device=self.device, studies=self.studies, **own)

    def tracking(self, stage: str) -> dict[str, Any] | None:
        """Arguments that name the MLflow run of a stage; ``None`` where nothing is tracked."""
        own = {"run_name": f"{self.id}-{stage}", "store": self.store, "experiment_name": self.name}
        return own if self.store is not None and distributed.rank() == 0 else None

    def save(self, module: nn.Module, file: str) -> None:
        """Write a module's weights to a file of the folder, as they are."""
        if distributed.rank() == 0:
            save_weights(module, self.folder / file)
        self._keeps(module, self.folder / file)

    def load(self, module: nn.Module, file: str | Path) -> None:
        """Load a module's weights, from anywhere, and put it in eval mode."""
        load_weights(module, file)
        module.eval()
        self._keeps(module, Path(file))

    def _keeps(self, module: nn.Module, file: Path) -> None:
        """Note which parts lie in a weights file; a later stage's has the last word."""
        own = file.resolve().parent == self.folder.resolve()
        prefixes = {id(one): f"{path}." if path else "" for path, one in module.named_modules()}
        for name, part in self.parts.items():
            if (prefix := prefixes.get(id(part))) is not None:
                self._weights[name] = {"file": file.name if own else str(file.resolve()), "prefix": prefix}

    def finish(self) -> None:
        """Write the manifest beside the weights, with the file that holds each part.

        A part that no stage has kept and that is another when it is built again, as one of random weights, is saved.
        """
        if distributed.rank() > 0:
            return
        parts = self.manifest["parts"]
        for name, part in self.parts.items():
            if name not in self._weights and not comes_back(part, parts[name], self.folder):
                save_weights(part, self.folder / f"{name}.pt")
                self._weights[name] = {"file": f"{name}.pt", "prefix": ""}
        parts = {name: part | {"weights": self._weights.get(name)} for name, part in parts.items()}
        write_manifest(self.folder / "manifest.json", {**self.manifest, "parts": parts})


class Stage(SupervisedTrainer):
    """One stage of a job: MONAI's trainer and its validation, with the handlers that every stage has, in this order.

    Learning rate, validation (which keeps the best weights), the line in the log, MLflow, ``handlers``, the guard
    against NaN with the clipping of gradients, and last the checkpoint. With several processes the model is wrapped in
    ``DistributedDataParallel`` when training starts.

    Args:
        job: Its job.
        name: Of the stage: checkpoints, log lines and the MLflow run bear it.
        model: What is trained.
        loss: Over the gathered batch.
        dataset: Training studies.
        validation: Validation studies; ``None`` validates nothing and keeps the last weights.
        optimizer: Parameters → optimiser, a component with ``"_mode_": "callable"``.
        lr: Learning rate in place of the optimiser's own: stages may share one optimiser's settings.
        schedule: Optimiser → schedule, likewise. Stepped after every step, ``ReduceLROnPlateau`` after every validation
            by its loss. The number of all steps is filled in where it has such an argument. ``None``: constant.
        max_epochs: Epochs.
        batch_size: Studies per process and step.
        metrics: Name → evaluator plugin, computed in every validation.
        best: Metric that chooses the best weights; ``"loss"``: the lowest validation loss. Where no evaluator has it,
            the first number of the first one.
        keep: Module whose best weights are kept; ``None``: the model.
        file: Of the best weights, in the job's folder.
        parameters: What the optimiser gets; ``None``: everything trainable of model and loss.
        max_norm: Bound of the gradient's L2 norm.
        patience: Validations without a better ``best`` after which the stage ends early; ``None``: never.
        validate_loss: Compute the loss in every validation, too; always for ``ReduceLROnPlateau``.
        judged: What the validation runs; ``None``: the model.
        validation_batch: Studies per validation step; ``None``: ``batch_size``.
        group_unique: Never two reconstructions of one scan in a batch.
        partial: Whether parameters may go without a gradient, for which ``DistributedDataParallel`` would wait: several
            processes average gradients themselves then. Not for a model with batch statistics.
        params: Further parameters to log.
        handlers: Further handlers of the trainer.
        inferer: MONAI's.
    """

    def __init__(
        self,
        job: Job,
        name: str,
        model: nn.Module,
        loss: AlignmentLoss,
        dataset: StudyDataset,
        validation: StudyDataset | None,
        *,
        optimizer: Callable[..., torch.optim.Optimizer],
        lr: float | None = None,
        schedule: Callable[..., Any] | None = None,
        max_epochs: int,
        batch_size: int,
        metrics: Mapping[str, Any],
        best: str,
        keep: nn.Module | None = None,
        file: str = "model.pt",
        parameters: Iterable[nn.Parameter] | None = None,
        max_norm: float | None = None,
        patience: int | None = None,
        validate_loss: bool = False,
        judged: nn.Module | None = None,
        validation_batch: int | None = None,
        group_unique: bool = True,
        partial: bool = False,
        params: Mapping[str, Any] | None = None,
        handlers: Sequence[Any] = (),
        inferer: Any = None,
    ) -> None:
        self.job, self.stage, self.model, self.loss = job, name, model.to(job.device), loss.to(job.device)
        self.keep, self.file = model if keep is None else keep, job.folder / file
        self.metrics, self.partial = metrics, partial
        self.best, self._lower = _choice(name, best, metrics)
        loader = study_loader(
            dataset, batch_size, shuffle=True, seed=job.seed, num_workers=job.num_workers, group_unique=group_unique
        )
        trained = [one for one in (*model.parameters(), *loss.parameters()) if one.requires_grad]
        stepper = optimizer(trained if parameters is None else list(parameters), **({} if lr is None else {"lr": lr}))
        scheduler = _scheduled(schedule, stepper, max_epochs * len(loader))
        on_plateau = isinstance(scheduler, ReduceLROnPlateau)
        self.validates_loss = validate_loss or on_plateau or self.best == "loss"
        self.evaluator = SupervisedEvaluator(
            device=job.device,
            val_data_loader=study_loader(validation, validation_batch or batch_size) if validation is not None else [],
            network=model if judged is None else judged,
            prepare_batch=prepare_batch,
            decollate=False,
            metric_cmp_fn=(lambda new, old: new < old) if self._lower else (lambda new, old: new > old),
            **self._measures(metrics),
            val_handlers=[*([_schedule_handler(scheduler)] if on_plateau else []), SaveBest(self.file, self.keep)],
        )
        objects: dict[str, Any] = {"model": model, "loss": loss, "optimizer": stepper}
        objects |= {} if scheduler is None else {"lr_scheduler": scheduler}
        if patience is not None:
            score = lambda engine: (-1 if self._lower else 1) * engine.state.metrics[self.best]  # noqa: E731
            objects["early_stop"] = EarlyStopping(patience, score, trainer=self)
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, objects["early_stop"])
        logged = {"seed": job.seed, "batch_size": batch_size, "lr": stepper.defaults["lr"], **(params or {})}
        super().__init__(
            device=job.device,
            max_epochs=max_epochs,
            train_data_loader=loader,
            network=model,
            optimizer=stepper,
            loss_function=loss,
            inferer=inferer,
            prepare_batch=prepare_batch,
            decollate=False,
            amp=bool(job.amp),
            amp_kwargs={"dtype": getattr(torch, job.amp)} if isinstance(job.amp, str) else {},
            train_handlers=[
                *([_schedule_handler(scheduler)] if scheduler is not None and not on_plateau else []),
                *([ValidationHandler(job.val_interval, self.evaluator)] if validation is not None else []),
                EpochLine(
                    name, self.evaluator, [self.best, "loss", *(one.metrics[0].name for one in metrics.values())]
                ),
                *([TrackedRun(**own, params=logged, manifest=job.manifest)] if (own := job.tracking(name)) else []),
                *(handler for handler in handlers if handler is not None),
                GuardStep(trained, max_norm, partial),
                ExactResume(job.folder / f"{name}_last.pt", objects, job.seed, job.resume, self.evaluator, job.every),
            ],
        )

    def fit(self, weights: str | Path | None = None) -> None:
        """Train, and end with the best weights in the kept module and its file; or load ``weights`` instead."""
        if weights:
            logger.info("%s: not trained, weights given (%s)", self.stage, weights)
        else:
            for group in self.optimizer.param_groups:  # weights frozen since it was built must not decay
                group["params"] = [one for one in group["params"] if one.requires_grad]
            if distributed.world_size() > 1 and not self.partial:  # not before: a later stage may train the same
                ids = [self.job.device] if self.job.device.type == "cuda" else None
                self.network = nn.parallel.DistributedDataParallel(self.model, device_ids=ids)
            self.run()
            if self.evaluator.state.best_metric_epoch == -1 and distributed.rank() == 0:
                logger.warning("no validation ran in %d epochs: the last weights are kept", self.state.max_epochs)
                save_weights(self.keep, self.file)
            if distributed.world_size() > 1:
                dist.barrier()
        self.job.load(self.keep, weights or self.file)

    def _measures(self, evaluators: Mapping[str, Any]) -> dict[str, Any]:
        """The metric that chooses the best weights, and the others."""
        metrics: dict[str, Any] = {}
        for name, one in evaluators.items():
            chooses = self.best in {metric.name for metric in one.metrics}
            metrics["key_metric" if chooses else name] = PluginMetric(one, self.best if chooses else None)
        if self.validates_loss:
            metrics["loss"] = MeanLoss(self.loss.without_gathering())
        key = "loss" if self.best == "loss" else "key_metric"
        return {"key_val_metric": {key: metrics.pop(key)}, "additional_metrics": metrics}


def _choice(stage: str, best: str, evaluators: Mapping[str, Any]) -> tuple[str, bool]:
    """The number that chooses the best weights, and whether lower is better.

    An evaluator in another's place has other numbers: its first one chooses then, and the log says so.
    """
    metrics = {metric.name: metric for one in evaluators.values() for metric in one.metrics}
    if best == "loss" or not metrics:
        return "loss", True
    if best not in metrics:
        chosen = next(iter(metrics))
        logger.warning("%s: no evaluator has %r; the best weights are chosen by %r", stage, best, chosen)
        best = chosen
    return best, not metrics[best].higher_is_better


def _scheduled(schedule: Callable[..., Any] | None, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    if schedule is None:
        return None
    has = inspect.signature(schedule).parameters
    given = getattr(schedule, "keywords", {})
    return schedule(optimizer=optimizer, **{name: steps for name in _TOTALS if name in has and name not in given})


def _schedule_handler(scheduler: Any) -> LrScheduleHandler:
    if isinstance(scheduler, ReduceLROnPlateau):
        return LrScheduleHandler(scheduler, print_lr=False, step_transform=lambda engine: engine.state.metrics["loss"])
    return LrScheduleHandler(scheduler, print_lr=False, epoch_level=False)
