"""A scan with its regions and their texts as entries of a batch: random patches for training, whole scans otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvl_core.engine.loading import Draw, rng_for
from medvl_core.study import Study
from medvl_ct_glip.regions.texts import NORMAL, RegionTexts
from medvl_ct_glip.regions.volumes import RegionVolumes

__all__ = ["RegionPatches"]


class RegionPatches:
    """The field of a volume with regions: where ``draw`` is random a patch, a function of it; else the whole scan.

    A region is visible when at least ``min_voxels`` and ``min_share`` of it lie inside: the text of an organ that is
    mostly cut off would describe tissue that the patch does not show. Whole scans differ in size: load them one at a
    time. What is smaller than the patch of the encoder is padded to it, with equal margins.

    Args:
        volumes: Volumes and label maps.
        texts: Region texts, for the diagnoses of patches; whole scans go without.
        min_voxels: See above.
        min_share: See above.
        foreground: Share of patches that are drawn around a random voxel of a region, in [0, 1].

    Raises:
        ValueError: If a limit is out of range.
    """

    def __init__(
        self,
        volumes: RegionVolumes,
        texts: RegionTexts | None = None,
        min_voxels: int = 50,
        min_share: float = 0.5,
        foreground: float = 0.0,
    ) -> None:
        if min_voxels < 1 or not 0 <= min_share <= 1:
            raise ValueError(f"min_voxels is {min_voxels} and min_share {min_share}; at least 1, and within [0, 1]")
        if not 0 <= foreground <= 1:
            raise ValueError(f"foreground is {foreground}; a share of patches within [0, 1]")
        self.volumes, self.texts, self.foreground = volumes, texts, foreground
        self.min_voxels, self.min_share = min_voxels, min_share

    def __call__(self, study: Study, draw: Draw) -> dict[str, Any]:
        """The entries of one study.

        Returns:
            The volume ``1 X Y Z`` under its modality's name, ``"regions"`` ``X Y Z`` (uint8) and ``"region_visible"``
            ``R``. Of a patch with texts ``"diagnosis_embedding"`` ``R E``, ``"diagnosis_group"`` ``R``, ``"status"``
            ``R`` and ``"negatives"`` ``N``. Of a whole scan ``"true_masks"``, its regions, and ``"voxel_ml"``.
        """
        volume, regions = self.volumes(study)
        input, whole = self.volumes.input, self._counts(regions)
        if draw.random:
            corner = self._corner(regions, rng_for(draw.seed, "patch", draw.epoch, study.study_id))
            volume, regions = (_cut(part, corner, input.size) for part in (volume, regions))
        inside = self._counts(regions)
        visible = torch.from_numpy((inside >= self.min_voxels) & (inside >= self.min_share * whole))
        item: dict[str, Any] = {
            self.volumes.modality: _padded(volume, input.size, input.pad_value, np.float32)[None],
            "regions": _padded(regions, input.size, 0, np.uint8),
            "region_visible": visible,
        }
        if not draw.random:
            voxel_ml = float(np.prod(input.spacing_mm or (10.0, 10.0, 10.0)) / 1000)
            return item | {"true_masks": item["regions"], "voxel_ml": voxel_ml}
        if self.texts is None:
            return item
        embedding, group, status = self.texts.of(study)
        normal = (visible & (status == NORMAL)).nonzero().flatten()
        negatives = self.texts.negatives(normal, rng_for(draw.seed, "negatives", draw.epoch, study.study_id))
        texts = {"diagnosis_embedding": embedding, "diagnosis_group": group, "status": status, "negatives": negatives}
        return item | texts

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


def _cut(volume: NDArray[Any], corner: tuple[int, ...], size: tuple[int, ...]) -> NDArray[Any]:
    return volume[tuple(slice(start, start + length) for start, length in zip(corner, size, strict=True))]


def _padded(volume: NDArray[Any], size: tuple[int, ...], value: float, dtype: Any) -> Tensor:
    """A copy of at least ``size``; an odd voxel of padding falls at the end."""
    margins = [max(length - n, 0) for n, length in zip(volume.shape, size, strict=True)]
    around = [(margin // 2, margin - margin // 2) for margin in margins]
    return torch.from_numpy(np.pad(np.asarray(volume, dtype=dtype), around, constant_values=value))
