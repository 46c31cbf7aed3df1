from __future__ import annotations

import csv
import json
import math
import re
import shutil
import signal
import sys
from fnmatch import fnmatchcase

import nibabel as nib
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata

from medvl_baseline.phantom import ORGANS, PhantomCohort
from medvl_core.bundle import explain
from medvl_core.bundle_check import check_bundle
from medvl_core.manifest import read_manifest
from tests.bundles import running

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("_process_as_before"),
]
FOLDER = running.ROOT / "monai_bundles" / "ct_glip"
TINY = json.loads((running.ROOT / "tests" / "data" / "tiny_ct_glip.json").read_text())


def workflow(bundle, *configs, **overrides):
    known = json.loads((bundle / "configs" / configs[0]).read_text())
    tiny = {key: value for key, value in TINY.items() if key.split("::")[0] in known}
    if configs[0] == "inference.json":
        tiny["network_def::hidden"] = 16
    return ConfigWorkflow(
        config_file=[str(bundle / "configs" / name) for name in configs],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="inference" if configs[0] == "inference.json" else "train",
        bundle_root=str(bundle),
        **{**tiny, **overrides},
    )


def run(bundle, *configs, **overrides):
    made = workflow(bundle, *configs, **overrides)
    made.initialize()
    made.run()
    made.finalize()
    return made


def rows(bundle):
    return json.loads((bundle / "eval" / "metrics.json").read_text())["rows"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    bundle = running.copy_bundle(tmp_path_factory.mktemp("trained"), "ct_glip")
    run(bundle, "train.json")
    sys.excepthook = sys.__excepthook__
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return bundle


@pytest.fixture
def again(trained, tmp_path):
    """The trained bundle in a folder of its own."""
    shutil.copytree(trained, tmp_path / "ct_glip")
    return tmp_path / "ct_glip"


def test_bundle_has_no_problem():
    assert check_bundle(FOLDER) == []


def test_metadata_passes_monais_own_check():
    schema = running.ROOT / "medvl_core" / "schema" / "meta_schema_20240725.json"
    verify_metadata(meta_file=str(FOLDER / "configs" / "metadata.json"), filepath=str(schema))


def test_training_leaves_both_stages_tables_and_figures(trained):
    models = {path.name for path in (trained / "models").iterdir()}
    assert {"segmentation.pt", "model.pt", "manifest.json", "word_weights.tsv"} <= models
    files = {path.name for path in (trained / "eval").iterdir()}
    assert {"report.html", "organ_per_organ.csv", "organ_similarity.png", "abnormality_per_class.csv"} <= files
    assert {"chance", "untrained", "trained"} == set(rows(trained))
    manifest = read_manifest(trained / "models" / "manifest.json")
    assert manifest["components"]["encoder"] == "ct_glip/nnunet"
    assert "spleen" in manifest["regions"]


def test_workflow_has_every_property_monai_asks_for(again):
    made = workflow(again, "train.json", resume=True)
    made.initialize()
    assert made.check_properties() == []


def test_evaluation_alone_gives_the_numbers_of_the_training_run(again):
    before = rows(again)
    (again / "eval" / "metrics.json").unlink()
    run(again, "train.json", "evaluate.json")
    assert rows(again) == before


@pytest.mark.parametrize("overlay", ["vanilla.json", "diagnosis_only.json", "no_dictionary.json"])
def test_rows_of_the_ablation_train(again, overlay):
    first = str(again / "models" / "segmentation.pt")
    made = run(again, "train.json", overlay, segmentation_weights=first, epochs=1)
    loss = made.parser.get_parsed_content("loss")
    names = {"vanilla.json": {"global", "segmentation"}}.get(overlay, {"anatomy", "diagnosis", "segmentation"})
    assert set(loss.weights) == names
    size = len(made.parser.get_parsed_content("texts").words)
    assert (size > 0) == (overlay == "vanilla.json")
    assert loss.weights.get("anatomy", 0.5) == (0.0 if overlay == "diagnosis_only.json" else 0.5)


def test_segmentation_alone_stops_after_the_first_stage(tmp_path):
    bundle = running.copy_bundle(tmp_path, "ct_glip")
    run(bundle, "train.json", "pretrain_segmentation.json")
    models = {path.name for path in (bundle / "models").iterdir()}
    assert "segmentation.pt" in models
    assert "model.pt" not in models


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A phantom CT and its label map as files."""
    folder = tmp_path_factory.mktemp("scan")
    study = PhantomCohort(12, (32, 32, 32)).studies("test")[0]
    for name, source in (("ct", study.images["ct"]), ("labels", study.regions)):
        image = source.load()
        nib.save(nib.Nifti1Image(image.array, image.affine), folder / f"{name}.nii.gz")
    (folder / "names.json").write_text(json.dumps({str(label): name for label, name in ORGANS.items()}))
    return folder


def test_inference_writes_a_table_and_figures(again, scan):
    options = {"masks": str(scan / "labels.nii.gz"), "mask_names": str(scan / "names.json")}
    run(again, "inference.json", input=str(scan / "ct.nii.gz"), **options)
    with (again / "eval" / "organs.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {row["abnormality"] for row in table} >= {"fatty liver", "kidney stone", "gallstone"}
    seen = [float(row["probability"]) for row in table if row["probability"]]
    assert seen
    assert all(0 < value < 1 for value in seen)
    for row in table:
        assert bool(row["probability"]) == (int(row["voxels"]) >= 3)
    with (again / "models" / "thresholds.csv").open() as file:
        least = {row["abnormality"]: float(row["log_odds"] or "nan") for row in csv.DictReader(file)}
    assert not all(map(math.isnan, least.values()))
    for row in table:
        value = 1 / (1 + math.exp(-least.get(row["abnormality"], math.nan)))
        assert row["threshold"] == ("" if math.isnan(value) else str(round(value, 6)))
        judged = bool(row["probability"] and row["threshold"])
        assert row["reached"] == (str(float(row["probability"]) >= value) if judged else "")
    assert {"overlay.png", "similarity.png"} <= {path.name for path in (again / "eval").iterdir()}


def test_organs_of_scans_are_recognised_by_several_models(trained, scan, tmp_path, monkeypatch, capsys):
    script = running.script("recognise_scans.py", trained)
    script.BUNDLE = tmp_path / "ct_glip"
    configs = script.BUNDLE / "configs"
    configs.mkdir(parents=True)
    shutil.copy(FOLDER / "configs" / "inference.json", configs)
    small = ("spacing_mm", "patch", "min_voxels", "encoder::options_for::ct_glip/nnunet")
    (configs / "tiny.json").write_text(json.dumps({key: TINY[key] for key in small} | {"network_def::hidden": 16}))
    words = ["--scan", scan / "ct.nii.gz", scan / "labels.nii.gz", scan / "names.json", "--configs", "tiny.json"]
    words += ["--crops", 3, "--crop", 16, 16, 16, "--cache", tmp_path / "cache", "--models"]
    monkeypatch.setattr(sys, "argv", ["recognise_scans.py", *map(str, words), f"grounded={trained / 'models'}"])
    assert script.main() == 0
    header, _, line = capsys.readouterr().out.splitlines()
    assert header == "| scan | chance | untrained | grounded |"
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    chance = 1 / len(read_manifest(trained / "models" / "manifest.json")["regions"])
    assert cells[:2] == [f"{scan.name}/ct.nii.gz", f"{chance:.3f}"]
    for cell in cells[2:]:
        right, visible, share = map(float, re.fullmatch(r"(\d+)/(\d+); (\S+) \[\S+, \S+\]", cell).groups())
        assert 0 <= right <= visible
        assert 0 <= share <= 1
    assert visible > 1
    monkeypatch.setattr(sys, "argv", ["recognise_scans.py", *map(str, words), f"grounded={tmp_path}"])
    with pytest.raises(SystemExit):
        script.main()
    assert "is no NAME=FOLDER with a model.pt in it" in capsys.readouterr().err


def test_a_prompt_file_decides_what_is_asked(again, scan, tmp_path):
    rows_ = [{"name": "mass", "organ": "liver", "regions": ["liver"], "label": "", "role": "ours"}]
    (tmp_path / "ask.json").write_text(json.dumps(rows_))
    options = {"masks": str(scan / "labels.nii.gz"), "mask_names": str(scan / "names.json")}
    (again / "models" / "thresholds.csv").unlink()  # as after training without labels
    run(again, "inference.json", input=str(scan / "ct.nii.gz"), prompt_file=str(tmp_path / "ask.json"), **options)
    with (again / "eval" / "organs.csv").open() as file:
        found = [(row["region"], row["abnormality"], row["threshold"]) for row in csv.DictReader(file)]
    assert found == [("liver", "mass", "")]
    (again / "models" / "thresholds.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        run(again, "inference.json", input=str(scan / "ct.nii.gz"), **options)
    assert "thresholds.csv: no table of abnormality, organ and log_odds" in explain(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, "input is not given; --input takes a CT"),
        ({"input": "absent.nii.gz"}, "absent.nii.gz: there is no such file or folder"),
        ({"input": "CT", "mask_weights": "nowhere"}, "no weights of TotalSegmentator .* fetch them"),
    ],
)
def test_inference_refuses_plainly(again, scan, overrides, message):
    given = {key: str(scan / "ct.nii.gz") if value == "CT" else value for key, value in overrides.items()}
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        run(again, "inference.json", **given)
    assert re.search(message, explain(caught.value))


def test_inference_without_a_trained_model_says_so(tmp_path, scan):
    bundle = running.copy_bundle(tmp_path, "ct_glip")
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        run(bundle, "inference.json", input=str(scan / "ct.nii.gz"))
    assert "no manifest; train the bundle first" in explain(caught.value)


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """Phantom scans, label maps and reports as a table and NIfTI files."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "masks").mkdir()
    cohort = PhantomCohort(10, (32, 32, 32), follow_up=0.0, second_reconstruction=0.0)
    lines = []
    for split in ("train", "validation", "test"):
        for study in cohort.studies(split):
            for name, source in (
                (f"{study.study_id}.nii.gz", study.images["ct"]),
                (f"masks/{study.study_id}.nii.gz", study.regions),
            ):
                image = source.load()
                nib.save(nib.Nifti1Image(image.array, image.affine), folder / name)
            report = {"findings": study.report.findings, "impression": study.report.impression}
            row = {
                "study": study.study_id,
                "subject": study.subject_id,
                "ct": f"{study.study_id}.nii.gz",
                "split": split,
            }
            lines.append(row | report)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    (folder / "names.json").write_text(json.dumps({str(label): name for label, name in ORGANS.items()}))
    return folder


def test_paper_builds_every_network_at_full_size_without_memory(own_data, tmp_path):
    made = ConfigParser()
    made.read_config([str(FOLDER / "configs" / name) for name in ("train.json", "paper.json")])
    given = {"bundle_root": tmp_path, "table": own_data / "table.csv", "masks_dir": own_data / "masks"}
    for key, value in given.items():
        made[key] = str(value)
    made["split_column"] = "split"
    made.get_parsed_content("dataset")
    with torch.device("meta"):
        encoder = made.get_parsed_content("encoder")
        assert encoder.num_classes == 105
        assert encoder.embed_dim == 32
        out = encoder(torch.zeros(1, 1, *encoder.input.size))
    assert out.features.shape == (1, 32, 160, 160, 64)
    assert encoder.input.spacing_mm == (1.0, 1.0, 3.0)
    parameters = sum(p.numel() for p in encoder.parameters())
    assert 25e6 < parameters < 40e6


def test_published_setting_trains_in_miniature_on_files(own_data, tmp_path):
    bundle = running.copy_bundle(tmp_path, "ct_glip")
    dataset = {
        "_target_": "medvl_core.build_dataset",
        "name": "baseline/folder",
        "table": str(own_data / "table.csv"),
        "split_column": "split",
    }
    options = {
        "text_encoder::name": "baseline/word_vectors",
        "text_pooling::name": "baseline/mean",
        "masks_dir": str(own_data / "masks"),
        "mask_names": str(own_data / "names.json"),
        "num_workers": 0,
        "epochs": 1,
    }
    masked = json.loads((bundle / "configs" / "paper.json").read_text())["dataset"]  # miniature names a phantom
    run(bundle, "train.json", "paper.json", source=dataset, dataset=masked, **options)
    assert rows(bundle)["trained"].keys() == {"organ/top_1", "organ/top_1_macro"}
    assert len(read_manifest(bundle / "models" / "manifest.json")["regions"]) == 104


def test_names_alone_train_where_there_are_masks_and_no_reports(own_data, tmp_path):
    bundle = running.copy_bundle(tmp_path, "ct_glip")
    options = {
        "table": str(own_data / "table.csv"),
        "split_column": "split",
        "masks_dir": str(own_data / "masks"),
        "mask_names": str(own_data / "names.json"),
        "epochs": 1,
    }
    masked = json.loads((bundle / "configs" / "own_masks.json").read_text())["dataset"]  # miniature names a phantom
    made = run(bundle, "train.json", "own_masks.json", "names_only.json", dataset=masked, **options)
    assert len(made.parser.get_parsed_content("texts").words) == 0
    assert rows(bundle)["trained"].keys() == {"organ/top_1", "organ/top_1_macro"}


LESIONS = {
    "dataset::options_for::baseline/phantom::lesions": "@lesions",
    "dataset::options_for::baseline/phantom::prevalence": {"Liver cyst": 0.8, "Kidney cyst": 0.7, "Lung nodule": 0.7},
    "pretrain::epochs": 2,
}


def test_finetuning_starts_from_the_aligned_encoder_with_a_new_head(again):
    tumours = {"ckpt_dir": str(again / "tumours"), "output_dir": str(again / "tumours")} | LESIONS
    aligned = str(again / "models" / "model.pt")
    overlays = ("train.json", "finetune.json")
    made = run(again, *overlays, initial_weights=aligned, **tumours)
    loss = made.parser.get_parsed_content("pretrain::trainer").loss_function
    assert list(loss.losses) == ["segmentation"]
    metrics = json.loads((again / "tumours" / "metrics.json").read_text())["rows"]["trained"]
    assert set(metrics) == {
        f"segmentation/{n}" for n in ("dice_macro", "detection_auroc_macro", "detection_auroc_micro")
    }
    assert read_manifest(again / "tumours" / "manifest.json")["regions"] == ["lung_nodule", "liver_cyst", "kidney_cyst"]
    fresh = workflow(again, *overlays, initial_weights=aligned, **tumours)
    fresh.initialize()
    tower = fresh.parser.get_parsed_content("tower")
    fresh.parser.get_parsed_content("run::1")
    source = torch.load(aligned, weights_only=True)
    state = tower.encoder.state_dict()
    assert all(torch.equal(source[f"encoder.{key}"], value) for key, value in state.items() if "seg_layers" not in key)
    assert source["encoder.network.decoder.seg_layers.0.weight"].shape[0] == 27
    assert state["network.decoder.seg_layers.0.weight"].shape[0] == 4


def test_finetuning_uses_a_share_of_the_training_patients(again):
    def patients(share):
        made = workflow(again, "train.json", "finetune.json", train_share=share, **LESIONS)
        return {study.subject_id for study in made.parser.get_parsed_content("studies::train")}

    assert patients(0.5) < patients(1.0)


def test_finetuning_refuses_weights_of_another_network(again):
    options = {"encoder::options_for::ct_glip/nnunet": {"features": [8, 16], "blocks": 1}} | LESIONS
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        run(again, "train.json", "finetune.json", initial_weights=str(again / "models" / "model.pt"), **options)
    assert re.search(r"model.pt: does not fit SegmentingEncoder", explain(caught.value))


def test_mit_is_finetuned_with_its_encoder_frozen_first(tmp_path):
    bundle = running.copy_bundle(tmp_path, "ct_glip")
    files = [str(bundle / "configs" / n) for n in ("train.json", "mit.json", "finetune.json", "finetune_mit.json")]
    made = ConfigParser()
    made.read_config(files)
    made["bundle_root"] = str(bundle)
    made["pretrain::dataloader"] = [0] * 10
    made["initial_weights"] = "model.pt"
    freeze = made.get_parsed_content("pretrain::handlers::6")
    assert freeze.module is made.get_parsed_content("tower").encoder.network.transformer
    assert freeze.epochs == round(0.2 * made["pretrain::epochs"]) > 0
    optimizer = made.get_parsed_content("pretrain::optimizer")
    assert type(optimizer) is torch.optim.RAdam
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == sum(
        p.numel() for p in made.get_parsed_content("tower").encoder.parameters()
    )
    assert made.get_parsed_content("pretrain::lr_scheduler").total_iters == 10 * made["pretrain::epochs"]
    names = list(made.get_parsed_content("tower").encoder.state_dict())
    assert sum("cls_conv" in name for name in names) == 10
    encoder_alone = ["*cls_conv*", "*Dec*", "network.norm.*", "*stage3*"]  # as the README has it
    for name in names:
        assert any(fnmatchcase(name, pattern) for pattern in encoder_alone) != ("transformer." in name)


def test_published_finetuning_has_nnunets_schedule(tmp_path):
    made = ConfigParser()
    files = ("train.json", "paper.json", "finetune.json", "finetune_paper.json")
    made.read_config([str(FOLDER / "configs" / name) for name in files])
    made["bundle_root"] = str(tmp_path)
    made["pretrain::dataloader"] = [0] * 56
    with torch.device("meta"):
        optimizer = made.get_parsed_content("pretrain::optimizer")
    assert type(optimizer) is torch.optim.SGD
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["lr"], group["weight_decay"]) == (0.99, True, 0.01, 3e-5)
    schedule = made.get_parsed_content("pretrain::lr_scheduler")
    assert 125_000 <= schedule.total_iters < 125_056
    assert schedule.power == 0.9
    assert made.get_parsed_content("encoder").input.size == (160, 160, 64)
