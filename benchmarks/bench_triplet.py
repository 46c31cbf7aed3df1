"""Triplet losses on 40 pseudo-labels, forward and backward, against pytorch-metric-learning (when it is installed).

    python benchmarks/bench_triplet.py [--quick] [--rounds 5] [--threads 2]

Every row is timed in turn; compare ratios only. Peak memory is the growth of the resident set over one call (Linux).
Errors are those of loss and gradient against the peer's (the gradient's part along the unit sphere, which is all that
reaches an encoder behind a normalisation).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from bench_infonce import peak_mib
from rounds import arguments, logger, measure, write_results
from torch import Tensor
from torch.nn import functional

from medvl_cxr_cml.triplet import batch_hard_hinges, triplet_loss

MARGIN = 0.3
Loss = Callable[[Tensor, Tensor], Tensor]


def peers(mining: str) -> dict[str, Loss]:
    """The peer's loss of the same definition."""
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        logger.info("pytorch-metric-learning is not installed: ours is timed alone")
        return {}
    from pytorch_metric_learning import distances, losses, miners, reducers

    distance = distances.LpDistance(normalize_embeddings=False)
    if mining == "batch_all":
        return {"pytorch-metric-learning": losses.TripletMarginLoss(margin=MARGIN, distance=distance)}
    miner = miners.BatchHardMiner(distance=distance)
    loss = losses.TripletMarginLoss(margin=MARGIN, distance=distance, reducer=reducers.MeanReducer())
    return {"pytorch-metric-learning": lambda rows, labels: loss(rows, labels, miner(rows, labels))}


def ours(rows: Tensor, labels: Tensor, mining: str) -> Tensor:
    """Our loss; batch-hard is averaged over all anchors here, as the peer does."""
    if mining == "batch_hard":
        return batch_hard_hinges(rows, labels, MARGIN).mean()
    return triplet_loss(rows, labels, MARGIN, mining)[0]


def once(loss: Loss, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, and gradient along the sphere."""
    rows.grad = None
    total = loss(rows, labels)
    total.backward()
    unit = rows.detach()
    return total.detach(), rows.grad - (rows.grad * unit).sum(dim=1, keepdim=True) * unit


def case(mining: str, n: int, rounds: int) -> list[dict[str, object]]:
    """One table."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 40, (n,), generator=generator)
    centres = 0.5 * torch.randn(40, 512, generator=generator)
    rows = functional.normalize(centres[labels] + torch.randn(n, 512, generator=generator), dim=1).requires_grad_()
    losses = {"medvl": lambda rows, labels: ours(rows, labels, mining), **peers(mining)}
    calls = {name: (lambda loss=loss: once(loss, rows, labels)) for name, loss in losses.items()}
    results = {name: call() for name, call in calls.items()}
    expected = list(results.values())[-1]
    errors = {
        name: [((a - b).norm() / b.norm()).item() for a, b in zip(result, expected, strict=True)]
        for name, result in results.items()
    }
    peaks = {name: peak_mib(call) for name, call in calls.items()}
    table = measure(f"{mining}, N {n}, D 512, fwd + bwd", calls, rounds, "medvl")
    for row in table:
        name = str(row["peer"])
        loss_error, gradient_error = errors[name]
        row |= {
            "peak_mib": f"{peaks[name]:.0f}",
            "loss_error": f"{loss_error:.1e}",
            "gradient_error": f"{gradient_error:.1e}",
        }
    return table


def main() -> None:
    """Measure and write the CSV."""
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--quick", action="store_true", help="small cases")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = [("batch_all", 32), ("batch_all", 256), ("batch_all", 1024), ("batch_hard", 1024), ("batch_hard", 4096)]
    table = []
    for mining, n in sizes[:2] if options.quick else sizes:
        table += case(mining, n, options.rounds)
    if not options.quick:
        write_results("triplet", table)


if __name__ == "__main__":
    main()
