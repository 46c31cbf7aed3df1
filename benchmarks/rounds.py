"""Timing in rounds: peers take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import csv
import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median

__all__ = ["measure", "write_results"]

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger(__name__)
RESULTS = Path(__file__).parent / "results"


def measure(
    case: str,
    peers: Mapping[str, Callable[[], object]],
    rounds: int,
    reference: str,
    scale: Mapping[str, float] | None = None,
) -> list[dict[str, object]]:
    """Median seconds per peer after one warm-up, and the ratio of ``reference`` to it (below 1: faster than the peer).

    Args:
        case: Title.
        peers: Name → what is timed.
        rounds: Turns of each peer.
        reference: The peer that is ours.
        scale: Name → factor for peers that do only a part of the work.
    """
    times: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(rounds + 1):
        for name, call in peers.items():
            start = time.perf_counter()
            call()
            if turn > 0:
                times[name].append((time.perf_counter() - start) * (scale or {}).get(name, 1.0))
    rows: list[dict[str, object]] = []
    for name, seconds in times.items():
        ratio = median(times[reference]) / median(seconds)
        rows.append({"case": case, "peer": name, "median_s": f"{median(seconds):.5f}", "ratio": f"{ratio:.3f}"})
        logger.info("%-60s %-28s %9.2f ms   %s / it = %.3f", case, name, 1e3 * median(seconds), reference, ratio)
    return rows


def write_results(name: str, rows: list[dict[str, object]]) -> None:
    """Write ``results/<name>.csv`` with commit, device and versions in every row."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    context = {
        "commit": commit.stdout.strip() or "none",
        "device": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": " ".join(
            f"{package}={version(package)}" for package in ("numpy", "scipy", "scikit-learn", "torch")
        ),
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *context])
        writer.writeheader()
        writer.writerows({**row, **context} for row in rows)
