"""Figures of organs and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medvl_evaluation.drawing import BLUE, GREY, save_png, sheet

__all__ = ["heat_map", "radar"]


def heat_map(
    path: str | Path,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    axes: tuple[str, str],
) -> None:
    """Values ``len(rows) len(columns)`` as colours around 0, with the largest of each row marked."""
    drawing = sheet(2.6 + 0.26 * len(columns), 2.2 + 0.24 * len(rows))
    ax = drawing.add_subplot()
    limit = float(np.nanmax(np.abs(values))) or 1.0
    shown = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for row, line in enumerate(values):
        ax.plot(int(np.nanargmax(line)), row, "k.", markersize=4)
    ax.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
    ax.set_yticks(range(len(rows)), rows, fontsize=7)
    ax.set(ylabel=axes[0], xlabel=axes[1])
    ax.set_title(f"{title}\n(dot: nearest text)", fontsize=9, loc="left")
    drawing.colorbar(shown, ax=ax, label="cosine", shrink=0.8)
    save_png(drawing, path)


def radar(path: str | Path, names: Sequence[str], values: Sequence[float], chance: float, title: str) -> None:
    """One spoke per name with its value in [0, 1], and a ring at ``chance``; a name without a value has no point."""
    drawing = sheet(5.2, 5.2)
    ax = drawing.add_subplot(projection="polar")
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    around = np.append(angles, angles[0])
    ax.plot(around, np.append(values, values[0]), "o-", color=BLUE, linewidth=1.8)
    ax.plot(np.linspace(0, 2 * np.pi, 200), np.full(200, chance), "--", color=GREY, linewidth=1.2)
    for angle, value in zip(angles, values, strict=True):
        if not np.isnan(value):
            ax.annotate(f"{value:.2f}", (angle, value), textcoords="offset points", xytext=(4, 4), fontsize=8)
    labels = [f"{n} (none)" if np.isnan(v) else n for n, v in zip(names, values, strict=True)]
    ax.set_xticks(angles, labels, fontsize=9)
    ax.set_ylim(0, 1)
    ax.set_title(f"{title}\n(dashed: chance)", fontsize=9, loc="left")
    save_png(drawing, path)


def overlay(
    path: str | Path,
    image: np.ndarray,
    regions: np.ndarray,
    spacing: Sequence[float],
    values: Mapping[int, float],
    names: Mapping[int, str],
    title: str,
) -> None:
    """Two coronal slices of a scan: the CT, and its regions coloured by a value in [0, 1].

    Args:
        path: File to write.
        image: ``X Y Z`` in LPS axes, -1 to 1.
        regions: Label map on the same grid.
        spacing: Of its voxels, mm.
        values: Label → value; other regions stay grey.
        names: Label → name written at its centre.
        title: Of the figure.
    """
    inside = np.isin(regions, list(values)).sum(axis=(0, 2))
    middle = int(inside.argmax()) if inside.any() else image.shape[1] // 2
    drawing = sheet(10.5, 4.9)
    table = np.full(256, np.nan)
    table[list(values)] = list(values.values())
    extent = (0, image.shape[0] * spacing[0], 0, image.shape[2] * spacing[2])
    for ax, offset in zip(drawing.subplots(1, 2), (0, 3), strict=True):
        y = min(middle + offset, image.shape[1] - 1)
        ax.imshow(image[:, y].T, cmap="gray", vmin=-0.5, vmax=0.5, origin="lower", extent=extent)
        shown = table[regions[:, y].T]
        drawn = ax.imshow(shown, cmap="viridis", vmin=0, vmax=1, alpha=0.45, origin="lower", extent=extent)
        for label, name in names.items():
            xs, zs = np.nonzero(regions[:, y] == label)
            if len(xs) > 3:
                at = ((xs.mean() + 0.5) * spacing[0], (zs.mean() + 0.5) * spacing[2])
                text = f"{name}\n{values[label]:.2f}"
                ax.text(*at, text, ha="center", va="center", fontsize=6, color="white")
        ax.set(xlabel="mm, patient's right at the left", ylabel="mm, head at the top")
        ax.set_title(f"coronal, voxel row {y}", fontsize=8)
    drawing.colorbar(drawn, ax=drawing.axes, shrink=0.7)
    save_png(drawing, path, title)
