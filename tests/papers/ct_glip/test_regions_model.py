from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from medvl_core.build import build_loss, build_pooling
from medvl_core.engine import AlignmentLoss
from medvl_core.errors import ComponentError
from medvl_core.protocols import EncoderOutput, LossOutput
from medvl_core.specs import ImageInput
from medvl_ct_glip.regions.model import RegionAlignmentModel, RegionTower


class Encoder(nn.Module):
    """Two features per voxel: the value and its square."""

    embed_dim = 2

    def forward(self, x):
        features = torch.cat([x, x**2], dim=1)
        return EncoderOutput(
            tokens=features.flatten(2).mT, grid=tuple(x.shape[2:]), features=features, logits=(features,)
        )


class Pooling(nn.Module):
    """A loop over three regions."""

    def forward(self, features, regions):
        masks = [(regions == r)[:, None] for r in (1, 2, 3)]
        return torch.stack([(features * m).sum((2, 3, 4)) / m.sum((2, 3, 4)).clamp(min=1) for m in masks], dim=1)


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return RegionTower(Encoder(), Pooling(), embed_dim=5, hidden=7)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    regions = torch.randint(0, 4, (2, 4, 4, 4), generator=generator)
    regions[1][regions[1] == 2] = 0
    return {
        "ct": torch.randn(2, 1, 4, 4, 4, generator=generator),
        "regions": regions,
        "region_visible": torch.tensor([[True, False, True], [True, True, True]]),
        "diagnosis_embedding": functional.normalize(torch.randn(2, 3, 5, generator=generator), dim=-1),
        "diagnosis_group": torch.arange(6).view(2, 3),
        "negatives": torch.tensor([[0, -1], [1, 0]]),
        "report_embedding": functional.normalize(torch.randn(2, 5, generator=generator), dim=-1),
        "text_group": torch.arange(2),
    }


def texts(dictionary=None):
    empty = torch.zeros(0, 5) if dictionary is None else dictionary
    return SimpleNamespace(names_embedding=names(), dictionary=empty, dictionary_group=torch.arange(len(empty)))


def names():
    return functional.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(2)), dim=-1)


def test_region_embeddings_are_unit_vectors_of_the_pooled_features(tower, batch):
    output = tower(batch["ct"], batch["regions"])
    inside = batch["ct"][0, 0][batch["regions"][0] == 3]
    expected = functional.normalize(tower.head(torch.stack([inside.mean(), (inside**2).mean()])), dim=-1)
    torch.testing.assert_close(output.embedding[0, 2], expected)
    assert output.voxels[1].tolist()[1] == 0
    whole = torch.stack([batch["ct"][1].mean(), (batch["ct"][1] ** 2).mean()])
    torch.testing.assert_close(output.scan[1], functional.normalize(tower.head(whole), dim=-1))
    assert len(output.logits) == 1


def test_pairs_are_the_visible_regions_that_have_voxels(tower, batch):
    model = RegionAlignmentModel(tower, texts())
    pairs = model(batch)
    assert pairs.extras["scan"].tolist() == [0, 0, 1, 1]  # region 2 of scan 0 is not visible, of scan 1 empty
    assert pairs.extras["region"].tolist() == [0, 2, 0, 2]
    assert torch.equal(pairs.embeddings["anatomy"], names()[[0, 2, 0, 2]])
    assert torch.equal(pairs.embeddings["diagnosis"], batch["diagnosis_embedding"][[0, 0, 1, 1], [0, 2, 0, 2]])
    assert pairs.extras["diagnosis_group"].tolist() == [0, 2, 3, 5]
    assert pairs.logit_scale.item() == pytest.approx(1 / 0.07)


def test_texts_are_no_part_of_the_weights(tower):
    model = RegionAlignmentModel(tower, texts(names()))
    assert all(key.startswith("tower.") for key in model.state_dict())


def test_level_scan_pairs_scans_with_reports(tower, batch):
    pairs = RegionAlignmentModel(tower, level="scan")(batch)
    assert {name: tuple(rows.shape) for name, rows in pairs.embeddings.items()} == {"ct": (2, 5), "report": (2, 5)}
    assert torch.equal(pairs.embeddings["ct"], tower(batch["ct"], batch["regions"]).scan)


def test_an_encoder_without_a_map_is_refused(tower, batch):
    class Pooled(Encoder):
        def forward(self, x):
            return EncoderOutput(tokens=x.flatten(2).mT, grid=(64,))

    with pytest.raises(ValueError, match="Pooled gives no feature map; regions need one"):
        RegionTower(Pooled(), Pooling(), 5)(batch["ct"], batch["regions"])


def test_weights_of_other_voxels_are_refused_and_of_other_patches_load():
    def made(spacing, size):
        encoder = Encoder()
        encoder.input = ImageInput(channels=1, size=(size,) * 3, spacing_mm=(spacing,) * 3, axcodes="LPS")
        return RegionTower(encoder, Pooling(), embed_dim=5, hidden=7)

    state = made(8.0, 16).state_dict()
    made(8.0, 32).load_state_dict(state)
    with pytest.raises(ValueError, match=r"trained with preprocessing .*, this tower has .*spacing_mm=\(4\.0, 4\.0, 4"):
        made(4.0, 16).load_state_dict(state)


def test_temperature_must_be_positive(tower):
    with pytest.raises(ValueError, match="temperature is 0; it must be positive"):
        RegionAlignmentModel(tower, texts(), temperature=0)


def test_level_none_makes_no_pairs_and_needs_no_texts(tower, batch):
    model = RegionAlignmentModel(tower, level="none")
    made = model({"ct": batch["ct"], "regions": batch["regions"]})
    assert set(made.extras) == {"regions", "logits"}
    assert made.embeddings == {}
    for level in ("patient", "region"):
        with pytest.raises(ValueError, match=f"level is '{level}'; give region, with texts, or scan, or none"):
            RegionAlignmentModel(tower, level=level)


class Older(nn.Module):
    """A loss that reads the age of the patient of every pair."""

    needs = ("age",)

    def forward(self, batch):
        assert len(batch.extras["age"]) == len(batch.embeddings["ct"])
        total = batch.extras["age"].float().mean() * batch.embeddings["ct"].sum()
        return LossOutput(total, {"age": batch.extras["age"].float().mean()})


@pytest.mark.parametrize("level", ["region", "scan"])
def test_what_no_tower_reads_reaches_the_losses_pair_by_pair(tower, batch, level):
    model, loss = RegionAlignmentModel(tower, texts(), level=level), AlignmentLoss({"older": Older()}, gather="none")
    pairs = model(batch | {"age": torch.tensor([20, 60]), "subject_id": ["a", "b"]})
    loss(pairs)
    assert pairs.extras["age"].tolist() == ([20, 20, 60, 60] if level == "region" else [20, 60])
    assert pairs.extras["subject_id"] == (["a", "a", "b", "b"] if level == "region" else ["a", "b"])
    with pytest.raises(ValueError, match=r"loss older .Older. needs 'age'; the batch has"):
        AlignmentLoss({"older": Older()}, gather="none")(model(batch))


def test_an_encoder_that_does_not_segment_is_told_from_a_lack_of_logits(batch):
    class Plain(Encoder):
        def forward(self, x):
            return dataclasses.replace(super().forward(x), logits=None)

    model = RegionAlignmentModel(RegionTower(Plain(), Pooling(), embed_dim=5, hidden=7), texts())
    with pytest.raises(ValueError, match=r"loss masks \(ct_glip/segmentation\) needs 'logits'; the batch has"):
        AlignmentLoss({"masks": build_loss("ct_glip/segmentation")}, gather="none")(model(batch))
    contrast = build_loss("ct_glip/organ_contrast", text="diagnosis")
    assert contrast.needs == ("scan", "diagnosis_group")
    assert AlignmentLoss({"diagnosis": contrast}, gather="none")(model(batch)).isfinite()


def test_a_global_pooling_is_refused():
    with pytest.raises(ComponentError, match="baseline/mean pools whole images; organs need a region pooling: ct_glip"):
        RegionTower(Encoder(), build_pooling("baseline/mean"))
