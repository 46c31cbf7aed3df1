"""A finished evaluation as an MLflow run of its own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow

from medvl_core.engine.tracking import SERVER, TrackedRun, log_origin

__all__ = ["track_evaluation"]


def track_evaluation(
    folder: str | Path,
    run_name: str,
    store: str | Path,
    experiment_name: str = "medvl",
    manifest: Mapping[str, Any] | None = None,
) -> None:
    """Log a finished evaluation as a run of its own: its numbers, report, tables, figures, config and manifest.

    Embeddings and predictions of single cases stay in the folder. So does the report, which shows a few radiographs,
    when ``MLFLOW_TRACKING_URI`` names a server.

    Args:
        folder: Holds ``metrics.json`` and the files it names.
        run_name: ``<job>-evaluation``.
        store: SQLite file; artifacts lie in ``mlruns/`` beside it.
        experiment_name: MLflow experiment.
        manifest: Of the run.
    """
    folder = Path(folder)
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    tracked = TrackedRun(run_name, store, experiment_name)
    tracked._set_experiment()  # type: ignore[no-untyped-call]
    client = tracked.client
    run = client.create_run(tracked.experiment.experiment_id, run_name=run_name).info.run_id
    try:
        client.log_batch(run, metrics=_evaluation_metrics(content))
        for name in _aggregates(folder, content):
            client.log_artifact(run, str(folder / name), "figures" if name in content["figures"] else None)
        if not os.environ.get(SERVER):  # a server elsewhere gets no pictures of patients
            client.log_artifact(run, str(folder / "report.html"))
        log_origin(client, run, manifest)
    except BaseException:  # also Ctrl-C: the run must not seem to go on
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run)
    tracked.close()


def _evaluation_metrics(content: Mapping[str, Any]) -> list[mlflow.entities.Metric]:
    """The candidate's under their own names, those of the other rows as ``<row>/<name>``."""
    now = int(time.time() * 1000)
    return [
        mlflow.entities.Metric(name if row == content["candidate"] else f"{row}/{name}", estimate["value"], now, 0)
        for row, values in content["rows"].items()
        for name, estimate in values.items()
        if estimate["value"] is not None
    ]


def _aggregates(folder: Path, content: Mapping[str, Any]) -> list[str]:
    """Files of an evaluation that name no study."""
    tables = [name for name in content["tables"] if "study_id" not in _first_line(folder / name)]
    return ["metrics.json", "comparison.md", *tables, *content["figures"]]


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline()
