"""Print the tables of the X2CT-CLIP paper: the published numbers, and below them those of your own evaluations.

An evaluation is the folder that training or evaluation wrote (output_dir). Its name says which column it belongs to:
ct_rate, rad_chest and mimic_ct are the paper's, any other name gets columns of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from medvl_evaluation.markdown import markdown_table

PUBLISHED = Path(__file__).with_name("published.json")
RUN = "python -m monai.bundle run --config_file \"['x2ct/configs/train.json',{}'x2ct/configs/protocol.json'{}]\""
PROTOCOL = RUN.format("'x2ct/configs/evaluate.json',", "")
EXTERNAL = RUN.format("'x2ct/configs/evaluate.json',", ",'x2ct/configs/external.json'")
ABLATION = "python x2ct/scripts/ablation.py --out {}"
EXAMPLES = f"""
examples, from the folder monai_bundles:
  # the phantom cohort: train, evaluate by the paper's protocol, print
  python -m monai.bundle run --config_file x2ct/configs/train.json
  {PROTOCOL}
  python x2ct/scripts/tables.py 2 3 4a --eval phantom=x2ct/eval

  # the paper's data sets, each evaluated into a folder of its own: docs/README.md has the commands
  python x2ct/scripts/tables.py 2 3 4a 4b --eval ct_rate=eval/ct_rate rad_chest=eval/rad_chest mimic_ct=eval/mimic_ct

  # the ablation
  {ABLATION.format("runs/ablation")}
  python x2ct/scripts/tables.py 5 --ablation runs/ablation

how to read them:
  The paper does not say how it averages over findings. Table 3 looks like the average weighted by support, tables 4 and
  5 like the micro average; all three are printed and named. Its retrieval (tables 2 and 5) looks as if the gallery held
  every item twice: set "duplicate gallery" beside it. "own item" is the usual recall; with "own scan" any
  reconstruction of the scan is right. [low, high] is the 95 % interval over patients. "untrained" is the same network
  before training, "chance" a random order. A micro average is above .5 for whatever only knows how frequent each
  finding is: read it beside "untrained".
exit code: 65 if an evaluation lacks what a table needs; the message has the command that makes it
"""
NAMES = {"ct_rate": "CT-RATE", "rad_chest": "RadChest-CT", "mimic_ct": "MIMIC-CT"}
PARTS = {"": "", "ct": " → CT", "report": " → report"}
AREAS = ("auroc", "auprc")
AVERAGES = ("weighted", "micro", "macro")
ROWS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "2": {
        "duplicate gallery": [f"duplicate_gallery/cxr_to_{{}}/recall_at_{k}" for k in (5, 10)],
        "own item": [f"own_item/cxr_to_{{}}/recall_at_{k}" for k in (5, 10)],
        "own scan": [f"cxr_to_{{}}/recall_at_{k}" for k in (5, 10)],
    },
    "3": {
        f"{text}, {average}": [f"{prefix}/{area}_{average}" for area in AREAS]
        for prefix, text in (("is_present", "“… is present.”"), ("there_is", "“There is ….”"))
        for average in AVERAGES
    },
    "4a": {average: [f"few_shot_{{}}/{area}_{average}" for area in AREAS] for average in AVERAGES},
    "4b": {average: [f"external_{{}}/{area}_{average}" for area in AREAS] for average in AVERAGES},
}
"""Table → row of ours → its metrics, with ``{}`` for the column."""
COMMANDS = {"2": PROTOCOL, "3": PROTOCOL, "4a": PROTOCOL, "4b": EXTERNAL}
LOSSES = {"beta": "β only (1, 0)", "gamma": "γ only (0, 1)", "both": "both (1, 1)"}


class Refused(Exception):
    """An evaluation lacks what a table needs."""


class Evaluation:
    """The numbers of one folder, for one table."""

    def __init__(self, folder: Path, table: str, command: str) -> None:
        self.folder, self.table = folder, table
        self.fix = f"which table {table} needs; make it with\n  {command} --output_dir {folder}"
        if table == "5":
            self.fix = f"which table 5 needs; make it with\n  {command}"
        path = folder / "metrics.json"
        if not path.is_file():
            raise Refused(f"{folder}: holds no metrics.json, {self.fix}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self.rows, self.caption = content["rows"], content["context"]["caption"]
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(f"{path}: damaged ({type(error).__name__}: {error}); evaluate again") from error

    def value(self, metric: str, row: str) -> float:
        """NaN where the metric has no value."""
        value = self._entry(metric, row)["value"]
        return math.nan if value is None else float(value)

    def cell(self, metrics: Sequence[str], row: str = "trained") -> str:
        """The numbers with their intervals, divided by slashes."""
        cells = []
        for metric in metrics:
            entry = self._entry(metric, row)
            bounds = [_number(entry[name]) for name in ("low", "high")]
            cells.append(_number(entry["value"]) + (f" [{', '.join(bounds)}]" if entry["low"] is not None else ""))
        return " / ".join(cells)

    def _entry(self, metric: str, row: str) -> dict[str, Any]:
        try:
            return self.rows[row][metric]  # type: ignore[no-any-return]
        except (KeyError, TypeError):
            raise Refused(f"{self.folder}: has no {metric} of {row}, {self.fix}") from None


def table(name: str, folders: Mapping[str, Path]) -> str:
    """One of tables 2 to 4b as Markdown."""
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))[name]
    columns = dict(published["columns"])
    used = {label: folder for label, folder in folders.items() if label in columns or label not in NAMES}
    if not used:
        known = ", ".join(columns)
        raise Refused(f"table {name} has no evaluation; give --eval NAME=FOLDER with NAME one of {known}, or your own")
    read = {label: Evaluation(folder, name, COMMANDS[name]) for label, folder in used.items()}
    parts = list(dict.fromkeys(part for own in columns.values() for part in own))
    columns |= {label: parts for label in used if label not in columns}
    places = [(label, part) for label, own in columns.items() for part in own]
    n_own = len(places)
    lines = [[method, *cells, *[""] * (n_own - len(cells))] for method, cells in published["methods"].items()]
    for row, metrics in ROWS[name].items():
        for kind, shown in _shown(row).items():
            cells = [
                read[label].cell([metric.format(part) for metric in metrics], kind) if label in read else ""
                for label, part in places
            ]
            lines.append([shown, *cells])
    titles = [NAMES.get(label, label) + PARTS.get(part, f" {part} %") for label, part in places]
    notes = [f"{NAMES.get(label, label)}: {one.caption}." for label, one in read.items()]
    return _markdown(published["title"], ["", *titles], lines, notes)


def ablation(folder: Path | None) -> str:
    """Table 5 as Markdown: every loss as the mean of its seeds, then seed by seed."""
    if folder is None:
        raise Refused(f"table 5 has no ablation; give --ablation FOLDER, made by\n  {ABLATION.format('FOLDER')}")
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))["5"]
    command = ABLATION.format(folder)
    seeds = sorted(path.name for path in folder.glob("seed*") if path.is_dir())
    if not seeds:
        raise Refused(f"{folder}: holds no seed0, seed1, ..., which table 5 needs; make them with\n  {command}")
    read = {loss: {seed: Evaluation(folder / seed / loss / "eval", "5", command) for seed in seeds} for loss in LOSSES}
    probes = [[f"few_shot_100/{area}_{average}" for area in AREAS] for average in ("micro", "weighted", "macro")]
    lines = [[LOSSES[loss], *cells] for loss, cells in published["methods"].items()]
    for way in ("own_item", "duplicate_gallery"):
        recalls = [[f"{way}/cxr_to_{side}/recall_at_{k}" for k in (5, 10, 50)] for side in ("report", "ct")]
        for loss, runs in read.items():
            name = f"{LOSSES[loss]}, {way.replace('_', ' ')}"
            cells = [_spread(list(runs.values()), metrics) for metrics in [*probes, *recalls]]
            lines.append([f"**ours, {name}, mean ± sd of {len(seeds)}**", *cells])
            if way == "own_item":
                each = [[one.cell(metrics) for metrics in [*probes, *recalls]] for one in runs.values()]
                lines += [[f"ours, {name}, {seed}", *cells] for seed, cells in zip(seeds, each, strict=True)]
        for kind in ("untrained", "chance"):
            every = [_spread(list(read["both"].values()), metrics, kind) for metrics in [*probes, *recalls]]
            lines.append([f"{kind}, {way.replace('_', ' ')}", *every])
    header = ["", *(f"probe AUROC / AUPRC, {average}" for average in ("micro", "weighted", "macro"))]
    notes = [f"{seed}: {read['both'][seed].caption}." for seed in seeds]
    return _markdown(published["title"], [*header, "→ report R@5 / 10 / 50", "→ CT R@5 / 10 / 50"], lines, notes)


def _shown(row: str) -> dict[str, str]:
    return {"trained": f"**ours, {row}**", "untrained": f"untrained, {row}", "chance": f"chance, {row}"}


def _spread(runs: Sequence[Evaluation], metrics: Sequence[str], row: str = "trained") -> str:
    cells = []
    for metric in metrics:
        values = [one.value(metric, row) for one in runs]
        cells.append(_number(mean(values)) + (f" ± {_number(stdev(values))}" if len(values) > 1 else ""))
    return " / ".join(cells)


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}".replace("0.", ".", 1)


def _markdown(title: str, header: Sequence[str], lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    table = markdown_table(header, lines)
    return "\n".join(
        [f"### {title}", "", table, "", "Rows without “ours”, “untrained” or “chance” are published.", *notes]
    )


def _evaluation(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not name or not equals or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER, such as ct_rate=eval/ct_rate")
    return name, Path(folder)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("tables", nargs="+", choices=[*ROWS, "5"], metavar="TABLE", help="2, 3, 4a, 4b, 5")
    add("--eval", nargs="+", type=_evaluation, default=[], metavar="NAME=FOLDER", help="evaluations, for 2 to 4b")
    add("--ablation", type=Path, metavar="FOLDER", help="what scripts/ablation.py wrote, for 5")
    options = parser.parse_args()
    try:
        for name in options.tables:
            print(ablation(options.ablation) if name == "5" else table(name, dict(options.eval)), end="\n\n")
    except Refused as problem:
        sys.stderr.write(f"{problem}\n")
        return 65
    return 0


if __name__ == "__main__":
    sys.exit(main())
