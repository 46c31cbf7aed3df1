"""The report that the x2ct bundle leaves, and what MLflow keeps of the run."""

from __future__ import annotations

import json

import mlflow
import pytest

from medvl_evaluation.page import page as report_page
from tests.browser import n_pages, opened
from tests.bundles import running

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("_process_as_before"),
]


def test_report_opens_sorts_and_prints_on_two_pages(trained):
    report = trained.bundle / "eval" / "report.html"
    assert report.stat().st_size < report_page.MOST_BYTES
    with opened(report) as (page, noticed):
        assert page.locator("h1").inner_text() == "X2CT-CLIP"
        for key in ("comparison", "data", "labels", "curves", "calibration", "map", "gallery", "failures", "reproduce"):
            assert page.locator(f"#{key} h2").is_visible(), key
            assert page.locator(f"#{key} .missing").count() == (key == "map"), key  # eight studies make no map
        assert page.locator("#gallery img").count() > 4
        assert "validation studies" in page.locator("#labels").inner_text()
        page.click("#labels th:has-text('n+') button")
        counts = [int(text) for text in page.locator("#labels tbody td:nth-child(2)").all_inner_texts()]
        assert counts == sorted(counts, reverse=True)
        assert noticed == []
        assert n_pages(page.pdf(prefer_css_page_size=True)) <= 2


def test_report_text_is_kept_nowhere_unless_asked_for(trained):
    studies = trained.workflow("train.json").parser.get_parsed_content("studies")["test"]
    sentences = {study.report.findings.split(". ")[0] for study in studies}
    html = (trained.bundle / "eval" / "report.html").read_text()
    assert [sentence for sentence in sentences if sentence in html] == []


def test_mlflow_keeps_report_figures_config_and_manifest(trained):
    found = {run.info.run_name.rsplit("-", 1)[1]: run for run in running.runs(trained.bundle)}
    assert set(found) == {"teacher", "student", "evaluation"}
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{trained.bundle / 'mlruns.db'}")
    for stage, wanted in {
        "teacher": {"config.json", "manifest.json"},
        "student": {"config.json", "manifest.json"},
        "evaluation": {"config.json", "manifest.json", "report.html", "metrics.json", "figures"},
    }.items():
        run = found[stage].info.run_id
        kept = {artifact.path for artifact in client.list_artifacts(run)}
        assert wanted <= kept
        assert not {name for name in kept if "predictions" in name or name.endswith(".npz")}
        config = json.loads(mlflow.artifacts.load_text(f"{found[stage].info.artifact_uri}/config.json"))
        assert (config["batch_size"], config["embed_dim"]) == (4, 16)  # the overrides, not the file
        manifest = json.loads(mlflow.artifacts.load_text(f"{found[stage].info.artifact_uri}/manifest.json"))
        assert manifest["data"]["test"]["studies"] > 0
    numbers = json.loads((trained.bundle / "eval" / "metrics.json").read_text())["rows"]["trained"]
    assert found["evaluation"].data.metrics["auroc_micro"] == numbers["auroc_micro"]["value"]
