"""CTViT, the image network of CT-CLIP, in the names of its published weights: each attribute is one part of a key.

Several things here look wrong and are not: the published weights were trained with them, so they are kept. Keys and
values come from the input before its normalisation; the positional convolution of the temporal transformer reads the
axes in another order than they have; the output is the nearest code of the codebook, not the token itself.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CTViT"]

_LOGIT_SCALE = 8.0  # of cosine attention, a constant of the published model
_ROWS = 2048  # tokens compared with the codebook at a time: 64 MB of similarities for 8,192 codes


class CTViT(nn.Module):
    """Patches, a spatial and a temporal transformer, and a cosine codebook.

    Always fp32, also under autocast: in bfloat16 tokens fall on other codes. The codebook is a buffer that nothing
    updates, in training mode neither; gradients pass the quantiser as if it were not there.

    Args:
        frames: Slices T of a volume.
        image_size: Rows and columns H = W.
        temporal_patch_size: Slices of a patch.
        patch_size: Rows and columns of a patch.
        dim: Token width F.
        depth: Layers of each transformer.
        heads: Attention heads.
        dim_head: Width of a head.
        codebook_size: Codes.

    Raises:
        ValueError: If the patches do not divide the volume into a cubic grid.

    References:
        Hamamci et al., arXiv:2403.17834; weights of ibrahimethemhamamci/CT-CLIP@a2a155c. Written from a description of
        the network and checked against numbers that the released code gives; none of it was copied.
    """

    def __init__(
        self,
        *,
        frames: int,
        image_size: int,
        temporal_patch_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int,
        codebook_size: int,
    ) -> None:
        super().__init__()
        self.grid_size = image_size // patch_size
        if (frames, image_size) != (self.grid_size * temporal_patch_size, self.grid_size * patch_size):
            raise ValueError(
                f"volume {(frames, image_size, image_size)} in patches of "
                f"{(temporal_patch_size, patch_size, patch_size)} is no cubic grid of tokens, which CTViT needs: "
                "choose sizes with frames / temporal_patch_size = image_size / patch_size"
            )
        voxels = temporal_patch_size * patch_size**2
        self.to_patch_emb = nn.Sequential(
            Rearrange("b 1 (t pt) (h p) (w q) -> b t h w (pt p q)", pt=temporal_patch_size, p=patch_size, q=patch_size),
            nn.LayerNorm(voxels),
            nn.Linear(voxels, dim),
            nn.LayerNorm(dim),
        )
        self.spatial_rel_pos_bias = _RelativeBias(dim, heads)
        self.enc_spatial_transformer = _Transformer(dim, depth, heads, dim_head)
        self.enc_temporal_transformer = _Transformer(dim, depth, heads, dim_head)
        self.vq = nn.ModuleDict({"_codebook": _CosineCodebook(codebook_size, dim)})

    def forward(self, volume: Tensor) -> Tensor:
        """Encode volumes.

        Args:
            volume: ``B 1 T H W``, depth first, in [-1, 1].

        Returns:
            Codes of the tokens, ``B t h w F``.
        """
        with torch.autocast(volume.device.type, enabled=False):
            tokens = self.encode(self.to_patch_emb(volume.float()))
            return self.vq["_codebook"](tokens)[0]

    def encode(self, tokens: Tensor) -> Tensor:
        """Patch embeddings ``B t h w F`` to tokens before the quantiser, of the same shape."""
        grid = tokens.shape[:4]
        x = rearrange(tokens, "b t h w f -> (b t) (h w) f")
        x = self.enc_spatial_transformer(x, grid, self.spatial_rel_pos_bias(self.grid_size))
        x = rearrange(x, "(b t) (h w) f -> (b h w) t f", t=grid[1], h=grid[2])
        x = self.enc_temporal_transformer(x, grid, None)
        return rearrange(x, "(b h w) t f -> b t h w f", h=grid[2], w=grid[3])


class _Transformer(nn.Module):
    """Positional convolution, attention and feed-forward, each with a residual; a normalisation at the end."""

    def __init__(self, dim: int, depth: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(  # index 2 is the published model's absent cross-attention
            nn.ModuleDict({"0": _Peg(dim), "1": _Attention(dim, heads, dim_head), "3": _feed_forward(dim)})
            for _ in range(depth)
        )
        self.norm_out = _Norm(dim)

    def forward(self, x: Tensor, grid: torch.Size, bias: Tensor | None) -> Tensor:
        layer: Any
        for layer in self.layers:
            x = x + layer["0"](x, grid)
            x = x + layer["1"](x, bias)
            x = x + layer["3"](x)
        return self.norm_out(x)


class _Peg(nn.Module):
    """Depth-wise convolution over the tokens, causal along the first axis of the grid.

    The tokens of the temporal transformer lie in the order (row, column, slice), but are read as (slice, row, column):
    its causal axis is the row. The published weights were trained so.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dsconv = nn.Conv3d(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor, grid: torch.Size) -> Tensor:
        cells = x.reshape(*grid, -1).permute(0, 4, 1, 2, 3)
        cells = functional.pad(cells, (1, 1, 1, 1, 2, 0))
        return self.dsconv(cells).permute(0, 2, 3, 4, 1).reshape(x.shape)


class _Attention(nn.Module):
    """Cosine attention; only the queries see the normalised input."""

    null_kv: Tensor

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _Norm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.q_scale = nn.Parameter(torch.ones(dim_head))
        self.k_scale = nn.Parameter(torch.ones(dim_head))
        # Empty in the published model. Kept, so that a file with learned ones does not fit.
        self.register_buffer("null_kv", torch.empty(heads, 0, dim_head))

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", h=self.heads)
            for part in (self.to_q(self.norm(x)), *self.to_kv(x).chunk(2, dim=-1))
        )
        q = functional.normalize(q, dim=-1) * self.q_scale
        k = functional.normalize(k, dim=-1) * self.k_scale
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=_LOGIT_SCALE)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class _RelativeBias(nn.Module):
    """Attention bias from the offset of two tokens of a square grid: a small network of its signed logarithm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(2, dim), nn.LeakyReLU(0.1)),
                nn.Sequential(nn.Linear(dim, dim), nn.LeakyReLU(0.1)),
                nn.Linear(dim, heads),
            ]
        )

    def forward(self, side: int) -> Tensor:
        """``1 heads N N`` for N = ``side``² tokens; the network runs once per offset, not once per pair."""
        device = next(self.parameters()).device
        steps = torch.arange(1 - side, side, device=device, dtype=torch.float32)
        steps = steps.sign() * steps.abs().log1p()
        bias = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
        for layer in self.net:
            bias = layer(bias)
        cell = torch.arange(side, device=device)
        offset = cell[:, None] - cell[None, :] + side - 1
        pairs = bias[offset[:, None, :, None], offset[None, :, None, :]]  # row, column, row', column', head
        return pairs.flatten(2, 3).flatten(0, 1).permute(2, 0, 1)[None].contiguous()


class _CosineCodebook(nn.Module):
    """Replaces each token by the code of the largest cosine."""

    embed: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("embed", functional.normalize(torch.randn(1, size, dim), dim=-1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the shape of ``x``, and their indices without its last axis."""
        codes = self.embed[0]
        unit = functional.normalize(codes, dim=-1).T
        # the length of a token does not change which cosine is the largest
        index = torch.cat([(rows @ unit).argmax(-1) for rows in x.detach().reshape(-1, x.shape[-1]).split(_ROWS)])
        index = index.view(x.shape[:-1])
        chosen = codes[index]
        return (x + (chosen - x).detach() if x.requires_grad else chosen), index


class _Norm(nn.Module):
    """Layer normalisation whose shift is a buffer: zeros in the published model."""

    beta: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class _Geglu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return x * functional.gelu(gate)


def _feed_forward(dim: int) -> nn.Sequential:
    inner = dim * 8 // 3
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, 2 * inner, bias=False),
        _Geglu(),
        nn.Identity(),  # the published dropout of 0
        nn.Linear(inner, dim, bias=False),
    )
