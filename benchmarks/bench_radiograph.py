"""Simulated radiograph of 512 x 512 x 300 against one ``torch.sum`` over the same volume, in turn in one process.

Only the ratio carries over to other machines. Run: ``python benchmarks/bench_radiograph.py [rounds]``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from medvl_core.radiograph import simulate_radiograph

SHAPE, SPACING = (512, 512, 300), (0.75, 0.75, 1.5)


def resample_first(volume: torch.Tensor) -> torch.Tensor:
    """The published order: clip, trilinear resample to 1 mm, mean."""
    size = [int(n * s) for n, s in zip(SHAPE, SPACING, strict=True)]
    x = volume.clamp(-1000, 1000)[None, None]
    return torch.nn.functional.interpolate(x, size=size, mode="trilinear", align_corners=False)[0, 0].mean(1)


def main(rounds: int) -> None:
    """Medians of ``rounds`` rounds to the standard output as CSV."""
    rng = np.random.default_rng(0)
    hu = np.asfortranarray(rng.integers(-1000, 1000, SHAPE, np.int16))  # x fastest, as NIfTI files are
    single = np.asfortranarray(hu.astype(np.float32))
    tensor, in_memory_order = torch.from_numpy(single), torch.from_numpy(single.T)
    affine = np.diag([*SPACING, 1.0])
    rows: dict[str, Callable[[], object]] = {
        "torch.sum float32": lambda: in_memory_order.sum(1),
        "mean_hu float32": lambda: simulate_radiograph(single, affine),
        "beer_lambert float32": lambda: simulate_radiograph(single, affine, mode="beer_lambert", size=(224, 224)),
        "mean_hu int16": lambda: simulate_radiograph(hu, affine),
        "resample first": lambda: resample_first(tensor),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, run in rows.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    base = float(np.median(times["torch.sum float32"]))
    lines = [f"{n},{1e3 * np.median(t):.1f},{np.median(t) / base:.2f}" for n, t in times.items()]
    header = (
        f"# torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds\ncase,median_ms,ratio_to_sum"
    )
    sys.stdout.write("\n".join([header, *lines]) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
