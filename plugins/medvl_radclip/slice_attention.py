"""RadCLIP's adapter: self-attention over slice embeddings."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from medvl_imaging.tokens import check_tokens, masked_mean

__all__ = ["SliceAttention", "check_heads", "checked_mask", "positions_of"]


class SliceAttention(nn.Module):
    r"""$V = \mathrm{MHSA}(I + PE)$ over the slices of a volume, then the mean over its valid slices.

    A row without a valid slice gives zeros. Values of masked slices have no influence, not even NaN.

    Args:
        embed_dim: Width F.
        heads: Attention heads; must divide ``embed_dim``.
        max_slices: Learned positions; a volume with more slices spreads them by linear interpolation.
        dropout: Of the attention weights, in training.
        residual: Add the slices themselves to what attention gives. The published equation does not.
        norm: A layer norm after that. The published equation has none.
        start: Weights at the beginning. ``"random"``; or ``"mean"``: uniform attention, identity as value and output
            projection, no positions, so that the result is average pooling until training changes it.

    Raises:
        ValueError: If ``heads`` does not divide ``embed_dim``, or another option is out of range.

    Note:
        Positions start at normal(0, 0.02). Heads, number of positions and how V becomes one vector are not published:
        8, 256 and the mean are our reading.

    References:
        RadCLIP, arXiv:2403.09948, eq. 1. No code of the adapter was published.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        heads: int = 8,
        max_slices: int = 256,
        dropout: float = 0.5,
        residual: bool = False,
        norm: bool = False,
        start: Literal["random", "mean"] = "random",
    ) -> None:
        super().__init__()
        check_heads(embed_dim, heads, max_slices)
        if start not in ("random", "mean"):
            raise ValueError(f"start is {start!r}; choose 'random' or 'mean'")
        self.embed_dim = embed_dim
        self.residual = residual
        self.pos_embed = nn.Parameter(torch.randn(max_slices, embed_dim) * 0.02)
        self.attn = nn.MultiheadAttention(embed_dim, heads, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(embed_dim) if norm else nn.Identity()
        if start == "mean":
            self._start_as_mean()

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool.

        Args:
            tokens: ``B N F``, one per slice, in order.
            mask: Valid slices ``B N`` (bool), or ``None`` when all are.

        Returns:
            ``B F``.

        Raises:
            ValueError: If a shape or the mask's dtype does not fit.
        """
        return masked_mean(self._attend(tokens, mask, False)[0], mask)

    def slice_weights(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention that each slice receives, averaged over heads and valid slices: ``B N``, each row sums to 1.

        With ``residual`` or ``norm`` it is the share in what attention adds, not in the result.
        """
        weights = self._attend(tokens, mask, True)[1]
        return weights.mean(1) if mask is None else masked_mean(weights, mask) * mask

    def _attend(self, tokens: Tensor, mask: Tensor | None, need_weights: bool) -> tuple[Tensor, Tensor]:
        mask = checked_mask(tokens, mask, self.embed_dim)
        tokens = tokens.masked_fill(~mask[..., None], 0.0)
        x = tokens + positions_of(self.pos_embed, mask)
        # A softmax over nothing is NaN in value and gradient: let empty rows attend, their mean is blank anyway.
        blank = ~(mask | ~mask.any(1, keepdim=True))
        out, weights = self.attn(x, x, x, key_padding_mask=blank, need_weights=need_weights)
        return self.norm(out + tokens if self.residual else out), weights

    @torch.no_grad()
    def _start_as_mean(self) -> None:
        width = self.embed_dim
        self.pos_embed.zero_()
        self.attn.in_proj_weight[:width] = 0.0  # no query, no preference; keys stay random, or nothing would move
        self.attn.in_proj_weight[2 * width :] = torch.eye(width)
        self.attn.out_proj.weight.copy_(torch.eye(width))


def check_heads(embed_dim: int, heads: int, max_slices: int) -> None:
    """Refuse a number of heads that does not divide the width, and a table without positions.

    Raises:
        ValueError: With the numbers.
    """
    if heads < 1 or embed_dim % heads or max_slices < 1:
        raise ValueError(
            f"heads={heads}, embed_dim={embed_dim}, max_slices={max_slices}; heads must divide the width, "
            "and one slice is the least"
        )


def checked_mask(tokens: Tensor, mask: Tensor | None, embed_dim: int) -> Tensor:
    """The valid slices, all of them without a mask.

    Raises:
        ValueError: If a shape or the mask's dtype does not fit.
    """
    check_tokens(tokens, mask, embed_dim)
    return tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask


def positions_of(table: Tensor, mask: Tensor) -> Tensor:
    """The learned position of each valid slice: row k of ``table`` for the k-th of them.

    A volume with more slices than the table has rows spreads them over it evenly, interpolating linearly. Slices of a
    volume are counted without masked ones, so padding has no influence.

    Args:
        table: ``M F``.
        mask: Valid slices ``B N``.

    Returns:
        ``B N F``.
    """
    last = len(table) - 1
    count = mask.sum(1, keepdim=True)
    place = (mask.cumsum(1) - 1).clamp(min=0).to(table.dtype)
    place = torch.where(count > len(table), place * (last / (count - 1).clamp(min=1)), place).clamp(max=last)
    low = place.floor().long()
    share = (place - low)[..., None]
    return table[low] * (1 - share) + table[(low + 1).clamp(max=last)] * share
