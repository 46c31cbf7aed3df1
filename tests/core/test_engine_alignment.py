from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medvl_core.engine.alignment import AlignmentLoss, AlignmentModel, Tower
from medvl_core.engine.weights import WeightsError, atomic_save, load_weights, save_weights
from medvl_core.protocols import AlignmentBatch, EncoderOutput, LossOutput, TokenBatch
from medvl_core.specs import ImageInput


class Encoder(nn.Module):
    """Tokens are the rows of the input, through one layer with dropout and batch norm."""

    def __init__(self, width: int = 6, pooled: bool = False) -> None:
        super().__init__()
        self.embed_dim = width
        self.layer = nn.Linear(4, width)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(width)
        self.pooled = pooled

    def tokenize(self, texts):
        ids = torch.tensor([[len(text), 1, 2, 3] for text in texts])
        return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))

    def forward(self, x):
        if isinstance(x, TokenBatch):
            x = x.input_ids.float()[:, None]
        tokens = self.norm(self.dropout(self.layer(x)).flatten(0, 1)).unflatten(0, x.shape[:2])
        return EncoderOutput(tokens, (x.shape[1],), pooled=tokens[:, 0] if self.pooled else None)


class Mean(nn.Module):
    def forward(self, tokens, mask=None):
        return tokens.mean(1)


class Dot(nn.Module):
    """Minus the mean inner product of pairs."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, batch):
        value = -(batch.embeddings[self.a] * batch.embeddings[self.b]).sum(-1).mean()
        return LossOutput(value, {"dot": value})


def _tower(**options) -> Tower:
    torch.manual_seed(0)
    return Tower(Encoder(), Mean(), embed_dim=5, **options)


def _read(size: int = 8) -> Tower:
    torch.manual_seed(size)
    encoder = Encoder()
    encoder.input = ImageInput(channels=1, size=(size, size))
    return Tower(encoder, Mean(), embed_dim=5)


def test_weights_of_another_preprocessing_are_refused(tmp_path):
    path = save_weights(AlignmentModel({"cxr": _read(9)}), tmp_path / "model.safetensors")
    theirs, own = (_read(size).encoder.input.digest()[:12] for size in (9, 8))
    with pytest.raises(ValueError, match=rf"with preprocessing {theirs}, this tower has {own} \(.*size=\(8, 8\)"):
        load_weights(AlignmentModel({"cxr": _read()}), path)
    same = AlignmentModel({"cxr": _read(9)})
    same.towers["cxr"].projection.weight.data.zero_()
    load_weights(same, path)
    assert same.towers["cxr"].projection.weight.any()


def test_weights_that_say_nothing_of_preprocessing_load(tmp_path):
    source, target = _read(9), _read()
    state = {key: value for key, value in source.state_dict().items() if key != "input_sha256"}
    load_weights(target, atomic_save(state, tmp_path / "published.pt"))
    torch.testing.assert_close(target.encoder.layer.weight, source.encoder.layer.weight)
    target.load_state_dict(state)
    assert bytes(target.input_sha256.tolist()).hex() == target.encoder.input.digest()
    with pytest.raises(WeightsError, match=r"missing projection\.weight"):
        load_weights(target, atomic_save({k: v for k, v in state.items() if "proj" not in k}, tmp_path / "cut.pt"))


def test_embedding_is_a_unit_vector_in_fp32():
    embedding = _tower().double().eval()(torch.randn(7, 3, 4, dtype=torch.float64))
    assert embedding.dtype == torch.float32
    assert embedding.shape == (7, 5)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(7))


def test_frozen_tower_does_not_change_in_training():
    tower = _tower(frozen=True)
    model = AlignmentModel({"cxr": tower}).train()
    x = torch.randn(7, 3, 4)
    first = model({"cxr": x}).embeddings["cxr"]
    assert not tower.training
    assert not first.requires_grad
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert tower.encoder.norm.num_batches_tracked == 0
    torch.testing.assert_close(model({"cxr": x}).embeddings["cxr"], first, rtol=0, atol=0)


def test_frozen_towers_of_a_model_are_no_part_of_it():
    teacher = _tower()
    model = AlignmentModel({"cxr": _tower()}, frozen_towers={"ct": teacher}).train()
    batch = model({"cxr": torch.randn(4, 3, 4), "ct": torch.randn(4, 3, 4)})
    assert not batch.embeddings["ct"].requires_grad
    assert batch.embeddings["cxr"].requires_grad
    assert not any(key.startswith("towers.ct") for key in model.state_dict())
    assert not any(parameter is other for parameter in model.parameters() for other in teacher.parameters())
    assert teacher.encoder.norm.num_batches_tracked == 0


def test_pooled_vector_of_the_encoder_is_used_without_a_pooling():
    tower = Tower(Encoder(pooled=True), None, embed_dim=None).eval()
    assert tower.embed_dim == 6
    assert tower(torch.randn(2, 3, 4)).shape == (2, 6)
    with pytest.raises(ValueError, match="Encoder has no pooled vector of its own; give the tower a pooling"):
        Tower(Encoder(), None).eval()(torch.randn(2, 3, 4))


def test_texts_are_tokenised_and_embed_text_keeps_the_mode():
    tower = _tower().train()
    rows = tower.embed_text(["a", "bb", "ccc"])
    assert tower.training
    raw = tower.embed_text(["a", "bb", "ccc"], normalise=False)
    torch.testing.assert_close(nn.functional.normalize(raw, dim=-1), rows)
    torch.testing.assert_close(tower.eval()(["a", "bb", "ccc"]), rows)


def test_temperature_is_a_clamped_log_scale():
    model = AlignmentModel({"cxr": _tower()}, temperature=0.07, max_logit_scale=100)
    assert model.log_logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert model.logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-6)
    model.log_logit_scale.data.fill_(9.0)
    assert model.logit_scale.item() == pytest.approx(100, rel=1e-6)
    with pytest.raises(ValueError, match="temperature is 0; it must be positive"):
        AlignmentModel({"cxr": _tower()}, temperature=0)


def test_stored_embeddings_skip_the_tower():
    stored = nn.functional.normalize(torch.randn(4, 5), dim=-1)
    model = AlignmentModel({"cxr": _tower()})
    out = model({"cxr_embedding": stored, "report_embedding": stored.half(), "study_id": ["s"] * 4})
    assert set(out.embeddings) == {"cxr", "report"}
    assert out.embeddings["cxr"] is stored or torch.equal(out.embeddings["cxr"], stored)
    with pytest.raises(ValueError, match=r"the batch holds \['mri'\], the model has towers for \['cxr'\]"):
        model({"mri": torch.zeros(1)})


def test_weighted_sum_names_its_terms():
    rows = {name: nn.functional.normalize(torch.randn(6, 5), dim=-1) for name in ("cxr", "ct", "report")}
    batch = AlignmentBatch(rows, torch.tensor(1.0))
    loss = AlignmentLoss({"xr": Dot("cxr", "report"), "xc": Dot("cxr", "ct")}, {"xr": 2.0, "xc": 0.5})
    total = loss(batch)
    expected = -2 * (rows["cxr"] * rows["report"]).sum(-1).mean() - 0.5 * (rows["cxr"] * rows["ct"]).sum(-1).mean()
    torch.testing.assert_close(total, expected)
    assert set(batch.terms) == {"xr", "xc"}


def test_loss_of_weight_zero_is_not_computed():
    batch = AlignmentBatch({"cxr": torch.eye(3), "report": torch.eye(3)}, torch.tensor(1.0))
    loss = AlignmentLoss({"xr": Dot("cxr", "report"), "xc": Dot("cxr", "absent")}, {"xc": 0})
    assert loss(batch).item() == -1.0
    with pytest.raises(ValueError, match=r"weights name \['typo'\], the losses are \['xr'\]"):
        AlignmentLoss({"xr": Dot("cxr", "report")}, {"typo": 1})
    with pytest.raises(ValueError, match="every loss has weight 0"):
        AlignmentLoss({"xr": Dot("cxr", "report")}, {"xr": 0})
