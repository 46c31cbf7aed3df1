from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from medvl_core.build import build_encoder
from medvl_core.engine.weights import WeightsError
from medvl_ct_glip.mit import MIT_DEPTHS, MiT
from medvl_ct_glip.volume_encoders import build_mit, build_nnunet, input_of_plans
from tests.golden import DATA, weights_by_name
from tests.papers.ct_glip.nnunet_plans import PLAIN_CONV_UNET, architecture


@pytest.mark.parametrize("variant", ["tiny", "small"])
def test_mit_equals_the_reference(variant):
    stated = json.loads((DATA / "golden" / f"mit_{variant}.json").read_text())
    values = np.load(DATA / "golden" / f"mit_{variant}.npz")
    network = MiT(stated["img_size"], stated["num_classes"], MIT_DEPTHS[variant]).eval()
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == stated["shapes"]
    network.load_state_dict(weights_by_name(stated["shapes"]))
    with torch.no_grad():
        volume = torch.from_numpy(values["volume"])
        for stage, output in enumerate(network.transformer(volume)):
            assert output.mean().item() == pytest.approx(values[f"encoder_{stage}_mean"].item(), rel=1e-4)
            assert output.std().item() == pytest.approx(values[f"encoder_{stage}_std"].item(), rel=1e-4)
        features, logits, _ = network(volume)
    z, y, x = stated["logits_stride"]
    sampled = torch.from_numpy(values["features"])  # at stride (2, 4, 4)
    torch.testing.assert_close(features[:, :, ::2, ::4, ::4], sampled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[:, :, ::z, ::y, ::x], torch.from_numpy(values["logits"]), rtol=1e-4, atol=1e-4)


def test_axes_are_turned_for_the_network_and_back():
    encoder = build_mit(variant="tiny", size=(64, 32, 16), num_classes=3).eval()
    volume = torch.randn(1, 1, 64, 32, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = encoder(volume)
        features, logits, auxiliary = encoder.network(volume.permute(0, 1, 4, 3, 2))
    assert output.features.shape == (1, 32, 32, 16, 16)
    assert torch.equal(output.features, features.permute(0, 1, 4, 3, 2))
    assert [tuple(level.shape[2:]) for level in output.logits] == [
        (64, 32, 16), (32, 16, 16), (16, 8, 8), (8, 4, 4), (4, 2, 2)
    ]  # fmt: skip
    assert torch.equal(output.logits[0], logits.permute(0, 1, 4, 3, 2))
    assert len(auxiliary) == 4


def test_mit_takes_other_patches_by_interpolating_its_positions():
    encoder = build_mit(variant="tiny", size=(64, 64, 16), num_classes=3).eval()
    with torch.no_grad():
        assert encoder(torch.randn(1, 1, 96, 64, 32)).logits[0].shape == (1, 3, 96, 64, 32)


def test_mit_refuses_a_patch_below_its_reduction():
    encoder = build_mit(variant="tiny", size=(64, 64, 16), num_classes=3)
    with pytest.raises(ValueError, match=r"a token grid of \(4, 16, 16\) is smaller than the reduction 6"):
        encoder(torch.randn(1, 1, 64, 64, 8))
    with pytest.raises(ValueError, match="does not divide by the strides"):
        build_mit(size=(60, 64, 16))
    with pytest.raises(ValueError, match="leaves one cell at the last stage"):
        build_mit(size=(32, 32, 16))


def test_nnunet_equals_the_library_forward():
    encoder = build_nnunet(size=(16, 16, 16), num_classes=4, features=(8, 16, 32)).eval()
    volume = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = encoder(volume)
        expected = encoder.network(volume.permute(0, 1, 4, 3, 2))  # deep supervision: a list, finest first
    for own, level in zip(output.logits, expected, strict=True):
        assert torch.equal(own, level.permute(0, 1, 4, 3, 2))
    assert output.features.shape == (1, 8, 16, 16, 16)
    torch.testing.assert_close(output.tokens.mean(dim=1), output.features.mean(dim=(2, 3, 4)))


def plans(tmp_path, network=PLAIN_CONV_UNET) -> Path:
    kernel_sizes, strides = [[1, 3, 3], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    built = architecture([4, 8, 16], kernel_sizes, strides, 2, network)
    content = {
        "configurations": {
            "3d_fullres": {"patch_size": [8, 16, 32], "spacing": [3.0, 1.5, 1.0], "architecture": built}
        },
        "foreground_intensity_properties_per_channel": {
            "0": {"percentile_00_5": -900.0, "percentile_99_5": 1100.0, "mean": -50.0, "std": 400.0}
        },
        "transpose_forward": [0, 1, 2],
    }
    (tmp_path / "plans.json").write_text(json.dumps(content))
    return tmp_path / "plans.json"


def test_plans_give_network_patch_spacing_and_intensities(tmp_path):
    encoder = build_nnunet(plans=plans(tmp_path), num_classes=3)
    assert encoder.input == input_of_plans(tmp_path / "plans.json")
    assert encoder.input.size == (32, 16, 8)
    assert encoder.input.spacing_mm == (1.0, 1.5, 3.0)
    assert (encoder.input.window_hu, encoder.input.mean, encoder.input.std) == ((-900.0, 1100.0), (-50.0,), (400.0,))
    assert encoder(torch.zeros(1, 1, 32, 16, 8)).logits[0].shape == (1, 3, 32, 16, 8)


def test_plans_of_another_network_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the network is os\.system; only PlainConvUNet"):
        build_nnunet(plans=plans(tmp_path, network="os.system"))
    (tmp_path / "plans.json").write_text("{}")
    with pytest.raises(ValueError, match="no one-channel 3d_fullres plans"):
        build_nnunet(plans=tmp_path / "plans.json")


def test_nnunet_checkpoint_round_trip(tmp_path):
    first = build_nnunet(size=(16, 16, 16), num_classes=3, features=(4, 8))
    state = {f"module.{key}": value for key, value in first.network.state_dict().items()}
    content = {"network_weights": state, "logging": {"ema": [np.float64(0.5)]}, "trainer_name": "nnUNetTrainer"}
    torch.save(content, tmp_path / "checkpoint_final.pth")
    options = {"size": (16, 16, 16), "num_classes": 3, "features": (4, 8)}
    second = build_encoder("ct_glip/nnunet", weights=str(tmp_path / "checkpoint_final.pth"), **options)
    for key, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[key])
    with pytest.raises(WeightsError, match=r"decoder\.seg_layers\.0\.weight is \(3, 4, 1, 1, 1\), needs \(5, 4"):
        build_nnunet(**{**options, "num_classes": 5}, weights=tmp_path / "checkpoint_final.pth")
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"no 'network_weights' in it, only \['state_dict'\]"):
        build_nnunet(**options, weights=tmp_path / "other.pth")


FRESH = ("cls_conv", "transposeconv_stage3", "stage3_de")


def unimiss(path: Path, encoder, change=lambda state: state) -> None:
    """The published layout: both branches, 3D in the names, 2D twins, class tokens; no heads, no last stage."""
    student = {}
    for key, value in encoder.network.state_dict().items():
        if any(part in key for part in FRESH):
            continue
        if "pos_embed" in key or "PosEmbed" in key:
            value = torch.cat([torch.full_like(value[:, :1], 9.0), value], dim=1)
        name = re.sub(r"(patch_embed|pos_embed|DecEmbed|DecPosEmbed)(?=\d)|(?<=\.)sr(?=\.)", r"\g<0>3D", key)
        student[f"module.backbone.{name}"] = value
        if "3D" in name:
            student[f"module.backbone.{name.replace('3D', '2D')}"] = torch.zeros(3)
    for key in ("cls_tokens0.weight", "cls_tokens2.bias", "transformer.cls_tokens1", "transformer.cls_tokens4.weight"):
        student[f"module.backbone.{key}"] = torch.full((3,), 9.0)
    student["module.head.weight"] = torch.zeros(3)
    torch.save({"student": change(student), "teacher": {}}, path)


def test_unimiss_checkpoint_round_trip(tmp_path, caplog):
    first = build_mit(variant="tiny", size=(96, 96, 16), num_classes=3)  # the published patch: 9 tokens at the end
    unimiss(tmp_path / "UniMiss_tiny.pth", first)
    options = {"variant": "tiny", "size": (96, 96, 16), "num_classes": 7}
    torch.manual_seed(1)
    before = build_mit(**options).network.state_dict()
    torch.manual_seed(1)
    with caplog.at_level("INFO"):
        second = build_encoder("ct_glip/mit", weights=str(tmp_path / "UniMiss_tiny.pth"), **options)
    for key, value in second.network.state_dict().items():
        fresh = any(part in key for part in FRESH)
        assert torch.equal(value, before[key] if fresh else first.network.state_dict()[key]), key
    assert "stage3_de.conv.weight" in caplog.text


def test_unimiss_positions_are_resized_for_another_patch(tmp_path):
    first = build_mit(variant="tiny", size=(96, 96, 16), num_classes=3)
    unimiss(tmp_path / "weights.pth", first)
    second = build_mit(variant="tiny", size=(96, 64, 32), num_classes=3, weights=tmp_path / "weights.pth")
    for name in ("pos_embed1", "pos_embed4"):
        before, after = (getattr(encoder.network.transformer, name)[0].detach() for encoder in (first, second))
        where = np.linspace(0, len(before) - 1, len(after))
        expected = np.interp(where, np.arange(len(before)), before[:, 5].numpy())
        np.testing.assert_allclose(after[:, 5].numpy(), expected, atol=5e-5)


def test_unimiss_refuses_what_does_not_fit(tmp_path):
    options = {"variant": "tiny", "size": (64, 64, 16), "num_classes": 3}
    encoder = build_mit(**options)
    key = "module.backbone.transformer.block1.0.attn.q.weight"
    unimiss(tmp_path / "a.pth", encoder, lambda state: {k: v for k, v in state.items() if k != key})
    with pytest.raises(WeightsError, match=r"missing transformer\.block1\.0\.attn\.q\.weight"):
        build_mit(**options, weights=tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth: .*missing"):
        build_mit(**options, weights=tmp_path / "a.pth", branch="teacher")


def test_a_batch_of_other_channels_is_refused():
    encoder = build_encoder("ct_glip/nnunet", size=(16, 16, 16), num_classes=2, features=(4, 8))
    with pytest.raises(ValueError, match=r"shape \(1, 2, 16, 16, 16\); this encoder reads B 1 X Y Z"):
        encoder(torch.zeros(1, 2, 16, 16, 16))


def test_a_first_stride_of_two_halves_features_and_logits():
    made = build_encoder("ct_glip/nnunet", size=(16, 16, 16), features=(8, 16), num_classes=5, first_stride=2)
    out = made(torch.zeros(1, 1, 16, 16, 16))
    assert out.features.shape == (1, 8, 8, 8, 8)
    assert out.logits[0].shape == (1, 5, 8, 8, 8)
