"""An encoder. This module may import anything: it is loaded when the encoder is built, never before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medvl_core.protocols import EncoderOutput
from medvl_core.specs import ImageInput

__all__ = ["TinyViT", "build_tiny_vit"]


def build_tiny_vit(
    size: Sequence[int] = (128, 128), patch: int = 16, width: int = 64, layers: int = 2, heads: int = 4
) -> TinyViT:
    """A small vision transformer for radiographs.

    Args:
        size: Pixels ``(H, W)`` of the image it reads, multiples of ``patch``.
        patch: Edge of a patch in pixels.
        width: Width F of its tokens.
        layers: Transformer layers.
        heads: Attention heads; must divide ``width``.

    Raises:
        ValueError: If ``size`` is not a multiple of ``patch``.
    """
    if any(edge % patch for edge in size):
        raise ValueError(f"size {tuple(size)} is not a multiple of patch {patch}; choose multiples")
    return TinyViT(ImageInput(channels=1, size=tuple(size)), patch, width, layers, heads)


class TinyViT(nn.Module):
    """Radiograph ``B 1 H W`` → one token per patch and their mean."""

    def __init__(self, input: ImageInput, patch: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.input = input
        self.embed_dim = width
        self.grid = tuple(edge // patch for edge in input.size)
        self.patches = nn.Conv2d(input.channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, self.grid[0] * self.grid[1], width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> EncoderOutput:
        """Encode a batch of radiographs."""
        tokens = self.layers(self.patches(x).flatten(2).mT + self.positions)
        features = tokens.mT.unflatten(2, self.grid)
        return EncoderOutput(tokens, self.grid, pooled=tokens.mean(dim=1), features=features)
