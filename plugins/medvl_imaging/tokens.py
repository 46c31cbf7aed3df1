"""What every pooling over tokens needs: a check of tokens and mask, and the mean of the valid ones."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_tokens", "masked_mean"]


def check_tokens(tokens: Tensor, mask: Tensor | None, embed_dim: int | None) -> None:
    """Refuse tokens that are not ``B N F`` and masks that are not ``B N`` of bools.

    Raises:
        ValueError: With the shapes.
    """
    if tokens.ndim != 3:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}; a global pooling needs B N F")
    if embed_dim is not None and tokens.shape[2] != embed_dim:
        raise ValueError(f"tokens are {tokens.shape[2]} wide but the pooling was built with embed_dim={embed_dim}")
    if mask is not None and (mask.shape != tokens.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(
            f"mask is {mask.dtype} {tuple(mask.shape)}; give torch.bool {tuple(tokens.shape[:2])}, True = valid"
        )


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of the valid tokens, summed in fp32: ``B N F`` → ``B F``; zeros for a row without any.

    Values of masked tokens have no influence, not even NaN.
    """
    dtype = torch.float32 if tokens.itemsize < 4 else None
    if mask is None:
        return tokens.mean(dim=1, dtype=dtype).to(tokens.dtype)
    total = tokens.masked_fill(~mask[..., None], 0.0).sum(dim=1, dtype=dtype)
    return (total / mask.sum(dim=1, keepdim=True).clamp(min=1)).to(tokens.dtype)
