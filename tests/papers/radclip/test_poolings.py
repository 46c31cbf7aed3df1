from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from medvl_core.build import build_pooling
from medvl_radclip.slice_attention import SliceAttention, positions_of
from medvl_radclip.slice_poolings import GatedAttention, SliceConv, SliceMax, SliceTransformer

WIDTH = 8
POOLINGS = {
    "slice_attention": lambda: SliceAttention(WIDTH, heads=2, max_slices=4),
    "slice_max": SliceMax,
    "gated_attention": lambda: GatedAttention(WIDTH, hidden=5),
    "slice_transformer": lambda: SliceTransformer(WIDTH, heads=2, max_slices=4),
    "slice_conv": lambda: SliceConv(WIDTH),
}


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def volumes(n=6, rows=3):
    """Embeddings of three volumes, of 6, 4 and 1 slices."""
    mask = torch.arange(n) < torch.tensor([n, 4, 1])[:rows, None]
    return torch.randn(rows, n, WIDTH, dtype=torch.float64), mask


def slow_attention(pooling, slices):
    """Equation 1 for one volume, head by head: the vector, and the attention each slice receives."""
    width, heads = pooling.embed_dim, pooling.attn.num_heads
    size = width // heads
    count, rows = len(slices), len(pooling.pos_embed)
    x = slices.clone()
    for i in range(count):
        place = i if count <= rows else i * (rows - 1) / (count - 1)
        low, high = math.floor(place), min(math.floor(place) + 1, rows - 1)
        x[i] += (1 - (place - low)) * pooling.pos_embed[low] + (place - low) * pooling.pos_embed[high]
    query, key, value = (
        x @ weight.T + bias
        for weight, bias in zip(
            pooling.attn.in_proj_weight.split(width), pooling.attn.in_proj_bias.split(width), strict=True
        )
    )
    parts, received = [], torch.zeros(count, dtype=torch.float64)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        attention = (query[:, own] @ key[:, own].T / math.sqrt(size)).exp()
        attention /= attention.sum(1, keepdim=True)
        parts.append(attention @ value[:, own])
        received += attention.mean(0) / heads
    v = torch.cat(parts, 1) @ pooling.attn.out_proj.weight.T + pooling.attn.out_proj.bias
    return v.mean(0), received


@pytest.mark.parametrize("max_slices", [3, 5, 9])
def test_adapter_is_the_published_equation(max_slices):
    pooling = SliceAttention(WIDTH, heads=2, max_slices=max_slices).double().eval()
    torch.nn.init.normal_(pooling.attn.in_proj_bias)
    torch.nn.init.normal_(pooling.pos_embed)
    tokens, mask = volumes()
    pooled, weights = pooling(tokens, mask), pooling.slice_weights(tokens, mask)
    for row, valid in enumerate(mask.sum(1)):
        vector, received = slow_attention(pooling, tokens[row, :valid])
        torch.testing.assert_close(pooled[row], vector)
        torch.testing.assert_close(weights[row, :valid], received)
    assert weights[~mask].abs().max() == 0


def test_average_pooling_is_a_special_case():
    pooling = SliceAttention(WIDTH, heads=2, start="mean").double()
    tokens, mask = volumes()
    expected = build_pooling("baseline/mean")(tokens, mask)
    torch.testing.assert_close(pooling.eval()(tokens, mask), expected)
    torch.testing.assert_close(pooling.slice_weights(tokens, mask), mask / mask.sum(1, keepdim=True).double())
    pooling(tokens, mask)[0].norm().backward()  # and it can leave there
    assert pooling.attn.in_proj_weight.grad[:WIDTH].abs().max() > 0
    assert pooling.pos_embed.grad.abs().max() > 0


def test_key_names_of_the_adapter():
    names = {"pos_embed", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"}
    assert set(SliceAttention(WIDTH, heads=2).state_dict()) == names


def test_residual_and_norm():
    tokens, mask = volumes()
    plain = SliceAttention(WIDTH, heads=2).double().eval()
    rich = SliceAttention(WIDTH, heads=2, residual=True, norm=True).double().eval()
    rich.load_state_dict({**rich.state_dict(), **plain.state_dict()})
    attended = plain._attend(tokens, mask, False)[0]
    expected = functional.layer_norm(attended + tokens, (WIDTH,))[1, :4].mean(0)
    torch.testing.assert_close(rich(tokens, mask)[1], expected)


def test_dropout_acts_in_training_only():
    pooling = SliceAttention(WIDTH, heads=2, dropout=0.5).double()
    tokens, mask = volumes()
    assert not torch.equal(pooling(tokens, mask), pooling(tokens, mask))
    assert torch.equal(pooling.eval()(tokens, mask), pooling(tokens, mask))


def test_positions_are_spread_over_long_volumes():
    table = torch.arange(5.0)[:, None]
    mask = torch.arange(9) < torch.tensor([[9], [3]])
    places = positions_of(table, mask)[..., 0]
    torch.testing.assert_close(places[0], torch.arange(9) / 2)
    assert places[1, :3].tolist() == [0, 1, 2]
    torch.testing.assert_close(positions_of(table[:1], mask)[..., 0], torch.zeros(2, 9))


@pytest.mark.parametrize("name", POOLINGS)
def test_blank_slices_have_no_influence_even_as_nan(name):
    pooling = POOLINGS[name]().double().eval()
    tokens, mask = volumes(n=7)
    alone = [pooling(tokens[row : row + 1, :valid]) for row, valid in enumerate(mask.sum(1))]
    tokens[~mask] = torch.nan
    torch.testing.assert_close(pooling(tokens, mask), torch.cat(alone))


@pytest.mark.parametrize("name", POOLINGS)
def test_a_volume_without_a_slice_gives_zeros_and_finite_gradients(name):
    pooling = POOLINGS[name]().double()
    tokens, mask = volumes()
    mask[2] = False
    pooled = pooling(tokens.requires_grad_(), mask)
    assert pooled[2].abs().max() == 0
    pooled.sum().backward()
    assert all(part.grad.isfinite().all() for part in (tokens, *pooling.parameters()))


def test_gated_attention_is_equation_9_of_ilse():
    pooling = GatedAttention(WIDTH, hidden=5).double()
    tokens, _ = volumes(rows=1)
    scores = []
    for h in tokens[0]:
        tanh = torch.tanh(pooling.value.weight @ h + pooling.value.bias)
        gate = 1 / (1 + torch.exp(-(pooling.gate.weight @ h + pooling.gate.bias)))
        scores.append((pooling.score.weight @ (tanh * gate)).exp())
    a = torch.cat(scores) / sum(scores)
    torch.testing.assert_close(pooling(tokens)[0], a @ tokens[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pooling.slice_weights(tokens)[0], a.float(), check_dtype=False)


def test_max_takes_each_feature_from_its_slice():
    tokens, mask = volumes()
    expected = torch.stack([tokens[row, :valid].max(0).values for row, valid in enumerate(mask.sum(1))])
    assert torch.equal(SliceMax()(tokens, mask), expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SliceAttention(10, heads=4), "heads=4, embed_dim=10, max_slices=256; heads must divide the width"),
        (lambda: SliceTransformer(8, heads=2, max_slices=0), "one slice is the least"),
        (lambda: SliceAttention(8, heads=2, start="zero"), "start is 'zero'; choose 'random' or 'mean'"),
        (lambda: SliceConv(8, kernel=2), "kernel is 2; give an odd number of slices"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", ["slice_attention", "gated_attention", "slice_transformer", "slice_conv"])
def test_tokens_of_another_width_are_refused(name):
    with pytest.raises(ValueError, match="tokens are 5 wide but the pooling was built with embed_dim=8"):
        POOLINGS[name]()(torch.zeros(1, 3, 5))
