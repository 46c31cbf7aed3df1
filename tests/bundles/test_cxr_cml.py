from __future__ import annotations

import csv
import json

import mlflow
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from medvl_core.bundle.manifest import read_manifest
from medvl_core.bundle.startup import exit_code
from medvl_core.engine.resume import ExactResume
from medvl_evaluation.run_comparison import compare_runs
from tests.bundles import running
from tests.bundles.conftest import Trained
from tests.papers.cxr_cml.cxr_sets import cxr_lt

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
    ),
    pytest.mark.usefixtures("_process_as_before"),
]
TINY = running.ROOT / "tests" / "data" / "tiny_cxr_cml.json"
CONFIGS = running.ROOT / "monai_bundles" / "cxr_cml" / "configs"
ATTENTION = {"_target_": "medvl_core.build_pooling", "name": "baseline/attention", "encoder": "@image_encoder"}
ATTENTION_OF_TEXT = {**ATTENTION, "encoder": "@text_encoder"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The bundle, trained once for all tests of this file."""
    trained = Trained(running.copy_bundle(tmp_path_factory.mktemp("cxr_cml"), "cxr_cml"), TINY)
    with running.process_as_before():
        trained.run("train.json")
    return trained


def _rows(folder):
    return json.loads((folder / "metrics.json").read_text())["rows"]


def test_training_leaves_weights_tables_map_and_finished_runs(trained):
    bundle = trained.bundle
    models = {path.name for path in (bundle / "models").iterdir()}
    assert {"model.pt", "clip.pt", "manifest.json", "vocabulary.txt", "train_last.pt", "checkpoints"} <= models
    rows = _rows(bundle / "eval")
    assert set(rows) == {"chance", "untrained", "trained"}
    estimate = rows["trained"]["auroc_macro"]
    assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert {"auroc_macro_rare", "auroc_macro_base"} <= set(rows["trained"])
    written = {path.name for path in (bundle / "eval").iterdir()}
    assert {"comparison.md", "latent_map.png", "latent_map_clusters.csv", "report.html"} <= written
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{bundle / 'mlruns.db'}")
    runs = client.search_runs(client.get_experiment_by_name("cxr_cml").experiment_id)
    assert {run.info.status for run in runs} == {"FINISHED"}
    metrics = runs[-1].data.metrics
    assert "loss/metric/active_triplets" in metrics
    assert "validation/loss" in metrics


def test_bank_and_mixture_are_part_of_the_checkpoint(trained):
    state = torch.load(trained.bundle / "models" / "train_last.pt", weights_only=True)["objects"]["loss"]
    assert bool(state["losses.metric.mixture.fitted"])
    assert int(state["losses.metric.bank.seen"]) > 0


def test_run_cut_in_two_ends_with_the_weights_of_an_uncut_one(trained, tmp_path, monkeypatch):
    again = Trained(running.copy_bundle(tmp_path, "cxr_cml"), TINY)
    save = ExactResume.save

    def stop(self, engine):
        save(self, engine)
        if engine.state.epoch == 2 and not self.resume:
            raise KeyboardInterrupt

    monkeypatch.setattr(ExactResume, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        again.run("train.json", track=False)
    again.run("train.json", track=False, resume=True)
    states = [
        torch.load(one.bundle / "models" / "train_last.pt", weights_only=True)["objects"] for one in (trained, again)
    ]
    for part in ("model", "loss"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)


def test_evaluation_alone_repeats_the_numbers_and_adds_the_ensemble(trained):
    before = _rows(trained.bundle / "eval")
    (trained.bundle / "eval" / "metrics.json").unlink()
    trained.run("train.json", "evaluate.json")
    assert _rows(trained.bundle / "eval") == before
    rows = _rows(trained.bundle / "eval" / "ensemble")
    assert rows["single"]["auroc_macro"] == before["trained"]["auroc_macro"]
    assert set(rows) == {"chance", "single", "ensemble"}


def test_evaluating_other_studies_leaves_the_model_alone(trained, tmp_path):
    models = trained.bundle / "models"
    before = {path: path.read_bytes() for path in models.rglob("*") if path.is_file()}
    trained.run("train.json", "evaluate.json", output_dir=str(tmp_path), track=False, **{"dataset::seed": 9})
    assert {path: path.read_bytes() for path in models.rglob("*") if path.is_file()} == before
    assert _rows(tmp_path)["trained"] != _rows(trained.bundle / "eval")["trained"]


def test_cross_validation_tests_every_study_once_and_folds_can_be_compared(trained, tmp_path):
    folders = []
    for weight in (0, 1):
        again = Trained(running.copy_bundle(tmp_path / str(weight), "cxr_cml"), TINY)
        again.run("train.json", "cross_validate.json", n_folds=2, epochs=1, track=False, metric_weight=weight)
        folders.append(again.bundle / "eval" / "cross_validation")
    (paired,) = compare_runs(*folders, n_resamples=20).values()
    studies = trained.workflow("train.json").parser.get_parsed_content("studies")
    assert paired.context.n_studies == sum(map(len, studies.values()))
    with (folders[0] / "folds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["fold"], row["group"]) for row in rows] == [(f, g) for f in "01" for g in ("total", "base", "rare")]


def test_workflow_has_every_property_monai_asks_for(trained):
    workflow = trained.workflow("train.json", resume=True)
    workflow.initialize()
    assert workflow.check_properties() == []


def test_inference_gives_every_label_a_figure_and_lists_bad_files(trained, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(rng.integers(0, 255, (60, 50), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    out = trained.bundle / "out"
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        trained.run("inference.json", input=str(tmp_path), output_dir=str(out))
    assert exit_code(caught.value) == 65
    with (out / "findings.csv").open() as file:
        header, *rows = list(csv.reader(file))
    assert header[1:] == read_manifest(trained.bundle / "models" / "manifest.json")["labels"]
    values = np.array([row[1:] for row in rows], dtype=float)
    assert values.shape == (2, 4)
    assert np.all((values > 0) & (values < 1))
    assert len(list((out / "figures").glob("*.png"))) == 2
    assert "broken.png" in json.loads((out / "findings.json").read_text())["refused"]["broken.png"]


def test_inference_builds_whatever_was_trained(tmp_path):
    again = Trained(running.copy_bundle(tmp_path, "cxr_cml"), TINY)
    other = {
        "image_encoder::name": "baseline/resnet18_2d",
        "image_pooling": ATTENTION,
        "text_pooling": ATTENTION_OF_TEXT,
    }
    again.run("train.json", epochs=1, track=False, prompts={"positive": ["{}!"], "negative": ["no {}!"]}, **other)
    Image.fromarray(np.eye(40, dtype=np.uint8)).save(tmp_path / "film.png")
    film = {"input": str(tmp_path / "film.png"), "output_dir": str(tmp_path)}
    get = again.run("inference.json", **film).parser.get_parsed_content
    assert get("network_def").encoder.component == "baseline/resnet18_2d"
    assert {get(key).pooling.component for key in ("network_def", "text_tower")} == {"baseline/attention"}
    findings = json.loads((tmp_path / "findings.json").read_text())
    assert list(findings["probabilities"]) == ["film.png"]
    assert findings["prompts"]["negative"]["Cardiomegaly"] == ["no Cardiomegaly!"]
    state = torch.load(again.bundle / "models" / "model.pt", weights_only=True)
    torch.testing.assert_close(get("network_def").state_dict(), state, rtol=0, atol=0)


def test_old_keys_are_read_for_one_release(trained, caplog):
    old = {"cxr_encoder::name": "baseline/resnet18_2d", "cxr_pooling": ATTENTION, "report_pooling": ATTENTION_OF_TEXT}
    workflow = trained.workflow("train.json", resume=True, track=False, **old)
    workflow.initialize()
    image, text = (workflow.parser.get_parsed_content(name) for name in ("image_tower", "text_tower"))
    assert image.encoder.component == "baseline/resnet18_2d"
    assert image.encoder.input.size == (32, 32)
    assert image.pooling.component == text.pooling.component == "baseline/attention"
    assert "cxr_encoder is now image_encoder; the old key goes with 0.2" in caplog.text


@pytest.mark.parametrize(
    "overrides",
    [
        {"losses::metric::name": "baseline/siglip", "latent_map::name": "baseline/retrieval"},
        {"losses::clip::name": "baseline/siglip", "captions::name": "baseline/report", "vocabulary::size": 1500},
        {"zero_shot::name": "baseline/retrieval", "evaluate::evaluators": ["@zero_shot"]},
    ],
    ids=["second loss and map", "first loss and captions", "what is watched"],
)
def test_parts_are_one_override_away(tmp_path, overrides):
    again = Trained(running.copy_bundle(tmp_path, "cxr_cml"), TINY)
    again.run("train.json", epochs=1, track=False, **overrides)
    assert "trained" in _rows(again.bundle / "eval")


def _paper(tmp_path, **overrides):
    options = cxr_lt(tmp_path)
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.json", "paper.json")])
    fixed = {"bundle_root": str(tmp_path), "dataset_dir": str(options["root"]), "table": str(options["table"])}
    for key, value in {**fixed, "track": False, "prepare_workers": 0, "clip_weights": "random", **overrides}.items():
        parser[key] = value
    return parser


def test_every_object_of_the_published_setting_is_built(tmp_path):
    small = {"width": 16, "layers": 1, "heads": 2, "projection_dim": 16}
    parser = _paper(tmp_path, clip_vocabulary=None, batch_size=2, bank_size=80, keep_checkpoints=0)
    for encoder, name in (("image_encoder", "baseline/clip_image"), ("text_encoder", "baseline/clip_text")):
        for key, value in small.items():
            parser[f"{encoder}::options_for::{name}::{key}"] = value
    for key in [*parser.get(), "train::trainer"]:
        if key not in ("initialize", "run", "prepare", "_meta_"):
            parser.get_parsed_content(key)
    assert len(parser.get_parsed_content("label_names")) == 40
    assert {k: len(v) for k, v in parser.get_parsed_content("class_groups").items()} == {"base": 28, "rare": 12}
    trainer = parser.get_parsed_content("train::trainer")
    (group,) = trainer.optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-6, 1e-4)
    metric = parser.get_parsed_content("losses::metric")
    assert (metric.mixture.n_components, metric.mixture.nu, metric.margin) == (40, 4.0, 0.3)
    assert metric.refit_every == len(trainer.data_loader)
    assert parser.get_parsed_content("losses::clip").duplicates == "negative"
    assert parser.get_parsed_content("zero_shot").prompts["negative"][0] == ("no Adenopathy",)


def test_rate_falls_on_a_plateau_of_the_validation_loss(tmp_path):
    again = Trained(running.copy_bundle(tmp_path, "cxr_cml"), TINY)
    schedule = json.loads((CONFIGS / "paper.json").read_text())["lr_scheduler"]
    schedule |= {"patience": 0, "threshold": 10.0, "threshold_mode": "abs"}  # no fall of the loss is enough
    workflow = again.run("train.json", track=False, lr_scheduler=schedule, epochs=3)
    (group,) = workflow.parser.get_parsed_content("train::trainer").optimizer.param_groups
    assert group["lr"] == pytest.approx(1e-5)  # 1e-3, lowered after the second and the third validation
    assert schedule["factor"] == 0.1


def test_published_towers_have_clips_sizes(tmp_path):
    parser = _paper(tmp_path)
    with torch.device("meta"):
        encoder = parser.get_parsed_content("image_encoder")
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 87_849_216
    assert encoder.input.size == (224, 224)
    assert encoder.embed_dim == 512


def test_published_setting_without_its_weights_is_one_clear_error(tmp_path):
    parser = _paper(tmp_path, clip_weights=str(tmp_path / "chexzero.pt"))
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("image_encoder")
    assert "chexzero.pt" in str(caught.value.__cause__)
