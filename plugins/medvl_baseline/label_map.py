"""Labels of one data set in the terms of another: each target label from one or more source labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvl_core.errors import did_you_mean

__all__ = ["LabelMap", "merge_labels", "read_label_map"]

LabelMap = Mapping[str, tuple[str, ...]]
"""Target label → the source labels it is made from."""


def read_label_map(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read a label map: JSON, ``{target: [source, ...]}``; a target with one source may name it as a string.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such an object, names a target twice, or a target has no source. The message starts
            with the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such label map; give a JSON file, target label: [source labels]")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except ValueError as error:  # undecodable bytes too
        raise ValueError(f"{path}: no label map ({error}); write target label: [source labels]") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: no label map; write one JSON object, target label: [source labels]")
    sources = {target: [names] if isinstance(names, str) else names for target, names in content.items()}
    for target, names in sources.items():
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: target {target!r} is made from {names!r}; give a list of source labels")
    return {target: tuple(names) for target, names in sources.items()}


def merge_labels(
    labels: NDArray[np.float64], columns: Sequence[str], targets: Sequence[str], label_map: LabelMap
) -> NDArray[np.float64]:
    """Target labels as the maximum of their sources: 1 if any source is 1, unknown if one is unknown, else 0.

    Args:
        labels: ``N D``; 1, 0 or NaN (unknown).
        columns: Names of the D source labels.
        targets: Which target labels, in which order.
        label_map: Target → sources. A target that it does not name is taken from the column of its own name.

    Returns:
        ``N C``.

    Raises:
        ValueError: If the column count differs, or a target or source is unknown.
    """
    labels = np.asarray(labels, dtype=float)
    if labels.shape[1:] != (len(columns),):
        raise ValueError(f"labels have shape {labels.shape} for {len(columns)} source columns {tuple(columns)}")
    out = np.empty((len(labels), len(targets)))
    for position, target in enumerate(targets):
        names = label_map.get(target, (target,))
        for name in names:
            if name not in columns:
                hint = did_you_mean(name, columns)
                raise ValueError(f"label {target!r} is made from {name!r}, which is no source column{hint}")
        part = labels[:, [list(columns).index(name) for name in names]]
        # NaN propagates through max; a source that is 1 settles the matter whatever the others are
        out[:, position] = np.where((part == 1).any(axis=1), 1.0, part.max(axis=1))
    return out


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} appears twice")
    return dict(pairs)
