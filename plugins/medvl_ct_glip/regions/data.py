"""Scans with regions and their texts as batches: random patches for training, whole scans for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medvl_core.engine.loading import rng_for
from medvl_core.study import Study
from medvl_ct_glip.regions.texts import NORMAL, RegionTexts
from medvl_ct_glip.regions.volumes import RegionVolumes

__all__ = ["RegionDataset"]


class RegionDataset(Dataset[dict[str, Any]]):
    """By ``(epoch, index)`` a random patch, a function of both; by plain ``index`` the whole scan.

    A region is visible when at least ``min_voxels`` and ``min_share`` of it lie inside: the text of an organ that is
    mostly cut off would describe tissue that the patch does not show. Whole scans differ in size: load them one at a
    time. What is smaller than the patch of the encoder is padded to it, with equal margins.

    Args:
        studies: The studies of one split.
        volumes: Their volumes and label maps.
        texts: Their region texts; ``None`` leaves texts out, as evaluation does.
        report: Study → embedding ``E`` of its report, for alignment of whole scans; goes to ``report_embedding``.
        label_names: Columns of ``labels``; a study without one of them has NaN there.
        min_voxels: See above.
        min_share: See above.
        foreground: Share of patches that are drawn around a random voxel of a region, in [0, 1].
        true_masks: Also give the label map as ``true_masks`` and ``voxel_ml``, for segmentation.
        seed: Seeds patches and negatives.

    Raises:
        ValueError: If there are no studies, or a limit is out of range.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        volumes: RegionVolumes,
        texts: RegionTexts | None = None,
        report: Callable[[Study], tuple[Tensor, int]] | None = None,
        label_names: Sequence[str] = (),
        min_voxels: int = 50,
        min_share: float = 0.5,
        true_masks: bool = False,
        seed: int = 0,
        foreground: float = 0.0,
    ) -> None:
        if not studies:
            raise ValueError("no studies in this split; check the table's split column or the shares")
        if min_voxels < 1 or not 0 <= min_share <= 1:
            raise ValueError(f"min_voxels is {min_voxels} and min_share {min_share}; at least 1, and within [0, 1]")
        if not 0 <= foreground <= 1:
            raise ValueError(f"foreground is {foreground}; a share of patches within [0, 1]")
        self.foreground = foreground
        self.studies, self.volumes, self.texts, self.report = list(studies), volumes, texts, report
        self.label_names, self.min_voxels, self.min_share = tuple(label_names), min_voxels, min_share
        self.true_masks, self.seed = true_masks, seed
        self.fields: dict[str, Any] = {}  # the page shows pictures of 2D fields; there are none

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        epoch, position = index if isinstance(index, tuple) else (0, index)
        study = self.studies[position]
        volume, regions = self.volumes(study)
        whole = self._counts(regions)
        if isinstance(index, tuple):
            corner = self._corner(regions, rng_for(self.seed, "patch", epoch, study.study_id))
            volume, regions = (_cut(part, corner, self.volumes.input.size) for part in (volume, regions))
        inside = self._counts(regions)
        visible = torch.from_numpy((inside >= self.min_voxels) & (inside >= self.min_share * whole))
        padding, size = self.volumes.input.pad_value, self.volumes.input.size
        item: dict[str, Any] = {
            "study_id": study.study_id,
            "subject_id": study.subject_id,
            "scan_id": study.scan_id,
            "metadata": dict(study.metadata),
            "labels": torch.tensor([float(study.labels.get(name, np.nan)) for name in self.label_names]),
            self.volumes.modality: _padded(volume, size, padding, np.float32)[None],
            "regions": _padded(regions, size, 0, np.uint8),
            "region_visible": visible,
        }
        if self.texts is not None:
            item |= _texts_of(self.texts, study, visible, rng_for(self.seed, "negatives", epoch, study.study_id))
        if self.report is not None:
            item["report_embedding"], group = self.report(study)
            item["text_group"] = torch.tensor(group)
        if self.true_masks:
            item["true_masks"] = item["regions"]
            item["voxel_ml"] = float(np.prod(self.volumes.input.spacing_mm or (10.0, 10.0, 10.0)) / 1000)
        return item

    def _counts(self, regions: NDArray[np.uint8]) -> NDArray[np.int64]:
        return np.bincount(np.asarray(regions).reshape(-1), minlength=len(self.volumes.names) + 1)[1:]

    def _corner(self, regions: NDArray[np.uint8], rng: np.random.Generator) -> tuple[int, ...]:
        free = [max(length - patch, 0) for length, patch in zip(regions.shape, self.volumes.input.size, strict=True)]
        corner = [int(rng.integers(most + 1)) for most in free]
        if self.foreground and rng.random() < self.foreground and len(inside := np.flatnonzero(regions)):
            middle = np.unravel_index(inside[rng.integers(len(inside))], regions.shape)
            pairs = zip(middle, self.volumes.input.size, free, strict=True)
            corner = [int(np.clip(place - patch // 2, 0, most)) for place, patch, most in pairs]
        return tuple(corner)


def _texts_of(texts: RegionTexts, study: Study, visible: Tensor, rng: np.random.Generator) -> dict[str, Tensor]:
    embedding, group, status = texts.of(study)
    normal = (visible & (status == NORMAL)).nonzero().flatten()
    negatives = texts.negatives(normal, rng)
    return {"diagnosis_embedding": embedding, "diagnosis_group": group, "status": status, "negatives": negatives}


def _cut(volume: NDArray[Any], corner: tuple[int, ...], size: tuple[int, ...]) -> NDArray[Any]:
    return volume[tuple(slice(start, start + length) for start, length in zip(corner, size, strict=True))]


def _padded(volume: NDArray[Any], size: tuple[int, ...], value: float, dtype: Any) -> Tensor:
    """A copy of at least ``size``; an odd voxel of padding falls at the end."""
    margins = [max(length - n, 0) for n, length in zip(volume.shape, size, strict=True)]
    around = [(margin // 2, margin - margin // 2) for margin in margins]
    return torch.from_numpy(np.pad(np.asarray(volume, dtype=dtype), around, constant_values=value))
