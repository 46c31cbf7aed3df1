"""Panels that need tables only: header, data, comparison, and tables that an evaluation may have written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvl_evaluation.page.folder import EvaluationFolder

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LABEL_COLUMNS",
    "Panel",
    "against",
    "area",
    "comparison",
    "data",
    "header",
    "number",
    "others",
    "reproduce",
    "subgroups",
    "wordings",
]

LABEL_COLUMNS = ("class", "auroc", "auprc", "n_positive", "n_negative")
"""What a table per finding has; its bounds and its chance may lack."""

_MOST_ROWS = 40
_DIGITS = 12


@dataclass(frozen=True)
class Panel:
    """A section of the page. ``missing`` says in one line why it is empty.

    Args:
        key: HTML id and name of its template block.
        title: Its heading.
        content: What its block shows.
        notes: Lines below.
        missing: Shown in place of the content.
    """

    key: str
    title: str
    content: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    missing: str = ""


def number(value: float | None, digits: int = 2) -> str:
    """Fixed digits; a dash for what is not defined."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def area(value: float, low: float, high: float) -> str:
    """``0.61 [0.55, 0.67]``."""
    text = number(value)
    return text if math.isnan(low) or math.isnan(high) else f"{text} [{number(low)}, {number(high)}]"


def header(folder: EvaluationFolder) -> dict[str, Any]:
    """Who made what from what, and the numbers to remember."""
    bundle, manifest = folder.provenance.get("bundle", {}), folder.provenance.get("manifest", {})
    context = folder.metrics["context"]
    digests = {split: part["digest"] for split, part in manifest.get("data", {}).items()}
    seeds = f"{manifest.get('seed', '–')} (run), {context['seed']} (resamples)"
    facts = {
        "version": bundle.get("version", "not stated"),
        "commit": _cut(manifest.get("commit", "not stated")),
        "data manifest": digests.get("test", "not stated")[:_DIGITS],
        "studies / subjects": f"{context['n_studies']} / {context['n_subjects']}",
        "seeds": seeds,
        "device": manifest.get("device", "not stated"),
        "made": manifest.get("made", "not stated"),
        "licence": bundle.get("licence", "not stated"),
    }
    return {
        "title": bundle.get("name", folder.path.resolve().parent.name),
        "task": bundle.get("task", ""),
        "use": bundle.get("intended_use", "Research use only. Not a medical device."),
        "facts": facts,
        "caption": context["caption"],
        "headline": _headline(folder.metrics),
    }


def _cut(commit: str) -> str:
    digits, dirty, _ = commit.partition("-dirty")
    return digits[:_DIGITS] + (" with changes" if dirty else "")


def _headline(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """The first share of each family (``cxr_to_ct/…``, ``auroc_…``), four at most."""
    families: dict[str, str] = {}
    for name, metric in metrics["metrics"].items():
        if metric["unit"] == "1":
            families.setdefault(name.split("/")[0] if "/" in name else name.split("_")[0], name)
    chosen = list(families.values())[:4]
    row = metrics["rows"][metrics["candidate"]]
    cells = [(name, _estimate(row, name)) for name in chosen]
    return [
        {"name": name, "value": number(value), "interval": "" if math.isnan(low) else f"[{low:.2f}, {high:.2f}]"}
        for name, (value, low, high) in cells
    ]


def _estimate(row: Mapping[str, Any], metric: str) -> tuple[float, float, float]:
    entry = row.get(metric) or {}
    value, low, high = (math.nan if entry.get(key) is None else float(entry[key]) for key in ("value", "low", "high"))
    return value, low, high


def data(folder: EvaluationFolder) -> Panel:
    """Sizes of the splits and their digests."""
    splits = folder.provenance.get("manifest", {}).get("data", {})
    if not splits:
        return Panel("data", "Data", missing="no run manifest was given to the evaluation: split sizes are not known")
    rows = []
    for name, part in splits.items():
        counts = part.get("labels", {}).values()
        positive, known = sum(one["positive"] for one in counts), sum(one["known"] for one in counts)
        unknown = len(counts) * part["studies"] - known
        rows.append(
            {
                "split": name,
                "studies": part["studies"],
                "subjects": part.get("subjects", "–"),
                "per_study": number(positive / part["studies"], 1) if counts and part["studies"] else "–",
                "unknown": unknown if counts else "–",
                "digest": part["digest"],
            }
        )
    labels = f"{len(next(iter(splits.values())).get('labels', {}))} labels. "
    terms = folder.provenance.get("bundle", {}).get("data_licence", "not stated")
    return Panel("data", "Data", {"rows": rows}, (f"{labels}Terms: {terms}",))


def comparison(folder: EvaluationFolder) -> Panel:
    """Chance, untrained, trained: every metric with its interval, drawn on one scale per metric."""
    metrics = folder.metrics
    rows, candidate = metrics["rows"], metrics["candidate"]
    lines = []
    for name, metric in metrics["metrics"].items():
        estimates = {row: _estimate(values, name) for row, values in rows.items()}
        share = metric["unit"] == "1"
        top = 1.0 if share else max([v for e in estimates.values() for v in e if not math.isnan(v)], default=1.0)
        digits = 3 if share else 1
        cells = [
            {
                "text": number(value, digits),
                "interval": "" if math.isnan(low) else f"[{low:.{digits}f}, {high:.{digits}f}]",
                "marks": [v / top if top else math.nan for v in (value, low, high)],
                "candidate": row == candidate,
            }
            for row, (value, low, high) in estimates.items()
        ]
        lines.append(
            {
                "name": name if share else f"{name} [{metric['unit']}]",
                "arrow": "↑" if metric["higher_is_better"] else "↓",
                "cells": cells,
                "verdict": metrics["verdicts"][name],
            }
        )
    title = f"{candidate.capitalize()} against {', '.join(row for row in rows if row != candidate) or 'nothing else'}"
    note = "“ahead” / “behind”: the interval lies clear of those of all other columns, and of chance."
    return Panel("comparison", title, {"rows": list(rows), "candidate": candidate, "lines": lines}, (note,))


def against(folder: EvaluationFolder, other: str | Path | None) -> Panel:
    """Paired tests of this run (A) and another one (B), case by case.

    Raises:
        RunsDifferError: If the runs were evaluated on other cases.
    """
    title = "Against another run"
    if other is None:
        return Panel("against", title, missing="no second run was given")
    import pandas as pd

    from medvl_evaluation.run_comparison import compare_runs

    tests = compare_runs(folder.path, other)
    tables = [_plain_table(name, pd.DataFrame(map(asdict, test.rows))) for name, test in tests.items()]
    notes = (f"A: this run, B: {other}.", *(f"{test.caption()}." for test in tests.values()))
    return Panel("against", title, {"tables": tables}, notes)


def wordings(folder: EvaluationFolder) -> Panel:
    """Tables with a row per wording of the prompts."""
    missing = "the evaluation varied no wordings of the prompts (no table with a column wording)"
    return _tables_panel("wordings", "Prompt sensitivity", _with_columns(folder, "wording"), missing)


def subgroups(folder: EvaluationFolder) -> Panel:
    """Tables with a row per group of studies; those per group and class stay in their files."""
    found = {stem: table for stem, table in _with_columns(folder, "group").items() if "class" not in table}
    missing = "the evaluation compared no subgroups (no table with a column group)"
    return _tables_panel("subgroups", "Subgroups", found, missing)


def others(folder: EvaluationFolder) -> Panel:
    """Short tables that no other panel shows, and the names of long ones."""
    shown = [*_with_columns(folder, "wording"), *_with_columns(folder, "group"), *_with_columns(folder, "k")]
    shown += _with_columns(folder, *LABEL_COLUMNS)
    rest = {stem: table for stem, table in folder.tables.items() if stem not in shown}
    short = {stem: table for stem, table in rest.items() if len(table) <= _MOST_ROWS and "study_id" not in table}
    long = [f"{stem}.csv ({len(table):,} rows)" for stem, table in rest.items() if stem not in short]
    panel = _tables_panel("others", "Further tables", short, "every table is in one of the panels above")
    return replace(panel, notes=(f"Also in the folder: {', '.join(long)}.",)) if long else panel


def _with_columns(folder: EvaluationFolder, *names: str) -> dict[str, pd.DataFrame]:
    return {stem: table for stem, table in folder.tables.items() if set(names) <= set(table.columns)}


def _tables_panel(key: str, title: str, tables: Mapping[str, pd.DataFrame], missing: str) -> Panel:
    if not tables:
        return Panel(key, title, missing=f"{missing}.")
    return Panel(key, title, {"tables": [_plain_table(stem, table) for stem, table in tables.items()]})


def _plain_table(stem: str, table: pd.DataFrame) -> dict[str, Any]:
    """Cells as text and as sort keys; ``x``, ``x_low``, ``x_high`` become one column."""
    bounds = {name: (f"{name}_low", f"{name}_high") for name in table.columns if f"{name}_low" in table}
    if {"difference", "low", "high"} <= set(table.columns):
        bounds["difference"] = ("low", "high")
    columns = [name for name in table.columns if not any(name in pair for pair in bounds.values())]
    rows = [
        [_cell(row, name, bounds.get(name)) for name in columns] for row in table.head(_MOST_ROWS).to_dict("records")
    ]
    more = f"first {_MOST_ROWS} of {len(table)} rows; all in {stem}.csv" if len(table) > _MOST_ROWS else ""
    heads = [
        {"name": str(name).replace("_", " "), "numeric": any(row[i]["key"] is not None for row in rows)}
        for i, name in enumerate(columns)
    ]
    return {"name": stem, "heads": heads, "rows": rows, "more": more}


def _cell(row: Mapping[str, Any], name: str, bounds: tuple[str, str] | None) -> dict[str, Any]:
    value = row[name]
    if bounds:
        return {"text": area(value, row[bounds[0]], row[bounds[1]]), "key": value}
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return {"text": str(value), "key": None}
    return {"text": f"{value:,d}" if isinstance(value, int) else _short(value), "key": value}


def _short(value: float) -> str:
    if math.isnan(value):
        return "–"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,d}"
    return f"{value:.1e}" if abs(value) < 0.001 else f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def reproduce(folder: EvaluationFolder) -> Panel:
    """The command, and what it ran on."""
    manifest = folder.provenance.get("manifest", {})
    if "command" not in manifest:
        return Panel("reproduce", "How to reproduce", missing="no run manifest was given: the command is not known")
    packages = [f"{name} {version}" for name, version in manifest.get("packages", {}).items()]
    content = {
        "command": manifest["command"],
        "commit": manifest.get("commit", ""),
        "system": f"Python {manifest.get('python', '?')}, {manifest.get('platform', '?')}",
        "packages": ", ".join(packages),
        "components": ", ".join(f"{role} {name}" for role, name in manifest.get("components", {}).items()),
        "configs": ", ".join(f"{name} {digest[:12]}" for name, digest in manifest.get("configs", {}).items()),
    }
    return Panel("reproduce", "How to reproduce", content)
