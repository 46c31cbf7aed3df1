"""One imaging study as every dataset gives it: ids, lazily read images, report, labels. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

__all__ = ["Image", "ImageSource", "Report", "Shared", "Study"]


@dataclass(frozen=True, slots=True)
class Image:
    """Voxels or pixels with their geometry.

    Args:
        array: ``X Y Z`` (HU for CT) or ``H W`` / ``H W 3`` for radiographs, row 0 at the top of the film.
        affine: Voxel index → millimetres in RAS+ (nibabel's convention: x grows towards the patient's right), 4 x 4.
            ``None`` for images without geometry (PNG, JPEG).
    """

    array: np.ndarray
    affine: np.ndarray | None = None


@runtime_checkable
class ImageSource(Protocol):
    """An image that is read (or made) only when asked for."""

    def load(self) -> Image:
        """Read it. Errors are one line that starts with the file or case."""
        ...

    def fingerprint(self) -> str:
        """A hex digest of the content: changes whenever ``load`` would give other values. Cheaper than ``load``."""
        ...


@dataclass(frozen=True)
class Shared:
    """A source that several others are made from (a CT and its simulated radiograph): read once when used in turn.

    The process remembers the one image that was loaded last, read-only.
    """

    source: ImageSource
    _last: ClassVar[dict[str, Image]] = {}

    def load(self) -> Image:
        """The image, from memory when it was the last one loaded."""
        key = self.source.fingerprint()
        if key not in self._last:
            self._last.clear()
            image = self.source.load()
            image.array.setflags(write=False)
            self._last[key] = image
        return self._last[key]

    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint()


@dataclass(frozen=True, slots=True)
class Report:
    """The sections of a radiology report; absent sections are empty strings."""

    findings: str = ""
    impression: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One study.

    Args:
        study_id: Stable and unique in the dataset: one image set.
        subject_id: The patient. Splits never share one.
        scan_id: Reconstructions of one acquisition share it (and the report).
        images: Modality (``"ct"``, ``"cxr"``, ``"mri"``) → source.
        regions: Label map of organs on the grid of ``images["ct"]``, uint8 ids of ``region_names``, or ``None``.
        region_names: Label id → organ name (TotalSegmentator names).
        report: Its report, or ``None``.
        labels: Name → 1, 0 or NaN (unknown).
        metadata: Anything else worth a column (age, sex, scanner): used for subgroups.
    """

    study_id: str
    subject_id: str
    scan_id: str
    images: Mapping[str, ImageSource]
    regions: ImageSource | None = None
    region_names: Mapping[int, str] = field(default_factory=dict)
    report: Report | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, str | float] = field(default_factory=dict)
