"""The radclip bundle: both stages in miniature, its overlays, inference, and the published setting."""

from __future__ import annotations

import csv
import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from medvl_core.bundle.manifest import read_manifest
from medvl_core.bundle.startup import exit_code
from tests.bundles import running
from tests.bundles.conftest import Trained, trained_copy

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("_process_as_before"),
]
BUNDLE = running.ROOT / "monai_bundles" / "radclip"


def run(bundle, *configs, **overrides):
    """A bundle's run in this process, in miniature."""
    return Trained(bundle).run(*configs, **overrides)


def run_adapter(trained, folder, *configs, **overrides):
    """Stage 2 alone, on stage 1 of the trained bundle."""
    places = {"stage1_dir": trained / "models", "ckpt_dir": folder / "models", "output_dir": folder / "eval"}
    given = {name: str(path) for name, path in places.items()}
    run(trained, "train.json", "adapter_only.json", *configs, **given, track=False, **overrides)


def rows(folder):
    return json.loads((folder / "metrics.json").read_text())["rows"]


def state(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The bundle after both stages, in miniature."""
    return trained_copy(tmp_path_factory.mktemp("radclip"), "radclip").bundle


def test_training_leaves_both_stages_and_an_evaluation_beside_average_pooling(trained):
    assert {"stage1.pt", "model.pt", "manifest.json", "vocabulary.txt"} <= {
        p.name for p in (trained / "models").iterdir()
    }
    assert set(rows(trained / "eval")) == {"chance", "average pooling", "trained"}
    assert {
        "comparison.md",
        "matching_confusion.csv",
        "linear_probe_summary.csv",
        "report.html",
        "dropped_train.csv",
    } <= {p.name for p in (trained / "eval").iterdir()}
    assert {p.name for p in trained.iterdir()} <= {
        *("LICENSE", "configs", "docs", "prompts", "scripts", "models", "eval", "cache", "mlruns", "mlruns.db"),
    }


def test_stage_two_trains_the_adapter_and_nothing_else(trained):
    first, second = state(trained / "models" / "stage1.pt"), state(trained / "models" / "model.pt")
    image = {
        key.removeprefix("towers.image."): value for key, value in first.items() if key.startswith("towers.image.")
    }
    for key, value in image.items():
        assert torch.equal(second[f"encoder.tower.{key}"], value), key
    assert {key.split(".")[0] for key in second} == {"encoder", "pooling", "input_sha256"}
    assert second["pooling.pos_embed"].abs().max() > 0  # started at zero


def test_text_tower_is_frozen_in_stage_one_and_the_image_tower_is_not(trained, tmp_path):
    again = running.copy_bundle(tmp_path, "radclip")
    workflow = run(again, "train.json", run=["@clip_model"])
    start = workflow.parser.get_parsed_content("clip_model").state_dict()
    end = state(trained / "models" / "stage1.pt")
    changed = {
        key.split(".")[1]
        for key, value in end.items()
        if value.is_floating_point() and not torch.equal(value, start[key])
    }
    assert changed == {"image"}


def test_evaluation_alone_gives_the_numbers_of_the_training_run(trained):
    before = rows(trained / "eval")
    (trained / "eval" / "metrics.json").unlink()
    run(trained, "train.json", "evaluate.json")
    assert rows(trained / "eval")["trained"] == before["trained"]


def test_average_pooling_as_the_model_is_the_row_beside_it(trained, tmp_path):
    run_adapter(trained, tmp_path, "average.json")
    found = rows(tmp_path / "eval")
    assert found["trained"] == found["average pooling"] == rows(trained / "eval")["average pooling"]
    assert not (tmp_path / "models" / "stage1.pt").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("radclip/gated_attention", "radclip/slice_transformer", "radclip/slice_conv", "radclip/slice_max"),
        *("baseline/attention", "baseline/mean"),
    ],
)
def test_pooling_is_one_override_away(trained, tmp_path, name):
    run_adapter(trained, tmp_path, epochs=1, **{"slice_pooling::name": name})
    parts = read_manifest(tmp_path / "models" / "manifest.json")["parts"]
    assert parts["volume_tower"]["options"]["pooling"]["component"] == name
    assert "trained" in rows(tmp_path / "eval")


def test_stored_slices_give_the_embeddings_of_slices_encoded_anew(trained):
    workflow = run(trained, "train.json", "evaluate.json", run=["@load_stage1", "$@slice_encoder.freeze()"])
    get = workflow.parser.get_parsed_content
    study = get("studies")["test"][0]
    tower, tokens = get("volume_tower").eval(), get("slice_tokens")
    tokens.prepare([study])
    stored = tokens(study)
    with torch.no_grad():
        direct = tower(get("volume_images")(study)[None])
        torch.testing.assert_close(
            tower.pool(stored["volume_tokens"][None], stored["volume_mask"][None]), direct, atol=1e-5, rtol=1e-5
        )


def test_inference_ranks_texts_for_a_picture_and_a_volume(trained, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "input"
    folder.mkdir()
    Image.fromarray(rng.integers(0, 255, (60, 50), dtype=np.uint8)).save(folder / "a.png")
    nib.save(
        nib.Nifti1Image(rng.normal(size=(20, 24, 9)).astype(np.float32), np.diag([1.0, 1, 3, 1])), folder / "b.nii.gz"
    )
    (folder / "broken.png").write_bytes(b"not a picture")
    texts = tmp_path / "texts.txt"
    texts.write_text("Chest CT, normal\n\nChest CT, lung nodule\nA Puppy\n")
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        run(trained, "inference.json", input=str(folder), texts=str(texts), output_dir=str(tmp_path / "out"))
    assert exit_code(caught.value) == 65
    with (tmp_path / "out" / "ranking.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["study"] for row in found] == ["a.png"] * 3 + ["b.nii.gz"] * 3
    assert {row["text"] for row in found[:3]} == {"Chest CT, normal", "Chest CT, lung nodule", "A Puppy"}
    cosines = np.array([float(row["cosine"]) for row in found]).reshape(2, 3)
    assert np.all(np.diff(cosines) <= 0)
    with (tmp_path / "out" / "slices.csv").open() as file:
        weights = [float(row["weight"]) for row in csv.DictReader(file)]
    assert len(weights) == 9
    assert sum(weights) == pytest.approx(1, abs=1e-4)
    assert (tmp_path / "out" / "b.nii.gz_slices.png").stat().st_size > 5000
    exported = np.load(tmp_path / "out" / "embeddings.npz")
    assert exported["study"].tolist() == ["a.png", "b.nii.gz"]
    np.testing.assert_allclose(np.linalg.norm(exported["embedding"], axis=1), 1, atol=1e-5)


def test_default_network_has_the_shape_the_metadata_states():
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    parser.read_meta(str(BUNDLE / "configs" / "metadata.json"))
    image = parser["_meta_#network_data_format#inputs#image"]
    network = parser.get_parsed_content("image_tower").eval()
    out = network(torch.zeros(1, image["num_channels"], *image["spatial_shape"]))
    assert out.shape == (1, parser["_meta_#network_data_format#outputs#pred#num_channels"])


@pytest.fixture
def pictures(tmp_path):
    """Two classes that grey values tell apart, and one damaged file."""
    rng = np.random.default_rng(0)
    for name, level in (("bright", 170), ("dark", 60)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(40):
            array = np.clip(rng.normal(level, 20, (40, 40)), 0, 255).astype(np.uint8)
            Image.fromarray(array).save(tmp_path / "set" / name / f"{i:02d}.png")
    (tmp_path / "set" / "dark" / "damaged.png").write_bytes(b"no")
    return tmp_path / "set"


def test_first_stage_alone_on_class_folders_lists_what_it_drops(pictures, tmp_path):
    bundle = running.copy_bundle(tmp_path, "radclip")
    run(
        bundle,
        "train.json",
        "train_2d.json",
        image_dir=str(pictures),
        image_region="Brain",
        image_modality="MRI",
        image_templates=["Brain MRI, {}"],
        n_folds=3,
        track=False,
        **{"stage1::epochs": 4},
    )
    assert set(rows(bundle / "eval")) == {"chance", "untrained", "trained"}
    assert rows(bundle / "eval")["trained"]["matching/top_1"]["value"] > 0.9
    dropped = "".join(
        (bundle / "eval" / f"dropped_images_{s}.csv").read_text() for s in ("train", "validation", "test")
    )
    assert dropped.count("damaged.png") >= 1
    assert not (bundle / "models" / "model.pt").exists()
    assert {p.name for p in (bundle / "models").iterdir()} >= {"stage1.pt", "manifest.json"}


def test_copies_in_train_and_test_are_found_before_a_claim(pictures, tmp_path):
    y, x = np.mgrid[:40, :40]
    for i, name in enumerate(("bright", "dark")):
        for path in (pictures / name).glob("[0-9]*.png"):
            Image.fromarray(np.uint8(127 + 100 * np.sin(x / (3 + i)) * np.cos(y / 5))).save(path)
    (pictures / "dark" / "damaged.png").unlink()
    bundle = running.copy_bundle(tmp_path, "radclip")
    with pytest.raises(RuntimeError) as caught:
        run(
            bundle,
            *("train.json", "train_2d.json", "overlap.json"),
            image_dir=str(pictures),
            image_region="Brain",
            image_modality="MRI",
        )
    assert "share" in str(caught.value.__cause__)


def test_published_values_are_selectable_and_every_object_builds_at_full_size(tmp_path):
    bundle = running.copy_bundle(tmp_path, "radclip")
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in ("train.json", "paper.json")])
    for key, value in {
        "bundle_root": str(bundle),
        "device": "$torch.device('meta')",
        "clip_weights": "random",
        "clip_vocabulary": None,
        "image_dataset::name": "radclip/phantom_slices",
        "dataset::name": "radclip/phantom_volumes",
        "n_subjects": 8,
        "phantom_shape": [16, 16, 16],
        "stage1::batch_size": 8,
        "batch_size": 2,
        "num_workers": 0,
        "prepare_workers": 0,
        "texts_file": None,
    }.items():
        parser[key] = value
    get = parser.get_parsed_content
    with torch.device("meta"):
        clip, volume, network = get("clip_model"), get("volume_tower"), get("network_def")
        trainers = [get("stage1::trainer")]
        get("slice_encoder").freeze()
        trainers.append(get("train::trainer"))
        first, second = (trainer.optimizer for trainer in trainers)
    config = clip.towers["image"].encoder.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.patch_size, config.image_size) == (24, 1024, 14, 224)
    assert clip.towers["image"].embed_dim == clip.towers["report"].embed_dim == 768
    assert float(network.log_logit_scale.requires_grad) == 0
    assert not any(p.requires_grad for p in clip.towers["report"].parameters())
    assert (first.param_groups[0]["lr"], first.param_groups[0]["weight_decay"]) == (1e-5, 0.01)
    assert second.param_groups[0]["lr"] == 1e-4
    assert {id(p) for p in second.param_groups[0]["params"]} == {id(p) for p in volume.pooling.parameters()}
    assert (volume.pooling.attn.num_heads, volume.pooling.attn.dropout) == (8, 0.5)
    assert volume.encoder.n_tokens == 64
    assert all(trainer.amp for trainer in trainers)
    assert get("evaluate") is not None
    assert trainers[0].loss.losses["image_report"].duplicates == "negative"


def test_published_rate_of_the_paper_is_one_key_away():
    content = json.loads((BUNDLE / "configs" / "paper.json").read_text())
    assert content["learning_rates"] == {"paper": 1e-4, "code": 1e-5}
    assert content["published"] in content["learning_rates"]
    assert [content[f"stage1::{key}"] for key in ("epochs", "batch_size")] == [10, 54]


def test_tables_print_our_numbers_beside_the_published(trained, capsys, monkeypatch, tmp_path):
    tables = running.script("tables.py", BUNDLE)
    top = rows(trained / "eval")["trained"]["matching/top_1"]["value"]
    monkeypatch.setattr(sys, "argv", ["tables.py", "2", "--runs", f"phantoms={trained}/ev*"])
    assert tables.main() == 0
    shown = capsys.readouterr().out
    assert f"| phantoms | {100 * top:.1f} [" in shown
    assert "| RadCLIP | 23.90 | 27.22 | 57.07 | 51.15 |" in shown
    monkeypatch.setattr(sys, "argv", ["tables.py", "3", "--ablation", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"run ablation\.py first"):
        tables.main()


def test_prompt_files_name_a_text_for_every_class():
    for path in (BUNDLE / "prompts").glob("*.json"):
        texts = json.loads(path.read_text())
        assert len(set(texts.values())) == len(texts) >= 2, path.name
