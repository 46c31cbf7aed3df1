"""A loss that needs an entry of its own in the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from medvl_core.protocols import AlignmentBatch, LossOutput

__all__ = ["AgeAware"]


class AgeAware(nn.Module):
    r"""InfoNCE whose targets are shared among patients of similar age: y-aware InfoNCE, arXiv:2106.08808.

    Pair j is a positive of pair i with weight $w_{ij} \propto \exp(-(y_i - y_j)^2 / 2\sigma^2)$ for ages y in years; a
    patient without an age (NaN) has one positive, the own pair. The age comes as ``extras["age"]``: the spec says that
    the loss ``needs`` it, and a dataset offers it among its ``fields``.

    Args:
        pair: The two modalities. A config offers its own under this name.
        years: σ; as it nears 0 the loss becomes plain InfoNCE.

    Raises:
        ValueError: If ``years`` is not positive.
    """

    def __init__(self, pair: Sequence[str], years: float = 5.0) -> None:
        super().__init__()
        if not years > 0:
            raise ValueError(f"age_aware: years is {years}; give a positive number")
        self.pair, self.years = tuple(pair), years

    def forward(self, batch: AlignmentBatch) -> LossOutput:
        """Embeddings ``P E`` of both modalities and ``extras["age"]`` ``P`` → the loss, in fp32."""
        a, b = (batch.embeddings[name].float() for name in self.pair)
        targets = self.targets(torch.as_tensor(batch.extras["age"], dtype=a.dtype, device=a.device))
        with torch.autocast(a.device.type, enabled=False):
            logits = batch.logit_scale.float() * (a @ b.T)
            total = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
        return LossOutput(total, {"age_aware": total.detach()})

    def targets(self, age: Tensor) -> Tensor:
        """Ages ``P`` in years → weights ``P P``, each row sums to one."""
        near = torch.exp(-(((age[:, None] - age) / self.years) ** 2) / 2).nan_to_num(0.0).fill_diagonal_(1.0)
        return near / near.sum(dim=1, keepdim=True)
