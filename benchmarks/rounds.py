"""Timing in rounds: peers take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median

__all__ = ["arguments", "measure", "peak_mib", "write_results"]

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger(__name__)
RESULTS = Path(__file__).parent / "results"


def arguments(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """A command line with ``--rounds``, and ``--threads`` of torch."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def measure(
    case: str,
    peers: Mapping[str, Callable[[], object]],
    rounds: int,
    reference: str,
    scale: Mapping[str, float] | None = None,
) -> list[dict[str, object]]:
    """Median seconds per peer after one warm-up, and the ratio of ``reference`` to it (below 1: faster than the peer).

    The warm-up gives the peak memory: the growth of the resident set (Linux).

    Args:
        case: Title.
        peers: Name → what is timed.
        rounds: Turns of each peer; 0 takes the time of the warm-up, for cases of minutes.
        reference: The peer that is ours.
        scale: Name → factor for peers that do only a part of the work.
    """
    times: dict[str, list[float]] = {name: [] for name in peers}
    peaks: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, call in peers.items():
            start = time.perf_counter()
            if turn == 0:
                peaks[name] = peak_mib(call)
            else:
                call()
            if turn > 0 or rounds == 0:
                times[name].append((time.perf_counter() - start) * (scale or {}).get(name, 1.0))
    rows: list[dict[str, object]] = []
    for name, seconds in times.items():
        ratio = median(times[reference]) / median(seconds)
        row = {"case": case, "peer": name, "median_s": f"{median(seconds):.5f}", "ratio": f"{ratio:.3f}"}
        rows.append({**row, "peak_mib": f"{peaks[name]:.0f}"})
        text = "%-60s %-28s %9.2f ms %6.0f MiB   %s / it = %.3f"
        logger.info(text, case, name, 1e3 * median(seconds), peaks[name], reference, ratio)
    return rows


def peak_mib(call: Callable[[], object]) -> float:
    """Growth of the resident set over ``call``; NaN where the kernel does not tell."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory kept by the allocator would hide the growth
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
    except (AttributeError, OSError):
        call()
        return float("nan")
    call()
    return max(0.0, (_resident("VmHWM") - before) / 1024)


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


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
