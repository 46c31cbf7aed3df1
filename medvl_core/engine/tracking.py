"""One MLflow run per stage, in an embedded SQLite store by default, with a status that tells how it ended."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

from medvl_core.engine.stop import StopRequested

__all__ = ["TrackedRun"]

os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
logger = logging.getLogger(__name__)


class TrackedRun(MLFlowHandler):
    """MONAI's MLflow handler with named loss terms, a unique run name, and FAILED or KILLED when it does not finish.

    A resumed stage goes on in its own run; a run that crashed is never joined by the next one.

    Args:
        run_name: Unique name, kept over a resume: ``<job>-<stage>``.
        store: SQLite file; artifacts lie in ``mlruns/`` beside it.
        experiment_name: MLflow experiment.
        params: Parameters to log at the start.
        artifacts: Files and folders to log at the end.
    """

    def __init__(
        self,
        run_name: str,
        store: str | Path,
        experiment_name: str = "medvl",
        params: Mapping[str, Any] | None = None,
        artifacts: Sequence[str | Path] = (),
    ) -> None:
        _quiet_migrations()
        _create_store(Path(store).resolve())
        super().__init__(
            tracking_uri=f"sqlite:///{Path(store).resolve()}",
            experiment_name=experiment_name,
            run_name=run_name,
            output_transform=_loss_terms,
            experiment_param=None,
            artifacts=[str(path) for path in artifacts],
            close_on_complete=True,
        )
        self.params = dict(params or {})

    def attach(self, engine: Engine) -> None:
        """Register on a trainer; the validator's metrics reach it through ``engine.state.metrics``."""
        super().attach(engine)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._ended_early)

    def start(self, engine: Engine) -> None:
        """Open the run, or the same one again after a resume, and log the parameters it lacks."""
        super().start(engine)
        self.client.update_run(self.cur_run.info.run_id, status="RUNNING")
        params = dict(self.params)
        self._delete_exist_param_in_dict(params)
        if params:
            self._log_params(params)

    def _ended_early(self, engine: Engine, error: BaseException) -> None:
        if self.cur_run is not None:
            status = "KILLED" if isinstance(error, (StopRequested, KeyboardInterrupt)) else "FAILED"
            self.client.set_terminated(self.cur_run.info.run_id, status)
            self.cur_run = None
            self._dispose_sqlite_store()
        raise error


def _loss_terms(output: Mapping[str, Any]) -> dict[str, float]:
    return {
        "loss": output["loss"].item(),
        **{f"loss/{name}": value.item() for name, value in output["pred"].terms.items()},
    }


def _create_store(path: Path) -> None:
    """Make the tables in a file beside the store and move it there: killed half-way, they could never be completed."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*.part"):
        stale.unlink()
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")  # MLflow remembers stores by path
    handler = MLFlowHandler(tracking_uri=f"sqlite:///{partial}")
    handler.client.search_experiments()
    handler.close()
    os.replace(partial, path)


def _quiet_migrations() -> None:
    """Creating the SQLite tables logs some forty lines of no interest."""
    for name in ("alembic", "mlflow.store.db.utils", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.WARNING)
