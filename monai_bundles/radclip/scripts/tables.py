"""Tables I to III in the shape of the paper, from evaluation folders, beside the published numbers.

Numbers are per cent. Ours are means with the 95 % interval over patients of each run; Table III has one line per seed.
The published numbers come from other data and much larger towers: they are beside ours for the shape, not as a contest.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

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
PROBE = ("linear_probe_100/accuracy", "linear_probe_100/f1_macro")
EXAMPLES = """
examples:
  python radclip/scripts/tables.py 1 --runs "brain MR=runs/brain_mr/eval" "chest X-ray=runs/chest_xray/eval"
  python radclip/scripts/tables.py 2 --runs "brain MR=runs/brain_mr/eval"
  python radclip/scripts/tables.py 3 --ablation runs/ablation
  python radclip/scripts/tables.py figure5 --ranking runs/figure5/ranking.csv
"""


def main() -> int:
    options = _arguments().parse_args()
    if options.table in ("1", "2"):
        runs = dict(_named(word) for word in options.runs)
        lines = probe_table(runs) if options.table == "1" else matching_table(runs)
    elif options.table == "3":
        lines = ablation_table(options.ablation)
    else:
        lines = modality_table(options.ranking)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def probe_table(runs: Mapping[str, Path]) -> list[str]:
    """Table I: accuracy and macro F1 of a linear layer."""
    rows = {name: read_rows(folder) for name, folder in runs.items()}
    networks = dict.fromkeys(network for row in rows.values() for network in row)
    ours = {
        network: [" / ".join(interval(row.get(network, {}), key) for key in PROBE) for row in rows.values()]
        for network in networks
    }
    return [
        *table("Table I, linear probe, accuracy / macro F1: ours", runs, ours),
        "",
        *table("Table I as published (RadCLIP)", PUBLISHED_SETS, LINEAR_PROBE),
    ]


def matching_table(runs: Mapping[str, Path]) -> list[str]:
    """Table II: share of images whose nearest text is that of their class."""
    rows = {name: read_rows(folder) for name, folder in runs.items()}
    networks = dict.fromkeys(network for row in rows.values() for network in row)
    ours = {n: [interval(row.get(n, {}), "matching/top_1") for row in rows.values()] for n in networks}
    return [
        *table("Table II, image-text matching, top-1: ours", runs, ours),
        "",
        *table("Table II as published (RadCLIP)", PUBLISHED_SETS, MATCHING),
    ]


def ablation_table(folder: Path) -> list[str]:
    """Table III: encoder before and after stage 1, pooled in several ways, a line per seed."""
    lines: dict[str, list[str]] = {}
    for setting, title in SETTINGS.items():
        for seed in sorted(folder.glob("seed*")):
            metrics = seed / setting / "eval"
            if (metrics / "metrics.json").is_file():
                row = read_rows(metrics)["trained"]
                lines[f"{title}, {seed.name}"] = [interval(row, key) for key in (*PROBE, "matching/top_1")]
    if not lines:
        raise SystemExit(f"{folder}: no seed*/SETTING/eval/metrics.json; run ablation.py first")
    return [
        *table("Table III, ablation: ours", ("accuracy", "macro F1", "P@1"), lines),
        "",
        *table("Table III as published (RadCLIP)", ABLATION_COLUMNS, ABLATION),
    ]


def modality_table(ranking: Path) -> list[str]:
    """Figure 5: cosine of each image with each text. A softmax over cosines is nearly uniform and is left out."""
    with ranking.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts = sorted({row["text"] for row in rows})
    cosines: dict[str, dict[str, str]] = {}
    for row in rows:
        cosines.setdefault(row["study"], {})[row["text"]] = f"{float(row['cosine']):.3f}" + "*" * (row["rank"] == "1")
    return table(
        "Figure 5, cosine of image and text (* the nearest)",
        texts,
        {study: [found[text] for text in texts] for study, found in cosines.items()},
    )


def read_rows(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Network → metric → value, low and high of an evaluation."""
    path = folder / "metrics.json"
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; give the output_dir of an evaluation")
    rows: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def interval(row: Mapping[str, Mapping[str, float]], key: str) -> str:
    """``"88.5 [85.4, 91.6]"``; no interval where there is none, blank without a value."""
    if key not in row:
        return ""
    found = row[key]
    text = f"{100 * found['value']:.1f}"
    low, high = found.get("low"), found.get("high")
    return text if low is None or high is None else f"{text} [{100 * low:.1f}, {100 * high:.1f}]"


def table(title: str, columns: Sequence[str] | Mapping[str, object], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """A Markdown table."""
    head = ["", *columns]
    return [
        f"**{title}**",
        "",
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join([name, *cells]) + " |" for name, cells in rows.items()),
    ]


def _named(word: str) -> tuple[str, Path]:
    name, equals, folder = word.partition("=")
    if not equals:
        raise SystemExit(f"{word!r}: write NAME=FOLDER, e.g. 'brain MR=runs/brain_mr/eval'")
    return name, Path(folder)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("table", choices=("1", "2", "3", "figure5"))
    add("--runs", nargs="+", default=[], metavar="NAME=FOLDER", help="evaluation folders of train_2d.json")
    add("--ablation", type=Path, metavar="FOLDER", help="--out of ablation.py")
    add("--ranking", type=Path, metavar="CSV", help="ranking.csv of inference.json with prompts/modality.txt")
    return parser


if __name__ == "__main__":
    sys.exit(main())
