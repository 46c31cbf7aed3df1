"""Global poolings: ``B N F`` tokens and an optional ``B N`` mask of valid tokens to one ``B F`` vector each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medvl_imaging.tokens import check_tokens, masked_mean

__all__ = ["AttentionPooling", "ClsPooling", "MeanPooling"]


class MeanPooling(nn.Module):
    """Mean over valid tokens, summed in fp32.

    A row without a valid token gives zeros. Values of masked tokens have no influence, not even NaN.

    Args:
        embed_dim: Width F to insist on. ``None`` accepts any.
    """

    def __init__(self, embed_dim: int | None = None) -> None:
        super().__init__()
        self.embed_dim = embed_dim

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool.

        Args:
            tokens: ``B N F``.
            mask: Valid tokens ``B N`` (bool), or ``None`` when all are.

        Returns:
            ``B F`` in the dtype of ``tokens``.

        Raises:
            ValueError: If a shape or the mask's dtype does not fit.
        """
        check_tokens(tokens, mask, self.embed_dim)
        return masked_mean(tokens, mask)


class ClsPooling(nn.Module):
    """The first token. Only meaningful for encoders that put a summary token there.

    A row whose first token is masked gives zeros.

    Args:
        embed_dim: As for ``MeanPooling``.
    """

    def __init__(self, embed_dim: int | None = None) -> None:
        super().__init__()
        self.embed_dim = embed_dim

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """``B N F`` → ``B F``; mask and errors as for ``MeanPooling``."""
        check_tokens(tokens, mask, self.embed_dim)
        first = tokens[:, 0]
        return first if mask is None else first.masked_fill(~mask[:, :1], 0.0)


class AttentionPooling(nn.Module):
    r"""Attention of one learned query over the tokens: $z_b = \mathrm{MHA}(q, t_b, t_b)$, PMA with k = 1 of [1].

    Without the layer norms and feed-forward layer of [1]: a projection follows the pooling anyway. A row without a
    valid token gives zeros. Values of masked tokens have no influence, not even NaN.

    Args:
        embed_dim: Width F.
        heads: Attention heads; must divide ``embed_dim``.

    Raises:
        ValueError: If ``heads`` does not divide ``embed_dim``.

    References:
        [1] Lee et al., Set Transformer, section 3.2, arXiv:1810.00825.
    """

    def __init__(self, embed_dim: int, heads: int = 8) -> None:
        super().__init__()
        if embed_dim % heads:
            raise ValueError(f"heads={heads} does not divide embed_dim={embed_dim}; choose a divisor")
        self.embed_dim = embed_dim
        self.query = nn.Parameter(torch.randn(1, 1, embed_dim) * embed_dim**-0.5)
        self.attention = nn.MultiheadAttention(embed_dim, heads, batch_first=True)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool.

        Args:
            tokens: ``B N F``.
            mask: Valid tokens ``B N`` (bool), or ``None`` when all are.

        Returns:
            ``B F``.

        Raises:
            ValueError: If a shape or the mask's dtype does not fit.
        """
        check_tokens(tokens, mask, self.embed_dim)
        query = self.query.expand(len(tokens), -1, -1)
        if mask is None:
            return self.attention(query, tokens, tokens, need_weights=False)[0][:, 0]
        tokens = tokens.masked_fill(~mask[..., None], 0.0)
        empty = ~mask.any(dim=1, keepdim=True)
        # A softmax over nothing is NaN in value and gradient: let empty rows attend, then blank the result.
        pooled = self.attention(query, tokens, tokens, key_padding_mask=~(mask | empty), need_weights=False)[0]
        return pooled[:, 0].masked_fill(empty, 0.0)
