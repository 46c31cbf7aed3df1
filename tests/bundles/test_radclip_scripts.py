"""The scripts of the radclip bundle: the ablation, the tables over seeds and folds, gathered images."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score

from medvl_evaluation.predictions import Predictions
from tests.bundles import running
from tests.bundles.test_radclip import pictures, rows, run, trained  # noqa: F401
from tests.papers.radclip.radclip_sets import class_volumes

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("_process_as_before"),
]
BUNDLE = running.ROOT / "monai_bundles" / "radclip"
tables = running.script("tables.py", BUNDLE)
PROBE, MATCHING = "linear_probe_100_predictions.csv", "matching_predictions.csv"


def called(monkeypatch, script, *words):
    """The exit code of a script."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    return running.script(script, BUNDLE).main()


def evaluation(folder: Path, patients: list[str], seed: int, skill: float = 1.0) -> Predictions:
    """Predictions of three classes as an evaluation writes them."""
    rng = np.random.default_rng(seed)
    labels = np.eye(3)[rng.integers(3, size=len(patients))]
    scores = rng.normal(size=labels.shape) + skill * labels
    ids = [f"{patient}_scan" for patient in patients]
    found = Predictions(ids, patients, ("a", "b", "c"), labels, scores)
    folder.mkdir(parents=True)
    for name in (PROBE, MATCHING):
        found.table().to_csv(folder / name, index=False)
    return found


def test_estimate_is_the_mean_over_seeds_of_accuracy_and_macro_f1(tmp_path):
    seeds = [evaluation(tmp_path / str(s), [f"{s}p{i}" for i in range(40)], s) for s in range(3)]
    accuracy, f1 = tables.estimate([(PROBE, [[tmp_path / str(s)] for s in range(3)])])
    truth = [(seed.labels.argmax(1), seed.scores.argmax(1)) for seed in seeds]
    assert accuracy.seeds == pytest.approx([accuracy_score(*pair) for pair in truth])
    assert f1.value == pytest.approx(np.mean([f1_score(*pair, average="macro") for pair in truth]))


@pytest.mark.parametrize("shared", [True, False])
def test_interval_is_that_of_a_plain_bootstrap_over_seeds_and_patients(tmp_path, shared):
    names = [[f"{0 if shared else s}p{i}" for i in range(80)] for s in range(3)]
    seeds = [evaluation(tmp_path / str(s), names[s], s, 0.5 * s) for s in range(3)]
    found = tables.estimate([(PROBE, [[tmp_path / str(s)] for s in range(3)])])[0]
    rng, patients, values = np.random.default_rng(9), sorted({p for own in names for p in own}), []
    for _ in range(3000):
        drawn = dict.fromkeys(patients, 0)
        for p in rng.choice(patients, len(patients)):
            drawn[p] += 1
        each = []
        for seed in seeds:
            right = seed.labels.argmax(1) == seed.scores.argmax(1)
            each.append(np.average(right, weights=[drawn[p] for p in seed.subject_id]))
        values.append(np.mean([each[i] for i in rng.integers(3, size=3)]))
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    assert (float(found.low), float(found.high)) == pytest.approx((low, high), abs=0.02)


def test_folds_of_a_seed_are_one_evaluation_and_a_difference_is_paired(tmp_path):
    patients = [f"p{i}" for i in range(40)]
    whole = evaluation(tmp_path / "whole", patients, 1)
    for k in range(2):
        part = slice(20 * k, 20 * k + 20)
        (tmp_path / str(k)).mkdir()
        table = Predictions(whole.study_id[part], patients[part], whole.classes, whole.labels[part], whole.scores[part])
        table.table().to_csv(tmp_path / str(k) / PROBE, index=False)
    folds = [[tmp_path / "0", tmp_path / "1"]]
    one, other = (tables.estimate([(PROBE, runs)])[0] for runs in (folds, [[tmp_path / "whole"]]))
    assert one.value == other.value
    same = tables.estimate([(PROBE, folds), (PROBE, folds)])[0]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    evaluation(tmp_path / "others", patients[:30], 1)
    with pytest.raises(SystemExit, match="evaluated on other studies than"):
        tables.estimate([(PROBE, folds), (PROBE, [[tmp_path / "others"]])])


def test_figure_5_counts_how_often_a_text_was_the_nearest(tmp_path, monkeypatch, capsys):
    lines = [("MR/a.png", 1, "brain", 0.5), ("MR/a.png", 2, "cat", 0.1), ("MR/b.png", 1, "brain", 0.3)]
    lines += [("MR/b.png", 2, "cat", 0.2), ("x.nii.gz", 1, "cat", 0.4), ("x.nii.gz", 2, "brain", 0.0)]
    with (tmp_path / "ranking.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("study", "rank", "text", "cosine"), *lines])
    assert called(monkeypatch, "tables.py", "figure5", "--ranking", tmp_path / "ranking.csv") == 0
    shown = capsys.readouterr().out
    assert "| MR (2) | 0.40 (nearest: 2) | 0.15 |" in shown
    assert "| x.nii.gz (1) | 0.00 | 0.40 (nearest: 1) |" in shown


def test_ablation_trains_the_settings_asked_for_and_keeps_what_is_there(tmp_path, monkeypatch, capsys):
    made = []
    ablation = running.script("ablation.py", BUNDLE)

    class Recorded(ConfigWorkflow):
        def run(self):
            made.append(Path(str(self.parser["output_dir"])).parent.name)
            return super().run()

    monkeypatch.setattr("monai.bundle.ConfigWorkflow", Recorded)
    tiny = json.loads(running.tiny(BUNDLE).read_text())
    small = [f"{key}={json.dumps(value)}" for key, value in tiny.items() if "image_encoder" not in key]
    words = ["--out", str(tmp_path), "--seeds", "0", "--settings", "radclip_mean", "radclip_slice_attention"]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words, "--set", *small])
    for _ in range(2):
        assert ablation.main() == 0
    assert made == ["radclip_mean", "radclip_slice_attention"]
    assert not (tmp_path / "seed0" / "radclip_slice_attention" / "models" / "stage1.pt").exists()
    assert called(monkeypatch, "tables.py", "3", "--ablation", tmp_path) == 0
    shown = capsys.readouterr().out
    top = rows(tmp_path / "seed0" / "radclip_slice_attention" / "eval")["trained"]["matching/top_1"]["value"]
    (line,) = (line for line in shown.splitlines() if line.startswith("| stage 1 + adapter"))
    assert f"| {100 * top:.1f} [" in line
    assert "| stage 1 + average pooling |" in shown


def test_volumes_of_three_modalities_train_both_stages(tmp_path):
    bundle = running.copy_bundle(tmp_path, "radclip")
    (tmp_path / "set").mkdir()
    options = class_volumes(tmp_path / "set")
    small = {"dataset_dir": str(options["folder"]), "track": False, "batch_size": 4, "stage1::epochs": 1, "epochs": 1}
    workflow = run(bundle, "train.json", "sts.json", **small)
    get = workflow.parser.get_parsed_content
    people = {
        f"{kind} {split}": {study.subject_id for study in get(name).studies[split]}
        for kind, name in (("image", "image_cohort"), ("volume", "cohort"))
        for split in ("train", "test")
    }
    assert people["image train"] == people["volume train"]
    assert not people["image train"] & people["volume test"]
    assert len(get("image_cohort").studies["train"]) == 8 * len(get("studies")["train"])
    assert set(rows(bundle / "eval")) == {"chance", "average pooling", "trained"}


def test_images_are_gathered_under_their_captions(tmp_path, monkeypatch, capsys):
    for i in range(6):
        (tmp_path / "mr").mkdir(exist_ok=True)
        Image.fromarray(np.full((9, 9), 40 * i, np.uint8)).save(tmp_path / "mr" / f"{i}.png")
    for patient in "ab":
        (tmp_path / "ct" / patient).mkdir(parents=True)
        array = np.random.default_rng(0).normal(size=(8, 6, 5)).astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "ct" / patient / "scan.nii.gz")
    shown, volumes = f"Brain MRI={tmp_path}/mr/*.png", f"Chest CT={tmp_path}/ct/*/scan.nii.gz"
    words = ("--out", tmp_path / "out", "--most", 3, "--per_volume", 2, "--pictures", shown, "--volumes", volumes)
    for _ in range(2):
        assert called(monkeypatch, "gather_images.py", *words) == 0
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    slices = [f"Chest CT/{patient}__scan_slice00{k}.png" for patient in "ab" for k in (0, 1)]
    assert made == [*(f"Brain MRI/{i}.png" for i in (0, 2, 5)), *slices]
    assert Image.open(tmp_path / "out" / slices[0]).size == (8, 8)

    (tmp_path / "mr2").mkdir()
    (tmp_path / "mr2" / "0.png").write_bytes((tmp_path / "mr" / "0.png").read_bytes())
    again = ("--out", tmp_path / "out", "--pictures", f"Brain MRI={tmp_path}/mr2/*.png")
    assert called(monkeypatch, "gather_images.py", *again) == 65
    assert "put a wildcard in place of the folder's name" in capsys.readouterr().err
    for words in (f"Brain MRI={tmp_path}/none/*.png", f"Brainy={tmp_path}/mr/*.png"):
        assert called(monkeypatch, "gather_images.py", "--out", tmp_path / "out", "--pictures", words) == 65


def test_first_stage_alone_ranks_texts_and_a_volume_by_its_mean_slice(trained, tmp_path):  # noqa: F811
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(20, 24, 9)).astype(np.float32), np.eye(4)), path)
    texts = tmp_path / "texts.txt"
    texts.write_text("Chest CT, normal\nA Puppy\n")
    given = {"input": str(path), "texts": str(texts), "output_dir": str(tmp_path / "out")}
    run(trained, "inference.json", "stage1_inference.json", **given)
    with (tmp_path / "out" / "ranking.csv").open() as file:
        assert {row["text"] for row in csv.DictReader(file)} == {"Chest CT, normal", "A Puppy"}
    assert not (tmp_path / "out" / "slices.csv").exists()


@pytest.mark.parametrize(("plane", "count"), [("coronal", 16), ("sagittal", 12)])
def test_every_plane_trains_and_gives_the_weights_of_its_slices(trained, tmp_path, plane, count):  # noqa: F811
    path = tmp_path / "scan.nii.gz"
    array = np.random.default_rng(0).normal(size=(12, 24, 9)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 1, 3, 1])), path)
    places = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "out"), "plane": plane}
    stage1 = {"stage1_dir": str(trained / "models")}
    run(trained, "train.json", "adapter_only.json", track=False, epochs=1, **places, **stage1)
    places.pop("plane")
    run(trained, "inference.json", input=str(path), **places)
    with (tmp_path / "out" / "slices.csv").open() as file:
        weights = [float(row["weight"]) for row in csv.DictReader(file)]
    assert len(weights) == count
    assert sum(weights) == pytest.approx(1, abs=1e-4)
    assert (tmp_path / "out" / "scan.nii.gz_slices.png").is_file()
    with pytest.raises(RuntimeError) as caught:  # an adapter of another plane
        run(trained, "train.json", "evaluate.json", output_dir=str(tmp_path / "out"), plane=plane)
    assert "build its encoder with the constants that they were trained with" in str(caught.value.__cause__)


def test_a_language_model_takes_the_place_of_the_text_tower(pictures, tmp_path):  # noqa: F811
    from transformers import BertConfig, BertModel, BertTokenizer

    from medvl_baseline.texts.vocabulary import wordpiece_vocabulary

    tokens = wordpiece_vocabulary(["brain mri, dark bright"] * 3, tmp_path / "vocab.txt", size=90).read_text().split()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokens), max_position_embeddings=40, **sizes)).save_pretrained(tmp_path / "lm")
    BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, model_max_length=40).save_pretrained(
        tmp_path / "lm"
    )
    bundle = running.copy_bundle(tmp_path, "radclip")
    given = {"text_model": str(tmp_path / "lm")}
    words = {"image_dir": str(pictures), "image_region": "Brain", "image_modality": "MRI", "n_folds": 3, "track": False}
    workflow = run(bundle, "train.json", "train_2d.json", "language_model.json", **given, **words)
    assert workflow.parser.get_parsed_content("image_tower").embed_dim == 16
    given = {"input": str(pictures / "dark" / "00.png"), "output_dir": str(tmp_path / "out")}
    run(bundle, "inference.json", "stage1_inference.json", **given)
    assert (tmp_path / "out" / "ranking.csv").read_text().startswith("study,rank,text,cosine\n00.png,1,")
