"""What evaluators collect: batches of an evaluation pass, joined when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Collected"]


class Collected:
    """Embeddings, ids and labels of the studies seen so far, in order.

    Args:
        evaluator: Name for error messages.
        modalities: Embeddings to keep.
        ids: Id columns to keep, e.g. ``"subject_id"``.
        labels: Whether to keep labels.
    """

    def __init__(self, evaluator: str, modalities: tuple[str, ...], ids: tuple[str, ...], labels: bool = False) -> None:
        self._evaluator = evaluator
        self._embeddings: dict[str, list[Tensor]] = {name: [] for name in modalities}
        self._ids: dict[str, list[str]] = {name: [] for name in ids}
        self._labels: list[Tensor] | None = [] if labels else None

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch.

        Raises:
            ValueError: If a modality, an id column or the labels are missing, or their lengths differ.
        """
        have = {"embeddings": outputs.get("embeddings", {}), "outputs": outputs}
        wanted = {"embeddings": self._embeddings, "outputs": self._ids}
        for place, names in wanted.items():
            if lost := [name for name in names if name not in have[place]]:
                raise ValueError(f"{self._evaluator} needs {lost} in {place}, which has {sorted(have[place])}")
        if self._labels is not None and outputs.get("labels") is None:
            raise ValueError(f"{self._evaluator} needs labels, and the dataset gives none; evaluate retrieval only")
        sizes = {name: len(have["embeddings"][name]) for name in self._embeddings}
        sizes |= {name: len(outputs[name]) for name in self._ids}
        if self._labels is not None:
            sizes["labels"] = len(outputs["labels"])
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{self._evaluator} got a batch whose entries differ in length: {sizes}")
        for name, kept in self._embeddings.items():
            kept.append(have["embeddings"][name].detach().to("cpu", torch.float32, copy=True))
        for name, column in self._ids.items():
            column.extend(map(str, outputs[name]))
        if self._labels is not None:
            self._labels.append(torch.as_tensor(outputs["labels"]).to("cpu", torch.float64, copy=True))

    def embeddings(self, modality: str) -> Tensor:
        """``N E``.

        Raises:
            ValueError: If nothing was collected.
        """
        if not self._embeddings[modality]:
            raise ValueError(f"{self._evaluator} has collected no study; call update() before compute()")
        return torch.cat(self._embeddings[modality])

    def ids(self, name: str) -> list[str]:
        """One id per study."""
        return list(self._ids[name])

    def labels(self) -> np.ndarray:
        """``N C``, float64, NaN = unknown."""
        return torch.cat(self._labels or []).numpy()
