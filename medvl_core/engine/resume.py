"""Checkpoints from which a killed run continues bit for bit.

Order, augmentation and step noise are functions of (seed, epoch, step), so a checkpoint holds no random state: weights,
optimiser, schedule and the step number are all there is to restore, and it does not matter how many workers there are.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from medvl_core.engine import distributed
from medvl_core.engine.loading import rng_for
from medvl_core.engine.stop import raise_if_requested
from medvl_core.engine.weights import WeightsError, atomic_save, read_checkpoint

__all__ = ["ExactResume"]

logger = logging.getLogger(__name__)


class ExactResume:
    """Saves the whole training state each epoch (and every ``every`` steps), restores it, and seeds each step.

    The file is written beside the old one, flushed and swapped in; the one before is kept as ``<name>_previous.pt`` and
    used when the newest is damaged. List this handler last: it saves after the handlers before it have acted.
    A resume needs the same studies in the same order, seed, objects and studies per step as the run it goes on from;
    ``max_epochs`` may grow, and the processes may be others as long as together they take as many studies.

    Args:
        path: Checkpoint file, e.g. ``models/student_last.pt``.
        objects: Name → anything with ``state_dict`` and ``load_state_dict`` (model, optimiser, schedule, early stop).
        seed: Of the step noise (dropout).
        resume: Whether to start from ``path`` when it exists.
        evaluator: Whose best metric is saved with the rest, so that a worse epoch never replaces the best model.
        every: Steps between checkpoints within an epoch; ``None`` saves at the ends of epochs only.
    """

    def __init__(
        self,
        path: str | Path,
        objects: Mapping[str, Any],
        seed: int,
        resume: bool = False,
        evaluator: Engine | None = None,
        every: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.previous = self.path.with_name(f"{self.path.stem}_previous{self.path.suffix}")
        self.objects = dict(objects)
        self.seed = int(seed)
        self.resume = resume
        self.evaluator: Any = evaluator  # MONAI adds attributes to the state of Ignite's engine
        self.every = every
        self._intact = False  # whether ``path`` is known to be good: written or verified by this process

    def attach(self, engine: Engine) -> None:
        """Register on MONAI's trainer, whose loader must use ``CounterBatchSampler``."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._place_sampler)
        engine.add_event_handler(Events.ITERATION_STARTED, self._seed_step)

    def _start(self, engine: Any) -> None:
        if self.resume:
            self._restore(engine)
        # Registered here, after every other handler of these events: schedules and validation act before the save.
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def _place_sampler(self, engine: Any) -> None:
        done = engine.state.iteration - (engine.state.epoch - 1) * engine.state.epoch_length
        engine.data_loader.batch_sampler.set_epoch(engine.state.epoch, done)

    def _seed_step(self, engine: Any) -> None:
        step = rng_for(self.seed, "step", engine.state.iteration, distributed.rank())
        torch.manual_seed(int(step.integers(2**63)))
        np.random.seed(int(step.integers(2**32)))
        random.seed(int(step.integers(2**63)))

    def _after_step(self, engine: Any) -> None:
        last_of_epoch = engine.state.iteration % engine.state.epoch_length == 0
        if not last_of_epoch:
            if self.every and engine.state.iteration % self.every == 0:
                self.save(engine)
            try:
                raise_if_requested()
            except SystemExit:
                self.save(engine)
                raise

    def save(self, engine: Any) -> None:
        """Write the checkpoint (first process only)."""
        if distributed.rank() == 0:
            content = {
                "identity": self._identity(engine),
                "iteration": engine.state.iteration,
                "epoch_losses": getattr(engine.state, "epoch_losses", []),
                "best_metric": float(self.evaluator.state.best_metric) if self.evaluator else 0.0,
                "best_metric_epoch": int(self.evaluator.state.best_metric_epoch) if self.evaluator else -1,
                "objects": {name: item.state_dict() for name, item in self.objects.items()},
                "scaler": {} if engine.scaler is None else engine.scaler.state_dict(),
            }
            if self._intact and self.path.is_file():  # a damaged one must not take the place of a good one before it
                os.replace(self.path, self.previous)
            atomic_save(content, self.path)
            self._intact = True
        if engine.state.iteration % engine.state.epoch_length == 0:
            raise_if_requested()

    def _restore(self, engine: Any) -> None:
        content = self._newest_intact()
        if content is None:
            logger.info("%s: no checkpoint yet, starting from the beginning", self.path)
            return
        old = content["identity"] | {"objects": _with_state(content["objects"])}
        changed = {k: (v, old.get(k)) for k, v in self._identity(engine).items() if old.get(k) != v}
        if changed:
            differences = ", ".join(f"{key} was {old} and is now {new}" for key, (new, old) in changed.items())
            raise ValueError(
                f"{self.path}: cannot resume exactly: {differences}; restore the setting or start without --resume"
            )
        for name, item in self.objects.items():
            if name in content["objects"]:
                item.load_state_dict(content["objects"][name])
        if engine.scaler is not None and content["scaler"]:  # empty of a scaler without a GPU
            engine.scaler.load_state_dict(content["scaler"])
        engine.state.iteration = content["iteration"]
        engine.state.epoch_losses = content.get("epoch_losses", [])  # older checkpoints have none
        engine.state.epoch = content["iteration"] // engine.state.epoch_length
        if self.evaluator is not None:
            self.evaluator.state.best_metric = content["best_metric"]
            self.evaluator.state.best_metric_epoch = content["best_metric_epoch"]
        logger.info("resumed %s at step %d", self.path, engine.state.iteration)

    def _newest_intact(self) -> dict[str, Any] | None:
        there = [path for path in (self.path, self.previous) if path.is_file()]
        for path in there:
            try:
                content = _read_verified(path)
            except WeightsError as error:
                logger.warning("%s", error)
            else:
                self._intact = path == self.path
                return content
        if there:
            files = " and ".join(map(str, there))
            raise WeightsError(f"{files}: damaged, nothing to resume from; put back a copy, or delete to start anew")
        return None

    def _identity(self, engine: Any) -> dict[str, Any]:
        loader = engine.data_loader
        ids = "\n".join(study.study_id for study in loader.dataset.studies)
        return {
            "seed": self.seed,
            "steps per epoch": engine.state.epoch_length,
            "studies": len(loader.dataset),
            "digest of the study ids in their order": hashlib.sha256(ids.encode()).hexdigest()[:16],
            "studies per step": loader.batch_sampler.batch_size * distributed.world_size(),
            "amp": engine.amp,
            "objects": _with_state({name: item.state_dict() for name, item in self.objects.items()}),
        }


def _with_state(objects: Mapping[str, Any]) -> list[str]:
    """Names of the states that must be there again. Early stopping was not saved before 0.2; losses may have none."""
    return sorted(name for name, state in objects.items() if state and name != "early_stop")


def _read_verified(path: Path) -> dict[str, Any]:
    """Torch does not check the CRCs in its own files: a flipped bit would load in silence."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a flipped bit in the directory raises half a dozen types, from zipfile's to Unicode's
        raise WeightsError(f"{path}: damaged checkpoint ({error})") from error
    if damaged:
        raise WeightsError(f"{path}: damaged checkpoint (wrong checksum in {damaged})")
    content: dict[str, Any] = read_checkpoint(path)
    return content
