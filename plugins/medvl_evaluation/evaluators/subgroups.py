"""Subgroup gaps as an evaluator: the same macro AUROC in every group of a metadata column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvl_core.errors import did_you_mean
from medvl_core.protocols import Scores
from medvl_core.specs import Metric
from medvl_evaluation.abilities import ability
from medvl_evaluation.evaluators.collected import check_prefix
from medvl_evaluation.evaluators.figures import row_intervals
from medvl_evaluation.metrics import areas_statistic, auroc, bootstrap_ci
from medvl_evaluation.metrics.bootstrap import Statistic
from medvl_evaluation.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Subgroups"]

_MOST_GROUPS = 20
_SHUFFLES = 100
_UNKNOWN = "(not stated)"


class Subgroups:
    """Macro AUROC per group, the worst group, and the gap between best and worst.

    The groups share one set of classes: those with positives and negatives in every group, as averages over different
    classes do not compare. Groups of fewer than ``min_studies`` and studies without the column are listed but not
    compared. A gap is never negative and small groups always show one: `chance` is the mean gap when patients are dealt
    to the groups at random, and the table has the share of such deals with a gap at least as large.

    Args:
        evaluator: What scores (`medvl_core.protocols.Scores`), e.g. `ZeroShot`. An instance of its own, not one that is
            also in the list of evaluators.
        column: Entry of the studies' metadata, e.g. ``"sex"``.
        bins: Edges that make groups of a number, e.g. ``(40, 60)``: below 40, 40 to below 60, 60 and more.
        min_studies: Fewer are not compared.
        seed: Of the random deals.
        prefix: Put before the names of metrics and tables; by default ``subgroups_<column>``.

    Raises:
        ValueError: If the bins do not increase, ``min_studies`` is below 1, or the evaluator does not score.
    """

    def __init__(
        self,
        evaluator: Any,
        column: str,
        bins: Sequence[float] | None = None,
        min_studies: int = 20,
        seed: int = 0,
        prefix: str | None = None,
    ) -> None:
        if (scoring := ability(evaluator, Scores)) is None:
            raise ValueError(
                f"Subgroups: {type(evaluator).__name__} has no predictions(); give one that scores studies"
            )
        if bins is not None and (len(bins) == 0 or any(a >= b for a, b in pairwise(bins))):
            raise ValueError(f"Subgroups: bins is {bins!r}; give increasing edges, e.g. [40, 60]")
        if min_studies < 1:
            raise ValueError(f"Subgroups: min_studies is {min_studies}; at least 1")
        self.evaluator, self.column, self.bins = evaluator, column, bins
        self._scoring: Scores = scoring
        self.min_studies, self.seed = min_studies, seed
        stem = "subgroups_" + re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")
        self.prefix = check_prefix("Subgroups", stem if prefix is None else prefix)
        self.reset()

    @property
    def classes(self) -> tuple[str, ...]:
        """The evaluator's."""
        return tuple(self.evaluator.classes)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics by their full names; a smaller gap is better."""
        worst, gap = self._names()
        return Metric(name=worst), Metric(name=gap, higher_is_better=False)

    def reset(self) -> None:
        """Forget everything collected."""
        self.evaluator.reset()
        self._group_of: dict[str, str] = {}
        self._columns: set[str] = set()
        self._cached: tuple[float, float] | None = None

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch: what the evaluator needs, and ``"metadata"``, a mapping per study.

        Raises:
            ValueError: If there is no metadata, or a column of numbers has too many values for groups.
        """
        if "metadata" not in outputs:
            raise ValueError(f"Subgroups needs metadata in outputs, which has {sorted(outputs)}")
        for study, entry in zip(outputs["study_id"], outputs["metadata"], strict=True):
            self._group_of[str(study)] = self._group(str(study), entry.get(self.column))
            self._columns |= set(entry)
        if len(found := set(self._group_of.values())) > _MOST_GROUPS:
            raise ValueError(
                f"Subgroups: {self.column!r} has more than {_MOST_GROUPS} values, {', '.join(sorted(found)[:5])} among "
                "them; give bins for numbers, or another column"
            )
        self.evaluator.update(outputs)
        self._cached = None

    def compute(self) -> dict[str, float]:
        """Macro AUROC of the worst group, and best minus worst; NaN with fewer than two groups to compare.

        Raises:
            ValueError: If no study has the column.
        """
        if self.column not in self._columns:
            hint = did_you_mean(self.column, sorted(self._columns))
            raise ValueError(
                f"Subgroups: no study has {self.column!r} in its metadata, only {sorted(self._columns)}{hint}"
            )
        scored = self._scoring.predictions()
        values = _gap(_macros(scored, self._compared(scored)))
        return dict(zip(self._names(), map(float, values), strict=True))

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap interval of both: patients drawn whole, the worst group sought anew in every resample."""
        scored = self._scoring.predictions()
        groups = self._statistic(scored)

        def statistic(weights: np.ndarray) -> np.ndarray:
            return np.stack(_gap(groups(weights)), axis=1)

        low, high, _ = bootstrap_ci(statistic, scored.subject_id, n_resamples, seed, level, method="standard_error")
        bounds = zip(self._names(), low.clip(0, 1), high.clip(0, 1), strict=True)
        return {name: (float(lo), float(hi)) for name, lo, hi in bounds}

    def chance(self) -> dict[str, float]:
        """0.5 for the worst group; for the gap, its mean when the same scores are dealt to groups at random."""
        return dict(zip(self._names(), (0.5, self._shuffled()[0]), strict=True))

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """``subgroups_<column>``, one row per group, and ``subgroups_<column>_classes``, one per group and class."""
        import pandas as pd

        scored = self._scoring.predictions()
        compared, groups = self._compared(scored), self._groups(scored)
        interval = bootstrap_ci(
            self._statistic(scored), scored.subject_id, n_resamples, seed, level, method="standard_error"
        )
        macro = dict(zip(compared, _macros(scored, compared), strict=True))
        bounds = dict(zip(compared, zip(interval.low.clip(0, 1), interval.high.clip(0, 1), strict=True), strict=True))
        rows, classes = [], []
        for name, members in groups.items():
            low, high = bounds.get(name, (np.nan, np.nan))
            subjects = {scored.subject_id[i] for i in members}
            row = {"group": name, "n_studies": len(members), "n_subjects": len(subjects), "compared": name in compared}
            row |= {"n_classes": int(_shared(scored, compared).sum()), "auroc_macro": macro.get(name, np.nan)}
            rows.append(
                {**row, "auroc_macro_low": low, "auroc_macro_high": high, "share_of_random": self._shuffled()[1]}
            )
            labels = scored.labels[members]
            part = pd.DataFrame(
                {"group": name, "class": list(scored.classes), "auroc": auroc(labels, scored.scores[members])}
            )
            part["n_positive"], part["n_negative"] = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
            classes.append(part)
        return {self.prefix: pd.DataFrame(rows), f"{self.prefix}_classes": pd.concat(classes, ignore_index=True)}

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """Macro AUROC of every compared group with its interval; none when no two groups can be compared."""
        table = self.tables(n_resamples, seed, level)[self.prefix]
        table = table[table["compared"]]
        if len(table) == 0:
            return []
        path = Path(folder) / f"{self.prefix}.png"
        names = [f"{row['group']} (n = {row['n_studies']})" for row in table.to_dict("records")]
        title = f"By {self.column}: macro AUROC over {table['n_classes'].iloc[0]} classes that every group has"
        row_intervals(path, names, table, "auroc_macro", "AUROC, macro", f"{title}, {100 * level:g} % intervals")
        return [path]

    def _group(self, study: str, value: Any) -> str:
        if value is None or value == "" or value != value:
            return _UNKNOWN
        if self.bins is None:
            return f"{value:g}" if isinstance(value, float) else str(value)
        try:
            place = int(np.searchsorted(self.bins, float(value), side="right"))
        except ValueError:
            raise ValueError(
                f"{study}: {self.column} is {value!r}, no number for the bins {list(self.bins)}; words need no bins"
            ) from None
        edges = [f"{edge:g}" for edge in self.bins]
        if place in (0, len(edges)):
            return f"below {edges[0]}" if place == 0 else f"{edges[-1]} and more"
        return f"{edges[place - 1]} to below {edges[place]}"

    def _groups(self, scored: Predictions) -> dict[str, np.ndarray]:
        """Rows of every group, in the order of the bins or of the names."""
        of = np.array([self._group_of[study] for study in scored.study_id])
        names = sorted(set(of.tolist()))
        if self.bins is not None:
            order = [self._group("", edge) for edge in (self.bins[0] - 1, *self.bins)] + [_UNKNOWN]
            names.sort(key=order.index)
        return {name: np.flatnonzero(of == name) for name in names}

    def _compared(self, scored: Predictions) -> dict[str, np.ndarray]:
        groups = self._groups(scored)
        kept = {name: rows for name, rows in groups.items() if len(rows) >= self.min_studies and name != _UNKNOWN}
        return kept if len(kept) > 1 else {}

    def _statistic(self, scored: Predictions) -> Statistic:
        """Weights ``N R`` → macro AUROC of every compared group, ``R G``."""
        compared = self._compared(scored)
        shared = _shared(scored, compared)
        parts = [
            (rows, areas_statistic(scored.labels[rows][:, shared], scored.scores[rows][:, shared]))
            for rows in compared.values()
            if shared.any()
        ]

        def statistic(weights: np.ndarray) -> np.ndarray:
            if not parts:
                return np.full((weights.shape[1], len(compared)), np.nan)
            return np.stack([areas(weights[rows])[:, 0, 0] for rows, areas in parts], axis=1)

        return statistic

    def _shuffled(self) -> tuple[float, float]:
        """Mean gap of random deals, and the share of them with a gap at least as large as the real one."""
        if self._cached is None:
            scored = self._scoring.predictions()
            compared = self._compared(scored)
            real = _gap(_macros(scored, compared))[1]
            rng = np.random.default_rng(self.seed)
            gaps = np.array([_gap(_macros(scored, _deal(scored, compared, rng)))[1] for _ in range(_SHUFFLES)])
            gaps = gaps[~np.isnan(gaps)]
            undefined = len(gaps) == 0 or np.isnan(real)
            self._cached = (np.nan, np.nan) if undefined else (float(gaps.mean()), float((gaps >= real).mean()))
        return self._cached

    def _names(self) -> tuple[str, str]:
        return f"{self.prefix}/auroc_macro_worst", f"{self.prefix}/auroc_macro_gap"


def _shared(scored: Predictions, compared: Mapping[str, np.ndarray]) -> np.ndarray:
    """Classes with positives and negatives in every compared group."""
    shared = np.full(len(scored.classes), bool(compared))
    for rows in compared.values():
        shared &= (scored.labels[rows] == 1).any(axis=0) & (scored.labels[rows] == 0).any(axis=0)
    return shared


def _macros(scored: Predictions, compared: Mapping[str, np.ndarray]) -> np.ndarray:
    """Macro AUROC of every compared group over the classes they share, ``G``; NaN without such a class."""
    shared = _shared(scored, compared)
    if not shared.any():
        return np.full(len(compared), np.nan)
    parts = [auroc(scored.labels[rows][:, shared], scored.scores[rows][:, shared]) for rows in compared.values()]
    return np.array([part.mean() for part in parts])


def _gap(macros: np.ndarray) -> tuple[Any, Any]:
    """Worst, and best minus worst, over the last axis."""
    if macros.shape[-1] == 0:
        return np.full(macros.shape[:-1], np.nan), np.full(macros.shape[:-1], np.nan)
    return macros.min(axis=-1), macros.max(axis=-1) - macros.min(axis=-1)


def _deal(scored: Predictions, compared: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The compared studies dealt to the groups at random: patients in random order, cut at the sizes of the groups."""
    rows = np.concatenate([*compared.values(), np.array([], dtype=int)]).astype(int)
    subjects = np.unique(np.asarray(scored.subject_id)[rows], return_inverse=True)[1]
    order = rows[np.argsort(rng.permutation(subjects.max(initial=0) + 1)[subjects], kind="stable")]
    ends = np.cumsum([len(members) for members in compared.values()])
    return dict(zip(compared, np.split(order, ends[:-1]), strict=True)) if compared else {}
