from __future__ import annotations

import copy

import pytest
import torch

from medvl_core.engine.alignment import AlignmentModel, Tower
from medvl_core.engine.weights import WeightsError, save_weights
from medvl_evaluation.ensemble import CheckpointEnsemble
from tests.core.test_engine_alignment import Encoder


def _model(seed: int) -> AlignmentModel:
    torch.manual_seed(seed)
    return AlignmentModel({m: Tower(Encoder(pooled=True), embed_dim=5) for m in ("cxr", "report")}).eval()


@pytest.fixture
def members(tmp_path):
    models = [_model(seed) for seed in range(3)]
    for i, model in enumerate(models):
        save_weights(model, tmp_path / f"checkpoint_epoch={i}.pt")
    return models


def test_similarity_is_the_mean_of_the_members(tmp_path, members):
    ensemble = CheckpointEnsemble(_model(9), tmp_path).load()
    batch = {"cxr": torch.randn(4, 1, 4, generator=torch.Generator().manual_seed(0))}
    texts = ["edema", "no edema at all"]
    with torch.no_grad():
        rows = ensemble(batch).embeddings["cxr"]
        expected = torch.stack([one(batch).embeddings["cxr"] @ one.embed_text(texts).T for one in members]).mean(0)
    torch.testing.assert_close(rows @ ensemble.embed_text(texts).T, expected)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))


def test_model_given_is_neither_changed_nor_a_submodule(tmp_path, members):
    model = _model(9)
    before = copy.deepcopy(model.state_dict())
    ensemble = CheckpointEnsemble(model, tmp_path)
    assert list(ensemble.parameters()) == []
    ensemble.load()
    torch.testing.assert_close(model.state_dict(), before)


def test_texts_that_are_not_normalised_are_laid_end_to_end(tmp_path, members):
    ensemble = CheckpointEnsemble(_model(9), tmp_path).load()
    raw = ensemble.embed_text(["edema"], normalise=False)
    torch.testing.assert_close(raw, torch.cat([one.embed_text(["edema"], normalise=False) for one in members], 1))


def test_folder_without_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint; train with keep_checkpoints above 0"):
        CheckpointEnsemble(_model(0), tmp_path / "none").load()


def test_checkpoint_of_another_model(tmp_path):
    save_weights(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"a\.pt: does not fit AlignmentModel"):
        CheckpointEnsemble(_model(0), tmp_path).load()
