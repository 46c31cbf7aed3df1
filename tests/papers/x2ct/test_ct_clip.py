"""The towers of CT-CLIP against numbers of the reference implementation, and its weights file."""

from __future__ import annotations

import json
import logging
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from medvl_core.build import build_encoder
from medvl_core.engine.alignment import Tower
from medvl_core.engine.weights import WeightsError, atomic_save, file_digest, weights_digest
from medvl_core.study import Image
from medvl_imaging.readers.nifti import affine_of, read_stored
from medvl_imaging.transforms import standardise
from medvl_x2ct.convert import convert_ct_clip, main
from medvl_x2ct.ct_clip_vit import build_ct_clip_vit
from medvl_x2ct.ct_clip_weights import load_ct_clip
from medvl_x2ct.ctvit import _Attention, _RelativeBias
from medvl_x2ct.cxr_bert import build_cxr_bert
from medvl_x2ct.plugin import CT_CLIP_INPUT
from tests.golden import DATA

GOLDEN_SIZES = {
    "image_size": 40,
    "frames": 20,
    "patch_size": 10,
    "temporal_patch_size": 5,
    "dim": 48,
    "depth": 2,
    "heads": 4,
    "dim_head": 16,
    "codebook_size": 64,
    "latent": 32,
}
TINY_CT = {
    "image_size": 8,
    "frames": 4,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "dim": 12,
    "heads": 2,
    "dim_head": 4,
    "codebook_size": 8,
    "latent": 6,
}
TINY_TEXT = {"hidden_size": 12, "heads": 2, "max_length": 16, "latent": 6}


def golden_state() -> dict[str, torch.Tensor]:
    """The reference's state dict: its empty tensors are only listed, and its logit scale is not part of the tower."""
    state = load_file(DATA / "ctvit_a.safetensors")
    for key in json.loads((DATA / "ctvit_a.json").read_text())["empty_keys"]:
        state[key] = torch.empty(GOLDEN_SIZES["heads"], 0, GOLDEN_SIZES["dim_head"])
    return {**state, "temperature": torch.tensor(0.5)}


@pytest.fixture
def golden(tmp_path):
    """The tower with the reference's weights, read from a file, and the reference's numbers."""
    encoder = build_ct_clip_vit(**GOLDEN_SIZES, weights=atomic_save(golden_state(), tmp_path / "CT-CLIP_v2.pt"))
    return encoder.eval(), {key: torch.from_numpy(value) for key, value in np.load(DATA / "ctvit_a.npz").items()}


@torch.no_grad()
def test_ctvit_equals_the_reference(golden):
    encoder, expected = golden
    network = encoder.visual_transformer
    patches = network.to_patch_emb(expected["volume"])
    tokens = network.encode(patches)
    codes, index = network.vq["_codebook"](tokens)
    torch.testing.assert_close(patches, expected["patch_tokens"], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens, expected["tokens_before_quantiser"], atol=1e-4, rtol=0)
    torch.testing.assert_close(codes, expected["tokens"], atol=1e-4, rtol=0)
    assert torch.equal(index.int(), expected["code_indices"])
    assert len(index.unique()) > 3


def test_latent_of_the_tower_equals_the_reference_also_in_training_mode_and_under_autocast(golden):
    encoder, expected = golden
    volume = expected["volume"].permute(0, 1, 3, 4, 2)  # our volumes are X Y Z
    tower = Tower(encoder, pooling=None, embed_dim=None, frozen=True)
    before = weights_digest(tower)
    torch.testing.assert_close(tower(volume), expected["latent"], atol=1e-4, rtol=0)
    tower.encoder.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(tower(volume), expected["latent"], atol=1e-4, rtol=0)
    assert weights_digest(tower) == before
    assert encoder.teacher_scale == pytest.approx(np.exp(0.5))


def test_tokens_lie_in_the_axes_of_the_volume(golden):
    encoder, expected = golden
    with torch.no_grad():
        output = encoder(expected["volume"].permute(0, 1, 3, 4, 2))
    assert output.grid == (4, 4, 4)
    assert torch.equal(output.features.permute(0, 4, 2, 3, 1), expected["tokens"])
    assert torch.equal(output.tokens, output.features.flatten(2).transpose(1, 2))


def test_gradients_pass_the_quantiser_and_leave_the_codebook_alone(golden):
    encoder, expected = golden
    codebook = encoder.visual_transformer.vq["_codebook"].embed.clone()
    encoder.train()
    encoder(expected["volume"].permute(0, 1, 3, 4, 2)).pooled.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())
    assert torch.equal(encoder.visual_transformer.vq["_codebook"].embed, codebook)
    assert "embed" not in " ".join(name for name, _ in encoder.named_parameters())


def test_relative_bias_equals_the_network_over_all_pairs():
    torch.manual_seed(0)
    module = _RelativeBias(8, 3).double()
    cells = [(i, j) for i in range(4) for j in range(4)]
    offsets = torch.tensor([[(a[0] - b[0], a[1] - b[1]) for b in cells] for a in cells]).double()
    expected = offsets.sign() * offsets.abs().add(1).log()
    for layer in module.net:
        expected = layer(expected)
    with torch.no_grad():
        torch.testing.assert_close(module.float()(4)[0].double(), expected.permute(2, 0, 1), atol=1e-5, rtol=0)


def test_attention_equals_its_formula_in_float64():
    torch.manual_seed(0)
    module = _Attention(12, 2, 4).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x, bias = torch.randn(3, 5, 12).double(), torch.randn(1, 2, 5, 5).double()
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    q = (normed * module.norm.gamma) @ module.to_q.weight.T
    k, v = (x @ module.to_kv.weight.T).split(8, -1)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        unit_q = q[..., part] / q[..., part].norm(dim=-1, keepdim=True) * module.q_scale
        unit_k = k[..., part] / k[..., part].norm(dim=-1, keepdim=True) * module.k_scale
        heads.append((8 * unit_q @ unit_k.mT + bias[:, h]).softmax(-1) @ v[..., part])
    torch.testing.assert_close(module(x, bias), torch.cat(heads, -1) @ module.to_out.weight.T)


def test_preprocessing_equals_ct_clips():
    """CT-CLIP reads voxels in file order and takes slope, intercept and spacing from a table, never from the header.

    CT-RATE's files lie in LPS, so orienting to LPS leaves them as they are, and mends a scan stored otherwise.
    """
    stored, header = read_stored(DATA / "ct_clip_preprocess_ct64.nii.gz")
    facts = json.loads((DATA / "ct_clip_preprocess_ct64.json").read_text())
    expected = np.load(DATA / "ct_clip_preprocess_ct64.npz")
    hu = (stored * facts["slope"] + facts["intercept"]).astype(np.float32)
    affine = affine_of("ct64", header)
    assert np.linalg.norm(affine[:3, :3], axis=0) == pytest.approx([facts["xy_spacing"]] * 2 + [facts["z_spacing"]])
    for image in (Image(hu, affine), Image(hu[::-1, ::-1], affine @ np.diag([-1.0, -1, 1, 1]))):
        depth_first = standardise(CT_CLIP_INPUT)(image).permute(0, 3, 1, 2)
        assert tuple(depth_first.shape) == tuple(expected["shape"])
        sampled = depth_first.reshape(-1)[torch.from_numpy(expected["flat_index"])]
        np.testing.assert_allclose(sampled, expected["value"], atol=1e-4, rtol=0)
        np.testing.assert_allclose(depth_first[0, 120, ::4, ::4], expected["mid"], atol=1e-4, rtol=0)
        assert depth_first.sum(dtype=torch.float64).item() == pytest.approx(float(expected["sum"]), rel=1e-6)


def test_sizes_without_a_cubic_token_grid_are_refused():
    with pytest.raises(ValueError, match=r"volume \(8, 40, 40\) in patches of \(4, 10, 10\) is no cubic grid"):
        build_ct_clip_vit(image_size=40, frames=8, patch_size=10, temporal_patch_size=4)


def test_a_volume_of_another_shape_is_refused():
    encoder = build_ct_clip_vit(**TINY_CT, depth=1)
    with pytest.raises(ValueError, match=r"CtClipVit: .* \(1, 1, 4, 8, 8\), it reads \('B', 1, 8, 8, 4\)"):
        encoder(torch.zeros(1, 1, 4, 8, 8))


# ---- the file of both towers ----------------------------------------------------------------------------------------


def published(vision: torch.nn.Module, text: torch.nn.Module, dim: int, voxels: int, frame: int) -> dict:
    """A state dict in the layout of CT-CLIP_v2.pt, unused keys included."""
    state = {**vision.state_dict(), **text.state_dict()}
    shapes = {
        "to_visual_latent_extra.weight": state["to_visual_latent.weight"].shape,
        "to_text_latent_extra.weight": state["to_text_latent.weight"].shape,
        "text_transformer.pooler.dense.weight": (12, 12),
        "text_transformer.pooler.dense.bias": (12,),
        "visual_transformer.to_patch_emb_first_frame.1.weight": (frame,),
        "visual_transformer.to_patch_emb_first_frame.2.weight": (dim, frame),
        "visual_transformer.to_pixels_first_frame.0.weight": (frame, dim),
        "visual_transformer.to_pixels.0.weight": (voxels, dim),
        "visual_transformer.to_pixels.0.bias": (voxels,),
        "visual_transformer.vq._codebook.initted": (1,),
        "visual_transformer.vq._codebook.cluster_size": (1, 8),
        **{
            f"visual_transformer.enc_{kind}_transformer.layers.{i}.1.context_norm.{name}": (dim,)
            for kind in ("spatial", "temporal")
            for i in range(4)
            for name in ("gamma", "beta")
        },
    }
    # one stored element each, so that the published sizes cost nothing
    state |= {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    return {**state, "text_transformer.embeddings.position_ids": torch.arange(512)[None]}


@pytest.fixture
def checkpoint(tmp_path):
    """Random towers of published depth and small width, and their file."""
    torch.manual_seed(0)
    vision, text = build_ct_clip_vit(**TINY_CT), build_cxr_bert(**TINY_TEXT)
    vision.temperature.fill_(1.1)
    state = published(vision, text, 12, 32, 16)
    return vision, text, state, atomic_save(state, tmp_path / "CT-CLIP_v2.pt")


def vocabulary(folder: Path) -> Path:
    """The single-character vocabulary of the tiny text tower, as a file."""
    import string

    from medvl_baseline.texts.vocabulary import SPECIAL_TOKENS

    characters = sorted(set(string.printable) - set(string.whitespace))
    lines = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    path = folder / "vocab.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_round_trip_of_the_published_layout_and_of_its_conversion(checkpoint, tmp_path):
    vision, text, state, path = checkpoint
    ddp = atomic_save({f"module.{key}": value for key, value in state.items()}, tmp_path / "ddp.pt")
    converted = tmp_path / "ct_clip.safetensors"
    digest = convert_ct_clip(path, converted)
    assert digest == file_digest(converted)
    assert set(load_file(converted)) == {*vision.state_dict(), *text.state_dict()}
    assert converted.stat().st_size < path.stat().st_size
    vocabulary(tmp_path)
    for file in (path, ddp, converted):
        other = build_ct_clip_vit(**TINY_CT, weights=file)
        assert weights_digest(other) == weights_digest(vision)
        assert other.weights_sha256 == file_digest(file)
        assert other.teacher_scale == pytest.approx(np.exp(1.1))
        assert all(parameter.requires_grad for parameter in other.parameters())
        words = build_cxr_bert(**TINY_TEXT, vocabulary=tmp_path, weights=file)
        assert weights_digest(words) == weights_digest(text)
        batch = words.tokenize(["No Pleural effusion.", "Clear."])
        torch.testing.assert_close(words.eval()(batch).pooled, text.eval()(batch).pooled)


def test_the_full_size_network_fits_the_published_shapes(tmp_path):
    """On one element per tensor: names and shapes of the fact sheet, without the 2 GB."""
    with torch.device("meta"):
        vision = build_ct_clip_vit()
        text = build_cxr_bert(hidden_size=12)
    empty = {key: torch.zeros(()).expand(value.shape) for key, value in vision.state_dict().items()}
    shapes = {
        "to_visual_latent.weight": (512, 294912),
        "visual_transformer.to_patch_emb.2.weight": (512, 4000),
        "visual_transformer.spatial_rel_pos_bias.net.2.weight": (8, 512),
        "visual_transformer.enc_spatial_transformer.layers.3.0.dsconv.weight": (512, 1, 3, 3, 3),
        "visual_transformer.enc_temporal_transformer.layers.3.1.null_kv": (8, 0, 32),
        "visual_transformer.enc_temporal_transformer.layers.0.1.to_q.weight": (256, 512),
        "visual_transformer.enc_temporal_transformer.layers.0.1.to_kv.weight": (512, 512),
        "visual_transformer.enc_temporal_transformer.layers.0.1.to_out.weight": (512, 256),
        "visual_transformer.enc_temporal_transformer.layers.0.1.k_scale": (32,),
        "visual_transformer.enc_temporal_transformer.layers.0.3.1.weight": (2730, 512),
        "visual_transformer.enc_temporal_transformer.layers.0.3.4.weight": (512, 1365),
        "visual_transformer.enc_temporal_transformer.norm_out.beta": (512,),
        "visual_transformer.vq._codebook.embed": (1, 8192, 512),
        "temperature": (),
    }
    assert {key: tuple(empty[key].shape) for key in shapes} == shapes
    state = {**published(vision, text, 512, 4000, 400), **empty}
    state = {key: value for key, value in state.items() if not value.is_meta}
    path = tmp_path / "CT-CLIP_v2.pt"
    torch.save(state, path)
    assert path.stat().st_size < 1e6
    encoder = build_ct_clip_vit(weights=path)
    assert encoder.input == CT_CLIP_INPUT
    assert not any(value.is_meta for value in encoder.state_dict().values())


def test_the_full_size_network_runs_where_its_weights_are(monkeypatch):
    """On the meta device: a tensor made on the CPU in between would not go together with the others."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which the meta device does not have
    with torch.device("meta"):
        encoder = build_ct_clip_vit()
    output = encoder(torch.empty(1, 1, 480, 480, 240, device="meta"))
    assert output.pooled.shape == (1, 512)
    assert output.tokens.shape == (1, 24**3, 512)
    assert {part.device.type for part in (output.pooled, output.tokens)} == {"meta"}
    assert sum(parameter.numel() for parameter in encoder.parameters()) == pytest.approx(174.4e6, rel=1e-3)


def test_the_text_tower_has_the_published_shapes():
    with torch.device("meta"):
        state = build_cxr_bert().state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["to_text_latent.weight"] == (512, 768)
    assert shapes["text_transformer.encoder.layer.11.intermediate.dense.weight"] == (3072, 768)
    assert shapes["text_transformer.embeddings.position_embeddings.weight"] == (512, 768)
    assert not [key for key in shapes if "pooler" in key or "position_ids" in key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual_transformer.new.weight": torch.zeros(2)}, r"unexpected visual_transformer\.new\.weight \(2,\)"),
        ({"to_visual_latent.weight": torch.zeros(6, 9)}, r"to_visual_latent\.weight is \(6, 9\), needs \(6, 48\)"),
        ({"temperature": None}, r"missing temperature \(\)"),
        (
            {"visual_transformer.enc_spatial_transformer.layers.2.1.null_kv": torch.zeros(2, 1, 4)},
            r"layers\.2\.1\.null_kv is \(2, 1, 4\), needs \(2, 0, 4\)",
        ),
        ({"head.weight": torch.zeros(1)}, r"unexpected head\.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_key(checkpoint, tmp_path, change, message):
    vision, _, state, _ = checkpoint
    changed = {key: value for key, value in {**state, **change}.items() if value is not None}
    path = atomic_save(changed, tmp_path / "wrong.pt")
    before = weights_digest(vision)
    with pytest.raises(WeightsError, match=rf"wrong\.pt: does not fit CtClipVit .*{message}"):
        load_ct_clip(vision, path)
    assert weights_digest(vision) == before


def test_the_converter_refuses_another_layout_by_key(checkpoint, tmp_path):
    _, _, state, _ = checkpoint
    del state["to_text_latent.weight"]
    path = atomic_save({**state, "extra": torch.zeros(1)}, tmp_path / "wrong.pt")
    with pytest.raises(
        WeightsError, match=r"wrong\.pt: not the layout of CT-CLIP \(2 keys\): missing to_text_latent\.weight; unexpect"
    ):
        convert_ct_clip(path, tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match=r"out\.pt: the converted file is a \.safetensors file"):
        convert_ct_clip(path, tmp_path / "out.pt")
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_command_converts_and_names_both_digests(checkpoint, tmp_path, caplog, capsys):
    path, target = checkpoint[-1], tmp_path / "out.safetensors"
    with caplog.at_level(logging.INFO):
        main([str(path), str(target)])
    assert file_digest(path) in caplog.text
    assert file_digest(target) in caplog.text
    with pytest.raises(SystemExit, match="65"):
        main([str(tmp_path / "absent.pt"), str(target)])
    assert "absent.pt" in capsys.readouterr().err


def test_missing_files_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.pt: no such weights file; wanted is CT-CLIP_v2\.pt"):
        build_ct_clip_vit(**TINY_CT, weights=tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(tmp_path))}/vocab\.txt: .*BiomedVLP-CXR-BERT-spec"):
        build_cxr_bert(**TINY_TEXT, vocabulary=tmp_path)
    with pytest.raises(ValueError, match=r"w\.pt: these weights need the vocabulary"):
        build_cxr_bert(**TINY_TEXT, weights="w.pt")


def test_text_is_folded_to_lower_case_and_cut_at_the_length(tmp_path):
    encoder = build_cxr_bert(**TINY_TEXT, vocabulary=vocabulary(tmp_path), layers=1)
    upper, lower = (encoder.tokenize([text]).input_ids for text in ("NO EFFUSION", "no effusion"))
    assert torch.equal(upper, lower)
    assert encoder.tokenize(["long " * 50]).input_ids.shape == (1, 16)
    assert build_encoder("x2ct/cxr_bert", **TINY_TEXT, layers=1).input.max_length == 16


def test_the_latent_of_a_text_is_its_projected_first_token():
    encoder = build_cxr_bert(**TINY_TEXT, layers=1).eval()
    batch = encoder.tokenize(["clear lungs", "no"])
    with torch.no_grad():
        hidden = encoder.text_transformer(batch.input_ids, batch.attention_mask).last_hidden_state[:, 0]
        expected = F.normalize(hidden @ encoder.to_text_latent.weight.T, dim=-1)
        torch.testing.assert_close(Tower(encoder, embed_dim=None, frozen=True)(batch), expected)
