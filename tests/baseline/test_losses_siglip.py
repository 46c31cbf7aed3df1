from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl_baseline.losses.siglip import SigLIP
from medvl_core.protocols import AlignmentBatch


def _batch(n: int = 9, scale: float = 10.0, dtype=torch.float32, groups=None, seed: int = 0) -> AlignmentBatch:
    generator = torch.Generator().manual_seed(seed)
    a, b = (F.normalize(torch.randn(n, 8, generator=generator), dim=1).to(dtype).requires_grad_() for _ in range(2))
    extras = {} if groups is None else {"text_group": groups}
    return AlignmentBatch({"x": a, "y": b}, torch.tensor(scale, requires_grad=True), extras)


def _by_hand(batch: AlignmentBatch, bias: float, groups: list[int]) -> float:
    a, b = (rows.double().tolist() for rows in batch.embeddings.values())
    total = 0.0
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            logit = batch.logit_scale.item() * sum(p * q for p, q in zip(x, y, strict=True)) + bias
            total += math.log1p(math.exp(-logit if groups[i] == groups[j] else logit))
    return total / len(a)


@pytest.mark.parametrize("grouped", [False, True])
def test_loss_equals_the_definition(grouped):
    groups = torch.tensor([0, 1, 1, 3, 4, 1, 6, 4, 8]) if grouped else None
    batch = _batch(groups=groups)
    loss = SigLIP(("x", "y"), bias=-3.0, duplicates="multi_positive" if grouped else "negative")
    expected = _by_hand(batch, -3.0, groups.tolist() if grouped else list(range(9)))
    output = loss(batch)
    assert output.total.item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(output.terms["siglip"], output.total)
    output.total.backward()
    assert all(x.grad.abs().sum() > 0 for x in (*batch.embeddings.values(), batch.logit_scale, loss.bias))


def test_bias_starts_where_the_paper_does_and_is_trained():
    loss = SigLIP(("x", "y"))
    assert loss.bias.item() == -10.0
    assert list(dict(loss.named_parameters())) == ["bias"]


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 10), scale=st.floats(0.1, 100.0), seed=st.integers(0, 1000))
def test_order_of_pairs_and_sides_does_not_matter(n, scale, seed):
    batch = _batch(n, scale, torch.float64, seed=seed)
    loss = SigLIP(("x", "y")).double()
    a, b = batch.embeddings.values()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for x, y in ((a[order], b[order]), (b, a)):
        other = loss(AlignmentBatch({"x": x, "y": y}, batch.logit_scale)).total
        assert other.item() == pytest.approx(loss(batch).total.item(), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_give_fp32_logits(dtype):
    batch = _batch(scale=100.0, dtype=dtype)
    loss = SigLIP(("x", "y"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = loss(batch).total
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(_by_hand(batch, -10.0, list(range(9))), rel=1e-5)


def test_bad_batches_and_options_are_refused():
    batch = _batch()
    with pytest.raises(ValueError, match=r"no embeddings of \['z'\], only \['x', 'y'\]"):
        SigLIP(("x", "z"))(batch)
    with pytest.raises(ValueError, match=r"siglip is nan: embeddings are not finite in rows"):
        SigLIP(("x", "y"))(
            AlignmentBatch({"x": torch.full((2, 3), torch.nan), "y": torch.ones(2, 3)}, torch.tensor(1.0))
        )
    with pytest.raises(ValueError, match=r"extras\['text_group'\] of 9"):
        SigLIP(("x", "y"), duplicates="multi_positive")(batch)
    with pytest.raises(ValueError, match="give two modalities"):
        SigLIP(("x", "y"), duplicates="other")
