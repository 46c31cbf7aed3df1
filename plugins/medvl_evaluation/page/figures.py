"""Figures of the report: vector graphics for its columns, legible in print and without colour vision."""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvl_evaluation.drawing import precision_steps, roc_points, sheet
from medvl_evaluation.metrics import operating_counts

__all__ = ["Curves", "Picture", "curve_grid", "embedding_scatter", "grey_png", "recall_lines", "reliability"]

# Okabe and Ito's palette: told apart with any colour vision, and in grey by their marks
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
_PALETTE = (BLUE, ORANGE, "#009E73", "#CC79A7")
_MARKS = ("o", "^", "s", "D")
_MOST_POINTS = 200


@dataclass(frozen=True)
class Picture:
    """A ``data:`` address and the text that stands for it."""

    address: str
    alt: str


@dataclass(frozen=True)
class Curves:
    """One class of `curve_grid`: known labels N (0 or 1) and their scores N, the areas as text."""

    name: str
    labels: NDArray[np.float64]
    scores: NDArray[np.float64]
    auroc: str
    auprc: str


def curve_grid(classes: Sequence[Curves], columns: int = 8) -> Picture:
    """ROC curves above, precision-recall curves below: a panel per class. Every class needs both kinds of label."""
    columns = min(columns, max(len(classes), 4))
    lines = math.ceil(len(classes) / columns)
    drawing = sheet(7.6, 2 * lines * (7.6 / columns + 0.12) + 0.4)
    axes = drawing.subplots(2 * lines, columns, squeeze=False, sharex=True, sharey=True)
    for ax in axes.ravel():
        ax.set_visible(False)
    for i, one in enumerate(classes):
        true, false = operating_counts(one.labels, one.scores)
        for half, (draw, area) in enumerate(((_roc, one.auroc), (_precision_recall, one.auprc))):
            ax = axes[i // columns + half * lines, i % columns]
            ax.set_visible(True)
            draw(ax, true, false)
            ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xticks=(0, 1), yticks=(0, 1))
            ax.tick_params(labelsize=5, length=1.5, pad=1, labelbottom=True)
            title = "\n".join(textwrap.wrap(one.name, 20, max_lines=2, placeholder=" …")[:2])
            ax.set_title(f"{title}\n{area}", fontsize=5.6, pad=2, parse_math=False)
    for half, name in enumerate(("ROC", "precision-recall")):
        axes[half * lines, 0].set_ylabel(name, fontsize=6, labelpad=0)
    names = ", ".join(f"{one.name} {one.auroc}" for one in classes)
    return _svg(drawing, f"ROC and precision-recall curves of {len(classes)} findings: {names}")


def _roc(ax: Any, true: NDArray[np.int64], false: NDArray[np.int64]) -> None:
    ax.plot([0, 1], [0, 1], "--", color=GREY, linewidth=0.5)
    ax.plot(*_thinned(*roc_points(true, false)), color=BLUE, linewidth=0.9)


def _precision_recall(ax: Any, true: NDArray[np.int64], false: NDArray[np.int64]) -> None:
    ax.axhline(true[-1] / (true[-1] + false[-1]), linestyle="--", color=GREY, linewidth=0.5)
    ax.plot(*_thinned(*precision_steps(true, false)), color=ORANGE, drawstyle="steps-pre", linewidth=0.9)


def _thinned(*columns: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """At most 200 points with both ends: more than a panel of two centimetres can show."""
    n = len(columns[0])
    kept = np.unique(np.linspace(0, n - 1, min(n, _MOST_POINTS)).round().astype(int))
    return tuple(column[kept] for column in columns)


def recall_lines(recalls: Mapping[str, Sequence[float]], depths: Sequence[int], chance: Sequence[float]) -> Picture:
    """Recall over the depth k, a line per direction, against chance."""
    drawing, ax = _single(2.5, 1.85)
    for i, (name, values) in enumerate(recalls.items()):
        ax.plot(depths, values, color=_PALETTE[i % 4], marker=_MARKS[i % 4], markersize=2.5, linewidth=1, label=name)
    ax.plot(depths, chance, "--", color=GREY, linewidth=0.8, label="chance")
    ax.set_xscale("log")
    ticks = [k for k in (1, 5, 10, 50, 100, 500, 1000, 10_000) if k <= depths[-1]]
    ax.set_xticks(ticks, [f"{k:,}" for k in ticks])
    ax.minorticks_off()
    ax.set(xlabel="k, items looked at", ylabel="recall at k", ylim=(-0.02, 1.02))
    ax.legend(frameon=False, fontsize=5.5, loc="upper left")
    said = "; ".join(
        f"{name} " + ", ".join(f"R@{k} {values[list(depths).index(k)]:.2f}" for k in (1, 5, 10) if k in depths)
        for name, values in recalls.items()
    )
    return _svg(drawing, f"Recall at k against chance: {said}")


def reliability(
    mean_probability: NDArray[np.float64], frequency: NDArray[np.float64], share: NDArray[np.float64]
) -> Picture:
    """Observed frequency over predicted probability, a point per bin, its size the share of cases in the bin."""
    drawing, ax = _single(2.5, 1.85)
    ax.plot([0, 1], [0, 1], "--", color=GREY, linewidth=0.8)
    ax.plot(mean_probability, frequency, color=BLUE, linewidth=0.8)
    ax.scatter(mean_probability, frequency, s=4 + 80 * share, color=BLUE, alpha=0.85, linewidths=0)
    ax.set(xlabel="predicted probability", ylabel="share that has the finding", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    points = ", ".join(f"{p:.2f} → {f:.2f}" for p, f in zip(mean_probability, frequency, strict=True))
    return _svg(drawing, f"Reliability of the probabilities, predicted → observed: {points}")


def embedding_scatter(
    points: NDArray[np.float64], modality: Sequence[str], n_findings: NDArray[np.int64], main: str, method: str
) -> Picture:
    """The map twice: by modality, and the ``main`` modality alone by its number of findings."""
    from matplotlib.ticker import MaxNLocator

    drawing = sheet(5.0, 1.95)
    left, right = drawing.subplots(1, 2)
    names = list(dict.fromkeys(modality))
    of = np.asarray(modality)
    for i, name in enumerate(names):
        rows = points[of == name]
        style = {"marker": _MARKS[i % 4], "color": _PALETTE[i % 4], "s": 6, "alpha": 0.7, "linewidths": 0}
        left.scatter(rows[:, 0], rows[:, 1], label=name, **style)
    drawing.legend(
        *left.get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False, fontsize=6, markerscale=1.6
    )
    rows = points[of == main]
    drawn = right.scatter(rows[:, 0], rows[:, 1], c=n_findings, cmap="cividis_r", s=7, linewidths=0)
    bar = drawing.colorbar(drawn, ax=right, shrink=0.8, pad=0.02, ticks=MaxNLocator(5, integer=True))
    bar.ax.tick_params(labelsize=5.5)
    for ax, title in ((left, f"{method}: modalities"), (right, f"{main}: number of findings")):
        ax.set_title(title, fontsize=6.5, parse_math=False)
        ax.set(xticks=[], yticks=[])
    return _svg(
        drawing, f"{method} map of {len(rows)} studies: {', '.join(names)}; {main} coloured by number of findings"
    )


def grey_png(image: NDArray[np.uint8], alt: str) -> Picture:
    """A grey image as it is."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png", optimize=True)
    return Picture(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", alt)


def _single(width: float, height: float) -> tuple[Any, Any]:
    drawing = sheet(width, height)
    ax: Any = drawing.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=6)
    ax.xaxis.label.set_size(6.5)
    ax.yaxis.label.set_size(6.5)
    ax.grid(alpha=0.25, linewidth=0.5)
    return drawing, ax


def _svg(drawing: Any, alt: str) -> Picture:
    """As an image of its own: inside ``<img>`` no script of it could run, and its ids meet no others."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "medvl"}):  # the same figure gives the same bytes
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Picture(f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue().encode()).decode()}", alt)
