"""Tables 1 and 2 in the shape of the paper, from the folders of ablation.py and finetuning.py, as Markdown.

A number is the mean over seeds with a 95 % interval over patients: every seed has patients of its own, so the intervals
of the seeds are combined as those of independent groups. Differences are between rows of one seed, on one set of
patients. The published numbers come from other data at another scale: for the shape, not as a contest.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medvl_evaluation.experiments import command_line
from medvl_evaluation.markdown import markdown_table

ROWS = {
    "vanilla": "global alignment",
    "diagnosis_only": "diagnosis only",
    "no_dictionary": "+ anatomy",
    "full": "+ dictionary (full)",
}
"""Rows under what they are: the paper prints the labels of the second to fourth shifted by one."""
COLUMNS = {
    "organ top-1": "organ/top_1",
    "PPV at 0": "abnormality/ppv",
    "sensitivity at 0": "abnormality/sensitivity",
    "F1 at 0": "abnormality/f1",
    "PPV tuned": "abnormality/ppv_tuned",
    "sensitivity tuned": "abnormality/sensitivity_tuned",
    "F1 tuned": "abnormality/f1_tuned",
    "AUROC pooled": "abnormality/auroc_micro",
    "AUROC macro": "abnormality/auroc_macro",
}
PUBLISHED_COLUMNS = ("organ top-1", "PPV", "sensitivity", "F1", "AUROC pooled")
PUBLISHED = {
    "nnU-Net": {
        "vanilla": (0.01, 32.75, 35.19, 33.93, 52.23),
        "diagnosis_only": (0.03, 35.24, 70.66, 47.02, 66.00),
        "no_dictionary": (86.92, 39.07, 64.11, 48.60, 66.76),
        "full": (86.24, 39.24, 72.85, 49.02, 68.63),
    },
    "MiT": {
        "vanilla": (0.01, 34.01, 40.43, 36.94, 52.37),
        "diagnosis_only": (0.07, 37.65, 74.24, 49.96, 69.27),
        "no_dictionary": (85.46, 38.24, 77.43, 51.19, 70.12),
        "full": (84.93, 39.47, 78.59, 52.55, 71.90),
    },
}
"""Table 1 of arXiv:2404.15272, in per cent (0.01 to 0.07 are fractions, it seems)."""
PAIRS = (("full", "no_dictionary"), ("no_dictionary", "diagnosis_only"), ("full", "vanilla"))
STARTS = {"scratch": "scratch", "segmentation": "organ segmentation", "vanilla": "global alignment", "full": "CT-GLIP"}
TASK = {
    "Dice": "segmentation/dice_macro",
    "AUROC of detection": "segmentation/detection_auroc_macro",
}
PUBLISHED_2 = {
    "nnU-Net": {"scratch": (29.88, 82.12), "vanilla": (33.45, 87.32), "full": (34.70, 89.55)},
    "MiT": {"scratch": (22.68, 80.94), "vanilla": (30.65, 87.00), "full": (35.77, 88.60)},
}
"""Means over seven tumours in per cent, table 2."""
NAMES = {"nnunet": "nnU-Net", "mit": "MiT"}
EXAMPLES = """
examples, from the folder monai_bundles:
  python ct_glip/scripts/tables.py 1 --runs runs/table1
  python ct_glip/scripts/tables.py 2 --runs runs/table2
"""
Metrics = Mapping[str, Mapping[str, float]]


def main() -> int:
    options = _arguments().parse_args()
    tables = table_1(options.runs) if options.table == "1" else table_2(options.runs)
    if not tables:
        sys.stderr.write(f"{options.runs}: no seed*/.../eval/metrics.json; run the experiments first\n")
        return 1
    sys.stdout.write("\n\n".join(tables) + "\n")
    return 0


def table_1(runs: Path) -> list[str]:
    """A block per backbone: published, ours with chance and the untrained network, and paired differences."""
    tables = []
    for folder, name in NAMES.items():
        found = {row: read(runs.glob(f"seed*/{folder}/{row}"), "trained") for row in ROWS}
        if not any(found.values()):
            continue
        rows = {ROWS[row]: [f"{value:g}" for value in PUBLISHED[name][row]] for row in ROWS}
        tables.append(table(f"{name}, published", PUBLISHED_COLUMNS, rows))
        ours = {"chance": read(runs.glob(f"seed*/{folder}/full"), "chance")}
        ours["untrained"] = read(runs.glob(f"seed*/{folder}/full"), "untrained")
        ours |= {f"{ROWS[row]}, {len(seeds)} seeds": seeds for row, seeds in found.items() if seeds}
        cells = {row: [mean(list(seeds.values()), key) for key in COLUMNS.values()] for row, seeds in ours.items()}
        tables.append(table(f"{name}, phantoms", COLUMNS, cells))
        cells = {f"{a} − {b}": [_difference(found[a], found[b], key) for key in COLUMNS.values()] for a, b in PAIRS}
        tables.append(table(f"{name}, differences: mean (each seed)", COLUMNS, cells))
    return tables


def table_2(runs: Path) -> list[str]:
    """A block per backbone and share of the training patients: Dice and detection from every start."""
    tables = []
    for folder, name in NAMES.items():
        for share in sorted({path.name for path in runs.glob(f"seed*/{folder}/share*")}):
            found = {start: read(runs.glob(f"seed*/{folder}/{share}/{start}"), "trained") for start in STARTS}
            keys, rows = list(TASK.values()), {}
            for start, seeds in found.items():
                if seeds:
                    published = PUBLISHED_2[name].get(start, ())
                    ours = [mean(list(seeds.values()), key) for key in keys]
                    gain = [_difference(seeds, found["scratch"], key) for key in keys]
                    rows[STARTS[start]] = [*ours, *gain, " / ".join(f"{value:g}" for value in published)]
            if not rows:
                continue  # none of them is finished
            columns = [*TASK, *(f"{column} − scratch (each seed)" for column in TASK), "published mean Dice / AUROC"]
            tables.append(table(f"{name}, {share.removeprefix('share')} of the training patients", columns, rows))
    return tables


def read(folders: Iterable[Path], network: str) -> dict[str, Metrics]:
    """Seed → metrics of a network, of the runs that are finished."""
    found = {}
    for folder in sorted(folders):
        path = folder / "eval" / "metrics.json"
        if path.is_file():
            rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
            seed = next(part for part in folder.parts[::-1] if part.startswith("seed"))
            if network in rows:
                found[seed] = rows[network]
    return found


def mean(seeds: Sequence[Metrics], key: str) -> str:
    """``"0.72 [0.64, 0.79]"``: mean over seeds, interval of the mean of independent estimates."""
    known = [seed[key] for seed in seeds if key in seed and not math.isnan(seed[key]["value"])]
    if not known:
        return ""
    text = f"{sum(row['value'] for row in known) / len(known):.2f}"
    if any(row.get("low") is None for row in known):
        return text
    low = math.sqrt(sum((row["value"] - row["low"]) ** 2 for row in known)) / len(known)
    high = math.sqrt(sum((row["high"] - row["value"]) ** 2 for row in known)) / len(known)
    centre = sum(row["value"] for row in known) / len(known)
    return f"{text} [{centre - low:.2f}, {centre + high:.2f}]"


def table(title: str, columns: Iterable[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Markdown, a line per row under its name."""
    return markdown_table(["", *columns], [[name, *cells] for name, cells in rows.items()], title)


def _difference(one: Mapping[str, Metrics], other: Mapping[str, Metrics], key: str) -> str:
    """Mean over the seeds that both have, and each of them."""
    both = [one[seed][key]["value"] - other[seed][key]["value"] for seed in one if seed in other and key in one[seed]]
    if not both or one is other:
        return ""
    return f"{sum(both) / len(both):+.2f} (" + ", ".join(f"{value:+.2f}" for value in both) + ")"


def _arguments() -> argparse.ArgumentParser:
    parser = command_line(__doc__, EXAMPLES)
    parser.add_argument("table", choices=("1", "2"))
    help_ = "--out of ablation.py (1) or finetuning.py (2)"
    parser.add_argument("--runs", type=Path, required=True, metavar="FOLDER", help=help_)
    return parser


if __name__ == "__main__":
    sys.exit(main())
