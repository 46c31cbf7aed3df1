"""Several evaluated rows (chance, untrained, trained) side by side: table, figure and files."""

from __future__ import annotations

import io
import json
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medvl_core.engine.files import write_text
from medvl_core.specs import Metric
from medvl_evaluation.drawing import save_png, sheet
from medvl_evaluation.markdown import markdown_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FEW_STUDIES", "Comparison", "Context", "Estimate", "Verdict", "compare", "write_evaluation"]

FEW_STUDIES = 30
"""Below this number of studies the tables say that they prove plumbing, not skill."""

Verdict = Literal["ahead", "behind", "overlaps", "no interval"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval; NaN bounds for a value without one (chance)."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every number of an evaluation rests on: sizes, and how the intervals were made."""

    n_studies: int
    n_subjects: int
    n_resamples: int
    seed: int
    level: float = 0.95

    def caption(self) -> str:
        """One line for tables and figures, with a warning when the studies are few."""
        text = (
            f"{self.n_studies} studies of {self.n_subjects} subjects; [{100 * self.level:g} % intervals] from "
            f"{self.n_resamples} bootstrap resamples of subjects, seed {self.seed}"
        )
        if self.n_studies < FEW_STUDIES:
            text += f". Fewer than {FEW_STUDIES} studies: these numbers prove plumbing, not skill"
        return text


@dataclass(frozen=True)
class Comparison:
    """Rows of estimates, and for each metric whether the candidate's interval lies clear of every other row.

    Made by `compare`.
    """

    rows: Mapping[str, Mapping[str, Estimate]]
    candidate: str
    metrics: tuple[Metric, ...]
    context: Context
    verdicts: Mapping[str, Verdict] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "verdicts", {metric.name: self._verdict(metric) for metric in self.metrics})

    def _verdict(self, metric: Metric) -> Verdict:
        own = self.rows[self.candidate].get(metric.name, Estimate(math.nan))
        others = [row[metric.name] for name, row in self.rows.items() if name != self.candidate and metric.name in row]
        lows = [other.value if math.isnan(other.low) else other.low for other in others]
        highs = [other.value if math.isnan(other.high) else other.high for other in others]
        if not others or any(map(math.isnan, (own.low, own.high, *lows, *highs))):
            return "no interval"
        above, below = own.low > max(highs), own.high < min(lows)
        if not metric.higher_is_better:
            above, below = below, above
        return "ahead" if above else "behind" if below else "overlaps"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        header = ["metric", *self.rows, f"{self.candidate} vs the others"]
        body = []
        for metric in self.metrics:
            label = metric.name if metric.unit == "1" else f"{metric.name} [{metric.unit}]"
            values = [_cell(row.get(metric.name), metric.unit) for row in self.rows.values()]
            body.append([f"{label} {'↑' if metric.higher_is_better else '↓'}", *values, self.verdicts[metric.name]])
        return header, body

    def text(self, width: int = 140) -> str:
        """The table for a terminal or a log, without colour."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        header, body = self._cells()
        table = Table(caption=Text(self.context.caption()), caption_justify="left")
        for column, name in enumerate(header):
            table.add_column(Text(name), justify="left" if column in (0, len(header) - 1) else "right")
        for line in body:
            table.add_row(*map(Text, line))  # Text: brackets in names are no markup
        console = Console(file=io.StringIO(), width=width, color_system=None)
        console.print(table)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def markdown(self) -> str:
        """The table as Markdown, with the caption below."""
        return f"{markdown_table(*self._cells())}\n\n{self.context.caption()}.\n"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes ``None``."""
        rows = {
            name: {
                metric: {key: _finite(value) for key, value in asdict(estimate).items()}
                for metric, estimate in row.items()
            }
            for name, row in self.rows.items()
        }
        context = {**asdict(self.context), "caption": self.context.caption()}
        metrics = {metric.name: asdict(metric) for metric in self.metrics}
        return {
            "context": context,
            "candidate": self.candidate,
            "rows": rows,
            "verdicts": dict(self.verdicts),
            "metrics": metrics,
        }

    def figure(self, path: str | Path) -> Path:
        """Forest plot: a line per metric, a marker with interval per row, a panel per unit.

        Metrics without intervals are left to the table.
        """
        judged = [metric for metric in self.metrics if self.verdicts[metric.name] != "no interval"] or self.metrics
        units = list(dict.fromkeys(metric.unit for metric in judged))
        panels = [[metric for metric in judged if metric.unit == unit] for unit in units]
        drawing = sheet(9, 1.8 + 0.5 * len(judged) + 0.7 * len(panels))
        heights = [len(panel) + 0.4 for panel in panels]
        axes = drawing.subplots(len(panels), 1, squeeze=False, height_ratios=heights).ravel()
        for ax, unit, panel in zip(axes, units, panels, strict=True):
            self._panel(ax, unit, panel)
        handles, labels = axes[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=len(self.rows), frameon=False)
        title = f"{self.candidate} against {', '.join(name for name in self.rows if name != self.candidate)}"
        drawing.suptitle(f"{title}\n{textwrap.fill(self.context.caption(), 105)}", fontsize=10, parse_math=False)
        return save_png(drawing, path)

    def _panel(self, ax: Any, unit: str, metrics: Sequence[Metric]) -> None:
        offsets = [0.22 * (i - (len(self.rows) - 1) / 2) for i in range(len(self.rows))]
        others = iter(_OTHER_STYLES * len(self.rows))
        for offset, (name, row) in zip(offsets, self.rows.items(), strict=True):
            marker, color = _CANDIDATE_STYLE if name == self.candidate else next(others)
            for line, metric in enumerate(metrics):
                estimate = row.get(metric.name, Estimate(math.nan))
                ax.plot([estimate.low, estimate.high], [line + offset] * 2, color=color, linewidth=1.8)
                label = name if line == 0 else None
                ax.plot(estimate.value, line + offset, marker, color=color, markersize=8, label=label)
        names = [f"{metric.name} {'↑' if metric.higher_is_better else '↓'}" for metric in metrics]
        ax.set_yticks(range(len(metrics)), names, parse_math=False)
        for line, metric in enumerate(metrics):
            place = {"xy": (1.01, line), "xycoords": ("axes fraction", "data"), "annotation_clip": False}
            ax.annotate(self.verdicts[metric.name], va="center", fontsize=8, **place)
        ax.set_ylim(len(metrics) - 0.5, -0.5)
        ax.set_xlabel("share or area, 0 to 1" if unit == "1" else unit)
        ax.set_xlim(*((-0.02, 1.02) if unit == "1" else (0, None)))
        ax.grid(axis="x", alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)


_CANDIDATE_STYLE = ("o", "#0b5394")
_OTHER_STYLES = (("|", "#555555"), ("s", "#c46a00"), ("^", "#6a3d9a"), ("D", "#2b7a3d"))


def compare(
    rows: Mapping[str, Mapping[str, Estimate]],
    context: Context,
    metrics: Sequence[Metric] = (),
    candidate: str | None = None,
) -> Comparison:
    """Set evaluated rows side by side.

    The candidate is ``"ahead"`` in a metric when its interval lies clear of the intervals of *all* other rows (of the
    value, for a row without interval such as chance), on the better side: between two models stricter than a
    test of their paired difference.

    Args:
        rows: Row name → metric → estimate, in the order of the table.
        context: Sizes and seeds, for the caption.
        metrics: Which, in which order, with unit and direction. Default: all of the candidate's, higher = better.
        candidate: The row that is judged. Default: the last.

    Raises:
        ValueError: If there are no rows, the candidate is none of them, or a metric is in no row.
    """
    if not rows or (candidate is not None and candidate not in rows):
        raise ValueError(f"candidate {candidate!r} is none of the rows {list(rows)}")
    candidate = candidate or list(rows)[-1]
    metrics = tuple(metrics) or tuple(Metric(name=name) for name in rows[candidate])
    absent = [metric.name for metric in metrics if not any(metric.name in row for row in rows.values())]
    if absent:
        raise ValueError(f"metrics {absent} are in no row; the rows have {sorted(set().union(*rows.values()))}")
    return Comparison(rows, candidate, metrics, context)


def write_evaluation(
    folder: str | Path,
    comparison: Comparison,
    tables: Mapping[str, pd.DataFrame] | None = None,
    figures: Sequence[Path] = (),
) -> Path:
    """Write ``metrics.json``, ``comparison.md``, ``comparison.png`` and one CSV per table, each atomically.

    Args:
        folder: Made if absent; files of the same names are replaced.
        comparison: What is compared.
        tables: File stem → table.
        figures: Figures already written; ``metrics.json`` lists them relative to ``folder``.

    Returns:
        The path of ``metrics.json``, written last: where it is, the rest is complete.

    Raises:
        ValueError: If a table's name is not a plain file stem.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (tables or {}).items():
        if Path(name).name != name:
            raise ValueError(f"table name {name!r} becomes a file name; use one without folders")
        write_text(folder / f"{name}.csv", table.to_csv(index=False))
    write_text(folder / "comparison.md", comparison.markdown())
    drawn = comparison.figure(folder / "comparison.tmp.png").replace(folder / "comparison.png")
    names = [os.path.relpath(path, folder) for path in (*figures, drawn)]
    content = {**comparison.as_dict(), "figures": names, "tables": [f"{name}.csv" for name in tables or {}]}
    write_text(folder / "metrics.json", json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    return folder / "metrics.json"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _cell(estimate: Estimate | None, unit: str) -> str:
    if estimate is None:
        return "–"
    digits = 3 if unit == "1" else 1
    text = f"{estimate.value:.{digits}f}"
    return text if math.isnan(estimate.low) else f"{text} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
