"""Triplet losses over one batch, exact and never of cubic cost: batch-all, semi-hard and batch-hard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["Mining", "batch_hard_hinges", "triplet_loss"]

Mining = Literal["batch_all", "semi_hard", "batch_hard"]
_CACHED = 1 << 20  # distances at a time on a CPU: 4 MB in fp32 stay in the cache


def triplet_loss(rows: Tensor, labels: Tensor, margin: float, mining: Mining) -> tuple[Tensor, Tensor]:
    r"""Mean of the active triplets' hinges, eq. 3 of [1], d the Euclidean distance.

    $\max(0, d(a, p) - d(a, n) + \alpha)$ for an anchor a, a positive p of the same label and a negative n of another;
    active when above 0. ``"batch_all"`` takes every triplet, ``"semi_hard"`` for each (a, p) the nearest n with
    $d(a, p) < d(a, n) < d(a, p) + \alpha$ [2], ``"batch_hard"`` for each a the farthest p and the nearest n [3].
    Anchors without a positive or negative give none. Two equal rows give each other no gradient.

    Batch-all sorts each anchor's negatives once; a positive finds how many of them are active by bisection, and prefix
    sums give the hinges and both gradients: O(N² (D + log N)) time in blocks of anchors, memory O(N (D + block)).
    First-order gradients only.

    Args:
        rows: ``N D``.
        labels: ``N`` integers.
        margin: α.
        mining: Which triplets.

    Returns:
        The loss (0, with graph, when no triplet is active) and the number of active triplets, both 0-d.

    References:
        [1] CXR-CML, arXiv:2507.19398. [2] Schroff et al., FaceNet, arXiv:1503.03832. [3] Hermans et al.,
        arXiv:1703.07737. The released code of [1] has no triplets.
    """
    if mining == "batch_hard":
        hinges = batch_hard_hinges(rows, labels, margin)
        active = (hinges > 0).sum()
        return hinges.sum() / active.clamp(min=1), active
    total, active = _Sorted.apply(rows, labels, margin, mining)  # type: ignore[no-untyped-call]
    return total, active


def batch_hard_hinges(rows: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Hinge of each anchor's hardest triplet ``N``; 0 without a positive or negative.

    Triplets are found without a graph; the gradient goes through their 2 N distances only.
    """
    centred = rows.detach() - rows.detach().mean(dim=0)
    found = [_hardest(block, centred, labels) for block in _blocks(rows)]
    positive, negative, valid = (torch.cat(part) for part in zip(*found, strict=True))
    near, far = (torch.linalg.vector_norm(rows - rows[index], dim=1) for index in (positive, negative))
    return functional.relu(near - far + margin) * valid


@torch.no_grad()
def _hardest(block: slice, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    squared = _squared(rows[block], rows)
    same = labels[block, None] == labels
    nearest, negative = squared.masked_fill(same, torch.inf).min(dim=1)
    same.diagonal(block.start).fill_(False)
    farthest, positive = squared.masked_fill_(~same, -torch.inf).max(dim=1)
    return positive, negative, nearest.isfinite() & farthest.isfinite()


class _Sorted(torch.autograd.Function):
    """Loss and gradient in one go: the loss ends the graph, so its gradient is only ever scaled afterwards."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, labels: Tensor, margin: float, mining: Mining) -> tuple[Tensor, Tensor]:
        rows = rows - rows.mean(dim=0)  # differences stay; embeddings in a narrow cone keep their digits
        total, active = rows.new_zeros(()), labels.new_zeros(())
        gradient = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        most_positives = int(labels.unique(return_counts=True)[1].max()) - 1
        for block in _blocks(rows) if most_positives else ():
            distances = _squared(rows[block], rows).sqrt_()
            hinges, count, slopes = _mine(distances, labels, block.start, margin, mining, most_positives)
            total += hinges
            active += count
            if gradient is not None:
                # d(a, j) has the gradient (a - j) / d(a, j) to a, and its negative to j
                slopes = torch.where(distances > 0, slopes / distances, 0)
                gradient[block] += slopes.sum(dim=1, keepdim=True) * rows[block] - slopes @ rows
                gradient += slopes.sum(dim=0)[:, None] * rows - slopes.T @ rows[block]
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(active.clamp(min=1)))
        ctx.mark_non_differentiable(active)
        return total / active.clamp(min=1), active

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None


def _mine(
    distances: Tensor, labels: Tensor, start: int, margin: float, mining: Mining, most_positives: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of hinges, number of active triplets, and d sum / d distances, of a block of anchors ``b N``."""
    same = labels[start : start + len(distances), None] == labels
    # inf: never active as a negative; clamped -inf: a positive that no negative is below
    negatives, negative = distances.masked_fill(same, torch.inf).sort(dim=1)
    same.diagonal(start).fill_(False)
    positives, positive = distances.masked_fill(~same, -torch.inf).topk(most_positives, dim=1)
    limits = positives + margin
    slopes = torch.zeros_like(distances)
    if mining == "semi_hard":
        first = torch.searchsorted(negatives, positives, right=True).clamp_(max=negatives.shape[1] - 1)
        chosen = negatives.gather(1, first)
        active = (chosen > positives) & (chosen < limits)
        step = active.to(distances.dtype)
        slopes.scatter_add_(1, positive, step).scatter_add_(1, negative.gather(1, first), -step)
        return torch.where(active, limits - chosen, 0).sum(), active.sum(), slopes
    below = torch.searchsorted(negatives, limits)  # active negatives of each positive: the nearest ones
    prefix = functional.pad(negatives.cumsum(dim=1), (1, 0))
    hinges = torch.where(below > 0, below * limits - prefix.gather(1, below), 0).sum()
    # the t-th nearest negative is active for every positive that has more than t
    ends = functional.pad(torch.zeros_like(distances), (0, 1)).scatter_add_(1, below, torch.ones_like(limits))
    slopes.scatter_(1, negative, ends.cumsum(dim=1)[:, :-1] - most_positives)
    return hinges, below.sum(), slopes.scatter_add_(1, positive, below.to(distances.dtype))


def _squared(anchors: Tensor, rows: Tensor) -> Tensor:
    lengths = anchors.square().sum(dim=1, keepdim=True) + rows.square().sum(dim=1)
    return lengths.addmm_(anchors, rows.T, alpha=-2).clamp_(min=0)


def _blocks(rows: Tensor) -> Iterator[slice]:
    cached = _CACHED if rows.device.type == "cpu" else 64 * _CACHED
    size = max(64, cached // len(rows))
    return (slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size))
