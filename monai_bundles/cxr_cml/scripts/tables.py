"""The tables of the paper, published numbers beside those of scripts/experiments.py, as Markdown.

Differences are paired: the same studies, patients drawn together (macro AUROC), DeLong's test with patients as clusters
and Holm's correction (single labels). With several seeds every study counts once per seed, always together with its
patient: that makes no interval narrower than the patients allow.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medvl_evaluation.markdown import markdown_table

if TYPE_CHECKING:
    from medvl_evaluation.run_comparison import PairedTest

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
    runs = _runs(options.runs)
    if options.against not in runs:
        known = ", ".join(runs) or "none"
        sys.stderr.write(f"{options.runs[0]}: no run called {options.against!r} in every folder, only {known}\n")
        return 1
    against = runs[options.against]
    tables = [_published()] if options.published else []
    tables.append(_ours(runs, against, options.against))
    tables += [_labels(runs[name], against, name, options.against) for name in options.labels]
    sys.stdout.write("\n\n".join(tables) + "\n")
    return 0


class _Run:
    """The folds of one setting in every folder: a seed each."""

    def __init__(self, folders: list[Path]) -> None:
        from medvl_evaluation.predictions import Predictions, read_predictions
        from medvl_evaluation.splits.cross_validation import pool_folds, summary_table

        self.groups = json.loads((folders[0] / "metrics.json").read_text())["groups"]
        folds = []
        for number, folder in enumerate(folders):
            for path in sorted(folder.glob("fold_*_predictions.csv")):
                one = read_predictions(path)
                names = tuple(f"{name} in run {number}" for name in one.study_id)
                folds.append(Predictions(names, one.subject_id, one.classes, one.labels, one.scores))
        self.pooled = pool_folds(folds)
        self.summary = summary_table(folds, self.groups).set_index("group")

    def paired(self, other: _Run, group: str = "total") -> PairedTest:
        from medvl_evaluation.run_comparison import compare_predictions

        names = self.groups.get(group, self.pooled.classes)
        return compare_predictions(self.pooled.sorted(names), other.pooled.sorted(names))


def _runs(folders: list[Path]) -> dict[str, _Run]:
    """Finished settings that every folder has, in the order of scripts/experiments.py."""
    from experiments import SETTINGS  # beside this file

    finished = [{path.parents[1].name for path in folder.glob("*/cross_validation/metrics.json")} for folder in folders]
    names = sorted(set.intersection(*finished), key=lambda name: ([*SETTINGS, name].index(name), name))
    return {name: _Run([folder / name / "cross_validation" for folder in folders]) for name in names}


def _published() -> str:
    rows = [[name, *(f"{value:.3f}" for value in values)] for name, values in PUBLISHED.items()]
    return markdown_table(["published, CXR-LT 2024", *GROUPS], rows)


def _ours(runs: dict[str, _Run], against: _Run, name_against: str) -> str:
    """A row per setting: mean and sd over folds, pooled AUROC with interval, paired difference per group."""
    groups = [f"{group}: folds; pooled; minus {name_against}" for group in GROUPS]
    columns = ["setting", "published total", *groups, f"labels better / worse than {name_against} (Holm)"]
    rows = []
    for name, run in runs.items():
        cells = []
        for group in GROUPS:
            if group in run.summary.index:
                row = run.summary.loc[group]
                pooled = f"{row.auroc_pooled:.3f} [{row.pooled_low:.3f}, {row.pooled_high:.3f}]"
                difference = _difference(run, against, group)
                cells.append(f"{row.auroc_mean:.3f} ± {row.auroc_sd:.3f}; {pooled}; {difference}")
            else:
                cells.append("–")
        published = f"{PUBLISHED[SAME[name]][0]:.3f}" if name in SAME else "–"
        rows.append([name, published, *cells, _counts(run, against)])
    return markdown_table(columns, rows)


def _difference(run: _Run, against: _Run, group: str) -> str:
    if run is against:
        return "–"
    row = next(row for row in run.paired(against, group).rows if row.name == "macro")
    return f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"


def _counts(run: _Run, against: _Run) -> str:
    if run is against:
        return "–"
    certain = [row for row in run.paired(against).rows if row.kind == "class" and row.p_holm < 0.05]
    return f"{sum(row.difference > 0 for row in certain)} / {sum(row.difference < 0 for row in certain)}"


def _labels(run: _Run, other: _Run, name: str, against: str) -> str:
    test, rows = run.paired(other), []
    for row in test.rows:
        p, corrected = ("–" if math.isnan(value) else f"{value:.3f}" for value in (row.p, row.p_holm))
        difference = f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        areas = [f"{value:.3f}" for value in (row.auroc_a, row.auroc_b)]
        rows.append([row.name, str(row.n_positive), *areas, difference, p, corrected])
    columns = ["label", "n+", name, against, "difference [95 % interval]", "p", "p (Holm)"]
    return f"{markdown_table(columns, rows)}\n\n{test.caption()}."


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    text = "folders of experiments.py, e.g. runs/nih/seed0 runs/nih/seed1: several are pooled"
    add("--runs", type=Path, nargs="+", required=True, metavar="FOLDER", help=text)
    add("--published", action="store_true", help="put the paper's tables in front")
    add("--against", default="clip", metavar="NAME", help="setting that the others are compared with; default: clip")
    add("--labels", nargs="*", default=[], metavar="NAME", help="settings to compare label by label, e.g. nu4")
    return parser


if __name__ == "__main__":
    sys.exit(main())
