"""What the figures share. They are figure objects, so that no global state of matplotlib is touched."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "GREY", "open_axes", "precision_steps", "roc_points", "save_png", "sheet"]

BLUE, GREY = "#0b5394", "#777777"


def sheet(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def open_axes(ax: Axes) -> Axes:
    """Without the frame's upper and right line, with a faint grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3)
    return ax


def save_png(drawing: Figure, path: str | Path, title: str = "") -> Path:
    """Write it with 150 dots per inch, a title above in lines as wide as the figure."""
    if title:
        width = int(13 * drawing.get_figwidth())
        drawing.suptitle(textwrap.fill(title, width), fontsize=10, parse_math=False)
    drawing.savefig(path, dpi=150)
    return Path(path)


def roc_points(true: np.ndarray, false: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate, from (0, 0), of the counts of ``metrics.operating_counts``."""
    return np.append(0, false / false[-1]), np.append(0, true / true[-1])


def precision_steps(true: np.ndarray, false: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision with a step to the left at every gain in recall: the area is the average precision.

    Draw them with ``drawstyle="steps-pre"``.
    """
    precision, recall = true / (true + false), true / true[-1]
    gains = np.diff(np.append(0, recall)) > 0
    return np.append(0, recall[gains]), np.append(precision[gains][0], precision[gains])
