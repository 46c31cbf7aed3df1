from __future__ import annotations

import json
import os

import mlflow
import pytest
from ignite.engine import Events

from medvl_core.engine import StopRequested, TrackedRun
from tests.core.engine_toy import stage

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def _runs(folder):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("toy")
    return client, client.search_runs(experiment.experiment_id)


def _tracked(folder, studies, name="job-toy", **options):
    trainer, losses, _ = stage(folder, studies, epochs=2, **options)
    TrackedRun(name, folder / "mlruns.db", "toy", {"seed": 0, "encoder": "x/y"}).attach(trainer)
    return trainer, losses


def test_finished_run_holds_losses_terms_and_parameters(tmp_path, studies):
    trainer, losses = _tracked(tmp_path, studies)
    trainer.run()
    client, (run,) = _runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert run.data.params["encoder"] == "x/y"
    history = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]
    assert history == losses
    assert "loss/pull" in run.data.metrics
    assert "validation/first_axis" in run.data.metrics


@pytest.mark.parametrize(("error", "status"), [(StopRequested(), "KILLED"), (ValueError("bad study"), "FAILED")])
def test_ended_run_says_so_and_a_resume_goes_on_in_it(tmp_path, studies, error, status):
    trainer, before = _tracked(tmp_path, studies)

    def stop(engine):
        if engine.state.iteration == 5:
            raise error

    trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    with pytest.raises(type(error), match=r"--resume True|bad study"):
        trainer.run()
    assert _runs(tmp_path)[1][0].info.status == status
    resumed, after = _tracked(tmp_path, studies, resume=True)
    resumed.run()
    client, (run,) = _runs(tmp_path)
    assert run.info.status == "FINISHED"
    history = {(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")}
    assert history == set(before + after)
    assert {step for step, _ in history} == set(range(1, 7))


def test_resume_of_a_finished_stage_leaves_its_run_and_no_second_one(tmp_path, studies):
    _tracked(tmp_path, studies)[0].run()
    again, losses = _tracked(tmp_path, studies, resume=True)
    again.run()
    assert losses == []
    _, (run,) = _runs(tmp_path)
    assert (run.info.status, run.data.metrics["validation/n"]) == ("FINISHED", 12.0)


def test_store_appears_whole_or_not_at_all(tmp_path, studies, monkeypatch):
    replace = os.replace

    def killed(*paths):
        raise KeyboardInterrupt("killed")

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt, match="killed"):
        TrackedRun("job-toy", tmp_path / "mlruns.db", "toy")
    assert not (tmp_path / "mlruns.db").exists()
    monkeypatch.setattr(os, "replace", replace)
    (part,) = tmp_path.glob(".mlruns*")
    part.with_name(f"{part.name}-journal").touch()  # SQLite's, of a process killed within a transaction
    trainer, _ = _tracked(tmp_path, studies)
    trainer.run()
    assert _runs(tmp_path)[1][0].info.status == "FINISHED"
    assert list(tmp_path.glob(".mlruns*")) == []


def test_next_job_does_not_join_a_crashed_run(tmp_path, studies):
    trainer, _ = _tracked(tmp_path, studies, name="one-toy")

    def crash(engine):
        raise RuntimeError("crash")

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), crash)
    with pytest.raises(RuntimeError, match="crash"):
        trainer.run()
    _tracked(tmp_path, studies, name="two-toy")[0].run()
    _, runs = _runs(tmp_path)
    assert {(run.info.run_name, run.info.status) for run in runs} == {("one-toy", "FAILED"), ("two-toy", "FINISHED")}


def test_run_keeps_its_manifest(tmp_path, studies):
    trainer, _, _ = stage(tmp_path, studies, epochs=1)
    TrackedRun("job-toy", tmp_path / "mlruns.db", "toy", manifest={"commit": "abc"}).attach(trainer)
    trainer.run()
    _, (run,) = _runs(tmp_path)
    assert json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/manifest.json")) == {"commit": "abc"}
