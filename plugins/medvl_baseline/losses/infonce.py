"""InfoNCE between two modalities, in three forms of the same loss: plain, stored and streamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medvl_core.protocols import AlignmentBatch, LossOutput

__all__ = ["InfoNCE", "loss_output", "read_pair"]

Duplicates = Literal["negative", "multi_positive"]
_DIRECTIONS = ("both", "a_to_b", "b_to_a")
_CACHED = 1 << 20  # logits at a time: 4 MB in fp32 stay in the cache
_SMALLEST_SUM = 1e-26  # times 1e-7, the precision of fp32, it is still a normal number


class InfoNCE(nn.Module):
    r"""Contrastive loss between two modalities, one way or both, with logits in fp32 (fp64 for fp64 embeddings).

    With $S = s\,a b^\top$ and targets T whose rows sum to one, the a-to-b loss is
    $\frac1N \sum_i [\log \sum_j e^{S_{ij}} - \sum_j T_{ij} S_{ij}]$, b-to-a that of $S^\top$, "both" their mean [1].
    T is the identity, or with ``"multi_positive"`` $T_{ij} = [g_i = g_j] / |\{k : g_k = g_i\}|$ for the groups g of
    equal texts. T then averages over a group, $\sum_{ij} T_{ij} S_{ij} = s \sum_i a_i \cdot \bar b_{g_i}$, so the
    groups only add the term $\frac sN \sum_i a_i \cdot (b_i - \bar b_{g_i})$: no second N x N matrix.

    On a CPU one N x N buffer, one exponential per logit and three matrix products give loss and gradients together;
    with ``chunk_size`` logits are computed twice and never kept. On other devices without ``chunk_size`` the plain
    tensor form runs. Gradients are first-order only.

    Args:
        pair: The two modalities a and b.
        direction: ``"a_to_b"`` looks b up from a, ``"b_to_a"`` a from b, ``"both"`` is their mean.
        duplicates: What pairs of equal ``extras["text_group"]`` are to each other.
        chunk_size: Rows of logits in memory at a time. ``None`` keeps all N x N.

    Raises:
        ValueError: If an option is unknown.

    References:
        [1] Radford et al., CLIP, figure 3, arXiv:2103.00020.
    """

    def __init__(
        self,
        pair: Sequence[str],
        direction: Literal["both", "a_to_b", "b_to_a"] = "both",
        duplicates: Duplicates = "negative",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if len(pair) != 2 or direction not in _DIRECTIONS or duplicates not in ("negative", "multi_positive"):
            raise ValueError(
                f"infonce: pair={tuple(pair)}, direction={direction!r}, duplicates={duplicates!r}; "
                f"give two modalities, one of {_DIRECTIONS}, and 'negative' or 'multi_positive'"
            )
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"infonce: chunk_size is {chunk_size}; give at least 1 row, or None to keep all logits")
        self.pair = tuple(pair)
        self.direction = direction
        self.duplicates = duplicates
        self.chunk_size = chunk_size
        self.needs = ("text_group",) if duplicates == "multi_positive" else ()

    def forward(self, batch: AlignmentBatch) -> LossOutput:
        """Compute the loss.

        Args:
            batch: Embeddings ``P E`` of both modalities, and ``text_group`` if the duplicates policy needs it.

        Returns:
            The loss and its term ``"infonce"``.

        Raises:
            ValueError: If a modality or the groups are missing, shapes differ or a value is not finite.
        """
        a, b, groups = read_pair(batch, self.pair, self.duplicates)
        symmetric = self.direction == "both"
        if self.direction == "b_to_a" or (symmetric and not a.requires_grad):
            a, b = b, a  # now always a to b; and the second of two needs no gradient when a tower is frozen
        scale = batch.logit_scale.to(a.dtype)
        with torch.autocast(a.device.type, enabled=False):
            if self.chunk_size is None and a.device.type != "cpu":
                total = _plain(a, b, scale, symmetric)
            else:
                total = _Fused.apply(a, b, scale, symmetric, self.chunk_size)  # type: ignore[no-untyped-call]
            if groups is not None:
                total = total + scale * (a * (b - _group_mean(b, groups))).sum(dim=1).mean()
        return loss_output("infonce", total, batch, self.pair)


def read_pair(
    batch: AlignmentBatch, pair: Sequence[str], duplicates: Duplicates
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both embeddings of a pair, at least fp32, and the group of each row with ``"multi_positive"``.

    Raises:
        ValueError: If a modality or the groups are missing or shapes differ.
    """
    missing = [name for name in pair if name not in batch.embeddings]
    if missing:
        raise ValueError(
            f"batch has no embeddings of {missing}, only {sorted(batch.embeddings)}; add a tower or fix pair"
        )
    a, b = (batch.embeddings[name] for name in pair)
    if a.ndim != 2 or a.shape != b.shape or not len(a):
        raise ValueError(
            f"embeddings of {pair[0]} are {tuple(a.shape)} and of {pair[1]} {tuple(b.shape)}; "
            "row i of both must be pair i"
        )
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    if duplicates == "negative":
        return a.to(dtype), b.to(dtype), None
    groups = batch.extras.get("text_group")
    if groups is None or groups.shape != (len(a),):
        raise ValueError(f"multi_positive needs extras['text_group'] of {len(a)} group numbers, equal for equal texts")
    return a.to(dtype), b.to(dtype), groups.to(a.device)


def loss_output(name: str, total: Tensor, batch: AlignmentBatch, pair: Sequence[str]) -> LossOutput:
    """A finite ``total`` as a loss with one term.

    Raises:
        ValueError: If ``total`` is not finite. The message gives the rows of the embeddings that are not.
    """
    if not torch.isfinite(total):
        rows = {m: (~batch.embeddings[m].isfinite().all(dim=1)).nonzero()[:8, 0].tolist() for m in pair}
        raise ValueError(
            f"{name} is {total.item()}: embeddings are not finite in rows {rows}, logit_scale is "
            f"{batch.logit_scale.item()}; look at these studies, or lower the learning rate"
        )
    return LossOutput(total, {name: total.detach()})


def _plain(a: Tensor, b: Tensor, scale: Tensor, symmetric: bool) -> Tensor:
    logits = scale * (a @ b.T)
    targets = torch.arange(len(a), device=a.device)
    loss = F.cross_entropy(logits, targets)
    return (loss + F.cross_entropy(logits.T, targets)) / 2 if symmetric else loss


def _group_mean(x: Tensor, groups: Tensor) -> Tensor:
    _, index, counts = groups.unique(return_inverse=True, return_counts=True)
    sums = x.new_zeros(len(counts), x.shape[1]).index_add(0, index, x)
    return (sums / counts[:, None])[index]


class _Fused(torch.autograd.Function):
    """Loss and gradients in one go: the loss ends the graph, so its gradients are only ever scaled afterwards."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, symmetric: bool, chunk_size: int | None) -> Tensor:
        logits = _Logits(a, b, scale, chunk_size)
        losses, logit_gradient = _losses(logits, symmetric)
        if not any(ctx.needs_input_grad):
            return losses.mean()
        p_b, p_a = torch.empty_like(a), torch.zeros_like(b) if ctx.needs_input_grad[1] else None
        a_p_b = a.new_zeros(())
        for block in logits.blocks:
            p = logit_gradient(block)
            torch.mm(p, b, out=p_b[block])
            a_p_b += (a[block] * p_b[block]).sum()
            if p_a is not None:
                p_a.addmm_(p.T, a[block])
        ctx.save_for_backward(scale, p_b, p_a, a_p_b)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        scale, p_b, p_a, a_p_b = ctx.saved_tensors
        step = grad * scale / len(p_b)
        return step * p_b, None if p_a is None else step * p_a, grad * a_p_b / len(p_b), None, None


class _Logits:
    """Blocks of rows of S = s a b^T in one buffer, which holds all of them (``stored``) or one at a time."""

    def __init__(self, a: Tensor, b: Tensor, scale: Tensor, chunk_size: int | None) -> None:
        self.a, self.b, self.scale = a, b, scale
        rows = min(chunk_size or max(256, _CACHED // len(a)), len(a))
        self.stored = chunk_size is None
        self.blocks = [slice(i, min(i + rows, len(a))) for i in range(0, len(a), rows)]
        self.scratch = a.new_empty(rows, len(b))
        self._buffer = a.new_empty(len(a) if self.stored else rows, len(b))

    def room(self, block: slice) -> Tensor:
        return self._buffer[block] if self.stored else self._buffer[: block.stop - block.start]

    def compute(self, block: slice) -> Tensor:
        return torch.mm(self.a[block] * self.scale, self.b.T, out=self.room(block))


def _losses(logits: _Logits, symmetric: bool) -> tuple[Tensor, Callable[[slice], Tensor]]:
    """Loss of each pair ``N``, and a function from a block to its rows of N dL/dS.

    Rows: E = exp(S - u), u the maximum of each row. Columns reuse E: relative to exp(M), M = max u, their sums are
    sum_i t_i E_ij with t_i = exp(u_i - M) <= 1. That fails only for a column whose own maximum lies so far below M that
    its sum leaves the normal numbers: then columns get exponentials of their own.

    The diagonal is kept apart. With x the log of the other terms' sum minus S_ii, the loss is softplus(x) and
    dL/dS_ii = -sigmoid(x): a pair that is nearly certain keeps its precision.
    """
    n = len(logits.a)
    diagonal, row_max, row_rest = logits.a.new_empty(3, n)
    top, column_rest = logits.a.new_full((), -torch.inf), logits.a.new_zeros(n)
    for block in logits.blocks:
        s = logits.compute(block)
        diagonal[block] = s.diagonal(block.start)
        torch.amax(s, dim=1, out=row_max[block])
        e = s.sub_(row_max[block, None]).exp_()
        e.diagonal(block.start).zero_()
        torch.sum(e, dim=1, out=row_rest[block])
        if symmetric:
            previous, top = top, torch.maximum(top, row_max[block].max())
            column_rest.mul_((previous - top).exp()).add_((row_max[block] - top).exp() @ e)
    row_sum, column_sum = row_rest + (diagonal - row_max).exp(), column_rest + (diagonal - top).exp()
    x = [row_rest.log() + row_max - diagonal]
    if symmetric and column_sum.min() < _SMALLEST_SUM:
        return _separate_losses(logits, x[0], row_sum.log() + row_max, diagonal)
    if symmetric:
        x.append(column_rest.log() + top - diagonal)
    losses, on_diagonal = _diagonal_terms(x)
    by_row, by_column = 1 / (len(x) * row_sum), 1 / (len(x) * column_sum)
    to_column = (row_max - top).exp()

    def logit_gradient(block: slice) -> Tensor:
        p = logits.room(block) if logits.stored else logits.compute(block).sub_(row_max[block, None]).exp_()
        factor = by_row[block, None]
        if symmetric:
            factor = torch.mul(to_column[block, None], by_column, out=logits.scratch[: len(p)]).add_(factor)
        p.mul_(factor).diagonal(block.start).copy_(on_diagonal[block])
        return p

    return losses, logit_gradient


def _separate_losses(
    logits: _Logits, x_row: Tensor, row_log: Tensor, diagonal: Tensor
) -> tuple[Tensor, Callable[[slice], Tensor]]:
    column_rest = torch.full_like(row_log, -torch.inf)
    for block in logits.blocks:
        s = logits.compute(block)
        s.diagonal(block.start).fill_(-torch.inf)
        column_rest = torch.logaddexp(column_rest, s.logsumexp(dim=0))
    column_log = torch.logaddexp(column_rest, diagonal)
    losses, on_diagonal = _diagonal_terms([x_row, column_rest - diagonal])

    def logit_gradient(block: slice) -> Tensor:
        s = logits.compute(block)
        columns = torch.sub(s, column_log, out=logits.scratch[: len(s)]).exp_()
        p = s.sub_(row_log[block, None]).exp_().add_(columns).mul_(0.5)
        p.diagonal(block.start).copy_(on_diagonal[block])
        return p

    return losses, logit_gradient


def _diagonal_terms(x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    stacked = torch.stack(tuple(x))
    return F.softplus(stacked).mean(dim=0), -stacked.sigmoid().mean(dim=0)
