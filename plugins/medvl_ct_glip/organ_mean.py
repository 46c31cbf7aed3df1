"""One vector per organ: the mean of the features inside its mask, for all organs in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medvl_ct_glip.regions.model import on_grid, voxels_of

__all__ = ["OrganMean", "organ_sums"]

_CHUNK = 1 << 15  # foreground voxels at a time: their features stay in cache between gathering and adding


class OrganMean(nn.Module):
    r"""Mean of the features over each organ's voxels.

    $z_{br} = \\frac{1}{|\\Omega_{br}|} \\sum_{v \\in \\Omega_{br}} f_{bv}$. Only voxels inside an organ are read and
    get a gradient; no mask per organ is ever made. O(F · foreground) time.

    Args:
        n_regions: Number of organs R; label r of the map is organ r, 0 is background.

    References:
        [1] Lin et al., CT-GLIP, arXiv:2404.15272, section 2.1. No code of the authors exists.
    """

    def __init__(self, n_regions: int = 104) -> None:
        super().__init__()
        self.n_regions = n_regions

    def forward(self, features: Tensor, regions: Tensor) -> Tensor:
        """Pool.

        Args:
            features: ``B F X Y Z``.
            regions: Label map ``B X Y Z``, integer; on a finer grid it is sampled at the nearest cells.

        Returns:
            ``B R F``, not normalised; organs without voxels give zeros, see `voxels_of`.

        Raises:
            ValueError: If batch sizes differ or a label exceeds R.
        """
        regions = self._checked(features, regions)
        counts = voxels_of(regions, self.n_regions).clamp(min=1).to(features.dtype)
        order = sorted((2, 3, 4), key=lambda axis: -features.stride()[axis])  # memory order: flattening is then free
        flat = features.permute(0, 1, *order).flatten(2)
        labels = regions.permute(0, *(axis - 1 for axis in order)).flatten(1)
        sums = organ_sums(flat, labels, self.n_regions)
        return sums.transpose(1, 2) / counts[..., None]

    def _checked(self, features: Tensor, regions: Tensor) -> Tensor:
        """The label map on the grid of ``features``."""
        if features.ndim != 5 or regions.ndim != 4 or len(features) != len(regions):
            raise ValueError(
                f"features {tuple(features.shape)} and regions {tuple(regions.shape)} do not fit; "
                "give B F X Y Z and a label map B X Y Z of the same batch"
            )
        if regions.is_floating_point():
            raise ValueError(f"regions is {regions.dtype}; give an integer label map")
        if (highest := int(regions.max())) > self.n_regions or int(regions.min()) < 0:
            raise ValueError(f"regions holds label {highest}; this pooling knows organs 1 to {self.n_regions}")
        return on_grid(features, regions)


def organ_sums(features: Tensor, labels: Tensor, n_regions: int) -> Tensor:
    """Sums of ``features`` ``B F V`` over voxels with equal ``labels`` ``B V`` from 1 to R: ``B F R``."""
    return _OrganSums.apply(features, labels, n_regions)  # type: ignore[no-untyped-call]


class _OrganSums(torch.autograd.Function):
    """Reads and writes the foreground only: plain ``scatter_add`` also moves the background, most of a scan."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, labels: Tensor, n_regions: int) -> Tensor:
        ctx.save_for_backward(labels)
        ctx.voxels = features.shape[2]
        sums = features.new_zeros(
            *features.shape[:2], n_regions + 1, dtype=torch.promote_types(features.dtype, torch.float32)
        )
        for row, where, label in _foreground(labels):
            values = features[row].index_select(1, where).to(sums.dtype)
            sums[row].scatter_add_(1, label.expand(len(values), -1), values)
        return sums[..., 1:].to(features.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (labels,) = ctx.saved_tensors
        gradient = gradient.contiguous()
        out = gradient.new_zeros(*gradient.shape[:2], ctx.voxels)
        for row, where, label in _foreground(labels):
            out[row].index_copy_(1, where, gradient[row].index_select(1, label - 1))
        return out, None, None


def _foreground(labels: Tensor) -> Any:
    """Row, positions and labels of foreground voxels, a chunk at a time."""
    chunk = _CHUNK if labels.device.type == "cpu" else labels.shape[1]
    for row, values in enumerate(labels):
        where = values.nonzero().flatten()
        for part in where.split(chunk):
            yield row, part, values[part].long()
