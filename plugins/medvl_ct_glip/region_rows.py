"""What the evaluators of this plugin collect: the region embeddings of every study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RegionRows", "visible_regions"]


def visible_regions(embeddings: Tensor) -> np.ndarray:
    """``N R E`` → ``N R``: regions with an embedding; those that were not seen are zero."""
    return (embeddings.abs().sum(dim=2) > 0).numpy()


class RegionRows:
    """Region embeddings, ids and labels of the studies seen so far, in order.

    Args:
        evaluator: Name for error messages.
        image: Reads the embeddings ``"<image>_regions"``.
        n_regions: R.
        n_labels: Columns of the labels, 0 for none.
    """

    def __init__(self, evaluator: str, image: str, n_regions: int, n_labels: int = 0) -> None:
        self._evaluator, self._key = evaluator, f"{image}_regions"
        self._n_regions, self._n_labels = n_regions, n_labels
        self.ids: dict[str, list[str]] = {"study_id": [], "subject_id": []}
        self._parts: list[Tensor] = []
        self._labels: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.ids["study_id"])

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch.

        Raises:
            ValueError: If an entry is missing or has another shape, or an embedding is not finite; it names the study.
        """
        rows = outputs.get("embeddings", {}).get(self._key)
        ids = [str(study) for study in outputs.get("study_id", ())]
        if rows is None or rows.ndim != 3 or rows.shape[:2] != (len(ids), self._n_regions):
            found = None if rows is None else tuple(rows.shape)
            raise ValueError(
                f"{self._evaluator} needs embeddings {self._key!r} of shape ({len(ids)}, {self._n_regions}, E), "
                f"got {found}"
            )
        finite = torch.isfinite(rows).flatten(1).all(dim=1)
        if not finite.all():
            raise ValueError(f"{ids[int((~finite).nonzero()[0])]}: a region embedding is not finite; check the weights")
        if self._n_labels:
            labels = np.asarray(outputs.get("labels", np.zeros((0, 0))), dtype=float)
            if labels.shape != (len(ids), self._n_labels):
                raise ValueError(
                    f"{self._evaluator}: labels have shape {labels.shape} for {self._n_labels} label names"
                )
            self._labels.append(labels)
        self._parts.append(rows.detach().float().cpu())
        for name, column in self.ids.items():
            column.extend(map(str, outputs[name]))

    def embeddings(self) -> Tensor:
        """``N R E``.

        Raises:
            ValueError: If nothing was collected.
        """
        if not self._parts:
            raise ValueError(f"{self._evaluator} has collected no study; call update() before compute()")
        return torch.cat(self._parts)

    def visible(self) -> np.ndarray:
        """``N R``: regions with an embedding."""
        return visible_regions(self.embeddings())

    def labels(self) -> np.ndarray:
        """``N L``, NaN = unknown."""
        self.embeddings()
        return np.concatenate(self._labels)
