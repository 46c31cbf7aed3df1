from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from medvl_core.build import build_encoder, build_loss, build_pooling
from medvl_core.engine.alignment import AlignmentLoss, AlignmentModel, Tower
from medvl_core.engine.loading import StudyDataset, Text, study_loader
from medvl_core.protocols import EncoderOutput, TokenBatch
from medvl_core.specs import ImageInput, TextInput
from medvl_imaging.embedding import FrozenEmbedding, image_store, prepare_images, producer_of, usable, usable_studies
from medvl_imaging.images import ImageRows
from tests.conftest import ArraySource

CT = ImageInput(channels=1, size=(8, 8, 8), axcodes="RAS", window_hu=(-200.0, 200.0))
CXR = ImageInput(channels=1, size=(8, 8))


class Encoder(nn.Module):
    """A layer over all input values, with dropout; counts its calls."""

    embed_dim = 6

    def __init__(self, input, n_in):
        super().__init__()
        self.input = input
        self.layer = nn.Linear(n_in, 6)
        self.dropout = nn.Dropout(0.5)
        self.rows_seen = 0

    def tokenize(self, texts):
        ids = torch.tensor([[len(text), int(text.split()[2][:-1]), 1, 1] for text in texts])
        return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))

    def forward(self, x):
        x = x.input_ids.float() if isinstance(x, TokenBatch) else x.flatten(1)
        self.rows_seen += len(x)
        row = self.dropout(torch.tanh(self.layer(x)))
        return EncoderOutput(row[:, None], (1,), pooled=row)


class Reports:
    def texts(self, studies, rng):
        return [study.report.findings for study in studies]


@pytest.fixture
def ct_rows(tmp_path):
    return ImageRows("ct", CT, image_store(tmp_path, "ct", CT))


@pytest.fixture
def towers():
    torch.manual_seed(0)
    return {
        "ct": Tower(Encoder(CT, 512), None, embed_dim=5),
        "report": Tower(Encoder(TextInput(max_length=4), 4), None, embed_dim=5),
        "cxr": Tower(Encoder(CXR, 64), None, embed_dim=5),
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_prepared_images_are_the_standardised_ones_to_half_precision(tmp_path, studies, ct_rows, workers):
    prepare_images(studies, [ct_rows, ImageRows("cxr", CXR)], workers)
    assert len(ct_rows.store.missing([ct_rows.key(study) for study in studies])) == 0
    fresh = ImageRows("ct", CT)(studies[3])
    torch.testing.assert_close(ct_rows(studies[3]), fresh, rtol=0, atol=1e-3)


def test_prepared_study_is_not_read_again(studies, ct_rows, monkeypatch):
    prepare_images(studies, [ct_rows])

    def read(self):
        raise AssertionError("read again")

    monkeypatch.setattr(ArraySource, "load", read)
    prepare_images(studies, [ct_rows])
    assert ct_rows(studies[0]).shape == (1, 8, 8, 8)


@pytest.mark.parametrize("prepared", [False, True])
def test_image_is_as_precise_whether_it_was_stored_or_not(studies, ct_rows, prepared):
    if prepared:
        prepare_images(studies, [ct_rows])
    half = ImageRows("ct", CT)(studies[3]).half().float()
    assert not torch.equal(half, ImageRows("ct", CT)(studies[3]))
    assert torch.equal(ct_rows(studies[3]), half)


def _address(tmp_path, rows, pooling):
    torch.manual_seed(0)
    encoder = build_encoder("baseline/resnet_3d", size=(32, 32, 32), depth=10, base_width=4)
    pooling = pooling and build_pooling(pooling)
    return FrozenEmbedding("ct", Tower(encoder, pooling, embed_dim=5), rows, tmp_path).address()


def test_parts_without_parameters_are_in_the_address(tmp_path, ct_rows):
    same = _address(tmp_path, ct_rows, "baseline/mean")
    assert _address(tmp_path, ct_rows, "baseline/mean") == same
    assert _address(tmp_path, ct_rows, "baseline/cls") != same
    assert _address(tmp_path, ct_rows, None) != same


def test_options_are_in_the_producer_but_where_the_weights_lie_is_not():
    def made(**options):
        layer = nn.Identity()
        layer.component, layer.built_with = "mine/layer", options
        return producer_of(nn.Sequential(layer))

    first = made(heads=4, inner={"weights": "/a/w.pt", "depth": 2}, weights=None)
    assert made(heads=4, inner={"weights": "/b/w.pt", "depth": 2}, weights="/b/v.pt", vocabulary=["a"]) == first
    assert made(heads=8, inner={"weights": "/a/w.pt", "depth": 2}) != first
    assert made(heads=4, inner={"weights": "/a/w.pt", "depth": 3}) != first
    assert producer_of(nn.Sequential(nn.ReLU())) != producer_of(nn.Sequential(nn.Tanh()))


def test_version_of_the_preprocessing_is_in_the_addresses(tmp_path, ct_rows, towers, monkeypatch):
    def addresses():
        texts = FrozenEmbedding("report", towers["report"], Reports(), tmp_path).address()
        return [
            str(image_store(tmp_path, "ct", CT).folder),
            *(FrozenEmbedding("ct", towers["ct"], ct_rows, tmp_path).address(), texts),
        ]

    before = addresses()
    monkeypatch.setattr("medvl_imaging.embedding.STANDARDISE_VERSION", 99)
    assert [one == other for one, other in zip(addresses(), before, strict=True)] == [False, False, True]


def test_frozen_tower_runs_once_per_study(tmp_path, studies, ct_rows, towers):
    embedding = FrozenEmbedding("ct", towers["ct"], ct_rows, tmp_path)
    embedding.prepare(studies[:8], batch_size=3)
    embedding.prepare(studies, batch_size=5)
    assert towers["ct"].encoder.rows_seen == len(studies)
    assert not towers["ct"].training
    with torch.no_grad():
        expected = towers["ct"](ct_rows(studies[2])[None])[0]
    torch.testing.assert_close(embedding(studies[2]), expected, rtol=0, atol=1e-6)


def test_other_weights_or_input_never_meet_an_old_row(tmp_path, studies, ct_rows, towers):
    embedding = FrozenEmbedding("ct", towers["ct"], ct_rows, tmp_path)
    embedding.prepare(studies)
    changed = replace(studies[0], images={"ct": ArraySource(77, (10, 10, 10))})
    with pytest.raises(KeyError, match="study0"):
        embedding(changed)
    with torch.no_grad():
        towers["ct"].projection.weight[0, 0] += 1
    retrained = FrozenEmbedding("ct", towers["ct"], ct_rows, tmp_path)
    with pytest.raises(KeyError, match="study0"):
        retrained(studies[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_training_with_the_store_has_the_losses_of_training_without(tmp_path, studies, ct_rows, towers, workers):
    frozen = {
        "ct": FrozenEmbedding("ct", towers["ct"], ct_rows, tmp_path),
        "report": FrozenEmbedding("report", towers["report"], Reports(), tmp_path),
    }
    prepare_images(studies, [ct_rows])
    for embedding in frozen.values():
        embedding.prepare(studies)
    loss = AlignmentLoss({name: build_loss("baseline/infonce", pair=("cxr", name)) for name in ("ct", "report")})

    def losses(use_store):
        cxr = Tower(Encoder(CXR, 64), None, embed_dim=5)
        cxr.load_state_dict(towers["cxr"].state_dict())
        model = AlignmentModel({"cxr": cxr}, frozen_towers={} if use_store else {k: towers[k] for k in frozen}).train()
        stored = {f"{name}_embedding": rows for name, rows in frozen.items()}
        live = {"ct": ct_rows, "report": Text(Reports())}
        dataset = StudyDataset(studies, {"cxr": ImageRows("cxr", CXR), **(stored if use_store else live)})
        optimizer = torch.optim.AdamW(cxr.parameters(), lr=0.01)
        values = []
        loader = study_loader(dataset, 4, shuffle=True, num_workers=workers)
        for epoch in (1, 2):
            loader.batch_sampler.set_epoch(epoch)
            for step, batch in enumerate(loader):
                torch.manual_seed(100 * epoch + step)
                value = loss(model(batch))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                values.append(value.item())
        return np.array(values)

    with_store, without = losses(True), losses(False)
    assert len(with_store) == 6
    np.testing.assert_allclose(with_store, without, rtol=1e-6)


@dataclass(frozen=True)
class Damaged:
    def load(self):
        raise ValueError("broken.dcm: cut")

    def fingerprint(self):
        return "broken"


@pytest.mark.parametrize("workers", [0, 2])
def test_studies_that_cannot_be_read_are_listed_and_dropped(tmp_path, studies, ct_rows, workers):
    studies[3] = replace(studies[3], images={"ct": Damaged()})
    kept = usable_studies(studies, [ct_rows], tmp_path / "dropped.csv", workers)
    assert [study.study_id for study in kept] == [f"study{i}" for i in range(12) if i != 3]
    assert (tmp_path / "dropped.csv").read_text() == "study,reason\nstudy3,broken.dcm: cut\n"
    assert ct_rows.store.missing([ct_rows.key(study) for study in studies]) == [("study3", "broken")]
    assert usable_studies(kept, [ct_rows], tmp_path / "dropped.csv") == kept
    assert (tmp_path / "dropped.csv").read_text() == "study,reason\n"
    with pytest.raises(ValueError, match=r"broken\.dcm: cut"):
        prepare_images(studies, [ct_rows])


def test_usable_studies_of_a_cohort_are_shuffled_for_validation_only(tmp_path, studies, ct_rows):
    of = usable([ct_rows], str(tmp_path / "dropped_{}.csv"), seed=3)
    assert of(studies, "train") == studies
    shuffled = of(studies, "validation")
    assert shuffled == random.Random(3).sample(studies, len(studies)) != studies
    assert {path.name for path in tmp_path.glob("*.csv")} == {"dropped_train.csv", "dropped_validation.csv"}
