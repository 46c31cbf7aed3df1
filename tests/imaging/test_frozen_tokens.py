from __future__ import annotations

import pytest
import torch
from torch import nn

from medvl_core.build import build_pooling
from medvl_core.engine.alignment import AlignmentModel, Tower
from medvl_core.engine.loading import StudyDataset, study_loader
from medvl_core.protocols import EncoderOutput
from medvl_core.specs import ImageInput
from medvl_imaging.frozen_tokens import FrozenTokens
from medvl_imaging.images import ImageRows

CT = ImageInput(channels=1, size=(8, 8, 4), axcodes="RAS", window_hu=(-200.0, 200.0))


class Slabs(nn.Module):
    """A token per slab of the volume; the last one is always masked, and its tokens are no numbers."""

    embed_dim, n_tokens, input = 6, 4, CT

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 6)
        self.rows_seen = 0

    def forward(self, x):
        self.rows_seen += len(x)
        tokens = self.layer(x.flatten(1, 3).mT)
        tokens = torch.cat([tokens[:, :3], torch.full_like(tokens[:, 3:], torch.nan)], 1)
        return EncoderOutput(tokens, (4,), mask=(torch.arange(4) < 3).expand(len(x), -1))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Slabs()


def test_tokens_are_made_once_and_come_back_with_their_mask(tmp_path, studies, encoder):
    rows = ImageRows("ct", CT)
    tokens = FrozenTokens("ct", encoder, rows, tmp_path)
    tokens.prepare(studies[:5], batch_size=2)
    tokens.prepare(studies, batch_size=4)
    assert encoder.rows_seen == len(studies)
    with torch.no_grad():
        expected = encoder(rows(studies[7])[None])
    found, mask = tokens(studies[7]).values()
    assert mask.tolist() == [True, True, True, False]
    torch.testing.assert_close(found[:3], expected.tokens[0, :3], rtol=0, atol=1e-6)
    assert found[3].abs().max() == 0
    with torch.no_grad():
        encoder.layer.bias += 1
    with pytest.raises(KeyError, match="study7"):
        FrozenTokens("ct", encoder, rows, tmp_path)(studies[7])


def test_a_worker_can_make_one_row(tmp_path, studies, encoder):
    tokens = FrozenTokens("ct", encoder, ImageRows("ct", CT), tmp_path)
    tokens.embed(studies[0])
    assert tokens(studies[0])["ct_tokens"].shape == (4, 6)
    assert tokens.key(studies[0])[0] == "study0"
    assert str(tmp_path) in tokens.address()


@pytest.mark.parametrize("workers", [0, 2])
def test_stored_tokens_train_the_pooling_as_images_do(tmp_path, studies, encoder, workers):
    encoder.requires_grad_(False)
    rows = ImageRows("ct", CT)
    tokens = FrozenTokens("ct", encoder, rows, tmp_path)
    tokens.prepare(studies)
    tower = Tower(encoder, build_pooling("baseline/attention", embed_dim=6, heads=2), embed_dim=5)
    model = AlignmentModel({"ct": tower})

    def gradients(field):
        loader = study_loader(StudyDataset(studies, {"ct": field}), 4, num_workers=workers)
        tower.zero_grad()
        found = torch.cat([model(batch).embeddings["ct"] for batch in loader])
        (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
        return [found, *(p.grad for p in tower.parameters() if p.requires_grad)]

    for stored, live in zip(gradients(tokens), gradients(rows), strict=True):
        torch.testing.assert_close(stored, live, rtol=1e-5, atol=1e-6)


def test_stored_tokens_need_a_pooling(encoder):
    with pytest.raises(ValueError, match="Slabs: stored tokens need a pooling; give the tower one"):
        Tower(encoder, None, embed_dim=5).pool(torch.zeros(1, 4, 6))


def test_stored_means_are_what_mean_pooling_makes_of_the_images(tmp_path, studies, encoder):
    rows = ImageRows("ct", CT)
    tokens = FrozenTokens("ct", encoder, rows, tmp_path, mean=True)
    tokens.prepare(studies[:3])
    tower = Tower(encoder, build_pooling("baseline/mean"), 5)
    for study in studies[:3]:
        row, mask = tokens(study).values()
        assert row.shape == (1, 6)
        assert mask.tolist() == [True]
        with torch.no_grad():
            torch.testing.assert_close(tower.pool(row[None], mask[None]), tower(rows(study)[None]))
    assert tokens.address() != FrozenTokens("ct", encoder, rows, tmp_path).address()
