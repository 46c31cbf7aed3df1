from __future__ import annotations

import math

import pytest
import torch

from medvl_baseline.poolings import AttentionPooling, ClsPooling, MeanPooling

POOLINGS = {
    "mean": lambda: MeanPooling(embed_dim=8),
    "cls": lambda: ClsPooling(embed_dim=8),
    "attention": lambda: AttentionPooling(embed_dim=8, heads=2),
}


@pytest.fixture(params=POOLINGS)
def pooling(request):
    torch.manual_seed(0)
    return POOLINGS[request.param]()


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 0])[:, None]
    return tokens, mask


def _attention_by_hand(pooling: AttentionPooling, tokens: torch.Tensor) -> torch.Tensor:
    """One row, float64, one head after the other."""
    weight, bias = (p.detach().double() for p in (pooling.attention.in_proj_weight, pooling.attention.in_proj_bias))
    query = weight[:8] @ pooling.query.detach().double()[0, 0] + bias[:8]
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        keys, values = (
            torch.stack([(weight[off : off + 8] @ token + bias[off : off + 8])[head] for token in tokens.double()])
            for off in (8, 16)
        )
        scores = [math.exp(float(key @ query[head]) / math.sqrt(4)) for key in keys]
        heads.append(sum(score * value for score, value in zip(scores, values, strict=True)) / sum(scores))
    out = pooling.attention.out_proj
    return out.weight.detach().double() @ torch.cat(heads) + out.bias.detach().double()


def test_mean_equals_the_mean_of_valid_tokens():
    tokens, mask = _batch()
    pooled = MeanPooling()(tokens, mask)
    for row in range(3):
        expected = sum(tokens[row, n].double() for n in range(6) if mask[row, n]) / int(mask[row].sum())
        torch.testing.assert_close(pooled[row].double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(MeanPooling()(tokens), tokens.mean(1))


def test_cls_is_the_first_token():
    tokens, mask = _batch()
    assert torch.equal(ClsPooling()(tokens), tokens[:, 0])
    assert torch.equal(ClsPooling()(tokens, mask)[:3], tokens[:3, 0])


@pytest.mark.parametrize("training", [True, False])
def test_attention_equals_attention_by_hand(training):
    torch.manual_seed(0)
    pooling = AttentionPooling(embed_dim=8, heads=2).train(training)
    torch.nn.init.normal_(pooling.attention.in_proj_bias)
    tokens, mask = _batch()
    pooled, whole = pooling(tokens, mask), pooling(tokens)
    for row, length in enumerate((6, 3, 1)):
        expected = _attention_by_hand(pooling, tokens[row, :length])
        torch.testing.assert_close(pooled[row].detach().double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole[0], pooled[0], rtol=1e-5, atol=1e-5)


def test_a_row_without_valid_tokens_gives_zeros_and_finite_gradients(pooling):
    tokens, mask = _batch()
    tokens.requires_grad_()
    pooled = pooling(tokens, mask)
    assert torch.equal(pooled[3], torch.zeros(8))
    pooled.sum().backward()
    assert tokens.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in pooling.parameters())


def test_masked_tokens_have_no_influence_not_even_nan(pooling):
    tokens, mask = _batch()
    other = tokens.masked_fill(~mask[..., None], torch.nan)
    assert torch.equal(pooling(tokens, mask), pooling(other, mask))


@pytest.mark.parametrize("name", ["mean", "attention"])
def test_order_of_tokens_does_not_matter(name):
    torch.manual_seed(0)
    pooling, (tokens, _) = POOLINGS[name](), _batch()
    torch.testing.assert_close(pooling(tokens), pooling(tokens.flip(1)))


def test_a_long_fp16_row_does_not_overflow():
    tokens = torch.full((1, 4096, 8), 60.0, dtype=torch.float16)
    for mask in (None, torch.ones(1, 4096, dtype=torch.bool)):
        pooled = MeanPooling()(tokens, mask)
        assert pooled.dtype == torch.float16
        assert torch.equal(pooled, torch.full((1, 8), 60.0, dtype=torch.float16))


def test_wrong_shapes_are_refused(pooling):
    tokens, mask = _batch()
    with pytest.raises(ValueError, match=r"shape \(6, 8\); a global pooling needs B N F"):
        pooling(tokens[0])
    with pytest.raises(ValueError, match="4 wide but the pooling was built with embed_dim=8"):
        pooling(tokens[..., :4])
    with pytest.raises(ValueError, match=r"give torch.bool \(4, 6\)"):
        pooling(tokens, mask.float())
    with pytest.raises(ValueError, match=r"mask is torch.bool \(4, 5\)"):
        pooling(tokens, mask[:, :5])


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads=3 does not divide embed_dim=8"):
        AttentionPooling(embed_dim=8, heads=3)
