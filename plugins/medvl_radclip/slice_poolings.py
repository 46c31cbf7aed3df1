"""Other ways from the slices of a volume to one vector, in the slot of RadCLIP's adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medvl_imaging.tokens import check_tokens, masked_mean
from medvl_radclip.slice_attention import check_heads, checked_mask, positions_of

__all__ = ["GatedAttention", "SliceConv", "SliceMax", "SliceTransformer"]


class SliceMax(nn.Module):
    """Largest value of each feature over the valid slices; zeros for a row without any.

    Args:
        embed_dim: As for ``baseline/mean``.
    """

    def __init__(self, embed_dim: int | None = None) -> None:
        super().__init__()
        self.embed_dim = embed_dim

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool ``B N F`` under a mask ``B N`` to ``B F``.

        Raises:
            ValueError: If a shape or the mask's dtype does not fit.
        """
        check_tokens(tokens, mask, self.embed_dim)
        if mask is None:
            return tokens.amax(1)
        top = tokens.masked_fill(~mask[..., None], -torch.inf).amax(1)
        return top.masked_fill(~mask.any(1, keepdim=True), 0.0)


class GatedAttention(nn.Module):
    r"""$z = \sum_k a_k h_k$ with $a = \mathrm{softmax}_k\, w^\top (\tanh(V h_k) \odot \sigma(U h_k))$, [1] eq. 9.

    The order of slices has no influence. A row without a valid slice gives zeros.

    Args:
        embed_dim: Width F.
        hidden: Rows of V and U, L in [1].

    References:
        [1] Ilse et al., Attention-based deep multiple instance learning, arXiv:1802.04712. No code consulted.
    """

    def __init__(self, embed_dim: int = 768, hidden: int = 128) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.value = nn.Linear(embed_dim, hidden)
        self.gate = nn.Linear(embed_dim, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool ``B N F`` under a mask ``B N`` to ``B F``.

        Raises:
            ValueError: If a shape or the mask's dtype does not fit.
        """
        weights = self.slice_weights(tokens, mask)
        if mask is not None:
            tokens = tokens.masked_fill(~mask[..., None], 0.0)
        return (weights[:, None].to(tokens.dtype) @ tokens)[:, 0]

    def slice_weights(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weight of each slice in the result, ``B N``; each row sums to 1, or is 0 without a valid slice."""
        mask = checked_mask(tokens, mask, self.embed_dim)
        tokens = tokens.masked_fill(~mask[..., None], 0.0)
        scores = self.score(torch.tanh(self.value(tokens)) * torch.sigmoid(self.gate(tokens)))[..., 0].float()
        blank = ~(mask | ~mask.any(1, keepdim=True))  # a softmax over nothing would be NaN
        return scores.masked_fill(blank, -torch.inf).softmax(1) * mask


class SliceTransformer(nn.Module):
    """Transformer over a class token and the slices with learned positions; the class token is the result.

    Args:
        embed_dim: Width F.
        heads: Attention heads; must divide ``embed_dim``.
        layers: Pre-norm blocks with a feed-forward layer of four times the width.
        max_slices: Learned positions, see ``slice_attention.positions_of``.
        dropout: In training.

    Raises:
        ValueError: If ``heads`` does not divide ``embed_dim``.

    References:
        Dosovitskiy et al., arXiv:2010.11929, with slices in place of patches.
    """

    def __init__(
        self, embed_dim: int = 768, heads: int = 8, layers: int = 1, max_slices: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        check_heads(embed_dim, heads, max_slices)
        self.embed_dim = embed_dim
        self.cls = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(max_slices, embed_dim) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                embed_dim, heads, 4 * embed_dim, dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool ``B N F`` under a mask ``B N`` to ``B F``; a row without a valid slice gives zeros.

        Raises:
            ValueError: If a shape or the mask's dtype does not fit.
        """
        mask = checked_mask(tokens, mask, self.embed_dim)
        slices = tokens.masked_fill(~mask[..., None], 0.0) + positions_of(self.pos_embed, mask)
        x = torch.cat([self.cls.expand(len(tokens), -1, -1).to(slices.dtype), slices], 1)
        blank = functional.pad(~mask, (1, 0), value=False)
        for block in self.blocks:
            x = block(x, src_key_padding_mask=blank)
        return self.norm(x[:, 0]).masked_fill(~mask.any(1, keepdim=True), 0.0)


class SliceConv(nn.Module):
    """Two convolutions along the slices, each seeing its neighbours, added to them; then the mean of the valid slices.

    Blank slices are zeros, as the border is, so their number has no influence.

    Args:
        embed_dim: Width F.
        kernel: Slices that a convolution sees; odd.

    Raises:
        ValueError: If ``kernel`` is even.
    """

    def __init__(self, embed_dim: int = 768, kernel: int = 3) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}; give an odd number of slices")
        self.embed_dim = embed_dim
        self.first = nn.Conv1d(embed_dim, embed_dim, kernel, padding="same")
        self.second = nn.Conv1d(embed_dim, embed_dim, kernel, padding="same")

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool ``B N F`` under a mask ``B N`` to ``B F``; a row without a valid slice gives zeros.

        Raises:
            ValueError: If a shape or the mask's dtype does not fit.
        """
        mask = checked_mask(tokens, mask, self.embed_dim)
        blank = ~mask[:, None]
        x = tokens.mT.masked_fill(blank, 0.0)
        hidden = functional.gelu(self.first(x)).masked_fill(blank, 0.0)
        return masked_mean((x + self.second(hidden)).mT, mask)
