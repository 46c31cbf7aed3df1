from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from medvl_cxr_cml.triplet import batch_hard_hinges, triplet_loss

MININGS = ("batch_all", "semi_hard", "batch_hard")
MARGIN = 0.3


def _batch(n: int = 24, d: int = 6, classes: int = 4, seed: int = 0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rows = functional.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.5, dim=1)
    return rows.to(dtype).requires_grad_(), torch.randint(0, classes, (n,), generator=generator)


def _brute_force(rows, labels, margin, mining):
    """Every triplet in a loop over anchors and positives, distances by the definition."""
    n, hinges = len(rows), []
    distance = (rows[:, None] - rows[None]).square().sum(dim=2)
    distance = torch.where(distance > 0, distance, 1).sqrt() * (distance > 0)
    for a in range(n):
        positives = [p for p in range(n) if labels[p] == labels[a] and p != a]
        negatives = [q for q in range(n) if labels[q] != labels[a]]
        if not positives or not negatives:
            continue
        if mining == "batch_hard":
            positives = [max(positives, key=lambda p: distance[a, p].item())]
            negatives = [min(negatives, key=lambda q: distance[a, q].item())]
        for p in positives:
            among = negatives
            if mining == "semi_hard":
                among = [q for q in negatives if distance[a, p] < distance[a, q] < distance[a, p] + margin]
                among = [min(among, key=lambda q: distance[a, q].item())] if among else []
            hinges += [functional.relu(distance[a, p] - distance[a, q] + margin) for q in among]
    active = [hinge for hinge in hinges if hinge > 0]
    return (torch.stack(active).mean() if active else (rows * 0).sum()), len(active)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize(
    ("n", "classes", "seed"), [(24, 4, 0), (24, 1, 1), (24, 24, 2), (30, 2, 3), (7, 3, 4), (40, 9, 5)]
)
def test_loss_and_gradient_equal_brute_force(mining, n, classes, seed):
    rows, labels = _batch(n, classes=classes, seed=seed)
    total, active = triplet_loss(rows, labels, MARGIN, mining)
    expected, count = _brute_force(rows, labels, MARGIN, mining)
    assert active.item() == count
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(torch.autograd.grad(total, rows), torch.autograd.grad(expected, rows))


@pytest.mark.parametrize("mining", MININGS)
def test_ties_on_a_grid_equal_brute_force(mining):
    """Distances 0, 1, 2, ... with an integer margin: d(a, n) = d(a, p) + margin, equal distances, equal rows."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(25, 4, dtype=torch.float64)
    rows[:, 0] = torch.randint(0, 6, (25,), generator=generator)
    rows[:, 0] -= rows[:, 0].mean().round()
    rows[0, 0] -= rows[:, 0].sum()  # a mean of exactly 0 keeps the grid exact
    labels = torch.randint(0, 3, (25,), generator=generator)
    rows.requires_grad_()
    total, active = triplet_loss(rows, labels, 2.0, mining)
    expected, count = _brute_force(rows, labels, 2.0, mining)
    assert 0 < active.item() == count
    torch.testing.assert_close(total, expected)
    if mining == "batch_all":  # the others choose one of equally near rows
        torch.testing.assert_close(torch.autograd.grad(total, rows), torch.autograd.grad(expected, rows))


@pytest.mark.parametrize("mining", MININGS)
def test_blocks_of_anchors_add_up(mining, monkeypatch):
    rows, labels = _batch(150)
    whole, count = triplet_loss(rows, labels, MARGIN, mining)
    monkeypatch.setattr("medvl_cxr_cml.triplet._CACHED", 1)  # 64 anchors at a time
    blocked, again = triplet_loss(rows, labels, MARGIN, mining)
    assert count == again
    torch.testing.assert_close(blocked, whole)
    torch.testing.assert_close(torch.autograd.grad(blocked, rows), torch.autograd.grad(whole, rows))


@pytest.mark.parametrize("mining", MININGS)
def test_fp32_equals_fp64_also_in_a_narrow_cone(mining):
    """Rows 0.01 apart: squared distances of 1e-4 would drown in the rounding of 2 - 2 a·b without centring."""
    rows, labels = _batch(60, d=16)
    rows = functional.normalize(1 + 0.01 * rows.detach(), dim=1)
    results = []
    for dtype in (torch.float64, torch.float32):
        leaf = rows.to(dtype).requires_grad_()
        total, _ = triplet_loss(leaf, labels, 0.002, mining)
        results.append((total.double(), torch.autograd.grad(total, leaf)[0].double()))
    (expected, gradient), (total, found) = results
    assert total.item() == pytest.approx(expected.item(), rel=2e-3)
    assert ((found - gradient).norm() / gradient.norm()).item() < 0.05


@pytest.mark.parametrize("mining", MININGS)
def test_names_of_labels_do_not_matter_and_order_follows(mining):
    rows, labels = _batch()
    total, _ = triplet_loss(rows, labels, MARGIN, mining)
    (gradient,) = torch.autograd.grad(total, rows)
    renamed, _ = triplet_loss(rows, torch.tensor([7, 2, 90, 31])[labels], MARGIN, mining)
    assert torch.equal(total, renamed)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    moved, _ = triplet_loss(rows[order], labels[order], MARGIN, mining)
    torch.testing.assert_close(moved, total)
    torch.testing.assert_close(torch.autograd.grad(moved, rows)[0], gradient)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("case", ["one class", "all alone", "far apart", "one row"])
def test_no_active_triplet_gives_zero_with_graph(mining, case):
    rows, labels = _batch(2 if case == "far apart" else 1 if case == "one row" else 12)
    labels = torch.zeros(len(rows), dtype=torch.long) if case == "one class" else torch.arange(len(rows))
    if case == "far apart":
        rows = torch.eye(6, dtype=torch.float64)[[0, 0, 3, 3]].requires_grad_()
        labels = torch.tensor([0, 0, 1, 1])
    total, active = triplet_loss(rows, labels, MARGIN, mining)
    assert total.item() == active.item() == 0
    assert total.requires_grad
    (gradient,) = torch.autograd.grad(total, rows)
    assert torch.equal(gradient, torch.zeros_like(rows))


def test_equal_rows_of_different_labels_have_a_loss_and_finite_gradients():
    rows = torch.ones(6, 4).div(2).requires_grad_()
    for mining in MININGS[::2]:
        total, active = triplet_loss(rows, torch.tensor([0, 0, 1, 1, 2, 2]), MARGIN, mining)
        assert total.item() == pytest.approx(MARGIN, abs=1e-3)
        assert active > 0
        assert torch.autograd.grad(total, rows)[0].isfinite().all()


def test_hinges_of_batch_hard_are_one_per_anchor():
    rows, labels = _batch()
    hinges = batch_hard_hinges(rows, labels, MARGIN)
    assert hinges.shape == (24,)
    total, active = triplet_loss(rows, labels, MARGIN, "batch_hard")
    torch.testing.assert_close(total * active, hinges.sum())


@pytest.mark.parametrize("mining", MININGS)
def test_runs_are_bitwise_equal(mining):
    rows, labels = _batch(200, d=32, dtype=torch.float32)
    gradients = [torch.autograd.grad(triplet_loss(rows, labels, MARGIN, mining)[0], rows)[0] for _ in range(2)]
    assert torch.equal(*gradients)
