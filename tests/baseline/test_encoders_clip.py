from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from medvl_baseline.encoders.clip import ClipText, build_clip_image, build_clip_text
from medvl_baseline.encoders.clip_tokenizer import ClipTokenizer
from medvl_baseline.encoders.clip_weights import load_clip
from medvl_core.engine.alignment import Tower
from medvl_core.engine.weights import WeightsError, atomic_save, save_weights, weights_digest
from medvl_core.protocols import TokenBatch
from medvl_core.study import Image
from medvl_imaging.transforms import standardise
from tests.golden import DATA, weights_by_name

IMAGE = {"size": (32, 32), "patch": 16, "width": 16, "layers": 2, "heads": 2, "projection_dim": 8}
TEXT = {"width": 16, "layers": 2, "heads": 2, "projection_dim": 8, "max_length": 20}
GOLDEN_IMAGE = {"size": (64, 64), "patch": 16, "width": 128, "layers": 3, "heads": 2, "projection_dim": 32}
BLOCK = "visual.transformer.resblocks"
LAYER = (
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
    *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
)
EXTRA = {"temp": torch.tensor(0.07), "cxr_bert.a.weight": torch.zeros(2), "bert_projection.bias": torch.zeros(2)}


def _golden_state() -> dict[str, torch.Tensor]:
    """The weight rule of the golden values: a function of each key alone."""
    shapes = json.loads((DATA / "openai_clip_small.json").read_text())["shapes"]
    return {**weights_by_name(shapes), "logit_scale": torch.tensor(math.log(1 / 0.07))}


def _golden_text() -> CLIPTextModelWithProjection:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    ids = {"bos_token_id": 498, "eos_token_id": 499, "pad_token_id": 499}
    return CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=500, projection_dim=32, **sizes, **ids))


@pytest.fixture(scope="module")
def openai(tmp_path_factory) -> Path:
    return atomic_save(_golden_state(), tmp_path_factory.mktemp("golden") / "best_64.pt")


def _huggingface(path: Path, **extra: torch.Tensor) -> CLIPModel:
    """A whole CLIP in transformers' layout, saved flat as ``RadCLIP.pth`` is."""
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    text = {"vocab_size": 514, "max_position_embeddings": 20, "projection_dim": 8, **sizes, **ids}
    vision = {"image_size": 32, "patch_size": 16, "projection_dim": 8, **sizes}
    torch.manual_seed(3)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    torch.save({**model.state_dict(), **extra}, path)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_openai_layout_gives_the_reference_features_and_logits(openai, attention):
    values = np.load(DATA / "openai_clip_small.npz")
    image = build_clip_image(**GOLDEN_IMAGE, attention=attention, weights=openai).eval()
    model = _golden_text()
    assert load_clip(model, openai) == pytest.approx(0.07)
    text = ClipText(model, ClipTokenizer(None, 77)).eval()
    ids = torch.from_numpy(values["tokens"])
    mask = torch.arange(77) <= ids.argmax(1, keepdim=True)  # up to the end token; the reference pads with 0
    rows = image(torch.from_numpy(values["image"])).pooled, text(TokenBatch(ids, mask)).pooled
    torch.testing.assert_close(rows[0], torch.from_numpy(values["image_features"]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows[1], torch.from_numpy(values["text_features"]), rtol=1e-4, atol=1e-4)
    logits = normalize(rows[0]) @ normalize(rows[1]).T / image.temperature
    torch.testing.assert_close(logits, torch.from_numpy(values["logits_per_image"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["model", "state_dict", "module", "both", "half"])
def test_wrappers_and_known_extras_change_nothing(openai, tmp_path, form):
    state = {**_golden_state(), **EXTRA}
    if form == "half":
        state = {key: value for key, value in state.items() if key.startswith("visual.")}
    if form in ("module", "both"):
        state = {f"module.{key}": value for key, value in state.items()}
    content = {"model" if form == "both" else form: state, "epoch": 3} if form not in ("module", "half") else state
    torch.save(content, tmp_path / "w.pt")
    expected = build_clip_image(**GOLDEN_IMAGE, weights=openai)
    assert weights_digest(build_clip_image(**GOLDEN_IMAGE, weights=tmp_path / "w.pt")) == weights_digest(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.ln_pre.bias": None}, r"w\.pt: .*missing visual\.ln_pre\.bias \(128,\)"),
        ({"visual.proj": None}, r"missing visual\.proj"),
        ({"visual.transformer.resblocks.1.attn.in_proj_bias": None}, r"missing .*resblocks\.1\.attn\.in_proj_bias"),
        ({"visual.extra": torch.zeros(2)}, r"unexpected visual\.extra \(2,\)"),
        ({"classifier.weight": torch.zeros(2)}, r"unexpected classifier\.weight"),
        ({"visual.proj": torch.zeros(128, 31)}, r"visual\.proj is \(31, 128\), needs \(32, 128\)"),
        (
            {f"{BLOCK}.0.attn.in_proj_weight": torch.zeros(383, 128)},
            r"in_proj_weight is \(127, 128\), needs \(128, 128\)",
        ),
        ({f"{BLOCK}.3.ln_1.bias": torch.zeros(128)}, r"unexpected visual\.transformer\.resblocks\.3"),
    ],
)
def test_openai_checkpoints_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    state = {key: value for key, value in {**_golden_state(), **change}.items() if value is not None}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=message):
        build_clip_image(**GOLDEN_IMAGE, weights=tmp_path / "w.pt")


def test_both_towers_of_a_checkpoint_are_strict_each_for_its_half(tmp_path):
    state = _golden_state()
    del state["transformer.resblocks.0.mlp.c_fc.bias"]
    torch.save(state, tmp_path / "w.pt")
    build_clip_image(**GOLDEN_IMAGE, weights=tmp_path / "w.pt")
    model = _golden_text()
    before = weights_digest(model)
    with pytest.raises(WeightsError, match=r"missing transformer\.resblocks\.0\.mlp\.c_fc\.bias"):
        load_clip(model, tmp_path / "w.pt")
    assert weights_digest(model) == before


@pytest.mark.parametrize("position_ids", [False, True], ids=["without position_ids", "with position_ids"])
def test_transformers_layout_gives_the_features_of_the_whole_model(tmp_path, position_ids):
    path = tmp_path / "RadCLIP.pth"
    extra = {
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
        "text_model.embeddings.position_ids": torch.arange(20)[None],
    }
    model = _huggingface(path, **(extra if position_ids else {}))
    image, text = build_clip_image(**IMAGE, weights=path).eval(), build_clip_text(**TEXT, weights=path).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(image(x).pooled, model.get_image_features(x).pooler_output, rtol=1e-4, atol=1e-5)
    batch = text.tokenize(["a", "two words"])
    theirs = model.get_text_features(batch.input_ids, batch.attention_mask.long()).pooler_output
    torch.testing.assert_close(text(batch).pooled, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("visual_projection.weight", None, r"missing visual_projection\.weight"),
        ("vision_model.embeddings.extra_ids", torch.zeros(1), r"unexpected vision_model\.embeddings\.extra_ids"),
        ("vision_model.post_layernorm.bias", torch.zeros(3), r"post_layernorm\.bias is \(3,\), needs \(16,\)"),
    ],
)
def test_transformers_checkpoints_that_do_not_fit_are_refused_by_name(tmp_path, key, value, message):
    state = {**_huggingface(tmp_path / "w.pth").state_dict(), key: value}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        build_clip_image(**IMAGE, weights=tmp_path / "w.pth")


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "no.pt")
    with pytest.raises(WeightsError, match=r"no\.pt: not a state dict"):
        build_clip_image(**IMAGE, weights=tmp_path / "no.pt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "pickle.pt")
    with pytest.raises(WeightsError, match=r"pickle\.pt: not a readable weights file"):
        build_clip_image(**IMAGE, weights=tmp_path / "pickle.pt")


@pytest.mark.parametrize(
    ("variant", "image_layers", "width", "text_width", "projected"),
    [("vit_b_32", 12, 768, 512, 512), ("vit_l_14", 24, 1024, 768, 768)],
)
def test_variants_have_the_published_shapes(variant, image_layers, width, text_width, projected):
    with torch.device("meta"):
        image = build_clip_image(variant=variant)
    assert image.embed_dim == projected
    shapes = {key: tuple(value.shape) for key, value in image.model.state_dict().items()}
    patch = 32 if variant == "vit_b_32" else 14
    assert shapes["vision_model.embeddings.patch_embedding.weight"] == (width, 3, patch, patch)
    assert shapes["vision_model.embeddings.position_embedding.weight"] == ((224 // patch) ** 2 + 1, width)
    assert shapes[f"vision_model.encoder.layers.{image_layers - 1}.mlp.fc1.weight"] == (4 * width, width)
    assert f"vision_model.encoder.layers.{image_layers}.mlp.fc1.weight" not in shapes
    assert shapes["visual_projection.weight"] == (projected, width)
    with torch.device("meta"):
        model = build_clip_text(variant=variant, layers=1).model
    assert model.state_dict()["text_model.embeddings.position_embedding.weight"].shape == (77, text_width)
    assert model.state_dict()["text_projection.weight"].shape == (projected, text_width)


def test_key_names_are_those_of_published_transformers_checkpoints():
    """A transformers version that renames a module would make every published file unreadable."""
    layer = {f"{part}.{kind}" for part in LAYER for kind in ("weight", "bias")}
    with torch.device("meta"):
        keys = {*build_clip_image(layers=1).model.state_dict(), *build_clip_text(layers=1).model.state_dict()}
    expected = {f"{half}_model.encoder.layers.0.{name}" for half in ("vision", "text") for name in layer}
    expected |= {f"vision_model.embeddings.{name}" for name in ("class_embedding", "patch_embedding.weight")}
    expected |= {f"{half}_model.embeddings.position_embedding.weight" for half in ("vision", "text")}
    norms = ("vision_model.pre_layrnorm", "vision_model.post_layernorm", "text_model.final_layer_norm")
    expected |= {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}
    expected |= {"text_model.embeddings.token_embedding.weight", "visual_projection.weight", "text_projection.weight"}
    assert keys == expected


def test_tokens_are_projected_and_the_first_is_the_embedding():
    encoder = build_clip_image(**IMAGE).eval()
    output = encoder(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert output.tokens.shape == (2, 5, 8)
    assert output.grid == (2, 2)
    assert torch.equal(output.pooled, output.tokens[:, 0])
    with pytest.raises(ValueError, match=r"ClipImage: .* \(1, 1, 32, 32\), it reads \('B', 3, 32, 32\)"):
        encoder(torch.zeros(1, 1, 32, 32))


def test_towers_add_nothing_and_a_frozen_one_gets_no_gradient():
    image = Tower(build_clip_image(**IMAGE), embed_dim=None)
    text = Tower(build_clip_text(**TEXT), embed_dim=None, frozen=True)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = image(x), text(["edema", "no edema"])
    torch.testing.assert_close(rows[0], normalize(image.encoder(x).pooled))
    assert rows[0].shape == rows[1].shape == (2, 8)
    (rows[0] @ rows[1].T).sum().backward()
    assert all(p.grad is not None for p in image.parameters())
    assert not any(p.requires_grad for p in text.parameters())


@pytest.mark.parametrize("half", ["image", "text"])
def test_checkpointed_gradients_and_eager_attention_equal_the_plain_ones(half, tmp_path):
    build, sizes = (build_clip_image, IMAGE) if half == "image" else (build_clip_text, TEXT)
    path = save_weights(build(**sizes).model, tmp_path / "half.safetensors")
    results = []
    for options in ({}, {"gradient_checkpointing": True}, {"attention": "eager"}):
        encoder = build(**sizes, weights=path, **options).train()
        pixels = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
        output = encoder(pixels if half == "image" else encoder.tokenize(["one", "two words"]))
        output.pooled.square().sum().backward()
        results.append([p.grad for p in encoder.parameters()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_preprocessing_is_clips_or_chexzeros():
    film = Image(np.full((40, 20), 255.0, np.float32))
    inputs = {name: build_clip_image(**IMAGE, preprocessing=name).input for name in ("clip", "chexzero")}
    clip, chexzero = standardise(inputs["clip"])(film), standardise(inputs["chexzero"])(film)
    assert clip.shape == chexzero.shape == (3, 32, 32)
    white = [(1 - mean) / std for mean, std in zip(inputs["clip"].mean, inputs["clip"].std, strict=True)]
    torch.testing.assert_close(clip[:, 0, 0], torch.tensor(white))
    assert chexzero[0, 16, 16] == pytest.approx((255 - 101.48761) / 83.43944, abs=1e-4)
    assert chexzero[0, 16, 0] == pytest.approx(-101.48761 / 83.43944, abs=1e-4)


def test_window_none_takes_each_images_own_range():
    input = build_clip_image(**IMAGE, window=None).input
    ramp = np.linspace(0, 1, 40 * 20, dtype=np.float32).reshape(40, 20)
    steps = standardise(input)
    torch.testing.assert_close(steps(Image(ramp * 4095)), steps(Image(ramp * 255)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "vit_h_14"}, "CLIP variant is 'vit_h_14'; choose one of vit_b_32, vit_l_14"),
        ({"size": (224, 200)}, r"size is \(224, 200\); give \(n, n\) with n a multiple of patch 32"),
        ({"size": (225, 225)}, "multiple of patch 32"),
        ({"width": 10, "heads": 3}, "width 10 is not a multiple of 3 heads"),
        ({"preprocessing": "imagenet"}, "preprocessing is 'imagenet'; choose one of clip, chexzero"),
        ({"attention": "flash"}, "attention is 'flash'; choose one of sdpa, eager"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build_clip_image(**options)
