"""A dataset: studies with lazily read images, and an entry of its own for the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from medvl_core.study import Image, Report, Study
from medvl_imaging.radiograph import SimulatedRadiograph

__all__ = ["BallScan", "Balls", "age"]


def age(study: Study, draw: object = None) -> torch.Tensor:
    """The age in years as a 0-d tensor, NaN where unknown. It is no matter of chance: ``draw`` is not used."""
    return torch.tensor(float(study.metadata.get("age", np.nan)))


@dataclass(frozen=True)
class BallScan:
    """The CT of one patient, made when asked for. Read a file instead: ``medvl_imaging.readers.FileSource``."""

    seed: int
    subject: int
    shape: tuple[int, ...]
    age: float
    nodule: bool

    def load(self) -> Image:
        """HU ``X Y Z`` in a field of view of 300 mm: a ball that is larger in the old, with or without a nodule."""
        centred = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in self.shape), indexing="ij"))
        hu = np.where((centred**2).sum(axis=0) < 0.4 + self.age / 200, 0.0, -1000.0)
        if self.nodule:
            hu[((centred - 0.2) ** 2).sum(axis=0) < 0.05] = 400.0
        hu += np.random.default_rng((self.seed, self.subject)).normal(0.0, 20.0, self.shape)
        return Image(hu.astype(np.float32), np.diag([*(300 / n for n in self.shape), 1.0]))

    def fingerprint(self) -> str:
        """Everything the voxels depend on: stored images and embeddings are found by it."""
        return hashlib.sha256(f"ball 1 {self!r}".encode()).hexdigest()


class Balls:
    """Generated patients with one CT, its simulated radiograph, a report, a label and an age each.

    Args:
        n_subjects: Patients; every fifth is for testing, and the one after it for validation.
        shape: Voxels ``(X, Y, Z)`` of the CTs.
        seed: Of the cohort.
    """

    label_names = ("Lung nodule",)
    fields: Mapping[str, Callable[[Study, Any], torch.Tensor]] = {"age": age}
    """Entries that any loss may need, beside those every batch has."""

    def __init__(self, n_subjects: int = 200, shape: Sequence[int] = (48, 48, 48), seed: int = 0) -> None:
        self.n_subjects, self.shape, self.seed = n_subjects, tuple(shape), seed

    def studies(self, split: Literal["train", "validation", "test"]) -> list[Study]:
        """The studies of a split, always in the same order."""
        places = {"test": (0,), "validation": (1,), "train": (2, 3, 4)}[split]
        return [self._study(subject) for subject in range(self.n_subjects) if subject % 5 in places]

    def _study(self, subject: int) -> Study:
        draw = np.random.default_rng((self.seed, subject, 1))
        scan = BallScan(self.seed, subject, self.shape, round(draw.uniform(20, 90), 1), bool(draw.random() < 0.5))
        name = f"ball{self.seed}_{subject:04d}"
        return Study(
            study_id=name,
            subject_id=name,
            scan_id=name,
            images={"ct": scan, "cxr": SimulatedRadiograph(scan)},
            report=Report("There is a nodule." if scan.nodule else "No nodule is seen.", f"Aged {scan.age:.0f}."),
            labels={"Lung nodule": float(scan.nodule)},
            metadata={"age": scan.age},
        )
