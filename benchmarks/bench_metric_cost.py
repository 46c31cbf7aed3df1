"""What CXR-CML's metric loss adds to a training step of CLIP's ViT-B/32 vision tower, batch 32, refits included.

    python benchmarks/bench_metric_cost.py [--rounds 5] [--threads 2]

A step is forward, contrastive loss against fixed text rows, backward and AdamW, with random weights. Times are CPU
seconds of the process, which other load disturbs least. Whole steps still differ by more from one to the next than the
metric loss costs, so the loss is timed by itself: steps on fresh unit rows, forward and backward, with stepwise EM in
each, plus one refit on the full bank divided by ``refit_every``. The share is that mean over the median training step,
timed in turn. The rows with and without the loss show the same from outside, the fastest of all rounds each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import mean, median

import torch
from rounds import arguments, logger, write_results
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from medvl_baseline.losses.infonce import InfoNCE
from medvl_core.protocols import AlignmentBatch
from medvl_cxr_cml.cluster_triplet import ClusterTriplet

BATCH, WIDTH = 32, 512
SETTINGS = {
    "diagonal, bank 4096 (default)": {},
    "diagonal, PCA 64": {"pca_dim": 64},
    "full, PCA 64": {"covariance": "full", "pca_dim": 64},
    "tied": {"covariance": "tied"},
    "diagonal, bank 16384": {"bank_size": 16384},
}


def rows(step: int) -> Tensor:
    """Unit rows around 40 centres."""
    centres = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(step)
    kind = torch.randint(0, 40, (BATCH,), generator=generator)
    noise = 1.5 * torch.randn(BATCH, WIDTH, generator=generator)
    return functional.normalize(centres[kind] + noise, dim=1).requires_grad_()


def training_step() -> Callable[[ClusterTriplet | None], float]:
    """CPU seconds of one step, with a metric loss or without."""
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig())
    optimiser = torch.optim.AdamW(tower.parameters(), lr=1e-6)
    contrastive, text, images = InfoNCE(("cxr", "report")), rows(0).detach(), torch.randn(BATCH, 3, 224, 224)

    def step(metric: ClusterTriplet | None) -> float:
        start = time.process_time()
        image = functional.normalize(tower(images).image_embeds, dim=1)
        batch = AlignmentBatch({"cxr": image, "report": text}, torch.tensor(14.3))
        total = contrastive(batch).total
        if metric is not None:
            total = total + metric(batch).total
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        return time.process_time() - start

    return step


def filled(**options: object) -> ClusterTriplet:
    """A loss whose bank is full and whose mixture is fitted."""
    loss = ClusterTriplet(WIDTH, **options)
    for step in range(len(loss.bank.ring) // BATCH):
        loss.bank.push(rows(step).detach())
    loss(AlignmentBatch({"cxr": rows(10**6)}, torch.tensor(1.0)))
    return loss


def metric_seconds(loss: ClusterTriplet, steps: int) -> tuple[float, float, float]:
    """CPU seconds of a plain step (median), of the refit, and of the mean step at one refit per ``refit_every``."""
    plain = []
    for step in range(steps):
        batch = AlignmentBatch({"cxr": rows(10**7 + step)}, torch.tensor(1.0))
        start = time.process_time()
        loss(batch).total.backward()
        plain.append(time.process_time() - start)
    start = time.process_time()
    loss.mixture.fit(loss.bank.rows(), warm_start=True)
    refit = time.process_time() - start
    return median(plain), refit, mean(plain) + refit / loss.refit_every


def main() -> None:
    """Measure and write the CSV."""
    options = arguments(__doc__, rounds=5).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    step, losses = training_step(), {name: filled(**setting) for name, setting in SETTINGS.items()}
    default = next(iter(losses.values()))
    without, with_metric, costs = [], [], {name: [] for name in losses}
    step(None)
    for _ in range(options.rounds):
        without.append(step(None))
        with_metric.append(step(default))
        for name, loss in losses.items():
            costs[name].append(metric_seconds(loss, 20))
    table = [
        {"case": "ViT-B/32 step, batch 32, median", "ms": f"{1e3 * median(without):.1f}"},
        {"case": "ViT-B/32 step, fastest", "ms": f"{1e3 * min(without):.1f}"},
        {
            "case": "the same with the metric loss, fastest, no refit within",
            "ms": f"{1e3 * min(with_metric):.1f}",
            "share": f"{min(with_metric) / min(without) - 1:.4f}",
        },
    ]
    for name, found in costs.items():
        _, refit, amortised = (median(part) for part in zip(*found, strict=True))
        table.append(
            {
                "case": f"metric loss: {name}, one refit per {losses[name].refit_every} steps",
                "ms": f"{1e3 * amortised:.2f}",
                "refit_ms": f"{1e3 * refit:.0f}",
                "share": f"{amortised / median(without):.4f}",
            }
        )
    table = [{"case": "", "ms": "", "refit_ms": "", "share": "", **row} for row in table]
    for row in table:
        logger.info("%-75s %9s ms  refit %6s ms  share %s", row["case"], row["ms"], row["refit_ms"], row["share"])
    write_results("metric_cost", table)


if __name__ == "__main__":
    main()
