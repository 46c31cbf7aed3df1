"""The phantom cohort as RadCLIP sees data: volumes with one condition each, and captioned slices of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np

from medvl_core.build import build_dataset
from medvl_core.engine.loading import rng_for
from medvl_core.study import ImageSource, Study
from medvl_radclip.volume_slices import VolumeSlice

__all__ = ["PhantomSlices", "PhantomVolumes"]

NORMAL = "normal"
_CHANGED_HU, _SEEN = 60.0, 4
_ABDOMEN = ("liver", "spleen", "kidney_left", "kidney_right", "stomach", "pancreas", "gallbladder", "urinary_bladder")


class PhantomVolumes:
    """CTs of phantom patients with one condition each, or none; most conditions show in a few slices only.

    Args:
        n_subjects: Patients.
        shape: Voxels ``(X, Y, Z)``.
        conditions: Findings of the phantom cohort; each patient has one of them or is normal, with equal odds.
        seed: Of the cohort and of who has what.
        shares: Shares of patients in train, validation and test.

    Attributes:
        label_names: ``"normal"`` and the conditions in lower case, one-hot.
    """

    def __init__(
        self,
        n_subjects: int = 240,
        shape: Sequence[int] = (96, 96, 32),
        conditions: Sequence[str] = ("Lung nodule", "Consolidation", "Hiatal hernia"),
        seed: int = 0,
        shares: Sequence[float] = (0.6, 0.1, 0.3),
    ) -> None:
        self.seed = seed
        self.conditions = tuple(conditions)
        self.label_names = (NORMAL, *(name.lower() for name in conditions))
        self._cohort = build_dataset(
            "baseline/phantom",
            n_subjects=n_subjects,
            shape=shape,
            seed=seed,
            shares=shares,
            follow_up=0.0,
            second_reconstruction=0.0,
        )

    def studies(self, split: Literal["train", "validation", "test"]) -> list[Study]:
        """One study per patient, image ``"volume"``; nothing is rendered.

        Raises:
            ValueError: If there is no such split.
        """
        return [
            self._study(study, source, condition.lower(), "Chest-Abdomen")
            for study, source, condition in self.patients(split)
        ]

    def patients(self, split: str) -> Iterator[tuple[Study, Any, str]]:
        """Study of the cohort, its CT with the drawn condition only, and that condition."""
        for study in self._cohort.studies(split):
            drawn = rng_for(self.seed, "condition", study.subject_id).integers(len(self.label_names))
            condition = (NORMAL, *self.conditions)[drawn]
            yield study, study.images["ct"].showing(*([] if condition == NORMAL else [condition])), condition

    def _study(
        self, study: Study, source: ImageSource, condition: str, region: str, number: int | None = None
    ) -> Study:
        return Study(
            study_id=study.study_id if number is None else f"{study.study_id}_slice{number:03d}",
            subject_id=study.subject_id,
            scan_id=study.scan_id,
            images={"volume" if number is None else "image": source},
            labels={name: float(name == condition) for name in self.label_names},
            metadata={"region": region, "modality": "CT", "condition": condition, "sex": study.metadata["sex"]},
        )


class PhantomSlices(PhantomVolumes):
    """Axial slices of the same patients, each captioned with what it shows itself.

    Half of a patient's slices are those that show the condition best, as far as there are so many; the others do not
    show it and are normal. What a slice shows is told by rendering the patient with and without the condition.

    Args:
        n_subjects: Patients.
        shape: Voxels ``(X, Y, Z)`` of the volume.
        conditions: As for the volumes.
        seed: Likewise.
        shares: Likewise.
        per_volume: Slices of each patient.
    """

    def __init__(
        self,
        n_subjects: int = 240,
        shape: Sequence[int] = (96, 96, 32),
        conditions: Sequence[str] = ("Lung nodule", "Consolidation", "Hiatal hernia"),
        seed: int = 0,
        shares: Sequence[float] = (0.6, 0.1, 0.3),
        per_volume: int = 6,
    ) -> None:
        super().__init__(n_subjects, shape, conditions, seed, shares)
        if not 1 <= per_volume <= shape[2]:
            raise ValueError(f"per_volume is {per_volume}; give 1 to {shape[2]}, the slices of a volume")
        self.per_volume = per_volume

    def studies(self, split: Literal["train", "validation", "test"]) -> list[Study]:
        """One study per slice, image ``"image"``; every patient of the split is rendered.

        Raises:
            ValueError: If there is no such split.
        """
        return [study for patient in self.patients(split) for study in self._slices(*patient)]

    def _slices(self, study: Study, source: Any, condition: str) -> Iterator[Study]:
        volume = source.load()
        seen = np.zeros(volume.array.shape[2])
        if condition != NORMAL:
            changed = np.abs(volume.array - source.showing().load().array) > _CHANGED_HU
            seen = np.where((count := changed.sum(axis=(0, 1))) >= _SEEN, count, 0)
        showing = np.argsort(seen)[::-1][: min(self.per_volume // 2, int((seen > 0).sum()))].tolist()
        rest = np.flatnonzero(seen == 0)
        start = rng_for(self.seed, "slices", study.subject_id).random()
        places = (np.arange(n := self.per_volume - len(showing)) + start) / n * len(rest)
        regions = study.regions.load().array  # type: ignore[union-attr]
        for number in sorted([*showing, *rest[np.unique(places.astype(int))].tolist()]):
            found = condition.lower() if number in showing else NORMAL
            region = _region(regions[..., number], study.region_names)
            yield self._study(study, VolumeSlice(source, number), found, region, number)


def _region(labels: np.ndarray, names: Any) -> str:
    """Whether a slice shows more lung or more of the abdominal organs."""
    lung, abdomen = _ids(tuple(names.items()))
    return "Chest" if np.isin(labels, lung).sum() >= np.isin(labels, abdomen).sum() else "Abdomen"


@cache
def _ids(names: tuple[tuple[int, str], ...]) -> tuple[list[int], list[int]]:
    lung = [number for number, name in names if name.startswith("lung_")]
    return lung, [number for number, name in names if name in _ABDOMEN]
