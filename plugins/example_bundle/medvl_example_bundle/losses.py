"""The method's loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from medvl_core.protocols import AlignmentBatch, LossOutput

__all__ = ["SmoothInfoNCE"]


class SmoothInfoNCE(nn.Module):
    """InfoNCE both ways with smoothed labels, arXiv:1512.00567, section 7: a share of each target goes to all pairs.

    Args:
        pair: The two modalities.
        smoothing: That share, in [0, 1); 0 is plain InfoNCE.

    Raises:
        ValueError: If ``smoothing`` is out of range.
    """

    def __init__(self, pair: Sequence[str], smoothing: float = 0.1) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"smooth: smoothing is {smoothing}; give a share in [0, 1)")
        self.pair, self.smoothing = tuple(pair), smoothing

    def forward(self, batch: AlignmentBatch) -> LossOutput:
        """Embeddings ``P E`` of both modalities → the loss, in fp32."""
        a, b = (batch.embeddings[name].float() for name in self.pair)
        own = torch.arange(len(a), device=a.device)
        with torch.autocast(a.device.type, enabled=False):
            logits = batch.logit_scale.float() * (a @ b.T)
            ways = [cross_entropy(one, own, label_smoothing=self.smoothing) for one in (logits, logits.T)]
        total = torch.stack(ways).mean()
        return LossOutput(total, {"smooth": total.detach()})
