"""Segmentation as an evaluator: Dice of every class, and detection from the predicted volume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvl_core.specs import Metric
from medvl_evaluation.evaluators.areas import area_interval, area_values, class_table, classes_left_out
from medvl_evaluation.evaluators.collected import check_classes, check_prefix
from medvl_evaluation.evaluators.decisions import mean_defined
from medvl_evaluation.evaluators.figures import class_intervals
from medvl_evaluation.metrics import Interval, bootstrap_ci
from medvl_evaluation.metrics.bootstrap import Statistic
from medvl_evaluation.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Segmentation"]

_NAMES = ("dice_macro", "detection_auroc_macro", "detection_auroc_micro")


class Segmentation:
    r"""Dice per class over the studies that have it, and AUROC of the predicted volume for having it.

    $Dice = 2 |P \cap T| / (|P| + |T|)$ from all voxels of a study; studies without the class in the true mask are left
    out of its Dice, and are the negatives of its detection. It sees counts of voxels, never masks.

    Args:
        classes: Class → its label id in both masks, 1 to 255.
        prefix: Put before the names of metrics and tables.

    Raises:
        ValueError: If there is no class, or an id is 0, above 255 or repeats.

    References:
        Fine-tuning of CT-GLIP, arXiv:2404.15272: Dice per tumour, tumour volume as detection score. No code copied.
    """

    def __init__(self, classes: Mapping[str, int], prefix: str = "segmentation") -> None:
        self.classes = check_classes("Segmentation", tuple(classes))
        self.ids = np.array([int(classes[name]) for name in self.classes])
        if len(set(self.ids.tolist())) < len(self.ids) or not ((self.ids > 0) & (self.ids < 256)).all():
            raise ValueError(f"Segmentation: label ids are {dict(classes)}; give different ones from 1 to 255")
        self.prefix = check_prefix("Segmentation", prefix)
        self.reset()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics by their full names."""
        left_out = Metric(name=f"{self.prefix}/classes_left_out", unit="classes", higher_is_better=False)
        return (*(Metric(name=f"{self.prefix}/{name}") for name in _NAMES), left_out)

    def reset(self) -> None:
        """Forget everything collected."""
        self._ids: dict[str, list[str]] = {"study_id": [], "subject_id": []}
        self._counts: list[np.ndarray] = []
        self._ml: list[float] = []

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch of B studies.

        Args:
            outputs: ``study_id`` and ``subject_id``; ``voxel_counts``, B times what `medvl_core.engine.masks` counts
                in one case; perhaps ``voxel_ml``, the volume of a voxel of each study, without
                which volumes are in voxels.

        Raises:
            ValueError: If an entry is missing, lengths differ, or a voxel has no positive volume.
        """
        if lost := [name for name in (*self._ids, "voxel_counts") if name not in outputs]:
            raise ValueError(f"Segmentation needs {lost} in outputs, which has {sorted(outputs)}")
        studies = [str(study) for study in outputs["study_id"]]
        counts = [np.asarray(part) for part in outputs["voxel_counts"]]
        sizes = [float(size) for size in outputs.get("voxel_ml", [1.0] * len(studies))]
        if not len(counts) == len(sizes) == len(studies) == len(outputs["subject_id"]):
            raise ValueError(f"Segmentation got {len(studies)} studies, {len(counts)} masks, {len(sizes)} voxel sizes")
        if bad := [study for study, size in zip(studies, sizes, strict=True) if not 0 < size < np.inf]:
            raise ValueError(f"{bad[0]}: voxel_ml must be a positive number")
        for name, column in self._ids.items():
            column.extend(map(str, outputs[name]))
        self._counts += [part[:, self.ids] for part in counts]
        self._ml += sizes

    def compute(self) -> dict[str, float]:
        """Mean Dice, macro and micro AUROC of detection; classes without positives or negatives are left out."""
        values = self._statistic()(np.ones((len(self._counts), 1), dtype=np.float32))[0, :1]
        areas = area_values(self._present(), self._volumes())
        numbers = [*values, areas["auroc_macro"], areas["auroc_micro"], classes_left_out(self._present())]
        return {metric.name: float(value) for metric, value in zip(self.metrics, numbers, strict=True)}

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap interval of each: patients drawn whole."""
        dice, areas = self._bounds(n_resamples, seed, level)
        bounds = [(dice.low[0], dice.high[0]), *((areas.low[0, k], areas.high[0, k]) for k in (0, 2))]
        return {f"{self.prefix}/{name}": (float(lo), float(hi)) for name, (lo, hi) in zip(_NAMES, bounds, strict=True)}

    def chance(self) -> dict[str, float]:
        """0.5 for detection; 0 for Dice, the limit of a mask laid at random as the class gets small."""
        return dict(zip((f"{self.prefix}/{name}" for name in _NAMES), (0.0, 0.5, 0.5), strict=True))

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """``segmentation_per_class``, ``segmentation_cases`` (a row per study and class), and the predictions."""
        import pandas as pd

        sizes = np.array(self._ml)[:, None]
        cases = self.predictions().table()[["study_id", "subject_id", "class"]]
        cases["dice"] = self._dice().ravel()
        counts = self._stacked()
        cases["predicted_volume"], cases["true_volume"] = (counts[:, 0] * sizes).ravel(), (counts[:, 1] * sizes).ravel()
        return {
            f"{self.prefix}_per_class": self._per_class(n_resamples, seed, level),
            f"{self.prefix}_cases": pd.DataFrame(cases),
            f"{self.prefix}_predictions": self.predictions().table(),
        }

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """Detection of every class with intervals."""
        path = Path(folder) / f"{self.prefix}_detection.png"
        n, subjects = len(self._counts), len(set(self._ids["subject_id"]))
        title = f"Detection by predicted volume: {n} studies of {subjects} subjects, {100 * level:g} % intervals"
        class_intervals(path, self._per_class(n_resamples, seed, level), title)
        return [path]

    def predictions(self) -> Predictions:
        """Predicted volume of every class against whether the true mask has it."""
        return Predictions(
            self._ids["study_id"], self._ids["subject_id"], self.classes, self._present(), self._volumes()
        )

    def _stacked(self) -> np.ndarray:
        """``N 3 C``: voxels predicted, true, and both."""
        if not self._counts:
            raise ValueError("Segmentation has collected no study; call update() before compute()")
        return np.stack(self._counts)

    def _present(self) -> np.ndarray:
        return (self._stacked()[:, 1] > 0).astype(float)

    def _volumes(self) -> np.ndarray:
        return self._stacked()[:, 0] * np.array(self._ml)[:, None]

    def _dice(self) -> np.ndarray:
        """``N C``; NaN for a study without the class."""
        predicted, true, both = self._stacked().transpose(1, 0, 2).astype(float)
        return np.where(true > 0, 2 * both / np.maximum(predicted + true, 1), np.nan)

    def _statistic(self) -> Statistic:
        """Weights ``N R`` → mean Dice over classes and Dice of every class, ``R 1+C``."""
        dice = self._dice()
        known, values = (~np.isnan(dice)).astype(float), np.nan_to_num(dice)

        def statistic(weights: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore"):
                classes = (values.T @ weights) / (known.T @ weights)
            return np.concatenate([mean_defined(classes)[None], classes]).T

        return statistic

    def _bounds(self, n_resamples: int, seed: int, level: float) -> tuple[Interval, Interval]:
        subjects = self._ids["subject_id"]
        areas = area_interval(self._present(), self._volumes(), subjects, n_resamples, seed, level)
        return bootstrap_ci(self._statistic(), subjects, n_resamples, seed, level), areas

    def _per_class(self, n_resamples: int, seed: int, level: float) -> pd.DataFrame:
        dice, areas = self._bounds(n_resamples, seed, level)
        table = class_table(self.classes, self._present(), self._volumes(), areas)
        values = self._statistic()(np.ones((len(self._counts), 1), dtype=np.float32))[0]
        table["dice"], table["dice_low"], table["dice_high"] = values[1:], dice.low[1:], dice.high[1:]
        return table
