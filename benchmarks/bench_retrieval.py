"""Retrieval ranks in both directions against faiss and a plain argsort: ``python benchmarks/bench_retrieval.py``.

``--sizes 50000 --rounds 0`` for the large case (minutes). Peers take turns in one process; read ratios, not times.
faiss-cpu is optional: without it its rows are left out. Results go to ``benchmarks/results/retrieval.csv``.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from rounds import measure, write_results
from torch.nn.functional import normalize

from medvl_evaluation.metrics import two_way_ranks

DEPTH = 100


def pairs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors whose recall at 1 is well below 1."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(n, 512, generator=generator)
    return normalize(left, dim=1), normalize(left + 6 * torch.randn(n, 512, generator=generator), dim=1)


def argsort_ranks(left: torch.Tensor, right: torch.Tensor) -> None:
    """Full sort of every row, in both directions."""
    cosines, own = left @ right.T, torch.arange(len(left))[:, None]
    for matrix in (cosines, cosines.T):
        torch.where(matrix.argsort(dim=1, descending=True) == own)


def faiss_search(left: np.ndarray, right: np.ndarray) -> None:
    """Exact inner-product search for the first 100, in both directions, on as many threads as torch."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    for queries, gallery in ((left, right), (right, left)):
        index = faiss.IndexFlatIP(gallery.shape[1])
        index.add(gallery)
        index.search(queries, DEPTH)


def main() -> None:
    """Time every peer at every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for n in arguments.sizes:
        left, right = pairs(n)
        peers: dict[str, Callable[[], object]] = {"medvl": lambda a=left, b=right: two_way_ranks(a, b)}
        if n <= 5000:
            peers["full argsort"] = lambda a=left, b=right: argsort_ranks(a, b)
        if importlib.util.find_spec("faiss"):
            peers["faiss IndexFlatIP, k=100"] = lambda a=left, b=right: faiss_search(a.numpy(), b.numpy())
        results += measure(f"{n} x {n}, both directions", peers, arguments.rounds, reference="medvl")
    write_results("retrieval", results)


if __name__ == "__main__":
    main()
