"""Figures of the evaluators."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medvl_evaluation.drawing import BLUE, GREY, open_axes, precision_steps, roc_points, save_png, sheet
from medvl_evaluation.metrics import operating_counts

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["class_intervals", "confusion_matrix", "curve_panels", "probe_curves", "recall_curve", "row_intervals"]

_FEW = 10


def recall_curve(
    path: str | Path,
    depths: Sequence[int],
    recall: Sequence[float],
    interval: tuple[np.ndarray, np.ndarray],
    chance: Sequence[float],
    marked: Sequence[int],
    title: str,
) -> None:
    """Recall over the depth k with its interval, chance beside, and the values at the ``marked`` depths written out."""
    drawing = sheet(6.4, 4.6)
    ax = open_axes(drawing.subplots())
    ax.fill_between(depths, *interval, color=BLUE, alpha=0.18, linewidth=0)
    ax.plot(depths, recall, color=BLUE, linewidth=1.8, label="model")
    ax.plot(depths, chance, color=GREY, linestyle="--", linewidth=1.4, label="chance (random order)")
    at_marks = np.interp(marked, depths, recall)
    ax.plot(marked, at_marks, "o", color=BLUE, markersize=6)
    for k, value in zip(marked, at_marks, strict=True):
        ax.annotate(f"R@{k} {value:.2f}", (k, value), xytext=(6, -12), textcoords="offset points", fontsize=8)
    ax.set_xscale("log")
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 10_000, 50_000) if k <= depths[-1]]
    ax.set_xticks(ticks, [f"{k:,}" for k in ticks])
    ax.minorticks_off()
    ax.set(xlabel="k, items looked at (log scale)", ylabel="recall at k (share of queries)", ylim=(-0.02, 1.02))
    ax.legend(frameon=False, loc="upper left")
    save_png(drawing, path, title)


def curve_panels(
    path: str | Path,
    table: pd.DataFrame,
    labels: np.ndarray,
    scores: np.ndarray,
    kind: Literal["roc", "precision_recall"],
    title: str,
) -> None:
    """One panel per class; a class without positives or negatives says so.

    Args:
        path: PNG to write.
        table: The per-class table of the evaluator.
        labels: ``N C``, NaN = unknown.
        scores: ``N C``.
        kind: Which curve.
        title: Title of the figure.
    """
    area, label = ("auroc", "AUROC") if kind == "roc" else ("auprc", "AUPRC")
    columns = 6 if len(table) > 16 else max(2, math.ceil(math.sqrt(len(table))))
    lines = math.ceil(len(table) / columns)
    drawing = sheet(1.9 * columns + 0.6, 2.35 * lines + 1.0)
    axes = drawing.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for ax in axes[len(table) :]:
        ax.set_visible(False)
    for c, row in enumerate(table.to_dict("records")):
        ax = axes[c]
        name = "\n".join(textwrap.wrap(str(row["class"]), 28, max_lines=2, placeholder=" …"))
        ax.set_title(f"{name}\n{label} {_interval(row, area)}\nn+ = {row['n_positive']}", fontsize=7, parse_math=False)
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        ax.tick_params(labelsize=7, labelbottom=c + columns >= len(table))
        if math.isnan(row[area]):
            ax.text(0.5, 0.5, "needs positives\nand negatives", ha="center", va="center", fontsize=7, color=GREY)
            continue
        known = ~np.isnan(labels[:, c])
        _curve(ax, kind, *operating_counts(labels[known, c], scores[known, c]))
    names = ("false positive rate", "true positive rate") if kind == "roc" else ("recall", "precision")
    drawing.supxlabel(f"{names[0]} (dashed: {'chance' if kind == 'roc' else 'prevalence'})", fontsize=9)
    drawing.supylabel(names[1], fontsize=9)
    save_png(drawing, path, title)


def _curve(ax: Any, kind: str, true: np.ndarray, false: np.ndarray) -> None:
    if kind == "roc":
        ax.plot([0, 1], [0, 1], "--", color=GREY, linewidth=0.8)
        ax.plot(*roc_points(true, false), color=BLUE, linewidth=1.2)
        return
    ax.axhline(true[-1] / (true[-1] + false[-1]), linestyle="--", color=GREY, linewidth=0.8)
    ax.plot(*precision_steps(true, false), color=BLUE, drawstyle="steps-pre", linewidth=1.2)


def class_intervals(path: str | Path, table: pd.DataFrame, title: str) -> None:
    """AUROC and AUPRC of every class with intervals and chance, most frequent class first."""
    table = table.sort_values("n_positive", ascending=False, kind="stable")
    drawing = sheet(10, 1.6 + 0.26 * len(table))
    axes = drawing.subplots(1, 2, sharey=True)
    places, few = np.arange(len(table)), table["n_positive"] < _FEW
    for ax, area, name in zip(axes, ("auroc", "auprc"), ("AUROC", "AUPRC (average precision)"), strict=True):
        ax.hlines(places, table[f"{area}_low"], table[f"{area}_high"], color=BLUE, linewidth=1.8)
        ax.plot(table[area].where(~few), places, "o", color=BLUE, markersize=5, label="model")
        hollow = {"color": BLUE, "markerfacecolor": "white", "markersize": 5}
        ax.plot(
            table[area].where(few), places, "o", label=f"fewer than {_FEW} positives: interval too narrow", **hollow
        )
        chance = table["auprc_chance"] if area == "auprc" else table[area].where(table[area].isna(), 0.5)
        ax.plot(chance, places, "|", color=GREY, markersize=9, markeredgewidth=1.6, label="chance (random order)")
        for place, missing in zip(places, table[area].isna(), strict=True):
            if missing:
                ax.text(0.5, place, "needs positives and negatives", fontsize=7, color=GREY, ha="center", va="center")
        ax.set(xlabel=name, xlim=(-0.02, 1.02), ylim=(len(table) - 0.5, -0.5))
        ax.grid(axis="x", alpha=0.3)
    names = [f"{name} (n+ = {n})" for name, n in zip(table["class"], table["n_positive"], strict=True)]
    axes[0].set_yticks(places, names, fontsize=8, parse_math=False)
    drawing.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    save_png(drawing, path, title)


def confusion_matrix(path: str | Path, classes: Sequence[str], counts: np.ndarray, title: str) -> None:
    """Studies by true class (rows) and decided class (columns), ``C C``; the colour is the share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    drawing = sheet(2.6 + 0.62 * len(classes), 2.1 + 0.5 * len(classes))
    ax = drawing.subplots()
    shown = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), n in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        ax.text(column, row, f"{n}", ha="center", va="center", fontsize=8, color=colour)
    names = [textwrap.shorten(name, 28, placeholder=" …") for name in classes]
    ax.set_xticks(range(len(classes)), names, rotation=45, ha="right", fontsize=8, parse_math=False)
    ax.set_yticks(range(len(classes)), names, fontsize=8, parse_math=False)
    ax.set(xlabel="decided", ylabel="true")
    drawing.colorbar(shown, ax=ax, label="share of the true class", shrink=0.8)
    save_png(drawing, path, title)


def probe_curves(path: str | Path, table: pd.DataFrame, title: str) -> None:
    """AUROC and AUPRC of a probe over the share of training labels: each fold a dot, their mean a line.

    Args:
        path: PNG to write.
        table: One row per fraction and fold, with ``fraction``, ``auroc_macro`` and ``auprc_macro``.
        title: Title of the figure.
    """
    drawing = sheet(7.4, 3.4)
    for ax, name in zip(drawing.subplots(1, 2), ("auroc_macro", "auprc_macro"), strict=True):
        mean = table.groupby("fraction")[name].mean()
        ax.plot(100 * table["fraction"], table[name], "o", color=GREY, markersize=4, alpha=0.7, label="one fold")
        ax.plot(100 * mean.index, mean, "o-", color=BLUE, linewidth=1.6, label="mean over folds")
        ax.set(xlabel="training labels [%]", ylabel=f"{name.split('_')[0].upper()}, macro", ylim=(-0.02, 1.02))
        ax.set_xscale("log")
        ax.set_xticks(100 * mean.index, [f"{100 * share:g}" for share in mean.index])
        ax.minorticks_off()
        open_axes(ax)
        ax.legend(frameon=False, fontsize=8)
    save_png(drawing, path, title)


def row_intervals(
    path: str | Path, names: Sequence[str], table: pd.DataFrame, value: str, axis: str, title: str
) -> None:
    """One value with its interval per row of a table, e.g. per wording or subgroup.

    Args:
        path: PNG to write.
        names: Label of each row.
        table: Has the columns ``value``, ``<value>_low`` and ``<value>_high``.
        value: Column that is drawn.
        axis: Its name on the axis.
        title: Title of the figure.
    """
    drawing = sheet(7.2, 1.5 + 0.32 * len(table))
    ax = open_axes(drawing.subplots())
    places = np.arange(len(table))
    ax.hlines(places, table[f"{value}_low"], table[f"{value}_high"], color=BLUE, linewidth=1.8)
    ax.plot(table[value], places, "o", color=BLUE, markersize=6)
    ax.axvline(0.5, linestyle="--", color=GREY, linewidth=1.2, label="chance")
    ax.set_yticks(places, [textwrap.shorten(name, 60, placeholder=" …") for name in names], parse_math=False)
    ax.set(xlabel=axis, xlim=(-0.02, 1.02), ylim=(len(table) - 0.5, -0.5))
    ax.legend(frameon=False, fontsize=8, loc="lower left")
    save_png(drawing, path, title)


def _interval(row: dict[str, Any], area: str) -> str:
    if math.isnan(row[area]):
        return "not defined"
    bounds = "" if math.isnan(row[f"{area}_low"]) else f" [{row[f'{area}_low']:.2f}, {row[f'{area}_high']:.2f}]"
    return f"{row[area]:.2f}{bounds}"
