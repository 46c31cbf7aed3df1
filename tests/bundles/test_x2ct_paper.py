"""The published setting: every object of paper.json, at full size without memory and in miniature with weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from safetensors.torch import save_file

from medvl_core.build import build_encoder
from medvl_core.bundle.manifest import read_manifest
from medvl_phantom import PhantomCohort, write_ct_rate_layout
from medvl_x2ct.plugin import medvl_encoders
from tests.bundles import running

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("_process_as_before"),
]
CONFIGS = running.ROOT / "monai_bundles" / "x2ct" / "configs"
TINY = {spec.name: dict(spec.tiny) for spec in medvl_encoders()}
CT, REPORT, CXR = TINY["ct_clip_vit"], TINY["cxr_bert"], TINY["swin_t"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten phantom patients as CT-RATE."""
    return write_ct_rate_layout(PhantomCohort(10, (32, 32, 32)), tmp_path_factory.mktemp("ct_rate"), "v2")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A file of both frozen towers with CT-CLIP's names, and a vocabulary."""
    folder = tmp_path_factory.mktemp("teacher")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.,", "lung", "##s", "no"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    towers = [
        build_encoder("x2ct/ct_clip_vit", **CT),
        build_encoder("x2ct/cxr_bert", vocabulary=folder / "vocab.txt", **REPORT),
    ]
    state = {key: value.contiguous() for tower in towers for key, value in tower.state_dict().items()}
    save_file(state, folder / "ct_clip.safetensors")
    return folder


def parser(bundle, data, *more, **overrides):
    """The parser of train.json and paper.json in a copy of the bundle, on miniature data."""
    made = ConfigParser()
    made.read_config([str(bundle / "configs" / name) for name in ("train.json", "paper.json", *more)])
    fixed = {"bundle_root": str(bundle), "dataset_dir": str(data), "prepare_workers": 0, "num_workers": 0}
    for key, value in (fixed | overrides).items():
        made[key] = value
    return made


def tiny(teacher):
    return {
        "ct_clip_weights": str(teacher / "ct_clip.safetensors"),
        "cxr_bert_vocabulary": str(teacher / "vocab.txt"),
        "ct_encoder::options_for::x2ct/ct_clip_vit": {"weights": "@ct_clip_weights", **CT},
        "text_encoder::options_for::x2ct/cxr_bert": {
            "weights": "@ct_clip_weights",
            "vocabulary": "@cxr_bert_vocabulary",
            **REPORT,
        },
        "image_encoder::options_for::x2ct/swin_t": CXR,
        "batch_size": 4,
        "epochs": 2,
        "n_resamples": 20,
    }


@pytest.mark.parametrize(("name", "width"), [("x2ct/swin_t", 768), ("x2ct/resnet50", 2048)])
def test_every_object_of_full_size_is_built_without_memory(data, tmp_path, name, width):
    made = parser(
        running.copy_bundle(tmp_path),
        data,
        **{
            "image_encoder::name": name,
            "cxr_initialisation": "random",
            "ct_clip_weights": "random",
            "cxr_bert_vocabulary": None,
            "batch_size": 5,
            "device": "$torch.device('meta')",
        },
    )
    get = made.get_parsed_content
    with torch.device("meta"):
        network, trainer, loss = get("network_def"), get("train::trainer"), get("loss")
    assert None not in [get(key) for key in ("evaluate", "embeddings", "job")]
    assert (trainer.state.max_epochs, made["batch_size"], get("seed")) == (50, 5, 1024)
    cxr, ct, report = network.towers["cxr"], get("ct_tower"), get("text_tower")
    assert cxr.encoder.component == name
    assert tuple(cxr.encoder.to_xray_latent.weight.shape) == (512, width)
    assert tuple(ct.encoder.to_visual_latent.weight.shape) == (512, 294912)
    assert tuple(ct.encoder.input.size) == (480, 480, 240)
    assert report.encoder.text_transformer.config.num_hidden_layers == 12
    assert {tower.embed_dim for tower in (cxr, ct, report)} == {512}
    assert not any(p.requires_grad for tower in (ct, report) for p in tower.parameters())
    (group,) = trainer.optimizer.param_groups
    assert (group["lr"], group["weight_decay"], tuple(group["betas"])) == (5e-5, 1e-4, (0.9, 0.99))
    assert {id(p) for p in group["params"]} == {id(p) for p in cxr.parameters()}
    assert loss.losses["tri_modal"].parts.weights == {"report_ct": 0.0, "cxr_report": 1.0, "cxr_ct": 1.0}
    assert get("max_norm") == 0.5


def test_published_numbers_are_those_of_the_file():
    content = json.loads((CONFIGS / "paper.json").read_text())
    assert [content[key] for key in ("epochs", "batch_size", "learning_rate", "seed")] == [50, 360, 5e-5, 1024]


def test_all_training_volumes_and_no_other_are_trained_on(data, tmp_path):
    made = parser(running.copy_bundle(tmp_path), data)
    studies = made.get_parsed_content("studies")
    trained = {study.study_id for study in studies["train"]}
    assert trained == {p.name.removesuffix(".nii.gz") for p in (data / "train_fixed").rglob("*.nii.gz")}
    assert studies["validation"] == []
    assert {study.study_id for study in studies["test"]} == {
        p.name.removesuffix(".nii.gz") for p in (data / "valid_fixed").rglob("*.nii.gz")
    }


def test_missing_teacher_names_the_file_wanted(data, tmp_path):
    made = parser(running.copy_bundle(tmp_path), data)
    with pytest.raises(RuntimeError, match="Failed to instantiate component") as caught:
        made.get_parsed_content("ct_encoder")
    assert "wanted is CT-CLIP_v2.pt" in str(caught.value.__cause__)


def test_it_trains_with_a_frozen_teacher_from_a_file_and_is_evaluated_again(data, teacher, tmp_path):
    bundle = running.copy_bundle(tmp_path)
    made = parser(bundle, data, **tiny(teacher))
    made.get_parsed_content("initialize")
    frozen = torch.nn.ModuleList(made.get_parsed_content(key) for key in ("ct_tower", "text_tower"))
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    made.get_parsed_content("run")
    assert {p.name for p in (bundle / "models").iterdir()} >= {"model.pt", "manifest.json"}
    assert not (bundle / "models" / "teacher.pt").exists()
    for key, value in frozen.state_dict().items():
        assert torch.equal(value, before[key]), key
    manifest = read_manifest(bundle / "models" / "manifest.json")
    assert manifest["components"]["ct_tower.encoder"] == "x2ct/ct_clip_vit"
    assert len(manifest["ct_clip_sha256"]) == 64
    losses = running.losses(bundle)
    assert {stage for stage, _ in losses} == {"student"}
    assert max(step for _, step in losses) == 2 * len(made.get_parsed_content("train::trainer").data_loader)
    numbers = json.loads((bundle / "eval" / "metrics.json").read_text())["rows"]
    assert not [p for p in (bundle / "cache").rglob("*.safetensors") if b"standardise/ct" in p.read_bytes()[:4096]]

    again = parser(bundle, data, "evaluate.json", **tiny(teacher))
    again.get_parsed_content("initialize")
    again.get_parsed_content("run")
    assert json.loads((bundle / "eval" / "metrics.json").read_text())["rows"]["trained"] == numbers["trained"]

    ask = ConfigParser()
    ask.read_config(str(bundle / "configs" / "inference.json"))
    volume = next((data / "valid_fixed").rglob("*.nii.gz"))
    for key, value in {"bundle_root": str(bundle), "ct": str(volume)}.items():
        ask[key] = value
    ask.get_parsed_content("run")
    assert list(json.loads((bundle / "eval" / "findings.json").read_text())["probabilities"]) == [volume.name]


@pytest.mark.parametrize("name", ["x2ct/swin_t", "x2ct/resnet50"])
def test_augmentation_keeps_shape_and_range_and_follows_its_seed(data, tmp_path, name):
    made = parser(running.copy_bundle(tmp_path), data, **{"image_encoder::name": name, "cxr_initialisation": "random"})
    low, high = made.get_parsed_content("image_encoder").input.output_range
    augment = made.get_parsed_content("augmentation")
    film = torch.linspace(low, high, 224).expand(1, 224, 224).contiguous()
    film = film + 0.05 * torch.randn(1, 224, 224, generator=torch.Generator().manual_seed(0))
    film = film.clamp(low, high)

    def seeded(seed):
        augment.set_random_state(seed=seed)
        return np.asarray(augment(film.clone()))

    results = [seeded(seed) for seed in range(6)]
    for result in results:
        assert result.shape == (1, 224, 224)
        assert low <= result.min() <= result.max() <= high
        assert result[0, :, -40:].mean() > result[0, :, :40].mean()  # still the same film
    np.testing.assert_array_equal(results[0], seeded(0))
    assert len({result.tobytes() for result in results}) == 6
