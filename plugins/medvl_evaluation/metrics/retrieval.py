"""Exact cross-modal retrieval: ranks by counting, in bounded memory, with several correct items per query.

**Ties count against the query.** An item whose cosine lies within 1e-6 of the best correct item's (the rounding of a
float32 dot product) is ranked above it. A collapsed encoder, for which every gallery item looks the same, therefore
gets the worst rank and recall 0, and equal texts in different groups can only lower the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import gammaln
from torch import Tensor
from torch.nn.functional import normalize

__all__ = [
    "TIE_TOLERANCE",
    "chance_median_rank",
    "chance_recall",
    "median_rank",
    "recall_at_k",
    "recall_of_ranks",
    "retrieval_ranks",
    "two_way_ranks",
]

TIE_TOLERANCE = 1e-6
"""Cosines closer than this are ties."""

_GALLERY_BLOCK = 8192


def retrieval_ranks(
    queries: Tensor | ArrayLike,
    gallery: Tensor | ArrayLike,
    query_groups: ArrayLike | None = None,
    gallery_groups: ArrayLike | None = None,
    targets: Sequence[Sequence[int]] | None = None,
    chunk: int = 1024,
) -> NDArray[np.int64]:
    """Rank of the best correct gallery item of each query: 1 + the wrong items at least as similar (cosine).

    Args:
        queries: ``P E``, finite; normalised here.
        gallery: ``Q E``.
        query_groups: Group of each query, ``P``; items of the same group are correct. Without groups or targets, item i
            is correct for query i.
        gallery_groups: Group of each item, ``Q``. Two reconstructions that share a report share a group.
        targets: In place of groups, ``P`` lists: the indices of the correct items of each query.
        chunk: Queries per block. Memory: one block of ``chunk`` x 8,192 cosines plus the pairs within groups.

    Returns:
        Ranks ``P`` from 1 (correct item first). The other correct items of a query never count against it.

    Raises:
        ValueError: If shapes do not fit, an embedding is not finite, or a query has no correct item.
    """
    q, g = _embeddings(queries, gallery)
    if targets is None:
        pairs = _pairs_in_groups(query_groups, gallery_groups, len(q), len(g), both=False)
    elif query_groups is None and gallery_groups is None:
        pairs = _pairs_of_targets(targets, len(q), len(g))
    else:
        raise ValueError("both targets and groups are given; give one of them")
    return _sweep(q, g, pairs, chunk, both=False)[0]


def two_way_ranks(
    left: Tensor | ArrayLike,
    right: Tensor | ArrayLike,
    left_groups: ArrayLike | None = None,
    right_groups: ArrayLike | None = None,
    chunk: int = 1024,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`retrieval_ranks` in both directions from one sweep over the cosines: (left → right, right → left)."""
    q, g = _embeddings(left, right)
    return _sweep(q, g, _pairs_in_groups(left_groups, right_groups, len(q), len(g), both=True), chunk, both=True)


def _sweep(
    q: Tensor, g: Tensor, correct: tuple[Tensor, Tensor], chunk: int, both: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, columns = correct
    # A wrong item has to come within the tolerance of this cosine to count.
    pairs = zip(rows.split(chunk), columns.split(chunk), strict=True)
    cosine = torch.cat([(q[row] * g[column]).sum(1) for row, column in pairs])
    bar_q = torch.full((len(q),), -2.0).scatter_reduce_(0, rows, cosine, "amax") - TIE_TOLERANCE
    bar_g = torch.full((len(g),), -2.0).scatter_reduce_(0, columns, cosine, "amax") - TIE_TOLERANCE
    rank_q, rank_g = torch.ones(len(q), dtype=torch.int64), torch.ones(len(g), dtype=torch.int64)
    scratch = torch.empty(min(chunk, len(q)) * min(_GALLERY_BLOCK, len(g)))
    for i in range(0, len(q), chunk):
        block = q[i : i + chunk]
        inside = slice(*torch.searchsorted(rows, torch.tensor([i, i + len(block)])).tolist())
        for j in range(0, len(g), _GALLERY_BLOCK):
            items = g[j : j + _GALLERY_BLOCK]
            tile = scratch[: len(block) * len(items)].view(len(block), len(items))
            torch.mm(block, items.T, out=tile)
            here = (columns[inside] >= j) & (columns[inside] < j + len(items))
            tile[rows[inside][here] - i, columns[inside][here] - j] = -torch.inf
            rank_q[i : i + len(block)] += (tile >= bar_q[i : i + len(block), None]).sum(1, dtype=torch.int32)
            if both:
                rank_g[j : j + len(items)] += (tile >= bar_g[j : j + len(items)]).sum(0, dtype=torch.int32)
    return rank_q.numpy(), rank_g.numpy()


def _embeddings(queries: Tensor | ArrayLike, gallery: Tensor | ArrayLike) -> tuple[Tensor, Tensor]:
    q, g = _unit_vectors(queries, "queries"), _unit_vectors(gallery, "gallery")
    if q.shape[1] != g.shape[1]:
        raise ValueError(f"queries have {q.shape[1]} dimensions, the gallery {g.shape[1]}; embed both with one model")
    return q, g


def _unit_vectors(values: Tensor | ArrayLike, name: str) -> Tensor:
    vectors = torch.as_tensor(values).detach().to("cpu", torch.float32)
    if vectors.ndim != 2 or len(vectors) == 0:
        raise ValueError(f"{name} has shape {tuple(vectors.shape)}; expected items x dimensions, at least one item")
    bad = ~torch.isfinite(vectors).all(dim=1)
    if bad.any():
        raise ValueError(f"{name}: row {int(bad.nonzero()[0])} ({int(bad.sum())} in all) is not finite")
    return normalize(vectors, dim=1)


def _pairs_in_groups(
    query_groups: ArrayLike | None, gallery_groups: ArrayLike | None, n_queries: int, n_items: int, both: bool
) -> tuple[Tensor, Tensor]:
    """(query, item) index of every correct pair, sorted by query."""
    if query_groups is None and gallery_groups is None:
        if n_queries != n_items:
            raise ValueError(f"{n_queries} queries and {n_items} items; without groups, item i must belong to query i")
        return torch.arange(n_queries), torch.arange(n_queries)
    if query_groups is None or gallery_groups is None:
        raise ValueError("only one of query_groups and gallery_groups is given; give both or neither")
    ours, theirs = np.asarray(query_groups), np.asarray(gallery_groups)
    if (len(ours), len(theirs)) != (n_queries, n_items):
        raise ValueError(f"{len(ours)} and {len(theirs)} groups for {n_queries} queries and {n_items} items; one each")
    code = np.unique(np.concatenate([ours, theirs]), return_inverse=True)[1]
    member = sparse.csr_matrix((np.ones(len(code), np.int32), (np.arange(len(code)), code)))
    pairs = (member[:n_queries] @ member[n_queries:].T).tocoo()
    _reject_alone("query", ours, pairs.row)
    if both:
        _reject_alone("item", theirs, pairs.col)
    order = np.argsort(pairs.row, kind="stable")
    return torch.from_numpy(pairs.row[order].astype(np.int64)), torch.from_numpy(pairs.col[order].astype(np.int64))


def _pairs_of_targets(targets: Sequence[Sequence[int]], n_queries: int, n_items: int) -> tuple[Tensor, Tensor]:
    """(query, item) index of every correct pair, sorted by query."""
    counts = np.array([len(items) for items in targets])
    if len(targets) != n_queries or (counts == 0).any():
        raise ValueError(f"{len(targets)} target lists, {(counts == 0).sum()} empty, for {n_queries} queries; one each")
    columns = np.concatenate([np.asarray(items, dtype=np.int64) for items in targets])
    if columns.min() < 0 or columns.max() >= n_items:
        raise ValueError(f"targets {columns.min()} to {columns.max()} for a gallery of {n_items} items; use 0 to Q - 1")
    return torch.from_numpy(np.repeat(np.arange(n_queries), counts)), torch.from_numpy(columns)


def _reject_alone(what: str, groups: NDArray[Any], matched: NDArray[Any]) -> None:
    alone = np.setdiff1d(np.arange(len(groups)), matched)
    if len(alone):
        raise ValueError(
            f"{what} {alone[0]} (group {groups[alone[0]]!s}) has no match on the other side ({len(alone)} such)"
        )


def recall_at_k(
    queries: Tensor | ArrayLike,
    gallery: Tensor | ArrayLike,
    ks: Sequence[int],
    query_groups: ArrayLike | None = None,
    gallery_groups: ArrayLike | None = None,
    targets: Sequence[Sequence[int]] | None = None,
    chunk: int = 1024,
) -> dict[int, float]:
    """Share of queries whose best correct item is among the first k: k → recall in [0, 1].

    Args and raises as in `retrieval_ranks`, which gives the ranks for anything else (median rank, intervals).
    """
    return recall_of_ranks(retrieval_ranks(queries, gallery, query_groups, gallery_groups, targets, chunk), ks)


def recall_of_ranks(ranks: ArrayLike, ks: Sequence[int]) -> dict[int, float]:
    """`recall_at_k` from ranks that are there already.

    Raises:
        ValueError: If there are no ranks or a k is below 1.
    """
    ranks = np.asarray(ranks)
    if ranks.size == 0 or any(k < 1 for k in ks):
        raise ValueError(f"recall of {ranks.size} ranks at {tuple(ks)}; needs a rank or more, and every k at least 1")
    return {int(k): float((ranks <= k).mean()) for k in ks}


def median_rank(ranks: ArrayLike) -> float:
    """Median of the ranks, 1 at best.

    Raises:
        ValueError: If there are no ranks.
    """
    ranks = np.asarray(ranks)
    if ranks.size == 0:
        raise ValueError("median of 0 ranks; needs a rank or more")
    return float(np.median(ranks))


def chance_recall(n_correct: ArrayLike, n_items: int, ks: Sequence[int]) -> dict[int, float]:
    r"""Expected recall at k of a random order: $1 - \binom{Q - m}{k} / \binom{Q}{k}$, averaged over queries.

    Args:
        n_correct: Correct items m of each query, ``P``, each at least 1.
        n_items: Gallery size Q.
        ks: Each at least 1; a k above Q counts as Q.

    Returns:
        k → expected recall.

    Raises:
        ValueError: If a k is below 1, or a query has no correct item or more than the gallery.
    """
    if any(k < 1 for k in ks):
        raise ValueError(f"recall of a random order at {tuple(ks)}; every k is at least 1")
    reached = _chance_curve(n_correct, n_items)
    return {int(k): float(reached[min(int(k), n_items) - 1]) for k in ks}


def chance_median_rank(n_correct: ArrayLike, n_items: int) -> float:
    """Smallest rank that half of the queries reach under a random order; arguments as in `chance_recall`."""
    return float(np.argmax(_chance_curve(n_correct, n_items) >= 0.5 - 1e-12) + 1)


def _chance_curve(n_correct: ArrayLike, n_items: int) -> NDArray[np.float64]:
    """P(best correct item among the first k) for k = 1..Q, averaged over queries."""
    sizes, counts = np.unique(np.asarray(n_correct), return_counts=True)
    if len(sizes) == 0 or sizes[0] < 1 or sizes[-1] > n_items:
        raise ValueError(f"correct items per query: {sizes.tolist()}; each must be between 1 and {n_items} (all items)")
    k = np.arange(1, n_items + 1)
    curve = np.zeros(n_items)
    for m, count in zip(sizes, counts, strict=True):
        spare = np.maximum(n_items - m - k, 0)
        log_miss = gammaln(n_items - m + 1) - gammaln(spare + 1) + gammaln(n_items - k + 1) - gammaln(n_items + 1)
        curve += count * np.where(k > n_items - m, 1.0, -np.expm1(log_miss))
    return curve / counts.sum()
