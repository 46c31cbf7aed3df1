"""An evaluator: from the outputs of an evaluation pass to metrics, intervals and a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from medvl_core.specs import Metric
from medvl_evaluation.metrics import bootstrap_ci

__all__ = ["PairCosine"]


class PairCosine:
    """Mean cosine between two embeddings of one study: the alignment of arXiv:2005.10242, as a cosine.

    Args:
        query: First modality. A config offers its own under this name.
        gallery: Second modality, likewise.
    """

    def __init__(self, query: str, gallery: str) -> None:
        self.query, self.gallery = query, gallery
        self.name = f"{query}_to_{gallery}/cosine"
        self.reset()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Its one metric."""
        return (Metric(name=self.name),)

    def reset(self) -> None:
        """Forget everything collected."""
        self._rows: dict[str, list[Tensor]] = {self.query: [], self.gallery: []}
        self._ids: dict[str, list[str]] = {"study_id": [], "subject_id": []}

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch."""
        for modality, rows in self._rows.items():
            rows.append(outputs["embeddings"][modality])
        for column, ids in self._ids.items():
            ids.extend(outputs[column])

    def compute(self) -> dict[str, float]:
        """The mean over all studies."""
        return {self.name: float(self._cosines().mean())}

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap interval; subjects are drawn whole."""
        cosines = self._cosines().numpy()
        found = bootstrap_ci(
            lambda weights: cosines @ weights / weights.sum(axis=0), self._ids["subject_id"], n_resamples, seed, level
        )
        return {self.name: (float(found.low), float(found.high))}

    def chance(self) -> dict[str, float]:
        """The mean cosine of embeddings that belong to different studies."""
        query, gallery = (torch.cat(rows).double() for rows in self._rows.values())
        others = query.sum(dim=0) @ gallery.sum(dim=0) - self._cosines().sum()
        return {self.name: float(others / (len(query) * (len(query) - 1)))}

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """``pair_cosine_<query>_to_<gallery>``: one row per study."""
        table = pd.DataFrame({"study_id": self._ids["study_id"], "cosine": self._cosines()})
        return {f"pair_cosine_{self.query}_to_{self.gallery}": table}

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """None."""
        return []

    def _cosines(self) -> Tensor:
        query, gallery = (torch.cat(rows).double() for rows in self._rows.values())
        return (query * gallery).sum(dim=1)  # the rows have length one
