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


def test_cross_validation_tests_every_study_once_and_folds_can_be_compared(trained, tmp_path):
    folders = []
    for weight in (0, 1):
        again = Trained(running.copy_bundle(tmp_path / str(weight), "cxr_cml"), TINY)
        again.run("train.json", "cross_validate.json", n_folds=2, epochs=1, track=False, metric_weight=weight)
        folders.append(again.bundle / "eval" / "cross_validation")
    (paired,) = compare_runs(*folders, n_resamples=20).values()
    studies = trained.workflow("train.json").parser.get_parsed_content("studies")
    assert paired.n_studies == sum(map(len, studies.values()))
    with (folders[0] / "folds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["fold"], row["group"]) for row in rows] == [(f, g) for f in "01" for g in ("total", "base", "rare")]


def test_workflow_has_every_property_monai_asks_for(trained):
    workflow = trained.workflow("train.json", resume=True)
    workflow.initialize()
    assert workflow.check_properties() == []


def _inference_options(trained):
    text = json.loads(json.dumps(trained.tiny["report_encoder"]))
    text["options_for"]["baseline/bert_small"]["vocabulary"] = str(trained.bundle / "models" / "vocabulary.txt")
    return {"report_encoder": text}


def test_inference_gives_every_label_a_figure_and_lists_bad_files(trained, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(rng.integers(0, 255, (60, 50), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    out = trained.bundle / "out"
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        trained.run("inference.json", input=str(tmp_path), output_dir=str(out), **_inference_options(trained))
    assert exit_code(caught.value) == 65
    with (out / "findings.csv").open() as file:
        header, *rows = list(csv.reader(file))
    assert header[1:] == read_manifest(trained.bundle / "models" / "manifest.json")["labels"]
    values = np.array([row[1:] for row in rows], dtype=float)
    assert values.shape == (2, 4)
    assert np.all((values > 0) & (values < 1))
    assert len(list((out / "figures").glob("*.png"))) == 2
    assert "broken.png" in json.loads((out / "findings.json").read_text())["refused"]["broken.png"]


def test_default_network_has_the_shape_the_metadata_states():
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    parser.read_meta(str(CONFIGS / "metadata.json"))
    image = parser["_meta_#network_data_format#inputs#image"]
    network = parser.get_parsed_content("network_def").eval()
    out = network(torch.zeros(1, image["num_channels"], *image["spatial_shape"]))
    assert out.shape == (1, parser["_meta_#network_data_format#outputs#pred#num_channels"])


def test_training_and_inference_configs_describe_the_same_towers():
    train, inference = (json.loads((CONFIGS / name).read_text()) for name in ("train.json", "inference.json"))
    assert train["cxr_encoder"] == inference["cxr_encoder"]
    assert train["cxr_tower"] == inference["network_def"]
    text = [config["report_encoder"]["options_for"]["baseline/bert_small"] for config in (train, inference)]
    assert {**text[0], "vocabulary": None} == {**text[1], "vocabulary": None}
    for key in ("prompts", "embed_dim", "logit_scale", "report_pooling", "cxr_pooling"):
        assert train[key] == inference[key], key


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
    parser = _paper(tmp_path, clip_vocabulary=None, embed_dim=16, batch_size=2, bank_size=80, keep_checkpoints=0)
    for encoder in ("cxr_encoder", "report_encoder"):
        for key, value in small.items():
            parser[f"{encoder}::{key}"] = value
    for key in [*parser.get(), "train::trainer", "validate::evaluator"]:
        if key not in ("initialize", "run", "prepare", "fit", "_meta_"):
            parser.get_parsed_content(key)
    assert len(parser.get_parsed_content("label_names")) == 40
    assert {k: len(v) for k, v in parser.get_parsed_content("class_groups").items()} == {"base": 28, "rare": 12}
    optimizer, schedule = (parser.get_parsed_content(key) for key in ("optimizer", "lr_scheduler"))
    assert (optimizer.param_groups[0]["lr"], schedule.factor, schedule.patience) == (1e-6, 0.1, 2)
    metric = parser.get_parsed_content("losses::metric")
    assert (metric.mixture.n_components, metric.mixture.nu, metric.margin) == (40, 4.0, 0.3)
    assert parser.get_parsed_content("losses::clip").duplicates == "negative"
    assert parser.get_parsed_content("zero_shot").prompts["negative"][0] == ("no Adenopathy",)
    names = [type(handler).__name__ for handler in parser.get_parsed_content("validate::handlers")]
    assert names == ["LrScheduleHandler", "SaveBest"]


def test_published_towers_have_clips_sizes(tmp_path):
    parser = _paper(tmp_path)
    with torch.device("meta"):
        encoder = parser.get_parsed_content("cxr_encoder")
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 87_849_216
    assert encoder.input.size == (224, 224)
    assert encoder.embed_dim == parser["embed_dim"] == 512


def test_published_setting_without_its_weights_is_one_clear_error(tmp_path):
    parser = _paper(tmp_path, clip_weights=str(tmp_path / "chexzero.pt"))
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("cxr_encoder")
    assert "chexzero.pt" in str(caught.value.__cause__)
