from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medvl_core.bundle.manifest import read_manifest
from medvl_core.bundle.startup import exit_code, explain
from medvl_phantom import PhantomCohort
from tests.bundles import running

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("_process_as_before"),
]


def _rows(bundle):
    return json.loads((bundle / "eval" / "metrics.json").read_text())["rows"]


def test_training_leaves_weights_tables_figures_and_finished_runs(trained):
    bundle = trained.bundle
    assert {"model.pt", "teacher.pt", "manifest.json", "vocabulary.txt"} <= {
        p.name for p in (bundle / "models").iterdir()
    }
    assert set(_rows(bundle)) == {"chance", "untrained", "trained"}
    assert {"comparison.md", "comparison.png", "zero_shot_per_class.csv"} <= {
        p.name for p in (bundle / "eval").iterdir()
    }
    assert {run.info.status for run in running.runs(bundle)} == {"FINISHED"}
    assert {p.name for p in bundle.iterdir()} <= {
        *("LICENSE", "configs", "docs", "scripts", "models", "eval", "cache", "mlruns", "mlruns.db"),
    }


def test_manifest_says_what_it_was_trained_on(trained):
    manifest = read_manifest(trained.bundle / "models" / "manifest.json")
    assert manifest["components"]["image_tower.encoder"] == "baseline/resnet18_2d"
    assert manifest["data"]["train"]["studies"] > manifest["data"]["test"]["studies"] > 0
    assert len({part["digest"] for part in manifest["data"].values()}) == 3


def test_no_subject_is_in_two_splits(trained):
    studies = trained.workflow("train.json").parser.get_parsed_content("studies")
    subjects = [{study.subject_id for study in studies[split]} for split in ("train", "validation", "test")]
    assert not subjects[0] & subjects[1] | subjects[0] & subjects[2] | subjects[1] & subjects[2]


def test_workflow_has_every_property_monai_asks_for(trained):
    workflow = trained.workflow("train.json", resume=True)
    workflow.initialize()
    assert workflow.check_properties() == []


def test_evaluation_alone_gives_the_numbers_of_the_training_run(trained):
    before = _rows(trained.bundle)
    (trained.bundle / "eval" / "metrics.json").unlink()
    trained.run("train.json", "evaluate.json")
    assert _rows(trained.bundle)["trained"] == before["trained"]
    assert _rows(trained.bundle)["untrained"] == before["untrained"]


def test_training_with_the_store_has_the_losses_of_training_without(trained, tmp_path):
    again = type(trained)(running.copy_bundle(tmp_path))
    again.run("train.json", use_store=False, stage1_weights=str(trained.bundle / "models" / "teacher.pt"))
    with_store = {key: value for key, value in running.losses(trained.bundle).items() if key[0] == "student"}
    without = running.losses(again.bundle)
    assert without.keys() == with_store.keys()
    for step, values in with_store.items():
        assert next(iter(without[step])) == pytest.approx(next(iter(values)), rel=1e-4)


def test_given_teacher_weights_skip_the_first_stage(trained, tmp_path):
    again = type(trained)(running.copy_bundle(tmp_path))
    again.run("train.json", stage1_weights=str(trained.bundle / "models" / "teacher.pt"))
    assert {run.info.run_name.rsplit("-", 1)[1] for run in running.runs(again.bundle)} == {"student", "evaluation"}
    assert running.losses(again.bundle) == {
        key: value for key, value in running.losses(trained.bundle).items() if key[0] == "student"
    }


def test_inference_writes_findings_nearest_reports_and_figures_and_lists_bad_files(trained, tmp_path):
    rng = np.random.default_rng(0)
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    for name in ("a.png", "b.jpg"):
        Image.fromarray(rng.integers(0, 255, (60, 50), dtype=np.uint8)).save(films / name)
    (films / "b.jpg").rename(films / "b")  # judged by its content
    (films / "broken.png").write_bytes(b"not a picture")
    studies = trained.workflow("train.json").parser.get_parsed_content("studies")["train"][:5]
    table = tmp_path / "studies.csv"
    with table.open("w", newline="") as file:
        rows = [[study.study_id, study.report.findings, study.report.impression] for study in studies]
        csv.writer(file).writerows([["study", "findings", "impression"], *rows])
    kept = {path: path.read_bytes() for path in (trained.bundle / "cache").rglob("*.safetensors")}
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        trained.run("inference.json", input=str(films), reports=str(table), output_dir=str(out))
    assert "1 of 3 inputs refused" in explain(caught.value)
    assert exit_code(caught.value) == 65
    with (out / "findings.csv").open() as file:
        header, *rows = list(csv.reader(file))
    assert [row[0] for row in rows] == ["a.png", "b"]
    assert header[1:] == read_manifest(trained.bundle / "models" / "manifest.json")["labels"]
    values = np.array([row[1:] for row in rows], dtype=float)
    assert np.all((values > 0) & (values < 1))
    content = json.loads((out / "findings.json").read_text())
    assert "broken.png" in content["refused"]["broken.png"]
    assert set(content["prompts"]) == {"positive", "negative"}
    for near in content["nearest_reports"].values():
        assert len(near) == 3
        assert {entry["study"] for entry in near} <= {study.study_id for study in studies}
    assert {path: path.read_bytes() for path in (trained.bundle / "cache").rglob("*.safetensors")} == kept  # training's
    assert {path.name for path in (out / "figures").iterdir()} == {"a.png.png", "b.png"}


@pytest.mark.parametrize("mode", ["mean_hu", "cone_beam"])
def test_inference_simulates_the_radiograph_of_a_ct(trained, tmp_path, mode):
    image = PhantomCohort(12, (32, 32, 32)).studies("test")[0].images["ct"].load()
    nib.save(nib.Nifti1Image(image.array.astype(np.int16), image.affine), tmp_path / "scan.nii.gz")
    trained.run(
        "inference.json",
        ct=str(tmp_path / "scan.nii.gz"),
        radiograph={"mode": mode},
        output_dir=str(tmp_path),
    )
    assert list(json.loads((tmp_path / "findings.json").read_text())["probabilities"]) == ["scan.nii.gz"]


def test_inference_without_a_usable_file_is_one_line(trained, tmp_path):
    with pytest.raises(RuntimeError, match="inference"):
        trained.run("inference.json", input=str(tmp_path / "absent"))


def test_network_of_the_inference_config_fits_the_metadata(trained):
    network = trained.workflow("inference.json", input="x").parser.get_parsed_content("network_def")
    state = torch.load(trained.bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 16)


def test_radiograph_encoder_is_one_override_away_and_inference_needs_none(trained, tmp_path):
    again = type(trained)(running.copy_bundle(tmp_path))
    name = "baseline/efficientnet_lite"
    teacher = str(trained.bundle / "models" / "teacher.pt")
    again.run("train.json", **{"image_encoder::name": name}, epochs=1, stage1_weights=teacher)
    manifest = read_manifest(again.bundle / "models" / "manifest.json")
    assert manifest["components"]["image_tower.encoder"] == name
    Image.fromarray(200 * np.eye(40, dtype=np.uint8)).save(tmp_path / "film.png")
    (again.bundle / "models" / "teacher.pt").write_bytes(Path(teacher).read_bytes())
    workflow = again.run("inference.json", input=str(tmp_path / "film.png"), output_dir=str(tmp_path))
    assert workflow.parser.get_parsed_content("network_def").encoder.component == name
    assert list(json.loads((tmp_path / "findings.json").read_text())["probabilities"]) == ["film.png"]


def test_old_keys_are_read_for_one_release(trained, tmp_path, caplog):
    again = type(trained)(running.copy_bundle(tmp_path))
    teacher = str(trained.bundle / "models" / "teacher.pt")
    old = {"cxr_encoder::name": "baseline/resnet50_2d", "cxr_pooling::name": "baseline/attention"}
    workflow = again.workflow("train.json", **old, teacher_weights=teacher)
    workflow.initialize()
    get = workflow.parser.get_parsed_content
    assert get("image_tower").encoder.component == "baseline/resnet50_2d"
    assert get("image_tower").encoder.input.size == (32, 32)
    assert get("image_tower").pooling.component == "baseline/attention"
    assert get("stage1_weights") == teacher
    assert "cxr_encoder is now image_encoder; the old key goes with 0.2" in caplog.text


def test_run_from_inside_writes_to_the_same_place(tmp_path):
    bundle = running.copy_bundle(tmp_path)
    before = set(tmp_path.rglob("*"))
    done = running.run(bundle, "--epochs", "1", "--stage1#epochs", "1", inside=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained vs the others" in done.stdout
    new = {path.relative_to(bundle).parts[0] for path in set(tmp_path.rglob("*")) - before}
    assert new == {"models", "eval", "cache", "mlruns.db"} | ({"mlruns"} if (bundle / "mlruns").exists() else set())


def test_mistyped_override_is_refused_before_any_work(tmp_path):
    bundle = running.copy_bundle(tmp_path)
    done = running.run(bundle, "--epoch", "1")
    assert done.returncode == 2
    assert "no config has the key 'epoch'; did you mean 'epochs'?" in done.stderr
    assert not (bundle / "models").exists()


def test_unknown_encoder_is_one_clear_error(tmp_path):
    bundle = running.copy_bundle(tmp_path)
    done = running.run(bundle, "--image_encoder#name", "baseline/resnet81_2d")
    assert done.returncode == 2
    assert "no encoder is called 'baseline/resnet81_2d'; did you mean 'baseline/resnet18_2d'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_bundle_file_is_importable():
    assert list((running.ROOT / "monai_bundles").rglob("__init__.py")) == []
