"""What evaluators collect: batches of an evaluation pass, joined when they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Collected", "check_classes", "check_prefix"]


def check_classes(evaluator: str, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes, which must be a list of different names.

    Raises:
        ValueError: If they are none.
    """
    if isinstance(classes, str) or not classes or len(set(classes)) < len(classes):
        raise ValueError(f"{evaluator}: classes is {classes!r}; give a list of different names")
    return tuple(classes)


def check_prefix(evaluator: str, prefix: str) -> str:
    """The prefix of metrics and tables.

    Raises:
        ValueError: If it is no lower snake case: it becomes part of file names.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", prefix):
        raise ValueError(f"{evaluator}: prefix is {prefix!r}; it names files, use lower snake case")
    return prefix


class Collected:
    """Embeddings, ids and labels of the studies seen so far, in order.

    Args:
        evaluator: Name for error messages.
        modalities: Embeddings to keep.
        ids: Id columns to keep, e.g. ``"subject_id"``.
        classes: Names of the label columns; empty keeps no labels.
        exclusive: Whether each study has exactly one class.
    """

    def __init__(
        self,
        evaluator: str,
        modalities: tuple[str, ...],
        ids: tuple[str, ...],
        classes: tuple[str, ...] = (),
        exclusive: bool = False,
    ) -> None:
        self._evaluator = evaluator
        self._embeddings: dict[str, list[Tensor]] = {name: [] for name in modalities}
        self._ids: dict[str, list[str]] = {name: [] for name in ids}
        self._classes, self._exclusive = classes, exclusive
        self._labels: list[Tensor] = []

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch.

        Raises:
            ValueError: If a modality, an id column or the labels are missing, their lengths differ, an embedding is not
                finite, or the labels do not fit the classes.
        """
        have: dict[str, Any] = {"embeddings": outputs.get("embeddings", {}), "outputs": outputs}
        wanted: dict[str, Mapping[str, Any]] = {"embeddings": self._embeddings, "outputs": self._ids}
        for place, names in wanted.items():
            if lost := [name for name in names if name not in have[place]]:
                raise ValueError(f"{self._evaluator} needs {lost} in {place}, which has {sorted(have[place])}")
        if self._classes and outputs.get("labels") is None:
            raise ValueError(f"{self._evaluator} needs labels, and the dataset gives none; evaluate retrieval only")
        sizes = {name: len(have["embeddings"][name]) for name in self._embeddings}
        sizes |= {name: len(outputs[name]) for name in self._ids}
        if self._classes:
            sizes["labels"] = len(outputs["labels"])
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{self._evaluator} got a batch whose entries differ in length: {sizes}")
        rows = {
            name: have["embeddings"][name].detach().to("cpu", torch.float32, copy=True) for name in self._embeddings
        }
        for name, part in rows.items():
            if not (finite := torch.isfinite(part).flatten(1).all(dim=1)).all():
                where = self._case(outputs, int((~finite).nonzero()[0]))
                raise ValueError(f"{where}: its {name} embedding is not finite; check the weights and the image")
        if self._classes:
            self._labels.append(self._checked_labels(outputs))
        for name, kept in self._embeddings.items():
            kept.append(rows[name])
        for name, column in self._ids.items():
            column.extend(map(str, outputs[name]))

    def embeddings(self, modality: str) -> Tensor:
        """``N E``.

        Raises:
            ValueError: If nothing was collected.
        """
        return self._joined(self._embeddings[modality])

    def ids(self, name: str) -> list[str]:
        """One id per study."""
        return list(self._ids[name])

    def labels(self) -> np.ndarray:
        """``N C``, float64, NaN = unknown.

        Raises:
            ValueError: If nothing was collected.
        """
        return self._joined(self._labels).numpy()

    def _joined(self, parts: list[Tensor]) -> Tensor:
        if not parts:
            raise ValueError(f"{self._evaluator} has collected no study; call update() before compute()")
        return torch.cat(parts)

    def _checked_labels(self, outputs: Mapping[str, Any]) -> Tensor:
        labels = torch.as_tensor(outputs["labels"]).to("cpu", torch.float64, copy=True)
        if tuple(labels.shape[1:]) != (len(self._classes),):
            raise ValueError(
                f"{self._evaluator}: labels have shape {tuple(labels.shape)} for {len(self._classes)} classes"
            )
        odd = ~((labels == 0) | (labels == 1) | labels.isnan())
        if odd.any():
            row, column = odd.nonzero()[0].tolist()
            raise ValueError(
                f"{self._case(outputs, row)}: label {self._classes[column]!r} is {labels[row, column]:g}; "
                "use 1, 0 or NaN (unknown)"
            )
        if self._exclusive:
            one = ((labels == 0) | (labels == 1)).all(dim=1) & (labels.sum(dim=1) == 1)
            if not one.all():
                row = int((~one).nonzero()[0])
                raise ValueError(
                    f"{self._case(outputs, row)}: labels {labels[row].tolist()} of {list(self._classes)}; "
                    f"{self._evaluator} needs exactly one class per study"
                )
        return labels

    def _case(self, outputs: Mapping[str, Any], row: int) -> str:
        return str(outputs["study_id"][row]) if "study_id" in outputs else f"{self._evaluator}, row {row} of a batch"
