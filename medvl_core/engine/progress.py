"""What a run says of itself: where in an epoch it is and how long it will take, a line per epoch, what it wrote."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar

from medvl_core.engine import distributed

__all__ = ["EpochLine", "Steps", "tell_written"]

logger = logging.getLogger(__name__)


class Steps:
    """Where a run is in its epoch, and how long all its epochs will yet take: a bar in a terminal, else log lines.

    Args:
        name: Shown at the start.
        every_s: Seconds between log lines.
    """

    def __init__(self, name: str, every_s: float = 30.0) -> None:
        self.name = name
        self.every_s = every_s
        self._began = self._told = 0.0
        self._done = 0

    def attach(self, engine: Engine) -> None:
        """Register on a trainer or an evaluator, of the first process only."""
        if distributed.rank() > 0:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        if sys.stdout.isatty():
            bar = ProgressBar(
                bar_format="{desc} step {n_fmt}/{total_fmt} |{bar}|{postfix}", desc=self.name, file=sys.stdout
            )
            bar.attach(engine, output_transform=lambda _: {"left": self._left(engine)})
        else:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._log)

    def _start(self, engine: Any) -> None:
        self._began = self._told = time.perf_counter()
        self._done = 0

    def _left(self, engine: Any) -> str:
        state = engine.state
        self._done += 1
        steps = (state.max_epochs - state.epoch) * state.epoch_length + -state.iteration % state.epoch_length
        return str(timedelta(seconds=round(steps * (time.perf_counter() - self._began) / self._done)))

    def _log(self, engine: Any) -> None:
        left, now, state = self._left(engine), time.perf_counter(), engine.state
        if now - self._told >= self.every_s:
            self._told = now
            step = (state.iteration - 1) % state.epoch_length + 1
            place = (self.name, state.epoch, state.max_epochs, step, state.epoch_length)
            logger.info("%s epoch %d/%d, step %d/%d: about %s left", *place, left)


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
        self.metrics = tuple(dict.fromkeys(metrics))
        self._began = 0.0

    def attach(self, engine: Engine) -> None:
        """Register on MONAI's trainer, and the steps of trainer and evaluator."""
        Steps(self.stage).attach(engine)
        if self.evaluator is not None:
            Steps(f"{self.stage} validation").attach(self.evaluator)
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


def tell_written(*paths: str | Path) -> None:
    """Log what lies where and how large it is, the last thing that a job says.

    Args:
        paths: Files and folders, one line each; those that are not there are left out.
    """
    for path in map(Path, paths):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        if files and distributed.rank() == 0:
            size = sum(file.stat().st_size for file in files) / 1e6
            logger.info("written: %s (%.1f MB%s)", path, size, "" if path.is_file() else f" in {len(files)} files")
