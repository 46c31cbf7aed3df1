"""One MLflow run per stage, in an embedded SQLite store by default, with a status that tells how it ended."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

from medvl_core.bundle.startup import running_config
from medvl_core.engine.stop import StopRequested

__all__ = ["SERVER", "TrackedRun", "log_origin"]

os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
logger = logging.getLogger(__name__)

SERVER = "MLFLOW_TRACKING_URI"


class TrackedRun(MLFlowHandler):
    """MONAI's MLflow handler with named loss terms, a unique run name, and FAILED or KILLED when it does not finish.

    A resumed stage goes on in its own run; a run that crashed is never joined by the next one.

    Args:
        run_name: Unique name, kept over a resume: ``<job>-<stage>``.
        store: SQLite file; artifacts lie in ``mlruns/`` beside it.
        experiment_name: MLflow experiment.
        params: Parameters to log at the start.
        manifest: Of the run (`medvl_core.bundle.manifest.run_manifest`): logged at the start as ``manifest.json``,
            beside the resolved config as ``config.json``.
    """

    cur_run: Any  # MONAI's, without types
    experiment: Any

    def __init__(
        self,
        run_name: str,
        store: str | Path,
        experiment_name: str = "medvl",
        params: Mapping[str, Any] | None = None,
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        _quiet_migrations()
        if not os.environ.get(SERVER):  # MONAI's handler lets it win over the store
            _create_store(Path(store).resolve())
        super().__init__(
            tracking_uri=f"sqlite:///{Path(store).resolve()}",
            experiment_name=experiment_name,
            run_name=run_name,
            output_transform=_loss_terms,
            experiment_param=None,
            close_on_complete=True,
        )
        self.params = dict(params or {})
        self.manifest = manifest

    def attach(self, engine: Engine) -> None:
        """Register on a trainer; the validator's metrics reach it through ``engine.state.metrics``."""
        super().attach(engine)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._ended_early)

    def start(self, engine: Engine) -> None:
        """Open the run, or the same one again after a resume; log config, manifest, and the parameters it lacks."""
        self._set_experiment()  # type: ignore[no-untyped-call]
        # MONAI's handler would pass over a finished run and open an empty one of the same name
        same = self.client.search_runs([self.experiment.experiment_id], f"run_name = '{self.run_name}'")
        self.cur_run = same[-1] if same else None
        super().start(engine)
        self.client.update_run(self.cur_run.info.run_id, status="RUNNING")
        params = dict(self.params)
        self._delete_exist_param_in_dict(params)
        if params:
            self._log_params(params)
        log_origin(self.client, self.cur_run.info.run_id, self.manifest)

    def _ended_early(self, engine: Engine, error: BaseException) -> None:
        if self.cur_run is not None:
            status = "KILLED" if isinstance(error, (StopRequested, KeyboardInterrupt)) else "FAILED"
            self.client.set_terminated(self.cur_run.info.run_id, status)
            self.cur_run = None
            self._dispose_sqlite_store()
        raise error


def log_origin(client: Any, run: str, manifest: Mapping[str, Any] | None) -> None:
    """Log the resolved config and the manifest as artifacts of a run."""
    for name, content in (("config.json", running_config()), ("manifest.json", manifest)):
        if content:
            client.log_text(run, json.dumps(content, indent=1, default=str), name)


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
    for stale in path.parent.glob(f".{path.name}.*.part*"):  # with SQLite's journals
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
