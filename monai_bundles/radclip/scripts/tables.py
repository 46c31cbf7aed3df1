"""Tables I to III in the shape of the paper, from evaluation folders, beside the published numbers.

Numbers are per cent: the mean over seeds with a 95 % interval, from the predictions of every run; accuracy and macro F1
are those of all its tested patients. The published numbers come from other data and much larger towers: they are beside
ours for the shape, not as a contest.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from glob import glob
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from medvl_evaluation.experiments import command_line
from medvl_evaluation.markdown import markdown_table
from medvl_evaluation.predictions import Predictions, read_predictions

Runs = Sequence[Sequence[Path]]
"""Of each seed, the evaluation folders of its folds."""

PUBLISHED_SETS = ("CheXpert-5", "Crystal Clean", "IXI sex", "COVID-CT-MD")
# Accuracy / F1 of each set (table I) and top-1 (table II), arXiv:2403.09948.
LINEAR_PROBE = {
    "ResNet50": ("41.98 / 41.74", "65.67 / 57.73", "92.65 / 91.65", "58.93 / 51.43"),
    "CLIP": ("41.44 / 40.44", "81.00 / 80.42", "94.21 / 93.88", "63.93 / 56.58"),
    "PubMedCLIP": ("48.60 / 46.63", "81.35 / 79.63", "95.76 / 95.76", "57.70 / 53.32"),
    "RadCLIP": ("51.46 / 51.54", "86.00 / 87.11", "95.58 / 95.57", "67.87 / 65.39"),
}
MATCHING = {
    "chance": ("20.00", "25.00", "50.00", "33.33"),
    "CLIP": ("20.41", "15.83", "50.18", "19.67"),
    "PubMedCLIP": ("19.11", "15.83", "55.12", "40.33"),
    "RadCLIP": ("23.90", "27.22", "57.07", "51.15"),
}
# Its header is garbled in print; the columns follow from tables I and II.
ABLATION_COLUMNS = ("IXI acc", "IXI F1", "COVID acc", "COVID F1", "IXI P@1", "COVID P@1")
ABLATION = {
    "CLIP + average pooling": ("94.21", "93.88", "63.93", "56.58", "50.18", "19.67"),
    "CLIP + adapter": ("94.89", "94.89", "64.58", "58.01", "55.30", "23.43"),
    "RadCLIP + average pooling": ("95.07", "94.93", "66.54", "64.73", "54.95", "50.20"),
    "RadCLIP + adapter": ("95.58", "95.57", "67.87", "65.39", "57.07", "51.15"),
}
SETTINGS = {
    "clip_mean": "untrained encoder + average pooling",
    "clip_slice_attention": "untrained encoder + adapter",
    "radclip_mean": "stage 1 + average pooling",
    "radclip_slice_attention": "stage 1 + adapter",
    "radclip_slice_max": "stage 1 + maximum",
    "radclip_gated_attention": "stage 1 + gated attention",
    "radclip_slice_transformer": "stage 1 + transformer",
    "radclip_slice_conv": "stage 1 + 1D convolution",
}
PROBE, MATCHING_FILE = "linear_probe_100_predictions.csv", "matching_predictions.csv"
RESAMPLES = 2000
EXAMPLES = """
examples:
  python radclip/scripts/tables.py 1 --runs "brain MR=runs/brain_mr/seed*/eval" "chest X-ray=runs/chest_xray/seed*/eval"
  python radclip/scripts/tables.py 2 --runs "brain MR=runs/brain_mr/seed*/eval"
  python radclip/scripts/tables.py 3 --ablation runs/ablation
  python radclip/scripts/tables.py 3 --ablation runs/sts/fold0 runs/sts/fold1 runs/sts/fold2
  python radclip/scripts/tables.py figure5 --ranking runs/figure5/ranking.csv

the intervals: seeds and patients are drawn with replacement, a patient for all seeds at once (2000 times). Three seeds
are few, so what they add is rough: table 3 also prints the seeds one by one. Differences (--against) are paired.
"""


def main() -> int:
    options = _arguments().parse_args()
    if options.table in ("1", "2"):
        runs = {name: [[Path(folder)] for folder in sorted(glob(pattern))] for name, pattern in options.runs}
        tables = probe_table(runs) if options.table == "1" else matching_table(runs)
    elif options.table == "3":
        tables = ablation_table(options.ablation, options.against)
    else:
        tables = [modality_table(options.ranking)]
    sys.stdout.write("\n\n".join(tables) + "\n")
    return 0


def probe_table(runs: Mapping[str, Runs]) -> list[str]:
    """Table I: accuracy and macro F1 of a linear layer."""
    ours = {name: [shown(value) for value in estimate([(PROBE, found)])[:2]] for name, found in runs.items()}
    return [
        table("Table I, linear probe: ours", ("accuracy", "macro F1"), ours),
        table("Table I as published (RadCLIP)", PUBLISHED_SETS, LINEAR_PROBE),
    ]


def matching_table(runs: Mapping[str, Runs]) -> list[str]:
    """Table II: share of images whose nearest text is that of their class."""
    ours = {name: [shown(estimate([(MATCHING_FILE, found)])[0])] for name, found in runs.items()}
    return [
        table("Table II, image-text matching: ours", ("top-1",), ours),
        table("Table II as published (RadCLIP)", PUBLISHED_SETS, MATCHING),
    ]


def ablation_table(folders: Sequence[Path], against: str = "radclip_mean") -> list[str]:
    """Table III: encoder before and after stage 1, pooled in several ways; folders of folds are put together."""
    seeds = sorted({path.name for folder in folders for path in folder.glob("seed*")})
    every = {name: [[folder / seed / name / "eval" for folder in folders] for seed in seeds] for name in SETTINGS}
    there = {
        name: runs for name, runs in every.items() if runs and all((p / PROBE).is_file() for run in runs for p in run)
    }
    if not there:
        raise SystemExit(f"{folders}: no setting in SEED/SETTING/eval of every seed; run ablation.py first")
    lines = {}
    for name, runs in there.items():
        accuracy, f1, *_ = estimate([(PROBE, runs)])
        top = estimate([(MATCHING_FILE, runs)])[0]
        cells = [shown(accuracy), shown(f1), shown(top), " ".join(f"{100 * value:.0f}" for value in top.seeds)]
        for file in (PROBE, MATCHING_FILE):
            compare = against in there and name != against
            cells.append(shown(estimate([(file, runs), (file, there[against])])[0], "+") if compare else "–")
        lines[SETTINGS[name]] = cells
    differences = [f"{what} minus {SETTINGS[against]}" for what in ("accuracy", "P@1")]
    columns = ("accuracy", "macro F1", "P@1", "P@1 of each seed", *differences)
    return [
        table(f"Table III, ablation: ours, {len(seeds)} seeds", columns, lines),
        table("Table III as published (RadCLIP)", ABLATION_COLUMNS, ABLATION),
    ]


def modality_table(ranking: Path) -> str:
    """Figure 5: mean cosine with each text of the images of a folder, and how often that text was the nearest.

    A softmax over cosines is nearly uniform and is left out.
    """
    with ranking.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts = list(dict.fromkeys(sorted(row["text"] for row in rows)))
    group_of = {row["study"]: row["study"].rpartition("/")[0] or row["study"] for row in rows}
    lines = {}
    for group, n in Counter(group_of.values()).items():
        own = [row for row in rows if group_of[row["study"]] == group]
        cells = []
        for text in texts:
            cosine = mean(float(row["cosine"]) for row in own if row["text"] == text)
            nearest = sum(row["text"] == text and row["rank"] == "1" for row in own)
            cells.append(f"{cosine:.2f}" + (f" (nearest: {nearest})" if nearest else ""))
        lines[f"{group} ({n})"] = cells
    return table("Figure 5, mean cosine of images and text", texts, lines)


class Estimate(NamedTuple):
    """A mean over seeds with its interval, and the seeds."""

    value: float
    low: float
    high: float
    seeds: Sequence[float]


def estimate(compared: Sequence[tuple[str, Runs]]) -> list[Estimate]:
    """Accuracy and macro F1 over seeds, or of the first of two less the second.

    Args:
        compared: One or two: name of the table of predictions, and the evaluation folders of each seed (one per fold).
    """
    from medvl_evaluation.evaluators.decisions import decision_statistic
    from medvl_evaluation.metrics import bootstrap_ci

    every = [[_read(folders, file) for folders in runs] for file, runs in compared]
    if len({tuple(study for seed in seeds for study in seed.study_id) for seeds in every}) > 1:
        raise SystemExit(f"{compared[0][1][0][0]}: evaluated on other studies than {compared[1][1][0][0]}")
    patients = np.array([patient for seed in every[0] for patient in seed.subject_id])
    starts = np.cumsum([0, *(len(seed.subject_id) for seed in every[0])])
    rng = np.random.default_rng(0)

    def each(weights: np.ndarray) -> np.ndarray:
        """Difference (or value) of every seed, ``S R 3``."""
        total = 0.0
        for sign, seeds in zip((1, -1), every, strict=False):
            found = [
                decision_statistic(seed.labels, _decided(seed.scores), True)(weights[start : start + len(seed.labels)])
                for seed, start in zip(seeds, starts, strict=False)
            ]
            total = total + sign * np.stack(found)
        return total

    def over_seeds(weights: np.ndarray) -> np.ndarray:
        found = each(weights)
        drawn = rng.integers(len(found), size=found.shape[:2])
        return np.take_along_axis(found, drawn[:, :, None], axis=0).mean(axis=0)

    values = each(np.ones((len(patients), 1)))[:, 0]
    low, high, _ = bootstrap_ci(over_seeds, patients, RESAMPLES)
    return [Estimate(values[:, k].mean(), low[k], high[k], values[:, k].tolist()) for k in (0, 2)]


def _read(folders: Sequence[Path], file: str) -> Predictions:
    """The predictions of a seed; folds test different patients."""
    parts = [read_predictions(folder / file) for folder in folders]
    parts = [part.sorted(sorted(part.classes)) for part in parts]
    studies, subjects = ([one for part in parts for one in getattr(part, name)] for name in ("study_id", "subject_id"))
    labels = np.concatenate([part.labels for part in parts])
    # of a probe per fold, the scores compare studies and the probabilities classes
    scores = np.concatenate([part.scores if part.probabilities is None else part.probabilities for part in parts])
    return Predictions(studies, subjects, parts[0].classes, labels, scores)


def _decided(scores: np.ndarray) -> np.ndarray:
    return np.eye(scores.shape[1])[scores.argmax(axis=1)]


def shown(found: Estimate, sign: str = "") -> str:
    """``"88.5 [85.4, 91.6]"``."""
    return f"{100 * found.value:{sign}.1f} [{100 * found.low:{sign}.1f}, {100 * found.high:{sign}.1f}]"


def table(title: str, columns: Iterable[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Markdown, a line per row under its name."""
    return markdown_table(["", *columns], [[name, *cells] for name, cells in rows.items()], title)


def _named(word: str) -> tuple[str, str]:
    name, equals, pattern = word.partition("=")
    if not equals or not glob(pattern):
        raise argparse.ArgumentTypeError(f"{word!r} names no folder; write e.g. 'brain MR=runs/brain_mr/seed*/eval'")
    return name, pattern


def _arguments() -> argparse.ArgumentParser:
    parser = command_line(__doc__, EXAMPLES)
    add = parser.add_argument
    add("table", choices=("1", "2", "3", "figure5"))
    add("--runs", nargs="+", type=_named, default=[], metavar="NAME=FOLDERS", help="evaluations of train_2d.json")
    add("--ablation", nargs="+", type=Path, metavar="FOLDER", help="--out of ablation.py, one for each fold")
    add("--against", choices=list(SETTINGS), default="radclip_mean", metavar="SETTING", help="default: radclip_mean")
    add("--ranking", type=Path, metavar="CSV", help="ranking.csv of inference.json with prompts/modality.txt")
    return parser


if __name__ == "__main__":
    sys.exit(main())
