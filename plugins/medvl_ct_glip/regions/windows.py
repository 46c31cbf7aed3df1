"""Whole scans through a patch network: every voxel counts once, in the window whose middle is nearest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medvl_core.protocols import AlignmentBatch
from medvl_ct_glip.regions.model import RegionTower, on_grid, voxels_of

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
    r"""A region tower on whole scans: features of each region are summed and counted over windows, then averaged.

    $z_r = head(\sum_w \sum_{v \in r \cap own(w)} f_v / \sum_w |r \cap own(w)|)$: the mean over all voxels of the region
    in the scan at full resolution, each voxel seen with the context of its window. One window gives what the tower
    gives. Memory is that of one window.

    Args:
        tower: Its encoder states the size of a window.
        overlap: See `windows`.
        gives: Embeddings, or the predicted label map of an encoder that segments.
        image: Modality of the volume.
    """

    def __init__(
        self,
        tower: RegionTower,
        overlap: float = 0.5,
        gives: Literal["embeddings", "masks"] = "embeddings",
        image: str = "ct",
    ) -> None:
        super().__init__()
        self.tower, self.overlap, self.gives, self.image = tower, overlap, gives, image

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Any]) -> AlignmentBatch:
        """Embed or segment every scan.

        Args:
            batch: The image ``B 1 X Y Z``, ``"regions"`` ``B X Y Z``, and perhaps ``"region_visible"`` ``B R``.

        Returns:
            Embeddings ``"<image>"`` ``B E`` (all voxels) and ``"<image>_regions"`` ``B R E``, zero rows for regions
            that are absent or not visible; or none, and the extra ``"predicted_masks"`` ``B X Y Z`` (uint8).
        """
        volume, regions = batch[self.image], batch["regions"]
        scale = volume.new_ones((), dtype=torch.float32)
        if self.gives == "masks":
            return AlignmentBatch({}, scale, {"predicted_masks": self._masks(volume)})
        sums, counts = self._sums(volume, regions)
        embedded = self.tower.embed((sums / counts.clamp(min=1)[..., None]).float())
        visible = counts[:, 1:] > 0
        if "region_visible" in batch:
            visible = visible & batch["region_visible"]
        rows = {self.image: embedded[:, 0], f"{self.image}_regions": embedded[:, 1:] * visible[..., None]}
        return AlignmentBatch(rows, scale)

    def _sums(self, volume: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Sums ``B 1+R F`` (float64) and counts ``B 1+R`` of the scan and its regions."""
        sums: Tensor | float = 0.0
        counts: Tensor | int = 0
        for window, own in windows(volume.shape[2:], self._patch, self.overlap):
            features = self.tower.encoder(volume[(..., *window)]).features
            part = torch.zeros_like(regions[(..., *window)])
            part[(..., *own)] = 1
            added, found = _window_sums(self.tower.pooling, features, part, regions[(..., *window)] * part)
            sums, counts = sums + added, counts + found
        return sums, counts  # type: ignore[return-value]

    def _masks(self, volume: Tensor) -> Tensor:
        masks = torch.zeros_like(volume[:, 0], dtype=torch.uint8)
        for window, own in windows(volume.shape[2:], self._patch, self.overlap):
            logits = self.tower.encoder(volume[(..., *window)]).logits
            masks[(..., *window)][(..., *own)] = _labels(logits, self._patch)[(..., *own)]
        return masks

    @property
    def _patch(self) -> tuple[int, ...]:
        return self.tower.encoder.input.size  # type: ignore[return-value]


def _window_sums(pooling: Any, features: Tensor, own: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Sums ``B 1+R F`` and counts ``B 1+R`` of one window: its own part as a whole, then the regions in it."""
    sums, counts = [], []
    for labels, kept in ((own, 1), (regions, None)):
        pooled = pooling(features, labels)
        found = voxels_of(on_grid(features, labels), pooled.shape[1])[:, :kept]
        sums.append(pooled[:, :kept].double() * found[..., None])
        counts.append(found)
    return torch.cat(sums, dim=1), torch.cat(counts, dim=1)


def _labels(logits: tuple[Tensor, ...] | None, patch: Sequence[int]) -> Tensor:
    if logits is None:
        raise ValueError("the encoder gives no segmentation logits; choose one that segments")
    finest = logits[0]
    if tuple(finest.shape[2:]) != tuple(patch):
        finest = functional.interpolate(finest, tuple(patch), mode="trilinear", align_corners=False)
    return finest.argmax(dim=1).to(torch.uint8)
