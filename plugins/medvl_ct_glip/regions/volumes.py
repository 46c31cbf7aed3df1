"""Whole scans with their label maps on the grid of an encoder, kept uncompressed and mapped from disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from medvl_core.engine.loading import start_worker, usable_workers
from medvl_core.errors import EXIT_DATA, MedvlError
from medvl_core.specs import ImageInput
from medvl_core.study import Image, Study
from medvl_imaging.transforms import STANDARDISE_VERSION, Orient, standardise, standardise_regions

__all__ = ["RegionError", "RegionVolumes"]

_SHOWN = 20  # faulty studies

Volume = tuple[NDArray[np.float16], NDArray[np.uint8]]
"""Intensities and region labels, both ``X Y Z``."""


class RegionError(MedvlError, ValueError):
    """Studies whose image or label map cannot be used, a line each."""

    exit_code = EXIT_DATA


class RegionVolumes:
    """CTs and label maps at an encoder's spacing, each as large as its scan; a patch reads only its own pages.

    Region r of ``names`` gets label r + 1, whatever numbers a study uses: structures are matched by name.
    Other structures become background.

    Args:
        input: Constants of the encoder. Its size is that of a patch; with ``spacing_mm`` a scan keeps its own size.
        names: Region names R, at most 255.
        folder: Where the volumes are kept, below a folder named by ``input`` and ``names``.
        modality: Which of the study's images the regions lie on.
        merge: Structure of the studies → the region it is counted to, beside the regions' own names: a cyst that the
            mask maker takes out of its kidney.

    Raises:
        ValueError: If a region repeats, there are none or too many, a merge goes to none of them, or the encoder reads
            several channels.
    """

    def __init__(
        self,
        input: ImageInput,
        names: Sequence[str],
        folder: str | Path,
        modality: str = "ct",
        merge: Mapping[str, str] | None = None,
    ) -> None:
        if not 1 <= len(set(names)) == len(names) <= 255:
            raise ValueError(f"{len(names)} region names, {len(set(names))} of them different; give 1 to 255 different")
        if input.channels != 1 or len(input.size) != 3:
            raise ValueError(f"regions lie on volumes of one channel; this encoder reads {input.channels} {input.size}")
        self.merge = dict(merge or {})
        if lost := [f"{part} into {name}" for part, name in self.merge.items() if name not in names]:
            raise ValueError(f"merge: {', '.join(lost)}: no such region ({', '.join(names[:5])} ...); change merge")
        self.input, self.names, self.modality = input, tuple(names), modality
        merged = [sorted(self.merge.items())] if self.merge else []
        constants = json.dumps(
            [STANDARDISE_VERSION, replace(input, size=(1, 1, 1)).digest(), self.names, modality, *merged]
        )
        fixed = [] if input.spacing_mm is not None else list(input.size)
        digest = hashlib.sha256((constants + json.dumps(fixed)).encode()).hexdigest()
        self.folder = Path(folder) / f"regions-{digest[:24]}"

    def __call__(self, study: Study) -> Volume:
        """The volumes of a study, read-only views of the mapped files; made first when they are missing or damaged."""
        try:
            return self._mapped(study)
        except (OSError, ValueError):
            self.write(study)
            return self._mapped(study)

    def prepare(self, studies: Sequence[Study], num_workers: int = 0) -> int:
        """Make what is missing; run it again after a kill to go on.

        Args:
            studies: Of any splits, with region labels.
            num_workers: Processes that read and standardise.

        Returns:
            How many studies were made.

        Raises:
            RegionError: If studies lack the image or its regions, their grids differ, a source refuses to load, or
                none of a study's structures is a region. A line per study, which starts with its id; all others are
                made first.
        """
        missing = [study for study in studies if not self._made(study)]
        loader = DataLoader(
            _Making(self, missing),
            batch_size=None,
            num_workers=usable_workers(num_workers),
            worker_init_fn=start_worker,
        )
        faults = [fault for fault in loader if fault] if missing else []
        if faults:
            rest = [f"and {len(faults) - _SHOWN} further studies"] if len(faults) > _SHOWN else []
            raise RegionError("\n".join(faults[:_SHOWN] + rest))
        return len(missing)

    def make(self, study: Study) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Read, check and standardise a study: ``X Y Z`` each.

        Raises:
            ValueError: If they cannot be used, see `prepare`. The message starts with the study or the file.
        """
        if self.modality not in study.images or study.regions is None:
            raise ValueError(
                f"{study.study_id}: has images {sorted(study.images)} and {'no' if study.regions is None else 'a'} "
                f"label map; regions need {self.modality} and a label map, e.g. of TotalSegmentator"
            )
        image, labels = study.images[self.modality].load(), study.regions.load()
        _check_grids(study, image, labels)
        whole = self._whole(image)
        relabelled = Image(self._table(study)[labels.array], labels.affine)
        volume = standardise(whole)(image)[0].numpy()
        return volume, standardise_regions(whole)(relabelled)[0].numpy()

    def write(self, study: Study) -> None:
        """Make a study and put its files in place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        volume, labels = self.make(study)
        arrays: tuple[NDArray[Any], ...] = (volume.astype(np.float16), labels)
        for path, array in zip(self._paths(study), arrays, strict=True):
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            with temporary.open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)

    def _paths(self, study: Study) -> tuple[Path, Path]:
        sources = [study.images[self.modality], study.regions] if self.modality in study.images else []
        prints = [source.fingerprint() for source in sources if source is not None]
        named = json.dumps([study.study_id, *prints, sorted(study.region_names.items())])
        stem = hashlib.sha256(named.encode()).hexdigest()[:32]
        return self.folder / f"{stem}-image.npy", self.folder / f"{stem}-regions.npy"

    def _made(self, study: Study) -> bool:
        try:
            return all(path.is_file() for path in self._paths(study))
        except (ValueError, OSError):
            return False  # making it says what is wrong

    def _mapped(self, study: Study) -> Volume:
        image, labels = (np.load(path, mmap_mode="r") for path in self._paths(study))
        return image, labels

    def _whole(self, image: Image) -> ImageInput:
        """The encoder's constants with the size that the whole scan has at its spacing."""
        if self.input.spacing_mm is None or self.input.axcodes is None:
            return self.input
        turned = Orient(self.input.axcodes)(image)
        spacing = np.linalg.norm(turned.affine[:3, :3], axis=0)  # type: ignore[index]
        pairs = zip(turned.array.shape, spacing, self.input.spacing_mm, strict=True)
        return replace(self.input, size=tuple(max(int(n * s / t + 1e-4), 1) for n, s, t in pairs))

    def _table(self, study: Study) -> NDArray[np.uint8]:
        own = {name: label for label, name in enumerate(self.names, start=1)}
        labels = {part: own[name] for part, name in self.merge.items()} | own
        known: Mapping[int, int] = {i: labels[n] for i, n in study.region_names.items() if n in labels}
        if not known:
            have = ", ".join(list(study.region_names.values())[:5]) or "none"
            raise ValueError(
                f"{study.study_id}: none of its structures ({have} ...) is a region ({self.names[0]} ...); "
                "structures are matched by name"
            )
        table = np.zeros(256, np.uint8)
        table[list(known)] = list(known.values())
        return table


class _Making(Dataset[str]):
    """Makes one study after the other; gives what is wrong with it, or an empty string."""

    def __init__(self, volumes: RegionVolumes, studies: Sequence[Study]) -> None:
        self.volumes, self.studies = volumes, studies

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> str:
        study = self.studies[index]
        try:
            self.volumes.write(study)
        except (ValueError, FileNotFoundError) as error:
            return str(error) if str(error).startswith(f"{study.study_id}: ") else f"{study.study_id}: {error}"
        return ""


def _check_grids(study: Study, image: Image, labels: Image) -> None:
    same = image.array.shape == labels.array.shape
    if (
        image.affine is None
        or labels.affine is None
        or not same
        or not np.allclose(image.affine, labels.affine, atol=1e-2)
    ):
        raise ValueError(
            f"{study.study_id}: the image has shape {image.array.shape} and the label map {labels.array.shape}, or "
            "their affines differ; both must lie on one grid. Make the label map again from this image"
        )
    if labels.array.dtype != np.uint8:
        raise ValueError(f"{study.study_id}: the label map is {labels.array.dtype}; give uint8 labels")
