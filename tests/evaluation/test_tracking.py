from __future__ import annotations

import mlflow
import pytest

from medvl_evaluation.page import write_report
from medvl_evaluation.tracking import track_evaluation
from tests.evaluation import report_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def _runs(folder):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("toy")
    return client, client.search_runs(experiment.experiment_id)


def _track(folder):
    made = report_folder.make(folder / "eval")
    write_report(made)
    (made / "comparison.png").touch()
    track_evaluation(made, "job-evaluation", folder / "mlruns.db", "toy", {"commit": "abc"})


def test_evaluation_is_a_run_with_numbers_report_figures_and_tables_but_no_single_cases(tmp_path):
    _track(tmp_path)
    client, (run,) = _runs(tmp_path)
    assert (run.info.run_name, run.info.status) == ("job-evaluation", "FINISHED")
    assert run.data.metrics["auroc_macro"] == 0.8
    assert run.data.metrics["chance/auroc_macro"] == 0.5
    kept = {item.path for folder in (None, "figures") for item in client.list_artifacts(run.info.run_id, folder)}
    aggregates = {"zero_shot_per_class.csv", "prompts_wordings.csv", "subgroups_sex.csv", "probe_summary.csv"}
    rest = {"figures", "figures/comparison.png", "report.html", "metrics.json", "comparison.md", "manifest.json"}
    assert kept == aggregates | rest


def test_report_stays_here_when_a_server_keeps_the_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlruns.db'}")
    _track(tmp_path)
    client, (run,) = _runs(tmp_path)
    assert "report.html" not in {item.path for item in client.list_artifacts(run.info.run_id)}


def test_evaluation_that_cannot_be_logged_is_marked_failed(tmp_path):
    made = report_folder.make(tmp_path / "eval")
    with pytest.raises(OSError, match=r"report\.html"):
        track_evaluation(made, "job-evaluation", tmp_path / "mlruns.db", "toy")
    assert _runs(tmp_path)[1][0].info.status == "FAILED"
