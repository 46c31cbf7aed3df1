"""Cross-modal retrieval as an evaluator: recall at k and median rank, against chance, with patient-wise intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvl_core.specs import Metric
from medvl_evaluation.evaluators.collected import Collected, check_prefix
from medvl_evaluation.evaluators.figures import recall_curve
from medvl_evaluation.metrics import (
    bootstrap_ci,
    chance_median_rank,
    chance_recall,
    median_rank,
    median_rank_statistic,
    recall_of_ranks,
    recall_statistic,
    retrieval_ranks,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Retrieval"]


class Retrieval:
    """Ranks the gallery of all evaluated studies for each study's query by cosine similarity.

    Ties count against the query (`medvl_evaluation.metrics.retrieval`). The gallery is the whole evaluated set: recalls
    of sets of different size are not comparable; `chance` gives the bar for this one.

    Args:
        query: Modality of the queries, e.g. ``"cxr"``.
        gallery: Modality of the gallery, e.g. ``"ct"`` or ``"report"``.
        ks: Depths of the recall.
        group_by: Items that share this id are all correct: reconstructions of one scan share its report. Any id column
            of the outputs; ``None`` accepts the study's own item only.
        duplicate_gallery: A parity check with published numbers of X2CT-CLIP, never a result: its gallery seems to hold
            every item twice while only the first counts, so that rank r becomes 2r - 1 and recall at 5 is recall at 3.
        prefix: Put before the names of metrics, and of tables in place of ``retrieval``; needed where two evaluators of
            one evaluation are alike.

    Raises:
        ValueError: If ``ks`` is empty or holds a number below 1, or the prefix is no lower snake case.
    """

    def __init__(
        self,
        query: str,
        gallery: str,
        ks: Sequence[int] = (1, 5, 10),
        group_by: str | None = "scan_id",
        duplicate_gallery: bool = False,
        prefix: str = "",
    ) -> None:
        if not ks or any(k < 1 for k in ks):
            raise ValueError(f"Retrieval: ks is {tuple(ks)}; give at least one depth, each at least 1")
        self.query, self.gallery, self.ks, self.group_by = query, gallery, tuple(int(k) for k in ks), group_by
        self.copies = 2 if duplicate_gallery else 1
        self.name = f"{prefix}/{query}_to_{gallery}" if prefix else f"{query}_to_{gallery}"
        self.stem = f"{check_prefix('Retrieval', prefix or 'retrieval')}_{query}_to_{gallery}"
        self.reset()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics by their full names, with unit and direction."""
        recalls = (Metric(name=self._recall(k)) for k in self.ks)
        return (*recalls, Metric(name=f"{self.name}/median_rank", unit="rank", higher_is_better=False))

    def reset(self) -> None:
        """Forget everything collected."""
        ids = dict.fromkeys(["subject_id", self.group_by] if self.group_by else ["subject_id"])
        self._collected = Collected(f"Retrieval {self.name}", (self.query, self.gallery), tuple(ids))
        self._cached_ranks: np.ndarray | None = None

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch: embeddings of both modalities, ``subject_id`` and the column of ``group_by``."""
        self._collected.add(outputs)
        self._cached_ranks = None

    def compute(self) -> dict[str, float]:
        """Recall at each k, and the median rank (1 at best)."""
        ranks = self.ranks()
        recalls = {self._recall(k): value for k, value in recall_of_ranks(ranks, self.ks).items()}
        return {**recalls, f"{self.name}/median_rank": median_rank(ranks)}

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap interval of each metric: patients are drawn as queries, the gallery stays as it is."""
        recalls = self._bootstrap(self.ks, n_resamples, seed, level)
        median = bootstrap_ci(
            median_rank_statistic(self.ranks()), self._collected.ids("subject_id"), n_resamples, seed, level
        )
        bounds = {self._recall(k): (float(lo), float(hi)) for k, lo, hi in zip(self.ks, *recalls, strict=True)}
        return {**bounds, f"{self.name}/median_rank": (float(median.low), float(median.high))}

    def chance(self) -> dict[str, float]:
        """Exact expectation of the recalls under a random order, and the rank that half of the queries then reach."""
        correct, n = self._n_correct(), len(self.ranks())
        recalls = {self._recall(k): value for k, value in zip(self.ks, self._chance(self.ks), strict=True)}
        median = self.copies * (chance_median_rank(correct, n) - 1) + 1
        return {**recalls, f"{self.name}/median_rank": float(median)}

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """``<prefix>_<query>_to_<gallery>``: one row per k."""
        import pandas as pd

        low, high = self._bootstrap(self.ks, n_resamples, seed, level)
        table = pd.DataFrame({"k": self.ks, "recall": recall_of_ranks(self.ranks(), self.ks).values()})
        table["recall_low"], table["recall_high"] = low, high
        table["chance"] = self._chance(self.ks)
        table["n_queries"], table["n_gallery"] = len(self.ranks()), self.copies * len(self.ranks())
        return {self.stem: table}

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """The recall over all depths, against chance."""
        n, subjects = len(self.ranks()), len(set(self._collected.ids("subject_id")))
        depths = np.unique(np.geomspace(1, n, 60).round().astype(int)).tolist()
        path = Path(folder) / f"{self.stem}.png"
        recall_curve(
            path,
            depths,
            list(recall_of_ranks(self.ranks(), depths).values()),
            self._bootstrap(depths, n_resamples, seed, level),
            self._chance(depths),
            marked=[k for k in self.ks if k <= n],
            title=f"{self.query} → {self.gallery}: {n} queries of {subjects} subjects, gallery of {self.copies * n}, "
            f"{100 * level:g} % interval",
        )
        return [path]

    def ranks(self) -> np.ndarray:
        """Rank of the best correct item of each study, in the order collected; 2r - 1 in a duplicated gallery."""
        if self._cached_ranks is None:
            query, gallery = self._collected.embeddings(self.query), self._collected.embeddings(self.gallery)
            groups = self._collected.ids(self.group_by) if self.group_by else None
            self._cached_ranks = self.copies * (retrieval_ranks(query, gallery, groups, groups) - 1) + 1
        return self._cached_ranks

    def _recall(self, k: int) -> str:
        return f"{self.name}/recall_at_{k}"

    def _bootstrap(self, ks: Sequence[int], n_resamples: int, seed: int, level: float) -> tuple[np.ndarray, np.ndarray]:
        units = self._collected.ids("subject_id")
        interval = bootstrap_ci(recall_statistic(self.ranks(), ks), units, n_resamples, seed, level)
        return interval.low, interval.high

    def _chance(self, ks: Sequence[int]) -> list[float]:
        """Of a random order: the first k of a duplicated gallery show k / 2 different items, rounded up."""
        shown = [-(-k // self.copies) for k in ks]
        expected = chance_recall(self._n_correct(), len(self.ranks()), shown)
        return [expected[k] for k in shown]

    def _n_correct(self) -> np.ndarray:
        if self.group_by is None:
            return np.ones(len(self.ranks()), dtype=int)
        _, group, sizes = np.unique(self._collected.ids(self.group_by), return_inverse=True, return_counts=True)
        return sizes[group]
