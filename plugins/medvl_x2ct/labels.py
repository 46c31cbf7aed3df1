"""The label sets that tables of the paper use, as data: each label and what it is made from in each data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["LABEL_SETS", "collapse", "load_label_set"]

_FOLDER = Path(__file__).parent / "label_sets"
LABEL_SETS: tuple[str, ...] = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))
"""Label sets that come with the plugin."""


def load_label_set(name: str | Path, made_from: str) -> dict[str, list[str]]:
    """Label → what it is made from, in the order of the file.

    Args:
        name: One of :data:`LABEL_SETS`, or a JSON file of your own: ``{label: {"ct_rate": [columns], "rad_chest_ct":
            [abnormalities], "report": [regular expressions]}}``.
        made_from: Which of the three.

    Raises:
        ValueError: If there is no such set or file, or one of its labels cannot be made from this.
    """
    path = _FOLDER / f"{name}.json" if name in LABEL_SETS else Path(name)
    if path.suffix != ".json" or not path.is_file():
        raise ValueError(f"label set {str(name)!r} is unknown; there are {', '.join(LABEL_SETS)}, or name a JSON file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sources = {label: entry.get(made_from) for label, entry in content.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: no label set ({error}); see docs/how-to/train-on-ct-rate.md") from error
    absent = [label for label, source in sources.items() if not source]
    if absent or not sources:
        raise ValueError(
            f"{path}: {', '.join(absent) or 'no label'} cannot be made from {made_from}; choose another label set"
        )
    return sources


def collapse(values: Mapping[str, float], sources: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Each label as the maximum over what it is made from: 1 beats unknown (NaN), unknown beats 0."""
    labels = {}
    for label, names in sources.items():
        found = [values[name] for name in names]
        labels[label] = 1.0 if 1.0 in found else float("nan") if any(v != v for v in found) else 0.0
    return labels
