"""The tables of the paper, published numbers beside those of scripts/experiments.py, as Markdown.

Differences are paired: the same studies, patients drawn together (macro AUROC), DeLong's test with patients as clusters
and Holm's correction (single labels).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

PUBLISHED = {
    "MedCLIP": (0.476, 0.488, 0.450),
    "MedKLIP": (0.576, 0.574, 0.574),
    "SLIP": (0.502, 0.505, 0.495),
    "CheXzero": (0.644, 0.647, 0.631),
    "CheXzero + meta labels": (0.691, 0.681, 0.707),
    "CXR-CML batch 16, nu 4": (0.705, 0.700, 0.710),
    "CXR-CML batch 64, nu 4": (0.711, 0.707, 0.716),
    "CXR-CML batch 32, nu 2": (0.710, 0.710, 0.710),
    "CXR-CML batch 32, nu 4": (0.715, 0.711, 0.720),
    "CXR-CML batch 32, nu 6": (0.715, 0.710, 0.718),
    "CXR-CML batch 32, nu inf": (0.716, 0.713, 0.720),
}
"""AUROC total, base and rare on CXR-LT 2024: tables 2 and 3 of arXiv:2507.19398."""
SAME = {
    "clip": "CheXzero + meta labels",
    "nu2": "CXR-CML batch 32, nu 2",
    "nu4": "CXR-CML batch 32, nu 4",
    "nu6": "CXR-CML batch 32, nu 6",
    "nu_inf": "CXR-CML batch 32, nu inf",
}
GROUPS = ("total", "base", "rare")


def main() -> int:
    options = _arguments().parse_args()
    finished = sorted(options.runs.glob("*/cross_validation/metrics.json"))  # written last
    runs = {path.parents[1].name: path.parent for path in finished}
    if options.against not in runs:
        sys.stderr.write(f"{options.runs}: no run called {options.against!r}, only {', '.join(runs) or 'none'}\n")
        return 1
    order = [name for name in _settings() if name in runs] + sorted(set(runs) - set(_settings()))
    lines = [*_published(), "", *_ours(runs, order, options.against)]
    for name in options.labels:
        lines += ["", *_labels(runs[name], runs[options.against], name, options.against)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _settings() -> tuple[str, ...]:
    from experiments import SETTINGS  # beside this file

    return tuple(SETTINGS)


def _published() -> Iterator[str]:
    yield "| published, CXR-LT 2024 | total | base | rare |"
    yield "| --- | --- | --- | --- |"
    for name, values in PUBLISHED.items():
        yield f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |"


def _ours(runs: dict[str, Path], order: list[str], against: str) -> Iterator[str]:
    """A row per setting: mean and sd over folds, pooled AUROC with interval, paired difference per group."""
    import pandas as pd

    yield (
        "| setting | published total | "
        + " | ".join(f"{group}: folds; pooled; minus {against}" for group in GROUPS)
        + f" | labels better / worse than {against} (Holm) |"
    )
    yield "|" + " --- |" * (3 + len(GROUPS))
    for name in order:
        summary = pd.read_csv(runs[name] / "summary.csv").set_index("group")
        cells = []
        for group in GROUPS:
            if group in summary.index:
                row = summary.loc[group]
                pooled = f"{row.auroc_pooled:.3f} [{row.pooled_low:.3f}, {row.pooled_high:.3f}]"
                cells.append(
                    f"{row.auroc_mean:.3f} ± {row.auroc_sd:.3f}; {pooled}; {_difference(runs, name, against, group)}"
                )
            else:
                cells.append("–")
        published = f"{PUBLISHED[SAME[name]][0]:.3f}" if name in SAME else "–"
        yield f"| {name} | {published} | " + " | ".join(cells) + f" | {_counts(runs[name], runs[against])} |"


def _difference(runs: dict[str, Path], name: str, against: str, group: str) -> str:
    if name == against:
        return "–"
    row = next(row for row in _paired(runs[name], runs[against], group).rows if row.name == "macro")
    return f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"


def _counts(run: Path, other: Path) -> str:
    if run == other:
        return "–"
    certain = [row for row in _paired(run, other).rows if row.kind == "class" and row.p_holm < 0.05]
    return f"{sum(row.difference > 0 for row in certain)} / {sum(row.difference < 0 for row in certain)}"


def _labels(run: Path, other: Path, name: str, against: str) -> Iterator[str]:
    test = _paired(run, other)
    yield f"| label | n+ | {name} | {against} | difference [95 % interval] | p | p (Holm) |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in test.rows:
        p = "–" if math.isnan(row.p) else f"{row.p:.3f}"
        corrected = "–" if math.isnan(row.p_holm) else f"{row.p_holm:.3f}"
        areas = f"{row.auroc_a:.3f} | {row.auroc_b:.3f} | {row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        yield f"| {row.name} | {row.n_positive} | {areas} | {p} | {corrected} |"
    yield ""
    yield test.caption() + "."


def _paired(run: Path, other: Path, group: str = "total"):
    from medvl_core.predictions import read_predictions
    from medvl_core.run_comparison import compare_predictions

    groups = json.loads((run / "metrics.json").read_text())["groups"]
    first, second = (read_predictions(folder / "zero_shot_predictions.csv") for folder in (run, other))
    names = groups.get(group, first.classes)
    return compare_predictions(first.sorted(names), second.sorted(names))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--runs", type=Path, required=True, metavar="FOLDER", help="a seed's folder of experiments.py: runs/nih/seed0")
    add("--against", default="clip", metavar="NAME", help="setting that the others are compared with; default: clip")
    add("--labels", nargs="*", default=[], metavar="NAME", help="settings to compare label by label, e.g. nu4")
    return parser


if __name__ == "__main__":
    sys.exit(main())
