"""The last rows seen, in a ring."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["FeatureBank"]


class FeatureBank(nn.Module):
    """First in, first out: keeps the last ``size`` rows in a buffer, so that a checkpoint holds them.

    Args:
        size: Rows kept.
        n_features: Width D.
    """

    ring: Tensor
    seen: Tensor

    def __init__(self, size: int, n_features: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"feature bank: size is {size}; keep at least 1 row")
        self.register_buffer("ring", torch.zeros(size, n_features))
        self.register_buffer("seen", torch.tensor(0))

    def __len__(self) -> int:
        return min(int(self.seen), len(self.ring))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Add rows ``n D``; the oldest make room."""
        size = len(self.ring)
        places = torch.arange(len(rows), device=rows.device)[-size:]
        self.ring.index_copy_(0, (self.seen + places) % size, rows[-size:].to(self.ring))
        self.seen += len(rows)

    def rows(self) -> Tensor:
        """What it holds, ``len D``, in no particular order."""
        return self.ring[: len(self)]
