"""Slices of volumes as images: what the 2D tower of stage 1 is trained on where a set has volumes only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from medvl_core.build import build_dataset
from medvl_core.study import Image, ImageSource, Shared, Study
from medvl_imaging.transforms import Orient, Window
from medvl_radclip.plugin import SLICES

__all__ = ["SliceAt", "VolumeSlice", "VolumeSlices"]


@dataclass(frozen=True, slots=True)
class VolumeSlice:
    """An axial slice as an 8-bit image, grey as ``radclip/slices`` shows it: the volume's mean ± 3 deviations.

    Args:
        volume: Where it is cut from.
        number: Which slice, from the feet.
    """

    volume: ImageSource
    number: int

    def load(self) -> Image:
        """``H W``, rows to the back and columns to the patient's left, 0 to 255."""
        return _grey(Orient(str(SLICES.axcodes))(self.volume.load()), self.number)

    def fingerprint(self) -> str:
        """Of the volume and the number."""
        return hashlib.sha256(f"slice {self.number} {self.volume.fingerprint()}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SliceAt:
    """The same of a volume whose number of slices is known only once it is read; padded to a square with black.

    Args:
        volume: Where it is cut from.
        height: Where: 0 at the feet, below 1.
    """

    volume: ImageSource
    height: float

    def load(self) -> Image:
        """``H H``, as a `VolumeSlice`."""
        volume = Orient(str(SLICES.axcodes))(self.volume.load())
        grey = _grey(volume, int(self.height * volume.array.shape[2])).array
        missing = [max(grey.shape) - n for n in grey.shape]
        return Image(np.pad(grey, [(n // 2, n - n // 2) for n in missing]))

    def fingerprint(self) -> str:
        """Of the volume and the height."""
        return hashlib.sha256(f"slice at {self.height} {self.volume.fingerprint()}".encode()).hexdigest()


class VolumeSlices:
    """Evenly spread axial slices of another set's volumes, with its labels, captions and splits.

    A patient is in the same split as image and as volume, so a tower trained on the slices has not seen the volumes
    that are tested. A volume with fewer slices than ``per_volume`` gives some of them twice.

    Args:
        volumes: A dataset of studies with the image ``"volume"``, or its name.
        per_volume: Slices of each volume.
        options: Options of the dataset that ``volumes`` names.

    Attributes:
        label_names: Those of the volumes.

    Raises:
        ValueError: If ``per_volume`` is below 1, or there are options for a dataset that exists.
    """

    def __init__(self, volumes: Any, per_volume: int = 16, options: Mapping[str, Any] | None = None) -> None:
        if per_volume < 1:
            raise ValueError(f"per_volume is {per_volume}; give at least 1 slice of each volume")
        if options and not isinstance(volumes, str):
            raise ValueError(f"options {sorted(options)} are for a dataset given by name; this one is built already")
        self._volumes = build_dataset(volumes, **(options or {})) if isinstance(volumes, str) else volumes
        self.per_volume = per_volume
        self.label_names = tuple(self._volumes.label_names)

    def studies(self, split: Literal["train", "validation", "test"]) -> list[Study]:
        """One study per slice, image ``"image"``; nothing is read.

        Raises:
            ValueError: If there is no such split, or a study has no volume.
        """
        return [slice_ for study in self._volumes.studies(split) for slice_ in self._slices(study)]

    def _slices(self, study: Study) -> Iterator[Study]:
        if "volume" not in study.images:
            raise ValueError(f"{study.study_id}: has no volume image, only {sorted(study.images)}")
        volume = Shared(study.images["volume"])  # its slices follow each other
        for k in range(self.per_volume):
            image = SliceAt(volume, (k + 0.5) / self.per_volume)
            yield replace(study, study_id=f"{study.study_id}_slice{k:03d}", images={"image": image})


def _grey(volume: Image, number: int) -> Image:
    grey = Window(None, (0.0, 255.0), SLICES.window_sd)(volume).array
    return Image(np.rint(grey[:, :, number].T))
