"""Whole scans through a patch network: every voxel counts once, in the window whose middle is nearest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medvl_core.protocols import AlignmentBatch
from medvl_ct_glip.regions.model import RegionAlignmentModel

__all__ = ["ScanEmbedding", "windows"]

Box = tuple[slice, slice, slice]


def windows(shape: Sequence[int], patch: Sequence[int], overlap: float = 0.5) -> Iterator[tuple[Box, Box]]:
    """Windows that cover a volume, and the part of each that is its own.

    Own parts are disjoint and cover everything; the seam of two windows is the middle of their overlap.

    Args:
        shape: Of the volume, at least ``patch`` on every axis.
        patch: Window size.
        overlap: Smallest share of a window that the next one also covers, in [0, 1).

    Yields:
        The window in the volume, and its own part relative to the window.

    Raises:
        ValueError: If the volume is smaller than a window or the overlap out of range.
    """
    if not 0 <= overlap < 1 or any(n < p for n, p in zip(shape, patch, strict=True)):
        raise ValueError(f"windows of {tuple(patch)} with overlap {overlap} do not fit a volume of {tuple(shape)}")
    axes = [_axis(n, p, overlap) for n, p in zip(shape, patch, strict=True)]
    for parts in product(*axes):
        x, y, z = parts
        yield (x[0], y[0], z[0]), (x[1], y[1], z[1])


def _axis(length: int, patch: int, overlap: float) -> list[tuple[slice, slice]]:
    step = max(int(patch * (1 - overlap)), 1)
    count = 1 + math.ceil((length - patch) / step)
    starts = [round(k * (length - patch) / max(count - 1, 1)) for k in range(count)]
    seams = [0, *((left + patch + right) // 2 for left, right in pairwise(starts)), length]
    return [
        (slice(start, start + patch), slice(low - start, high - start))
        for start, (low, high) in zip(starts, pairwise(seams), strict=True)
    ]


class ScanEmbedding(nn.Module):
    r"""A region model on whole scans: features of each region are summed and counted over windows, then averaged.

    $z_r = head(\sum_w \sum_{v \in r \cap own(w)} f_v / \sum_w |r \cap own(w)|)$: the mean over all voxels of the region
    in the scan at full resolution, each voxel seen with the context of its window. One window gives what the tower
    gives. Memory is that of one window.

    Args:
        model: Its tower's encoder states the size of a window.
        overlap: See `windows`.
        segment: Also give the predicted label map.
    """

    def __init__(self, model: RegionAlignmentModel, overlap: float = 0.5, segment: bool = False) -> None:
        super().__init__()
        self.model = model
        self.overlap = overlap
        self.segment = segment

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Any]) -> AlignmentBatch:
        """Embed every region of every scan.

        Args:
            batch: The image ``B 1 X Y Z``, ``"regions"`` ``B X Y Z``, and perhaps ``"region_visible"`` ``B R``.

        Returns:
            Embeddings ``"<image>"`` ``B E`` (all voxels) and ``"<image>_regions"`` ``B R E``, zero rows for regions
            that are absent or not visible; none for a model of level ``"none"``. With ``segment`` the extra
            ``"predicted_masks"`` ``B X Y Z`` (uint8).
        """
        image, tower = self.model.image, self.model.tower
        scale: Any = self.model.logit_scale
        volume, regions = batch[image], batch["regions"]
        sums, counts, masks = self._accumulate(volume, regions)
        means = (sums / counts.clamp(min=1)[..., None]).float()
        embedded = functional.normalize(tower.head(means).float(), dim=-1)
        visible = counts[:, 1:] > 0
        if "region_visible" in batch:
            visible = visible & batch["region_visible"]
        embeddings = {image: embedded[:, 0], f"{image}_regions": embedded[:, 1:] * visible[..., None]}
        if self.model.level == "none":
            embeddings = {}  # of a head that nothing has trained
        extras = {} if masks is None else {"predicted_masks": masks}
        return AlignmentBatch(embeddings, scale, extras)

    def _accumulate(self, volume: Tensor, regions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Sums ``B 1+R F`` (float64) and counts ``B 1+R`` of the scan and its regions, and the label map."""
        tower: Any = self.model.tower
        patch = tower.encoder.input.size
        sums: Tensor | float = 0.0
        counts: Tensor | int = 0
        masks = torch.zeros_like(regions, dtype=torch.uint8) if self.segment else None
        for window, own in windows(volume.shape[2:], patch, self.overlap):
            output = tower.encoder(volume[(..., *window)])
            part = torch.zeros_like(regions[(..., *window)])
            part[(..., *own)] = 1
            added, found = _window_sums(tower.pooling, output.features, part, regions[(..., *window)] * part)
            sums, counts = sums + added, counts + found
            if masks is not None:
                masks[(..., *window)][(..., *own)] = _labels(output.logits, patch)[(..., *own)]
        return sums, counts, masks  # type: ignore[return-value]


def _window_sums(pooling: Any, features: Tensor, own: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Sums ``B 1+R F`` and counts ``B 1+R`` of one window: its own part as a whole, then the regions in it."""
    sums, counts = [], []
    for labels, kept in ((own, 1), (regions, None)):
        found = pooling.voxels(pooling.on_grid(features, labels))[:, :kept]
        sums.append(pooling(features, labels)[:, :kept].double() * found[..., None])
        counts.append(found)
    return torch.cat(sums, dim=1), torch.cat(counts, dim=1)


def _labels(logits: tuple[Tensor, ...] | None, patch: Sequence[int]) -> Tensor:
    if logits is None:
        raise ValueError("the encoder gives no segmentation logits; choose one that segments")
    finest = logits[0]
    if tuple(finest.shape[2:]) != tuple(patch):
        finest = functional.interpolate(finest, tuple(patch), mode="trilinear", align_corners=False)
    return finest.argmax(dim=1).to(torch.uint8)
