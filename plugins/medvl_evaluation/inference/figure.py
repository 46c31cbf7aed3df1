"""A page per radiograph: the film as the network saw it, the findings, the nearest reports."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["findings_figure"]

_BLUE, _MOST = "#0072B2", 20


def findings_figure(
    path: str | Path,
    film: np.ndarray,
    probabilities: Mapping[str, float],
    title: str,
    nearest: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Draw one radiograph and what was found in it.

    Args:
        path: PNG to write; its folder must exist.
        film: ``H W``, any range.
        probabilities: Finding → probability; the highest are shown.
        title: Above the film.
        nearest: Entries of `NearestReports.find`.
    """
    from matplotlib.figure import Figure

    top = sorted(probabilities.items(), key=lambda item: -item[1])[:_MOST]
    lines = [f"{entry['study']}, cosine {entry['cosine']:.3f}. {entry.get('report', '')}" for entry in nearest]
    text = "\n".join("\n".join(textwrap.wrap(line, 120, max_lines=3, placeholder=" …")) for line in lines)
    height = max(0.28 * len(top) + 1.6, 4.4)
    drawing = Figure(figsize=(11, height + 0.2 * (text.count("\n") + 3 if text else 1)), layout="constrained")
    left, right = drawing.subplots(1, 2, width_ratios=(1, 1.1))
    left.imshow(film, cmap="gray")
    left.set_axis_off()
    left.set_title(title, fontsize=10, parse_math=False)
    places = range(len(top))
    right.barh(places, [value for _, value in top], color=_BLUE)
    for place, (_, value) in zip(places, top, strict=True):
        right.text(value + 0.01, place, f"{value:.2f}", va="center", fontsize=8)
    right.set_yticks(places, ["\n".join(textwrap.wrap(name, 34)) for name, _ in top], fontsize=8, parse_math=False)
    right.set(xlim=(0, 1.1), ylim=(len(top) - 0.4, -0.6), xlabel="probability of the prompt pair (not calibrated)")
    right.set_xticks(np.linspace(0, 1, 6))
    right.axvline(0.5, color="#666666", linewidth=0.8, linestyle="--")
    right.spines[["top", "right"]].set_visible(False)
    note = f"Nearest reports\n{text}\n\n" if text else ""
    drawing.supxlabel(f"{note}Research use only.", fontsize=8, ha="left", x=0.02, parse_math=False)
    drawing.savefig(path, dpi=120)
    return Path(path)
