"""InfoNCE, forward and backward to both embeddings and the logit scale, against open_clip's loss.

    python benchmarks/bench_infonce.py [--sizes 360 4096] [--width 512] [--rounds 7] [--threads 2]

Every row is timed in turn, round after round, so that other load meets all alike: compare ratios (of medians) only, and
on a busy machine take one thread. Peak memory is the growth of the resident set over one call (Linux). Errors are
relative to the same loss in fp64 (fp32 above N = 4096). The peer is open_clip's ``ClipLoss`` when the package is
installed, else its formula (two logit matrices, two cross-entropies).
"""

from __future__ import annotations

import csv
import datetime
import importlib.util
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rounds import arguments, peak_mib
from torch import Tensor

from medvl_baseline.losses.infonce import InfoNCE
from medvl_core.protocols import AlignmentBatch

RESULTS = Path(__file__).parent / "results" / "infonce.csv"
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
COLUMNS = (
    "row",
    "n",
    "width",
    "median_ms",
    "min_ms",
    "ratio",
    "peak_mib",
    "loss_error",
    "gradient_error",
    "scale_error",
)


def peer() -> tuple[str, Loss]:
    """open_clip's loss, loaded from its file: the package's ``__init__`` needs torchvision."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        return "open_clip's formula", two_matrices
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(package.origin).with_name("loss.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return "open_clip ClipLoss", module.ClipLoss()


def two_matrices(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Both logit matrices, each through cross-entropy."""
    targets = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(scale * a @ b.T, targets) + F.cross_entropy(scale * b @ a.T, targets)) / 2


def ours(**options: object) -> Loss:
    """Our loss with the peer's call."""
    loss = InfoNCE(("a", "b"), **options)
    return lambda a, b, scale: loss(AlignmentBatch({"a": a, "b": b}, scale)).total


def once(loss: Loss, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Loss and its three gradients."""
    for tensor in inputs:
        tensor.grad = None
    total = loss(*inputs)
    total.backward()
    return (total.detach(), *(tensor.grad for tensor in inputs))


def errors(got: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> list[float]:
    """Relative error of the loss, of the worse embedding gradient, and of the scale's gradient."""
    loss, a, b, scale = (
        ((x.double() - y.double()).norm() / y.double().norm()).item() for x, y in zip(got, reference, strict=True)
    )
    return [loss, max(a, b), scale]


def measure(n: int, width: int, rounds: int) -> list[dict[str, object]]:
    """One table: the peer first, then ours."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(n, width, generator=generator)
    a, b = (F.normalize(common + torch.randn(n, width, generator=generator), dim=1) for _ in range(2))
    inputs = (a.requires_grad_(), b.requires_grad_(), torch.tensor(1 / 0.07, requires_grad=True))
    name, open_clip = peer()
    losses = {name: open_clip, "medvl stored": ours(), "medvl streamed": ours(chunk_size=256)}
    doubles = tuple(tensor.detach().double().requires_grad_() for tensor in inputs)
    reference = once(two_matrices, doubles) if n <= 4096 else once(two_matrices, inputs)  # fp64 N x N gets too large
    reference = tuple(tensor.clone() for tensor in reference)
    rows = {key: {"row": key, "n": n, "width": width} for key in losses}
    times: dict[str, list[float]] = {key: [] for key in losses}
    for key, loss in losses.items():
        found = errors(once(loss, inputs), reference)
        rows[key] |= dict(zip(("loss_error", "gradient_error", "scale_error"), found, strict=True))
        rows[key]["peak_mib"] = peak_mib(lambda loss=loss: once(loss, inputs))
    for _ in range(rounds):
        for key, loss in losses.items():
            start = time.perf_counter()
            once(loss, inputs)
            times[key].append(1e3 * (time.perf_counter() - start))
    for key, row in rows.items():
        median = statistics.median(times[key])
        row |= {"median_ms": median, "min_ms": min(times[key]), "ratio": median / statistics.median(times[name])}
    return list(rows.values())


def origin() -> dict[str, object]:
    """What the numbers belong to."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "device": f"{platform.processor() or platform.machine()} x {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure, show and append to the CSV."""
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[360, 4096])
    parser.add_argument("--width", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for n in options.sizes for row in measure(n, options.width, options.rounds)]
    sys.stdout.write("  ".join(f"{column:>18}" for column in COLUMNS) + "\n")
    for row in rows:
        cells = (f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS)
        sys.stdout.write("  ".join(f"{cell:>18}" for cell in cells) + "\n")
    RESULTS.parent.mkdir(exist_ok=True)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *origin()])
        if new:
            writer.writeheader()
        writer.writerows({**row, **origin()} for row in rows)


if __name__ == "__main__":
    main()
