"""Where a mixture starts: k-means++ and a few rounds of k-means on a sample of the rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["kmeans_labels"]

_ROWS_PER_CLUSTER = 256  # more rows in the sample do not move the centres visibly
_ROUNDS = 10


def kmeans_labels(x: Tensor, k: int, seed: int) -> Tensor:
    """Cluster of each row.

    Greedy k-means++ [1]: each further centre is the best of 2 + log k rows, drawn in proportion to their squared
    distance from the centres so far. All draws are made on the CPU from ``seed``, so every device draws alike. Rows
    that coincide with a centre have no chance of being drawn; when only such rows are left, centres repeat.

    Args:
        x: ``n d``, n at least k.
        k: Clusters.
        seed: Of the draws.

    Returns:
        ``n`` cluster numbers; a cluster may be empty when rows coincide.

    References:
        [1] Arthur & Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(x), generator=generator)[: _ROWS_PER_CLUSTER * k].to(x.device)
    mean = x[drawn].mean(dim=0)
    sample = x[drawn] - mean
    centres = _plus_plus(sample, k, generator)
    for _ in range(_ROUNDS):
        members = functional.one_hot(_squared(sample, centres).argmin(dim=1), k).to(x.dtype)
        counts = members.sum(dim=0)[:, None]
        centres = torch.where(counts > 0, members.T @ sample / counts.clamp(min=1), centres)
    return torch.cat([_squared(rows - mean, centres).argmin(dim=1) for rows in x.split(4096)])


def _plus_plus(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    trials = 2 + int(math.log(k))
    draws = torch.rand(k, trials, generator=generator).to(x)
    chosen = [x[0]]  # the sample is in random order
    nearest = _squared(x, x[:1])[:, 0]
    for step in range(1, k):
        mass = nearest.cumsum(dim=0)
        candidates = torch.searchsorted(mass, draws[step] * mass[-1], right=True).clamp_(max=len(x) - 1)
        reached = torch.minimum(nearest[:, None], _squared(x, x[candidates]))
        best = reached.sum(dim=0).argmin()
        chosen.append(x[candidates[best]])
        nearest = reached[:, best]
    return torch.stack(chosen)


def _squared(x: Tensor, centres: Tensor) -> Tensor:
    lengths = x.square().sum(dim=1, keepdim=True) + centres.square().sum(dim=1)
    return lengths.addmm_(x, centres.T, alpha=-2).clamp_(min=0)
