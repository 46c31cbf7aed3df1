"""Segmentation objective on pseudo masks: cross-entropy and soft Dice, with deep supervision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medvl_core.protocols import AlignmentBatch, LossOutput

__all__ = ["SegmentationLoss"]


class SegmentationLoss(nn.Module):
    r"""Cross-entropy plus 1 - Dice, the Dice averaged over the classes that occur in the batch.

    Levels of deep supervision are weighted $1/2^d$ and normalised, the coarsest with 0 when there are several
    (nnU-Net's rule). Memory O(one level's logits).

    Args:
        foreground_weight: Weight of every class but background in the cross-entropy. 1 is the published loss; where
            foreground is a thousandth of the voxels, a short training with 1 ends at empty masks.

    Raises:
        ValueError: If the weight is not positive.

    References:
        [1] Isensee et al., nnU-Net, doi:10.1038/s41592-020-01008-z.
        [2] Lin et al., CT-GLIP, arXiv:2404.15272: "cross-entropy and Dice".
    """

    def __init__(self, foreground_weight: float = 1.0) -> None:
        super().__init__()
        if foreground_weight <= 0:
            raise ValueError(f"foreground_weight is {foreground_weight}; a positive number")
        self.foreground_weight = foreground_weight

    def forward(self, batch: AlignmentBatch) -> LossOutput:
        """Of ``extras["logits"]`` (finest first, each ``B K X Y Z``) against ``extras["regions"]`` ``B X Y Z``."""
        levels, labels = batch.extras["logits"], batch.extras["regions"].long()
        weights = [0.5**depth for depth in range(len(levels))]
        if len(levels) > 1:
            weights[-1] = 0.0
        terms = torch.stack(
            [self._level(logits, labels) for logits, weight in zip(levels, weights, strict=True) if weight]
        )
        shares = torch.tensor([weight / sum(weights) for weight in weights if weight], device=terms.device)
        cross_entropy, dice = (shares @ terms).unbind()
        names = {"cross_entropy": cross_entropy.detach(), "dice": dice.detach()}
        return LossOutput(cross_entropy + dice, names)

    def _level(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy and 1 - Dice of one level, as a pair."""
        if logits.shape[2:] != labels.shape[1:]:
            resampled = functional.interpolate(labels[:, None].float(), logits.shape[2:], mode="nearest-exact")
            labels = resampled[:, 0].long()
        if (highest := int(labels.max())) >= logits.shape[1]:
            raise ValueError(
                f"label {highest} in the regions, but the logits have {logits.shape[1]} classes with background"
            )
        logits = logits.float()
        weight = logits.new_full((logits.shape[1],), self.foreground_weight)
        weight[0] = 1.0
        cross_entropy = functional.cross_entropy(logits, labels, weight=weight)
        share = logits.softmax(dim=1).transpose(0, 1).flatten(1)  # K, voxels of the batch
        flat = labels.flatten()
        own = share.gather(0, flat[None])[0]
        overlap = own.new_zeros(len(share)).index_add(0, flat, own)
        size = flat.bincount(minlength=len(share)).to(own.dtype)
        dice = 2 * overlap / (share.sum(dim=1) + size).clamp(min=1e-5)
        present = size > 0
        present[0] = False
        loss = 1 - (dice[present].mean() if present.any() else dice.new_ones(()))
        return torch.stack([cross_entropy, loss])
