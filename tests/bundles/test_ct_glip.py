from __future__ import annotations

import csv
import json
import math
import re
import shutil
import sys
from fnmatch import fnmatchcase

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from medvl_core.build import build_encoder
from medvl_core.bundle.manifest import read_manifest
from medvl_core.bundle.startup import explain
from medvl_core.protocols import LossOutput
from medvl_phantom import ORGANS, PhantomCohort
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
    if configs[0] == "inference.json":  # which takes everything from the manifest
        tiny = {}
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
    bundle = running.copy_bundle(tmp_path_factory.mktemp("trained"), "ct_glip")
    with running.process_as_before():
        run(bundle, "train.json")
    return bundle


@pytest.fixture
def again(trained, tmp_path):
    """The trained bundle in a folder of its own."""
    shutil.copytree(trained, tmp_path / "ct_glip")
    return tmp_path / "ct_glip"


def test_training_leaves_both_stages_tables_and_figures(trained):
    models = {path.name for path in (trained / "models").iterdir()}
    assert {"segmentation.pt", "model.pt", "manifest.json", "word_weights.tsv"} <= models
    files = {path.name for path in (trained / "eval").iterdir()}
    assert {"report.html", "organ_per_organ.csv", "organ_similarity.png", "abnormality_per_class.csv"} <= files
    assert {"chance", "untrained", "trained"} == set(rows(trained))
    manifest = read_manifest(trained / "models" / "manifest.json")
    assert manifest["components"]["image_tower.encoder"] == "ct_glip/nnunet"
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
    made = run(again, "train.json", overlay, stage1_weights=first, epochs=1)
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


def test_network_of_inference_is_the_one_that_was_trained(again, scan):
    run(again, "train.json", **{"image_encoder::name": "ct_glip/dynunet", "image_tower::hidden": 12}, epochs=1)
    options = {"masks": str(scan / "labels.nii.gz"), "mask_names": str(scan / "names.json")}
    made = run(again, "inference.json", input=str(scan / "ct.nii.gz"), **options)
    tower = made.parser.get_parsed_content("network_def")
    assert tower.encoder.component == "ct_glip/dynunet"
    assert tower.head[0].out_features == 12
    state = torch.load(again / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in tower.state_dict().items())
    assert (again / "eval" / "organs.csv").is_file()


def test_old_keys_are_read_for_one_release(again, caplog):
    old = {
        "encoder::name": "ct_glip/mit",
        "tower::hidden": 12,
        "pretrain::epochs": 7,
        "segmentation_weights": "here.pt",
    }
    made = workflow(again, "train.json", **old, patch=[32, 32, 32], region_text={"name": "ct_glip/organ_labels"})
    made.initialize()
    get = made.parser.get_parsed_content
    assert get("image_tower").encoder.component == "ct_glip/mit"
    assert get("image_tower").head[0].out_features == 12
    assert type(get("captions")).__name__ == "OrganLabels"
    assert (get("stage1::epochs"), get("stage1_weights")) == (7, "here.pt")
    assert "pretrain is now stage1; the old key goes with 0.2" in caplog.text


def test_a_random_text_encoder_is_the_one_of_training_at_inference(again):
    """Frozen and of no file: its weights are kept."""
    words = again / "models" / "vocabulary.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]) + "\n")
    options = {"vocabulary": str(words), "hidden_size": 128, "layers": 1, "heads": 2}
    changed = {"text_encoder::name": "baseline/bert_small"}
    changed["text_encoder::options_for"] = {"baseline/bert_small": options}
    made = run(again, "train.json", **changed, epochs=1, stage1_weights=str(again / "models" / "segmentation.pt"))
    trained = made.parser.get_parsed_content("text_tower")
    found = workflow(again, "inference.json").parser.get_parsed_content("text_tower")
    assert torch.equal(found.embed_text(["a cyst"]), trained.embed_text(["a cyst"]))


def test_a_global_pooling_is_refused_before_anything_is_trained(again):
    made = workflow(again, "train.json", **{"image_pooling::name": "baseline/mean"})
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        made.initialize()
    assert "baseline/mean pools whole images; organs need a region pooling: ct_glip/organ_mean" in explain(caught.value)


class Aged(PhantomCohort):
    """Phantoms that offer the ages of their patients."""

    def __init__(self, seed=0):
        super().__init__(12, (32, 32, 32), seed=seed)
        self.fields = {"age": lambda study, draw: torch.tensor(40.0 + len(study.subject_id))}


class Older(torch.nn.Module):
    """A loss that reads them, one for every pair of an organ and a text."""

    needs = ("age",)

    def forward(self, batch):
        total = (batch.extras["age"] * batch.embeddings["ct"].square().sum(dim=1)).mean()
        return LossOutput(total, {"older": total.detach()})


def test_a_loss_that_needs_an_entry_trains_where_the_dataset_offers_it(again, tmp_path):
    first = {"stage1_weights": str(again / "models" / "segmentation.pt"), "epochs": 1}
    added = {"loss::losses::older": {"_target_": f"{__name__}.Older"}}
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        run(again, "train.json", **added, **first)
    assert "loss older (Older) needs 'age'; the batch has" in explain(caught.value)
    made = run(again, "train.json", **added, dataset={"_target_": f"{__name__}.Aged", "seed": "@seed"}, **first)
    assert made.parser.get_parsed_content("train::trainer").state.output["loss"] > 40


def test_an_encoder_that_does_not_segment_is_aligned_alone(again):
    changed = {"image_encoder::name": "baseline/resnet_3d", "epochs": 1}
    changed["image_encoder::options_for"] = {"baseline/resnet_3d": {"depth": 10, "base_width": 4}}
    changed["run"] = ["@prepare", "@make_stage1", "$@train::trainer.fit()"]  # a grid of one cell shows no organ
    made = run(again, "train.json", "alignment_only.json", **changed, val_interval=100)
    tower = made.parser.get_parsed_content("image_tower")
    assert tower.encoder.component == "baseline/resnet_3d"
    untrained = made.parser.get_parsed_content("untrained")
    assert not torch.equal(tower.head[0].weight, untrained.head[0].weight)


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
        least = {row["question"].split(" | ")[0]: float(row["log_odds"] or "nan") for row in csv.DictReader(file)}
    assert not all(map(math.isnan, least.values()))
    for row in table:
        value = 1 / (1 + math.exp(-least.get(row["abnormality"], math.nan)))
        assert row["threshold"] == ("" if math.isnan(value) else str(round(value, 6)))
        judged = bool(row["probability"] and row["threshold"])
        assert row["reached"] == (str(float(row["probability"]) >= value) if judged else "")
    run(again, "inference.json", input=str(scan / "ct.nii.gz"), **{**options, "prompts::normal": "healthy {organ}"})
    with (again / "eval" / "organs.csv").open() as file:
        assert {row["threshold"] for row in csv.DictReader(file)} == {""}  # another question has another threshold
    assert {"overlay.png", "similarity.png"} <= {path.name for path in (again / "eval").iterdir()}


def test_masks_are_looked_at_without_training(tmp_path):
    bundle = running.copy_bundle(tmp_path, "ct_glip")
    run(bundle, "train.json", "check_masks.json", required=["liver"])
    with (bundle / "eval" / "masks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    assert {"liver", "spleen"} <= {row["region"] for row in rows}
    assert not (bundle / "models").exists()


def test_published_weights_start_a_run_and_inference_needs_them_no_more(trained, tmp_path, scan):
    bundle = running.copy_bundle(tmp_path, "ct_glip")
    options = {"features": [4, 8], "blocks": 1}
    regions = read_manifest(trained / "models" / "manifest.json")["regions"]
    network = build_encoder("ct_glip/nnunet", size=(16, 16, 16), num_classes=len(regions) + 1, **options).network
    weights = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": network.state_dict()}, weights)
    encoder = {"image_encoder::options_for::ct_glip/nnunet": {**options, "weights": str(weights)}}
    run(bundle, "train.json", epochs=1, **encoder)
    weights.unlink()
    masks = {"masks": str(scan / "labels.nii.gz"), "mask_names": str(scan / "names.json")}
    run(bundle, "inference.json", input=str(scan / "ct.nii.gz"), **masks)
    assert (bundle / "eval" / "organs.csv").is_file()


def test_organs_of_scans_are_recognised_by_several_models(trained, scan, tmp_path, monkeypatch, capsys):
    script = running.script("recognise_scans.py", trained)
    words = ["--scan", scan / "ct.nii.gz", scan / "labels.nii.gz", scan / "names.json"]
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
    (tmp_path / "ask.json").write_text(json.dumps([MASS]))  # no label or role, which only training uses
    options = {"masks": str(scan / "labels.nii.gz"), "mask_names": str(scan / "names.json")}
    (again / "models" / "thresholds.csv").unlink()  # as after training without labels
    run(again, "inference.json", input=str(scan / "ct.nii.gz"), prompt_file=str(tmp_path / "ask.json"), **options)
    with (again / "eval" / "organs.csv").open() as file:
        found = [(row["region"], row["abnormality"], row["threshold"]) for row in csv.DictReader(file)]
    assert found == [("liver", "mass", "")]
    (again / "models" / "thresholds.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        run(again, "inference.json", input=str(scan / "ct.nii.gz"), **options)
    assert "thresholds.csv: no table of question and log_odds" in explain(caught.value)


@pytest.fixture
def refused(again, scan, tmp_path, monkeypatch):
    """What inference says when it refuses, and whether masks were made or the network ran before."""
    late = []
    monkeypatch.setattr("medvl_ct_glip.inference.weights_folder", lambda *_: tmp_path)
    monkeypatch.setattr("medvl_ct_glip.mask_maker.MakeMasks._segment", lambda *_: late.append("masks"))
    monkeypatch.setattr("medvl_ct_glip.regions.windows.ScanEmbedding.forward", lambda *_: late.append("network"))

    def refuse(prompts=None, **overrides):
        if prompts is not None:
            (tmp_path / "ask.json").write_text(json.dumps(prompts))
            overrides["prompt_file"] = str(tmp_path / "ask.json")
        with pytest.raises(RuntimeError, match="Failed to") as caught:
            run(again, "inference.json", input=str(scan / "ct.nii.gz"), **overrides)
        assert late == []
        assert "\n" not in explain(caught.value)
        return explain(caught.value)

    return refuse


LIVER = next(label for label, name in ORGANS.items() if name == "liver")
MASS = {"name": "mass", "organ": "liver", "regions": ["liver"]}


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([MASS | {"regions": "liver"}], r"ask\.json: regions of mass are 'liver'; give a list"),
        ([MASS, MASS | {"name": "cyst", "regions": ["livr"]}], r"the model has no region 'livr'; did you mean 'liver'"),
        (
            [{"name": "mass", "regions": ["liver"]}],
            r"ask\.json: no table .*'organ'.*; give a list of name, organ, regions",
        ),
    ],
)
def test_prompts_that_cannot_be_asked_are_refused_before_masks_are_made(refused, prompts, message):
    assert re.search(message, refused(prompts))


def test_missing_files_are_noticed_before_masks_are_made(refused, again):
    assert "absent.json: no such table of abnormalities" in refused(prompt_file="absent.json")
    (again / "models" / "model.pt").unlink()
    assert "model.pt: no such weights file" in refused()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels: labels[::-1], r"wrong\.nii\.gz: .* lie on the left of their counterparts"),
        (lambda labels: labels * 0, r"wrong\.nii\.gz: the mask is empty"),
        (
            lambda labels: labels * (np.cumsum(labels == LIVER).reshape(labels.shape) == 1) * (labels == LIVER),
            "regions has 3 voxels",
        ),
    ],
)
def test_masks_that_cannot_be_right_are_refused_before_the_network_runs(refused, scan, tmp_path, change, message):
    mask = nib.load(scan / "labels.nii.gz")
    wrong = np.ascontiguousarray(change(np.asarray(mask.dataobj))).astype(np.uint8)
    nib.save(nib.Nifti1Image(wrong, mask.affine), tmp_path / "wrong.nii.gz")
    assert re.search(message, refused(masks=str(tmp_path / "wrong.nii.gz"), mask_names=str(scan / "names.json")))


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
    study = made.get_parsed_content("dataset").studies("train")[0]
    assert {"kidney_left", "kidney_cyst_left"} <= set(study.region_names.values())
    assert "kidney_cyst_left" in made.get_parsed_content("merge")
    with torch.device("meta"):
        encoder = made.get_parsed_content("image_encoder")
        assert encoder.num_classes == 105
        assert encoder.embed_dim == 32
        out = encoder(torch.zeros(1, 1, *encoder.input.size))
    assert out.features.shape == (1, 32, 160, 160, 64)
    assert encoder.input.spacing_mm == (1.0, 1.0, 3.0)
    parameters = sum(p.numel() for p in encoder.parameters())
    assert 25e6 < parameters < 40e6


def test_published_setting_trains_in_miniature_on_files(own_data, tmp_path):
    bundle = running.copy_bundle(tmp_path, "ct_glip")
    options = {
        "table": str(own_data / "table.csv"),
        "split_column": "split",
        "text_encoder::name": "baseline/word_vectors",
        "text_pooling::name": "baseline/mean",
        "masks_dir": str(own_data / "masks"),
        "mask_names": str(own_data / "names.json"),
        "num_workers": 0,
        "epochs": 1,
    }
    masked = json.loads((bundle / "configs" / "paper.json").read_text())["dataset"]  # miniature names a phantom
    run(bundle, "train.json", "paper.json", dataset=masked, **options)
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
    parts = set(made.parser.get_parsed_content("studies")["train"][0].region_names.values())
    assert parts == {*made.parser.get_parsed_content("regions"), "kidney_cyst_left", "kidney_cyst_right"}
    assert len(made.parser.get_parsed_content("texts").words) == 0
    assert rows(bundle)["trained"].keys() == {"organ/top_1", "organ/top_1_macro"}


def test_training_stops_at_wrong_masks_before_the_first_step(own_data, tmp_path):
    bundle = running.copy_bundle(tmp_path, "ct_glip")
    shutil.copytree(own_data / "masks", tmp_path / "masks")
    wrong = sorted((tmp_path / "masks").iterdir())[:2]
    for path in wrong:
        mask = nib.load(path)
        nib.save(nib.Nifti1Image(np.ascontiguousarray(np.asarray(mask.dataobj)[::-1]), mask.affine), path)
    options = {"table": str(own_data / "table.csv"), "split_column": "split", "masks_dir": str(tmp_path / "masks")}
    masked = json.loads((bundle / "configs" / "own_masks.json").read_text())["dataset"]
    options |= {"dataset": masked, "mask_names": str(own_data / "names.json")}
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        run(bundle, "train.json", "own_masks.json", "names_only.json", **options)
    for path in wrong:
        line = rf"{path.name.removesuffix('.nii.gz')}: {path}: .* lie on the left .*; .* write it again"
        assert re.search(line, explain(caught.value))
    assert not list((bundle / "models").glob("*.pt"))


LESIONS = {
    "dataset::options_for::baseline/phantom::lesions": "@lesions",
    "dataset::options_for::baseline/phantom::prevalence": {"Liver cyst": 0.8, "Kidney cyst": 0.7, "Lung nodule": 0.7},
    "stage1::epochs": 2,
}


def test_finetuning_starts_from_the_aligned_encoder_with_a_new_head(again):
    tumours = {"ckpt_dir": str(again / "tumours"), "output_dir": str(again / "tumours")} | LESIONS
    aligned = str(again / "models" / "model.pt")
    overlays = ("train.json", "finetune.json")
    made = run(again, *overlays, initial_weights=aligned, **tumours)
    loss = made.parser.get_parsed_content("stage1::trainer").loss_function
    assert list(loss.losses) == ["segmentation"]
    metrics = json.loads((again / "tumours" / "metrics.json").read_text())["rows"]["trained"]
    assert set(metrics) == {
        f"segmentation/{n}" for n in ("dice_macro", "detection_auroc_macro", "detection_auroc_micro")
    }
    assert read_manifest(again / "tumours" / "manifest.json")["regions"] == ["lung_nodule", "liver_cyst", "kidney_cyst"]
    fresh = workflow(again, *overlays, initial_weights=aligned, **tumours)
    fresh.initialize()
    tower = fresh.parser.get_parsed_content("image_tower")
    fresh.parser.get_parsed_content("run::1")
    source = torch.load(aligned, weights_only=True)
    state = tower.encoder.state_dict()
    assert all(torch.equal(source[f"encoder.{key}"], value) for key, value in state.items() if "seg_layers" not in key)
    assert source["encoder.network.decoder.seg_layers.0.weight"].shape[0] == 27
    assert state["network.decoder.seg_layers.0.weight"].shape[0] == 4


def test_finetuning_uses_a_share_of_the_training_patients(again):
    def patients(share):
        made = workflow(again, "train.json", "finetune.json", train_share=share, **LESIONS)
        made.parser.parse(reset=True)
        return {study.subject_id for study in made.parser.get_parsed_content("studies")["train"]}

    assert patients(0.5) < patients(1.0)


def test_finetuning_refuses_weights_of_another_network(again):
    options = {"image_encoder::options_for::ct_glip/nnunet": {"features": [8, 16], "blocks": 1}} | LESIONS
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        run(again, "train.json", "finetune.json", initial_weights=str(again / "models" / "model.pt"), **options)
    assert re.search(r"model.pt: does not fit SegmentingEncoder", explain(caught.value))


def test_mit_is_finetuned_with_its_encoder_frozen_first(tmp_path):
    bundle = running.copy_bundle(tmp_path, "ct_glip")
    files = [str(bundle / "configs" / n) for n in ("train.json", "mit.json", "finetune.json", "finetune_mit.json")]
    made = ConfigParser()
    made.read_config(files)
    made["bundle_root"] = str(bundle)
    made["initial_weights"] = "model.pt"
    (freeze,) = made.get_parsed_content("stage1::trainer::handlers")
    assert freeze.module is made.get_parsed_content("image_tower").encoder.network.transformer
    assert freeze.epochs == round(0.2 * made["stage1::epochs"]) > 0
    optimizer = made.get_parsed_content("optimizer")(made.get_parsed_content("stage1::trainer::parameters"))
    assert type(optimizer) is torch.optim.RAdam
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == sum(
        p.numel() for p in made.get_parsed_content("image_tower").encoder.parameters()
    )
    names = list(made.get_parsed_content("image_tower").encoder.state_dict())
    assert sum("cls_conv" in name for name in names) == 10
    encoder_alone = ["*cls_conv*", "*Dec*", "network.norm.*", "*stage3*"]  # as the README has it
    for name in names:
        assert any(fnmatchcase(name, pattern) for pattern in encoder_alone) != ("transformer." in name)


def test_published_finetuning_has_nnunets_schedule(tmp_path):
    made = ConfigParser()
    files = ("train.json", "paper.json", "finetune.json", "finetune_paper.json")
    made.read_config([str(FOLDER / "configs" / name) for name in files])
    made["bundle_root"] = str(tmp_path)
    made["stage1::steps"] = 56
    optimizer, schedule = made.get_parsed_content("optimizer"), made.get_parsed_content("lr_scheduler")
    assert optimizer.func is torch.optim.SGD
    given = {key: optimizer.keywords[key] for key in ("momentum", "nesterov", "weight_decay")}
    assert given == {"momentum": 0.99, "nesterov": True, "weight_decay": 3e-5}
    assert made.get_parsed_content("stage1::trainer::lr") == 0.01
    assert (schedule.func, schedule.keywords["power"]) == (torch.optim.lr_scheduler.PolynomialLR, 0.9)
    assert 125_000 <= made.get_parsed_content("stage1::trainer::max_epochs") * 56 < 125_056
    with torch.device("meta"):
        assert made.get_parsed_content("image_encoder").input.size == (160, 160, 64)


def test_published_mit_has_its_patch_and_schedule(tmp_path):
    made = ConfigParser()
    files = ("train", "paper", "mit_paper", "finetune", "finetune_mit", "finetune_mit_paper")
    made.read_config([str(FOLDER / "configs" / f"{name}.json") for name in files])
    made["bundle_root"] = str(tmp_path)
    made["initial_weights"] = "model.pt"
    made["stage1::steps"] = 56
    with torch.device("meta"):
        encoder = made.get_parsed_content("image_encoder")
        (freeze,) = made.get_parsed_content("stage1::trainer::handlers")
    assert made.get_parsed_content("optimizer").func is torch.optim.RAdam
    assert encoder.component == "ct_glip/mit"
    assert encoder.input.spacing_mm == (1.0, 1.0, 3.0)
    assert len(encoder.network.transformer.block3) == 4  # small
    assert 125_000 <= made.get_parsed_content("stage1::epochs") * 56 < 125_056
    assert abs(freeze.epochs * 56 - 25_000) < 56
    pretraining = ConfigParser()
    pretraining.read_config([str(FOLDER / "configs" / f"{name}.json") for name in files[:3]])
    pretraining["organs"] = ["liver"]
    with torch.device("meta"):
        encoder = pretraining.get_parsed_content("image_encoder")
    assert encoder.input.size == (192, 192, 48)
    assert encoder.embed_dim == 32
