from __future__ import annotations

import copy
import pickle
from math import prod

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medvl_baseline import plugin
from medvl_baseline.encoders import image as image_encoders
from medvl_core.engine.weights import WeightsError

SPECS = {spec.name: spec for spec in plugin.medvl_encoders() if "encoders.image:" in spec.factory}


def _build(name: str, **options: object) -> image_encoders.MapEncoder:
    torch.manual_seed(0)
    spec = SPECS[name]
    return getattr(image_encoders, spec.factory.split(":")[1])(**{**spec.tiny, **options})


def _images(encoder: image_encoders.MapEncoder, batch: int = 3) -> torch.Tensor:
    shape = (batch, encoder.input.channels, *encoder.input.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=SPECS)
def name(request) -> str:
    return request.param


def test_output_is_one_token_per_cell_in_row_major_order(name):
    encoder = _build(name).eval()
    x = _images(encoder)
    output = encoder(x)
    assert output.tokens.shape == (3, prod(output.grid), encoder.embed_dim)
    assert output.features.shape == (3, encoder.embed_dim, *output.grid)
    assert torch.equal(output.tokens.unflatten(1, output.grid).movedim(-1, 1), output.features)
    assert output.pooled is None
    assert output.mask is None


def test_default_instance_is_what_the_spec_declares(name):
    spec = SPECS[name]
    with torch.device("meta"):
        encoder = getattr(image_encoders, spec.factory.split(":")[1])()
    assert encoder.embed_dim == spec.embed_dim
    assert encoder.input == spec.input
    output = encoder(torch.zeros(1, encoder.input.channels, *encoder.input.size, device="meta"))
    assert output.tokens.shape[2] == spec.embed_dim


@pytest.mark.parametrize(
    ("name", "million"), [("resnet18_2d", 11.17), ("resnet50_2d", 23.50), ("swin_t_2d", 27.52), ("resnet_3d", 33.16)]
)
def test_parameter_counts_are_the_published_ones(name, million):
    # Published, less classifier and two input channels: 11.69 - .513 - .006, 25.56 - 2.049 - .006, 28.29 - .769 - .003.
    with torch.device("meta"):
        encoder = getattr(image_encoders, SPECS[name].factory.split(":")[1])()
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(million, abs=0.01)


def test_a_row_does_not_depend_on_its_batch(name):
    encoder = _build(name).eval()
    x = _images(encoder)
    whole = encoder(x).tokens
    for i in range(3):
        torch.testing.assert_close(encoder(x[i : i + 1]).tokens[0], whole[i], rtol=1e-4, atol=1e-5)


def test_position_of_a_change_is_the_position_of_the_token(name):
    if SPECS[name].tiny["size"][0] == 32 and name.startswith("resnet"):
        encoder = _build(name, size=tuple(4 * n for n in SPECS[name].tiny["size"])).eval()
    else:
        encoder = _build(name).eval()
    x = _images(encoder, 1)
    changed = x.clone()
    changed[(0, 0, *(slice(-4, None) for _ in encoder.input.size))] += 20.0  # the far corner
    change = (encoder(changed).tokens - encoder(x).tokens).norm(dim=2)[0]
    assert change.argmax().item() == len(change) - 1


def test_gradients_reach_every_trainable_parameter(name):
    encoder = _build(name).train()
    encoder(_images(encoder, 4)).tokens.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters() if p.requires_grad)


def test_instances_can_be_copied_and_pickled(name):
    encoder = _build(name).eval()
    x = _images(encoder, 1)
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(twin(x).tokens, encoder(x).tokens)


def test_weights_are_loaded_strictly(name, tmp_path):
    encoder = _build(name).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter)
    state = encoder.trunk.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    x = _images(encoder, 1)
    for file in ("w.safetensors", "w.pt"):
        assert torch.equal(_build(name, weights=tmp_path / file).eval()(x).tokens, encoder(x).tokens)
    key, tensor = next(iter(state.items()))
    torch.save({**{k: v for k, v in state.items() if k != key}, "extra": tensor}, tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match=rf"bad.pt: .*missing {key}.*unexpected extra"):
        _build(name, weights=tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match=r"absent.pt: no such weights file"):
        _build(name, weights=tmp_path / "absent.pt")


def test_images_of_another_shape_are_refused(name):
    encoder = _build(name)
    with pytest.raises(ValueError, match=r"standardise them with its .input, or build it for this size"):
        encoder(_images(encoder)[..., :-1])


def test_size_and_channels_override_the_declared_input(name):
    size = tuple(2 * n for n in SPECS[name].tiny["size"])
    encoder = _build(name, size=size, channels=2).eval()
    assert (encoder.input.size, encoder.input.channels) == (size, 2)
    assert encoder.input.window_hu == SPECS[name].input.window_hu
    assert len(encoder(_images(encoder, 1)).grid) == SPECS[name].spatial_dims


def test_torchvision_names_fit_a_resnet_file_with_its_classifier(tmp_path):
    encoder = _build("resnet18_2d", channels=3)
    state = encoder.trunk.state_dict()
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.0.weight", "layer4.1.bn2.bias"} <= set(state)
    assert "layer2.0.downsample.0.bias" not in state
    torch.save({**state, "fc.weight": torch.zeros(1000, 32), "fc.bias": torch.zeros(1000)}, tmp_path / "r18.pt")
    _build("resnet18_2d", channels=3, weights=tmp_path / "r18.pt")


def test_group_norm_keeps_samples_apart_in_training_and_takes_a_batch_of_one():
    encoder = _build("resnet_3d", norm="group", base_width=16).train()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
    groups = [m.num_groups for m in encoder.modules() if isinstance(m, nn.GroupNorm)]
    assert (min(groups), max(groups)) == (1, 8)
    x = _images(encoder, 2)
    torch.testing.assert_close(encoder(x[:1]).tokens[0], encoder(x).tokens[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("depth", "embed_dim"), [(10, 32), (18, 32), (34, 32), (50, 128)])
def test_resnet_depth_sets_blocks_and_width(depth, embed_dim):
    encoder = _build("resnet_3d", depth=depth)
    convolutions = sum(isinstance(m, nn.Conv3d) and m.kernel_size != (1, 1, 1) for m in encoder.modules())
    assert encoder.embed_dim == embed_dim
    assert convolutions == {10: 9, 18: 17, 34: 33, 50: 17}[depth]


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match=r"ResNet depth is 11; choose one of \[10, 18, 34, 50\]"):
        _build("resnet_3d", depth=11)
    with pytest.raises(ValueError, match="ResNet norm is 'layer'"):
        _build("resnet18_2d", norm="layer")
    with pytest.raises(ValueError, match=r"image size \(32, 32, 40\) is not a multiple of \(16, 16, 16\)"):
        _build("vit_3d", size=(32, 32, 40))
    with pytest.raises(ValueError, match=r"image size \(36, 32\) is not a multiple of \(8, 8\)"):
        _build("swin_t_2d", size=(36, 32))
    with pytest.raises(ValueError, match="differ in length"):
        _build("swin_t_2d", depths=(1, 1, 1))


@pytest.mark.parametrize("size", [(96, 96), (64, 160), (32, 32), (224, 224)])
def test_swin_t_reads_images_in_which_a_stage_is_smaller_than_its_window(size):
    encoder = image_encoders.build_swin_t_2d(size=size).eval()
    with torch.no_grad():
        output = encoder(_images(encoder, 1))
    assert output.grid == (size[0] // 32, size[1] // 32)
    assert output.tokens.isfinite().all()
