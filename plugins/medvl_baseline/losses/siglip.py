"""Pairwise sigmoid loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from medvl_baseline.losses.infonce import loss_output, read_pair
from medvl_core.protocols import AlignmentBatch, LossOutput

__all__ = ["SigLIP"]


class SigLIP(nn.Module):
    r"""Every pair is a yes-or-no question: $-\frac1N \sum_{ij} \log \sigma(z_{ij} (s\, a_i \cdot b_j + \beta))$ [1].

    $z_{ij}$ is 1 for positives and -1 otherwise, s the batch's ``logit_scale``, $\beta$ a learned bias: give the loss's
    parameters to the optimiser. [1] starts at $\beta = -10$ and s = 10. N x N logits in fp32.

    Args:
        pair: The two modalities.
        bias: Where $\beta$ starts.
        duplicates: ``"multi_positive"`` counts every pair of equal ``extras["text_group"]`` as positive,
            ``"negative"`` only i = j.

    Raises:
        ValueError: If an option is unknown.

    References:
        [1] Zhai et al., Sigmoid loss for language image pre-training, arXiv:2303.15343.
    """

    def __init__(
        self,
        pair: Sequence[str],
        bias: float = -10.0,
        duplicates: Literal["negative", "multi_positive"] = "negative",
    ) -> None:
        super().__init__()
        if len(pair) != 2 or duplicates not in ("negative", "multi_positive"):
            raise ValueError(
                f"siglip: pair={tuple(pair)}, duplicates={duplicates!r}; give two modalities, "
                "and 'negative' or 'multi_positive'"
            )
        self.pair = tuple(pair)
        self.duplicates = duplicates
        self.needs = ("text_group",) if duplicates == "multi_positive" else ()
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, batch: AlignmentBatch) -> LossOutput:
        """The loss and its term ``"siglip"``; what it reads and refuses is as for ``InfoNCE``."""
        a, b, groups = read_pair(batch, self.pair, self.duplicates)
        with torch.autocast(a.device.type, enabled=False):
            logits = batch.logit_scale.to(a.dtype) * (a @ b.T) + self.bias.to(a.dtype)
            if groups is None:
                groups = torch.arange(len(a), device=a.device)
            positive = groups[:, None] == groups
            total = -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / len(a)
        return loss_output("siglip", total, batch, self.pair)
