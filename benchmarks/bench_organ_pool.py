"""Organ pooling, forward and backward, against ``scatter_add`` and ``index_add``.

``python benchmarks/bench_organ_pool.py``: means of 32 features over 104 organs in 96 and 160 voxels cubed, two scans; a
fifth of the voxels belong to an organ (in real CTs segmented by TotalSegmentator 14 % to 30 % do). Peers take turns in
one process; read ratios, not times. Results go to ``benchmarks/results/organ_pool.csv``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from rounds import measure, write_results
from scipy.spatial import cKDTree
from torch import Tensor

from medvl_core.build import build_pooling

ORGANS, FEATURES, SCANS = 104, 32, 2
RADIUS = 0.085  # of the volume's side: gives the share of a fifth


def scatter_add(features: Tensor, regions: Tensor) -> Tensor:
    """Every voxel, also background, in one ``scatter_add``."""
    flat, labels = features.flatten(2), regions.flatten(1)
    index = labels[:, None].expand(-1, flat.shape[1], -1)
    sums = flat.new_zeros(*flat.shape[:2], ORGANS + 1).scatter_add(2, index, flat)[..., 1:]
    return _means(sums, labels)


def index_add(features: Tensor, regions: Tensor) -> Tensor:
    """Every voxel of a scan in one ``index_add``."""
    flat, labels = features.flatten(2), regions.flatten(1)
    rows = [
        flat.new_zeros(flat.shape[1], ORGANS + 1).index_add(1, own, part)
        for part, own in zip(flat, labels, strict=True)
    ]
    return _means(torch.stack(rows)[..., 1:], labels)


def _means(sums: Tensor, labels: Tensor) -> Tensor:
    counts = torch.stack([row.bincount(minlength=ORGANS + 1)[1:] for row in labels])
    return (sums / counts.clamp(min=1)[:, None]).transpose(1, 2)


def _scans(side: int) -> tuple[Tensor, Tensor]:
    """Features, and an organ wherever its centre is the nearest and near enough."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(SCANS, FEATURES, side, side, side, generator=generator)
    centres = torch.rand(150, 3, generator=generator).numpy()
    axis = (np.arange(side) + 0.5) / side
    distance, nearest = cKDTree(centres).query(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1))
    organ = np.where((distance < RADIUS) & (nearest < ORGANS), nearest + 1, 0)
    return features.requires_grad_(), torch.from_numpy(organ)[None].repeat(SCANS, 1, 1, 1)


def _pass(pool: Callable[[Tensor, Tensor], Tensor], features: Tensor, regions: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(pool(features, regions).square().sum(), features)
    return gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="96 voxels only, one round")
    options = parser.parse_args()
    peers = {
        "medvl": build_pooling("ct_glip/organ_mean", n_regions=ORGANS),
        "scatter_add": scatter_add,
        "index_add": index_add,
    }
    rows = []
    for side in (96,) if options.quick else (96, 160):
        features, regions = _scans(side)
        grads = {name: _pass(pool, features, regions).clone() for name, pool in peers.items()}
        for name, grad in grads.items():
            torch.testing.assert_close(grad, grads["scatter_add"], atol=1e-5, rtol=1e-4, msg=f"{name} differs")
        del grads
        calls = {name: partial(_pass, pool, features, regions) for name, pool in peers.items()}
        case = f"organ pooling, {SCANS} x {FEATURES} x {side}^3, {ORGANS} organs, forward + backward"
        rows += measure(case, calls, 1 if options.quick else 5, "medvl")
    if not options.quick:
        write_results("organ_pool", rows)


if __name__ == "__main__":
    main()
