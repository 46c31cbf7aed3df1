"""AUROC and AUPRC of a multi-label matrix as evaluators report them: averages, chance, intervals, a table per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medvl_evaluation.metrics import (
    Interval,
    areas_statistic,
    auroc,
    auroc_auprc,
    average_groups,
    average_metric,
    bootstrap_ci,
    chance_auprc,
    micro_auprc,
    micro_auroc,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "AREAS",
    "area_interval",
    "area_values",
    "chance_areas",
    "class_table",
    "classes_left_out",
    "group_intervals",
    "group_values",
]

AREAS = tuple(f"{area}_{average}" for area in ("auroc", "auprc") for average in ("macro", "weighted", "micro"))
"""Names of the averaged areas, in the order of `medvl_evaluation.metrics.areas_statistic`."""


def area_values(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """The areas of `AREAS`; a class without positives or negatives is left out of macro and weighted averages.

    Args:
        labels: ``N C``; 1, 0 or NaN (unknown).
        scores: ``N C``.
    """
    out = {"auroc_micro": micro_auroc(labels, scores), "auprc_micro": micro_auprc(labels, scores)}
    for area, values in zip(("auroc", "auprc"), auroc_auprc(labels, scores), strict=True):
        for how in ("macro", "weighted"):
            out[f"{area}_{how}"] = average_metric(values, labels, how).value
    return {name: out[name] for name in AREAS}


def classes_left_out(labels: np.ndarray) -> int:
    """Number of classes without positives or without negatives."""
    return int((~((labels == 1).any(axis=0) & (labels == 0).any(axis=0))).sum())


def chance_areas(labels: np.ndarray) -> dict[str, float]:
    """Expectations under a random order: 0.5 for AUROC, `chance_auprc` for AUPRC (near the prevalence)."""
    expected = _chance_per_class(labels)
    auprc = (
        average_metric(expected, labels, "macro").value,
        average_metric(expected, labels, "weighted").value,
        chance_auprc(int((labels == 1).sum()), int((~np.isnan(labels)).sum())),
    )
    return dict(zip(AREAS, (0.5, 0.5, 0.5, *auprc), strict=True))


def area_interval(
    labels: np.ndarray, scores: np.ndarray, subjects: Sequence[str], n_resamples: int, seed: int, level: float
) -> Interval:
    """Bounds in [0, 1] of everything `areas_statistic` gives: patients drawn whole, by standard error."""
    interval = bootstrap_ci(
        areas_statistic(labels, scores), subjects, n_resamples, seed, level, method="standard_error"
    )
    return interval._replace(low=interval.low.clip(0, 1), high=interval.high.clip(0, 1))


def group_values(
    labels: np.ndarray, scores: np.ndarray, classes: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """``auroc_macro_<group>`` of each named group of classes; classes without a value are left out."""
    if not groups:
        return {}
    averages = average_groups(auroc(labels, scores), labels, classes, groups)
    return {f"auroc_macro_{group}": average.value for group, average in averages.items()}


def group_intervals(
    labels: np.ndarray,
    scores: np.ndarray,
    classes: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    subjects: Sequence[str],
    n_resamples: int,
    seed: int,
    level: float,
) -> dict[str, tuple[float, float]]:
    """Bounds of `group_values`, from the same resamples as `area_interval`."""
    bounds = {}
    for group, names in groups.items():
        chosen = [list(classes).index(name) for name in names]
        interval = area_interval(labels[:, chosen], scores[:, chosen], subjects, n_resamples, seed, level)
        bounds[f"auroc_macro_{group}"] = (float(interval.low[0, 0]), float(interval.high[0, 0]))
    return bounds


def class_table(classes: Sequence[str], labels: np.ndarray, scores: np.ndarray, interval: Interval) -> pd.DataFrame:
    """One row per class: counts, both areas with their bounds, what chance would give.

    Args:
        classes: C names.
        labels: ``N C``.
        scores: ``N C``.
        interval: From `area_interval`.
    """
    import pandas as pd

    table = pd.DataFrame({"class": list(classes)})
    table["n_positive"], table["n_negative"] = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    table["n_unknown"] = np.isnan(labels).sum(axis=0)
    for row, (area, values) in enumerate(zip(("auroc", "auprc"), auroc_auprc(labels, scores), strict=True)):
        table[area], table[f"{area}_low"] = values, interval.low[row, 3:]
        table[f"{area}_high"] = interval.high[row, 3:]
    table["auprc_chance"] = _chance_per_class(labels)
    table["resamples_left_out"] = interval.left_out[0, 3:]
    return table


def _chance_per_class(labels: np.ndarray) -> np.ndarray:
    known = (~np.isnan(labels)).sum(axis=0)
    return np.array([chance_auprc(int(m), int(n)) for m, n in zip((labels == 1).sum(axis=0), known, strict=True)])
