"""The radiograph encoders against other implementations of the same networks, and their three kinds of weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig, ResNetModel, SwinConfig, SwinForImageClassification

from medvl_core.engine.alignment import Tower
from medvl_core.engine.weights import WeightsError, atomic_save, file_digest, weights_digest
from medvl_x2ct.cxr_encoders import build_resnet50, build_swin_t

RESNET = {"size": (64, 64), "base_width": 4, "latent": 6}
SWIN = {"size": (32, 32), "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4, "latent": 6}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def torchvision_layout(model: ResNetModel) -> dict[str, torch.Tensor]:
    """The weights of transformers' ResNet-50 under torchvision's names, with the classifier torchvision adds."""
    state = {}
    for key, value in model.state_dict().items():
        parts = key.replace("convolution", "conv").replace("normalization", "bn").split(".")
        if parts[0] == "embedder":
            name = f"{parts[2]}1"
        else:
            layer = f"layer{int(parts[2]) + 1}.{parts[4]}"
            inner = f"downsample.{['conv', 'bn'].index(parts[6])}" if parts[5] == "shortcut" else ""
            name = f"{layer}.{inner or parts[7] + str(int(parts[6]) + 1)}"
        state[f"{name}.{parts[-1]}"] = value
    return {**state, "fc.weight": torch.zeros(1000, 128), "fc.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def resnet() -> ResNetModel:
    """A narrow ResNet-50 whose statistics are not those of a new one."""
    torch.manual_seed(0)
    model = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[16, 32, 64, 128], depths=[3, 4, 6, 3]))
    for name, value in model.state_dict().items():
        if name.endswith(("running_var", "normalization.weight")):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def swin() -> SwinForImageClassification:
    torch.manual_seed(0)
    sizes = {key: list(value) if isinstance(value, tuple) else value for key, value in SWIN.items() if key != "latent"}
    model = SwinForImageClassification(SwinConfig(image_size=sizes.pop("size"), num_channels=3, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def swin_folder(swin, tmp_path):
    """As the published one: classifier, and the index buffers that transformers 4 saved."""
    swin.save_pretrained(tmp_path / "swin")
    state = load_file(tmp_path / "swin/model.safetensors")
    assert "swin.encoder.layers.0.blocks.0.attention.self.query.weight" in state  # the published names
    state["swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(16, 16).long()
    save_file(state, tmp_path / "swin/model.safetensors", metadata={"format": "pt"})
    return tmp_path / "swin"


@torch.no_grad()
def test_resnet_of_torchvisions_file_equals_another_implementation(resnet, tmp_path):
    state = torchvision_layout(resnet)
    path = atomic_save(state, tmp_path / "resnet50-11ad3fa6.pth")
    encoder = build_resnet50(**RESNET, weights=path).eval()
    film = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    colour = (film - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    pooled = resnet(colour).pooler_output.flatten(1)
    output = encoder(film)
    assert pooled.std() > 1e-3
    torch.testing.assert_close(output.pooled, pooled @ encoder.to_xray_latent.weight.T, atol=1e-4, rtol=1e-4)
    assert output.features.shape == (2, 128, 2, 2)
    counters = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    old = build_resnet50(**RESNET, weights=atomic_save(counters, tmp_path / "old.pth")).eval()
    torch.testing.assert_close(old.xray_encoder(colour).features, output.features)


@torch.no_grad()
def test_swin_of_transformers_folder_equals_transformers(swin, swin_folder):
    encoder = build_swin_t(**SWIN, weights=swin_folder).eval()
    film = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = swin.swin(film.expand(-1, 3, -1, -1)).last_hidden_state
    output = encoder(film)
    torch.testing.assert_close(output.pooled, tokens.mean(1) @ encoder.to_xray_latent.weight.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(Tower(encoder, embed_dim=None)(film).norm(dim=-1), torch.ones(2))


def cxr_clip(trunk: dict[str, torch.Tensor], width: int, prefix: str) -> dict:
    """A checkpoint in CXR-CLIP's layout."""
    model = {f"image_encoder.{prefix}.{key}": value for key, value in trunk.items()}
    model |= {
        "image_projection.projection.weight": torch.randn(6, width, generator=torch.Generator().manual_seed(1)),
        "image_projection.projection.bias": torch.ones(6),
        "text_projection.projection.weight": torch.zeros(6, 3),
        "text_encoder.text_encoder.embeddings.word_embeddings.weight": torch.zeros(4, 3),
        "logit_scale": torch.tensor(2.6),
    }
    return {"model": model, "optimizer": {"state": {}}, "scheduler": {}, "config": {"model": {"name": "clip"}}}


@torch.no_grad()
def test_cxr_clip_sets_trunk_and_projection(resnet, swin, swin_folder, tmp_path):
    trunk = torchvision_layout(resnet)
    del trunk["fc.weight"], trunk["fc.bias"]
    content = cxr_clip(trunk, 128, "resnet")
    encoder = build_resnet50(
        **RESNET, initialisation="cxr_clip", weights=atomic_save(content, tmp_path / "r50_mcc.tar")
    ).eval()
    plain = build_resnet50(**RESNET, weights=atomic_save(trunk, tmp_path / "r.pth"))
    assert weights_digest(encoder.xray_encoder) == weights_digest(plain.xray_encoder)
    assert torch.equal(encoder.to_xray_latent.weight, content["model"]["image_projection.projection.weight"])
    assert encoder.to_xray_latent.bias is None
    assert encoder.weights_sha256 == file_digest(tmp_path / "r50_mcc.tar")

    published = load_file(swin_folder / "model.safetensors")
    published = {key.removeprefix("swin."): value for key, value in published.items() if key.startswith("swin.")}
    path = atomic_save(cxr_clip(published, 16, "image_encoder"), tmp_path / "swint_mcc.tar")
    encoder = build_swin_t(**SWIN, initialisation="cxr_clip", weights=path)
    assert weights_digest(encoder.xray_encoder) == weights_digest(
        build_swin_t(**SWIN, weights=swin_folder).xray_encoder
    )


def drop(state: dict, key: str) -> dict:
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: drop(s, "layer3.5.conv2.weight"), r"missing layer3\.5\.conv2\.weight \(16, 16, 3, 3\)"),
        (lambda s: {**s, "layer5.weight": torch.zeros(1)}, r"unexpected layer5\.weight \(1,\)"),
        (
            lambda s: {**s, "conv1.weight": torch.zeros(4, 1, 7, 7)},
            r"conv1\.weight is \(4, 1, 7, 7\), needs \(4, 3, 7, 7\)",
        ),
    ],
)
def test_a_resnet_file_that_does_not_fit_is_refused_by_key(resnet, tmp_path, change, message):
    path = atomic_save(change(torchvision_layout(resnet)), tmp_path / "wrong.pth")
    with pytest.raises(WeightsError, match=rf"wrong\.pth: does not fit ResNet .*{message}"):
        build_resnet50(**RESNET, weights=path)


def test_a_swin_folder_that_does_not_fit_is_refused_by_its_own_keys(swin_folder):
    state = load_file(swin_folder / "model.safetensors")
    del state["swin.encoder.layers.1.blocks.0.output.dense.bias"]
    save_file({**state, "swin.new": torch.zeros(1)}, swin_folder / "model.safetensors")
    with pytest.raises(
        WeightsError,
        match=r"does not fit SwinModel .*missing swin\.encoder\.layers\.1\.blocks\.0\.output\.dense\.bias"
        r".*unexpected swin\.new",
    ):
        build_swin_t(**SWIN, weights=swin_folder)


def test_a_cxr_clip_file_that_does_not_fit_is_refused(resnet, tmp_path):
    content = cxr_clip(drop(torchvision_layout(resnet), "bn1.bias"), 128, "resnet")
    path = atomic_save(content, tmp_path / "r50_mcc.tar")
    with pytest.raises(WeightsError, match=r"r50_mcc\.tar: .*missing image_encoder\.resnet\.bn1\.bias"):
        build_resnet50(**RESNET, initialisation="cxr_clip", weights=path)
    path = atomic_save(content["model"], tmp_path / "flat.tar")
    with pytest.raises(WeightsError, match=r"flat\.tar: not the layout .*wanted is r50_mcc\.tar"):
        build_resnet50(**RESNET, initialisation="cxr_clip", weights=path)


def test_missing_weights_name_the_file_that_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    for build, options, message in (
        (build_resnet50, {}, r"checkpoints/resnet50-11ad3fa6\.pth: .*wanted is resnet50-11ad3fa6\.pth .*IMAGENET1K_V2"),
        (build_resnet50, {"weights": "absent.pth"}, r"absent\.pth: .*wanted is resnet50-11ad3fa6\.pth"),
        (build_resnet50, {"initialisation": "cxr_clip"}, r"x2ct/resnet50: .*wanted is r50_mcc\.tar"),
        (build_swin_t, {}, r"x2ct/swin_t: .*wanted is model\.safetensors .*microsoft/swin-tiny-patch4-window7-224"),
        (build_swin_t, {"weights": tmp_path}, r"wanted is model\.safetensors or pytorch_model\.bin of microsoft"),
        (build_swin_t, {"initialisation": "cxr_clip"}, r"x2ct/swin_t: .*wanted is swint_mcc\.tar"),
    ):
        with pytest.raises(WeightsError, match=message):
            build(**(RESNET if build is build_resnet50 else SWIN), **options)


def test_unknown_or_contradictory_initialisation_is_refused():
    with pytest.raises(ValueError, match="initialisation is 'scratch' with weights=None"):
        build_resnet50(**RESNET, initialisation="scratch")
    with pytest.raises(ValueError, match="'random' without"):
        build_swin_t(**SWIN, initialisation="random", weights="x.pt")


def test_a_film_of_another_shape_is_refused():
    encoder = build_swin_t(**SWIN, initialisation="random")
    with pytest.raises(ValueError, match=r"shape \(1, 3, 32, 32\), it reads \('B', 1, 32, 32\)"):
        encoder(torch.zeros(1, 3, 32, 32))


def test_the_published_sizes():
    with torch.device("meta"):
        resnet, swin = (build(initialisation="random") for build in (build_resnet50, build_swin_t))
    assert resnet.to_xray_latent.weight.shape == (512, 2048)
    assert swin.to_xray_latent.weight.shape == (512, 768)
    shapes = {key: tuple(value.shape) for key, value in resnet.xray_encoder.trunk.state_dict().items()}
    assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert shapes["layer2.0.downsample.0.weight"] == (512, 256, 1, 1)
    assert len([key for key in shapes if "num_batches" not in key]) == 265  # of torchvision's 267, two are the fc
