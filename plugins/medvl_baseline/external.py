"""External validation as an evaluator: another evaluator on a data set with other labels, joined by a label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medvl_baseline.label_map import merge_labels, read_label_map
from medvl_core.protocols import Classifies
from medvl_core.specs import Metric
from medvl_evaluation.evaluators.collected import check_prefix

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ExternalValidation"]


class ExternalValidation:
    """Gives an evaluator the labels of another data set in its own terms, and puts a prefix before its results.

    What the evaluator can do beyond judging it is asked for itself (`medvl_evaluation.abilities.Wraps`): predictions
    have the merged labels, and studies that it learns from carry its own classes.

    Args:
        evaluator: What judges, e.g. `ZeroShot` or `LinearProbe` with ``scheme="train"``; its classes are the targets.
        columns: Label columns of the evaluated data set, in order.
        label_map: JSON file, target label: [source labels], see `medvl_baseline.label_map`. Sources are merged by their
            maximum, unknown stays unknown. A class that it does not name is the column of its own name.
            Targets that are no class are passed over only while every class is named.
        prefix: Put before the names of metrics and tables.

    Raises:
        ValueError: If the evaluator has no classes, the map is unusable, or a class cannot be made from the columns.
    """

    def __init__(self, evaluator: Any, columns: Sequence[str], label_map: str | Path, prefix: str = "external") -> None:
        if not isinstance(evaluator, Classifies):
            raise ValueError(f"ExternalValidation: {type(evaluator).__name__} has no classes to map labels to")
        self.evaluator: Any = evaluator
        self.columns = tuple(columns)
        self.prefix = check_prefix("ExternalValidation", prefix)
        self.label_map = read_label_map(label_map)
        try:  # now, not after the pass
            self._mapped(torch.zeros(0, len(self.columns)))
        except ValueError as error:
            raise ValueError(f"{label_map}: {error}") from error
        unnamed = [name for name in evaluator.classes if name not in self.label_map]
        unused = [name for name in self.label_map if name not in evaluator.classes]
        if unnamed and unused:  # a misspelt target would leave its class to the column of the same name
            raise ValueError(
                f"{label_map}: target {unused[0]!r} is no class, and class {unnamed[0]!r} is no target; name it too"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """The label columns that it is fed."""
        return self.columns

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The evaluator's, under the prefix."""
        return tuple(
            Metric(name=f"{self.prefix}/{metric.name}", unit=metric.unit, higher_is_better=metric.higher_is_better)
            for metric in self.evaluator.metrics
        )

    def reset(self) -> None:
        """Forget everything collected."""
        self.evaluator.reset()

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch, with labels of ``columns``.

        Raises:
            ValueError: If there are no labels, or not one per column.
        """
        if outputs.get("labels") is None:
            raise ValueError("ExternalValidation needs labels, and the dataset gives none")
        self.evaluator.update({**outputs, "labels": self._mapped(torch.as_tensor(outputs["labels"]))})

    def compute(self) -> dict[str, float]:
        """The evaluator's metrics on the merged labels."""
        return self._named(self.evaluator.compute())

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """The evaluator's."""
        return self._named(self.evaluator.intervals(n_resamples, seed, level))

    def chance(self) -> dict[str, float]:
        """The evaluator's."""
        return self._named(self.evaluator.chance())

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """The evaluator's as ``external_<stem>``, and ``external_label_map``: target, sources."""
        import pandas as pd

        tables = self.evaluator.tables(n_resamples, seed, level)
        sources = [" | ".join(self.label_map.get(name, (name,))) for name in self.evaluator.classes]
        used = pd.DataFrame({"class": list(self.evaluator.classes), "sources": sources})
        return {**{f"{self.prefix}_{stem}": table for stem, table in tables.items()}, f"{self.prefix}_label_map": used}

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """The evaluator's, renamed."""
        paths = self.evaluator.figures(folder, n_resamples, seed, level)
        return [path.rename(path.with_name(f"{self.prefix}_{path.name}")) for path in paths]

    def _mapped(self, labels: torch.Tensor) -> torch.Tensor:
        merged = merge_labels(labels.double().numpy(), self.columns, self.evaluator.classes, self.label_map)
        return torch.from_numpy(merged)

    def _named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{self.prefix}/{name}": value for name, value in values.items()}
