"""A pooling: from tokens to one vector per study."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["WeightedMean"]


class WeightedMean(nn.Module):
    """The mean of the tokens under learned weights: the pooling of arXiv:1802.04712 with a linear score.

    Args:
        embed_dim: Width F of the tokens. A config offers the encoder's own under this name.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.score = nn.Linear(embed_dim, 1, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens ``B N F`` and valid tokens ``B N`` (bool; ``None``: all) → ``B F``; zeros for a row without any."""
        scores = self.score(tokens).float()
        if mask is not None:
            tokens = tokens.masked_fill(~mask[..., None], 0.0)
            scores = scores.masked_fill(~mask[..., None], -1e4)  # finite: a row without a token must not become NaN
        return (scores.softmax(dim=1).to(tokens.dtype) * tokens).sum(dim=1)
