from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl_baseline.losses import infonce
from medvl_baseline.losses.infonce import InfoNCE
from medvl_core.protocols import AlignmentBatch

DIRECTIONS = ("both", "a_to_b", "b_to_a")
CHUNKS = (None, 1, 7, 1000)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _inputs(n: int = 20, d: int = 16, similarity: float = 1.0, scale: float = 14.3, seed: int = 0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    common = similarity * torch.randn(n, d, generator=generator)
    a, b = (F.normalize(common + torch.randn(n, d, generator=generator), dim=1) for _ in range(2))
    return a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_(), torch.tensor(scale, requires_grad=True)


def _loss(a, b, scale, groups=None, **options):
    extras = {} if groups is None else {"text_group": groups}
    duplicates = "negative" if groups is None else "multi_positive"
    return InfoNCE(("x", "y"), duplicates=duplicates, **options)(AlignmentBatch({"x": a, "y": b}, scale, extras)).total


def _by_hand(a, b, scale, direction="both", groups=None):
    """The definition, one pair after the other, in float64 with gradients."""
    n = len(a)
    logits = scale.double() * (a.double() @ b.double().T)
    groups = list(range(n)) if groups is None else groups.tolist()

    def one_way(logits):
        total = 0.0
        for i in range(n):
            positives = [j for j in range(n) if groups[j] == groups[i]]
            total = total + logits[i].logsumexp(0) - sum(logits[i, j] for j in positives) / len(positives)
        return total / n

    ways = {"both": (logits, logits.T), "a_to_b": (logits,), "b_to_a": (logits.T,)}[direction]
    return sum(one_way(way) for way in ways) / len(ways)


def _relative(x, y):
    return ((x.double() - y.double()).norm() / y.double().norm()).item()


def _check_value_and_gradients(loss, expected, inputs, relative):
    assert loss.item() == pytest.approx(expected.item(), rel=relative)
    gradients = (torch.autograd.grad(value, inputs) for value in (loss, expected))
    for ours, reference in zip(*gradients, strict=True):
        assert _relative(ours, reference) < relative


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_loss_and_gradients_equal_the_definition(direction, chunk_size, grouped):
    a, b, scale = _inputs()
    groups = torch.tensor([0, 1, 2, 3, 0, 5, 6, 3, 8, 0, *range(10, 20)]) if grouped else None
    expected = _by_hand(a, b, scale, direction, groups)
    loss = _loss(a, b, scale, groups, direction=direction, chunk_size=chunk_size)
    _check_value_and_gradients(loss, expected, (a, b, scale), 1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("grouped", [False, True])
def test_plain_form_of_accelerators_equals_the_fused_one(direction, grouped, monkeypatch):
    a, b, scale = _inputs(dtype=torch.float64)
    groups = torch.arange(20) // 3 if grouped else None
    fused = _loss(a, b, scale, groups, direction=direction)
    monkeypatch.setattr(infonce._Fused, "apply", lambda a, b, s, both, _: infonce._plain(a, b, s, both))
    plain = _loss(a, b, scale, groups, direction=direction)
    torch.testing.assert_close(fused, plain)
    for ours, reference in zip(*(torch.autograd.grad(x, (a, b, scale)) for x in (fused, plain)), strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_pass_gradcheck(direction, chunk_size):
    a, b, scale = _inputs(n=7, d=4, dtype=torch.float64)
    scale = scale.detach().double().requires_grad_()
    groups = torch.tensor([0, 1, 1, 3, 4, 1, 6])
    assert torch.autograd.gradcheck(
        lambda a, b, s: _loss(a, b, s, groups, direction=direction, chunk_size=chunk_size), (a, b, scale)
    )


@pytest.mark.parametrize("chunk_size", [None, 64])
def test_gradients_at_scale_are_exact_to_1e_6(chunk_size):
    a, b, scale = _inputs(n=700, d=128, scale=1 / 0.07)
    logits = scale.double() * (a.double() @ b.double().T)
    targets = torch.arange(700)
    expected = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    loss = _loss(a, b, scale, chunk_size=chunk_size)
    _check_value_and_gradients(loss, expected, (a, b, scale), 1e-6)


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_nearly_certain_pairs_keep_their_precision(chunk_size):
    # log-softmax in fp32 has lost every digit of this gradient: 1 - p is rounded to 6e-8.
    a, b, scale = _inputs(d=64, similarity=8.0, scale=30.0)
    expected = _by_hand(a, b, scale)
    assert 0 < expected.item() < 1e-7
    loss = _loss(a, b, scale, chunk_size=chunk_size)
    _check_value_and_gradients(loss, expected, (a, b, scale), 1e-4)


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_column_far_below_the_rest_falls_back_to_its_own_exponentials(direction, chunk_size, monkeypatch):
    a, b, scale = _inputs(scale=100.0, similarity=3.0)
    with torch.no_grad():
        b[4] = F.normalize(-a.sum(0), dim=0)  # opposite to everything: its column lies at about -100
    separate, calls = infonce._separate_losses, []
    monkeypatch.setattr(infonce, "_separate_losses", lambda *args: calls.append(1) or separate(*args))
    expected = _by_hand(a, b, scale, direction)
    loss = _loss(a, b, scale, direction=direction, chunk_size=chunk_size)
    assert bool(calls) == (direction == "both")
    _check_value_and_gradients(loss, expected, (a, b, scale), 1e-5)


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_stay_finite_at_temperature_0_01(dtype, chunk_size):
    for similarity in (0.0, 1.0, 50.0):
        a, b, scale = _inputs(scale=100.0, similarity=similarity, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = _loss(a, b, scale, chunk_size=chunk_size)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(_by_hand(a, b, scale).item(), rel=1e-5, abs=1e-9)
        gradients = torch.autograd.grad(loss, (a, b, scale))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert gradients[0].dtype == dtype


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 12),
    scale=st.floats(0.1, 100.0),
    similarity=st.floats(0.0, 5.0),
    seed=st.integers(0, 10_000),
    chunk_size=st.sampled_from(CHUNKS),
    grouped=st.booleans(),
)
def test_symmetries(n, scale, similarity, seed, chunk_size, grouped):
    a, b, s = _inputs(n, 8, similarity, scale, seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, n, (n,), generator=generator) if grouped else None
    loss = {way: _loss(a, b, s, groups, direction=way, chunk_size=chunk_size).item() for way in DIRECTIONS}
    close = {"rel": 1e-9, "abs": 1e-9}
    assert loss["both"] == pytest.approx((loss["a_to_b"] + loss["b_to_a"]) / 2, **close)
    assert _loss(b, a, s, groups, direction="a_to_b").item() == pytest.approx(loss["b_to_a"], **close)
    order = torch.randperm(n, generator=generator)
    shuffled = _loss(a[order], b[order], s, None if groups is None else groups[order], chunk_size=chunk_size)
    assert shuffled.item() == pytest.approx(loss["both"], **close)
    assert loss["both"] >= -1e-12


def test_equal_embeddings_give_log_n():
    rows = F.normalize(torch.ones(9, 4), dim=1)
    for chunk_size in CHUNKS:
        assert _loss(rows, rows, torch.tensor(5.0), chunk_size=chunk_size).item() == pytest.approx(
            math.log(9), rel=1e-6
        )


def test_groups_of_one_change_nothing_and_duplicates_are_not_pushed_apart():
    a, b, scale = _inputs()
    assert _loss(a, b, scale, torch.arange(20)).item() == pytest.approx(_loss(a, b, scale).item(), rel=1e-6)
    same = torch.zeros(2, 4)
    same[:, 0] = 1.0
    same.requires_grad_()
    gradient = torch.autograd.grad(_loss(same, same.detach(), scale, torch.zeros(2)), same)[0]
    assert gradient.abs().max() < 1e-6


def test_a_frozen_side_gets_no_gradient_and_the_other_the_same():
    a, b, scale = _inputs()
    expected = torch.autograd.grad(_loss(a, b, scale), (a, b, scale))
    for direction_frozen in ("a", "b"):
        x, y = (a.detach(), b) if direction_frozen == "a" else (a, b.detach())
        trained, index = (y, 1) if direction_frozen == "a" else (x, 0)
        got = torch.autograd.grad(_loss(x, y, scale), (trained, scale))
        torch.testing.assert_close(got[0], expected[index])
        torch.testing.assert_close(got[1], expected[2])


def test_loss_is_deterministic_and_works_without_gradients():
    a, b, scale = _inputs(n=300)
    first, second = (_loss(a, b, scale) for _ in range(2))
    assert torch.equal(first, second)
    gradients = [torch.autograd.grad(loss, (a, b, scale)) for loss in (first, second)]
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))
    with torch.no_grad():
        assert torch.equal(_loss(a, b, scale), first)


def test_upstream_gradient_scales_and_the_term_is_detached():
    a, b, scale = _inputs()
    output = InfoNCE(("x", "y"))(AlignmentBatch({"x": a, "y": b}, scale))
    assert output.terms.keys() == {"infonce"}
    assert torch.equal(output.terms["infonce"], output.total)
    assert not output.terms["infonce"].requires_grad
    once, thrice = (torch.autograd.grad(k * output.total, (a, scale), retain_graph=True) for k in (1.0, 3.0))
    for x, y in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * x, y)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_bad_batches_are_refused(chunk_size):
    a, b, scale = _inputs(n=4)
    loss = InfoNCE(("x", "y"), chunk_size=chunk_size)
    with pytest.raises(ValueError, match=r"no embeddings of \['y'\], only \['x'\]"):
        loss(AlignmentBatch({"x": a}, scale))
    with pytest.raises(ValueError, match=r"x are \(4, 16\) and of y \(3, 16\); row i of both must be pair i"):
        loss(AlignmentBatch({"x": a, "y": b[:3]}, scale))
    with pytest.raises(ValueError, match=r"x are \(0, 16\)"):
        loss(AlignmentBatch({"x": a[:0], "y": b[:0]}, scale))
    with pytest.raises(ValueError, match=r"logit_scale is inf"):
        loss(AlignmentBatch({"x": a, "y": b}, torch.tensor(torch.inf)))
    bad = b.detach().clone()
    bad[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"not finite in rows \{'x': \[\], 'y': \[2\]\}"):
        loss(AlignmentBatch({"x": a, "y": bad}, scale))


def test_groups_are_asked_for():
    a, b, scale = _inputs(n=4)
    loss = InfoNCE(("x", "y"), duplicates="multi_positive")
    assert loss.needs == ("text_group",)
    for extras in ({}, {"text_group": torch.zeros(3)}):
        with pytest.raises(ValueError, match=r"extras\['text_group'\] of 4 group numbers"):
            loss(AlignmentBatch({"x": a, "y": b}, scale, extras))


def test_wrong_options_are_refused():
    for options in ({"pair": ("x",)}, {"pair": ("x", "y"), "direction": "c"}, {"pair": ("x", "y"), "duplicates": "d"}):
        with pytest.raises(ValueError, match=r"give two modalities, one of \('both', 'a_to_b', 'b_to_a'\)"):
            InfoNCE(**options)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        InfoNCE(("x", "y"), chunk_size=0)
