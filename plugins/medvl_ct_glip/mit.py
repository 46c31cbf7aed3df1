"""MiT: strided convolutions and transformer blocks with spatially reduced attention, encoder and decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MIT_DEPTHS", "MiT"]

_WIDTHS = (48, 128, 256, 512)
_HEADS = (1, 2, 4, 8)
_REDUCTIONS = (6, 4, 2, 1)
_STEM = 32
MIT_DEPTHS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "small": ((2, 3, 4, 3), (3, 4, 3)),
    "tiny": ((1, 1, 1, 1), (1, 1, 1)),
}
"""Variant → blocks of the four encoder stages and of the three decoder stages."""


class MiT(nn.Module):
    """Features at the resolution of the stem and segmentation logits at that of the input.

    Parameter names are those of the published checkpoints. Volumes are depth first here (``B C Z Y X``): the stem
    halves y and x only.

    Args:
        size: Input size in voxels (z, y, x): fixes the number of learned positions. Other sizes interpolate them.
        num_classes: Segmentation classes with background.
        depths: Encoder and decoder depths, see `MIT_DEPTHS`.
        in_channels: Channels of the volume.

    Raises:
        ValueError: If a size is no multiple of (16, 32, 32).

    References:
        [1] Xie et al., UniMiSS, arXiv:2112.09356. Written from the description of the architecture.
    """

    def __init__(
        self,
        size: Sequence[int],
        num_classes: int,
        depths: tuple[Sequence[int], Sequence[int]] = MIT_DEPTHS["small"],
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        if any(length % stride for length, stride in zip(size, (16, 32, 32), strict=True)):
            raise ValueError(
                f"size {tuple(size)} (z, y, x) does not divide by the strides (16, 32, 32) of the last stage"
            )
        if tuple(size) == (16, 32, 32):
            raise ValueError("size (16, 32, 32) (z, y, x) leaves one cell at the last stage: no spread to norm")
        grids = [_grid(size, stage) for stage in range(4)]
        self.transformer = _Encoder(in_channels, grids, depths[0])
        for level, (depth, grid) in enumerate(zip(depths[1], reversed(grids[:3]), strict=True)):
            stage = 2 - level
            width = _WIDTHS[stage]
            self.add_module(f"DecEmbed{level}", _Upsample(_WIDTHS[stage + 1], width))
            self.register_parameter(f"DecPosEmbed{level}", _positions(grid, width))
            blocks = [_Block(width, _HEADS[stage + 1], _REDUCTIONS[stage], qkv_bias=False) for _ in range(depth)]
            self.add_module(f"Decblock{level}", nn.ModuleList(blocks))
            self.add_module(f"ds{level}_cls_conv", nn.Conv3d(width, num_classes, 1))
        self.grids = grids
        self.norm = nn.LayerNorm(_WIDTHS[0], eps=1e-6)
        self.transposeconv_stage3 = nn.ConvTranspose3d(_WIDTHS[0], _STEM, 2, stride=2)
        self.stage3_de = _ConvNormAct(_STEM, _STEM, kernel=3, stride=1)
        self.ds3_cls_conv = nn.Conv3d(_STEM, num_classes, 1)
        self.cls_conv = nn.Conv3d(_STEM, num_classes, 1)

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Features, logits, and the logits of deep supervision.

        Args:
            volume: ``B C Z Y X``.

        Returns:
            Features ``B 32 Z Y/2 X/2``; logits ``B K Z Y X``; logits at strides (1, 2, 2), (2, 4, 4), (4, 8, 8) and
            (8, 16, 16), finest first.
        """
        stem, *skips = self.transformer(volume)
        x, auxiliary = skips.pop(), []
        for level in range(3):
            x = getattr(self, f"DecEmbed{level}")(x) + skips[2 - level]
            positions = _resized(getattr(self, f"DecPosEmbed{level}"), self.grids[2 - level], x.shape[2:])
            x = _through(getattr(self, f"Decblock{level}"), x, positions, self.norm if level == 2 else None)
            auxiliary.append(getattr(self, f"ds{level}_cls_conv")(x))
        features = self.stage3_de(self.transposeconv_stage3(x) + stem)
        auxiliary.append(self.ds3_cls_conv(features))
        full = functional.interpolate(features, volume.shape[2:], mode="trilinear")
        return features, self.cls_conv(full), auxiliary[::-1]


class _Encoder(nn.Module):
    def __init__(self, in_channels: int, grids: Sequence[Sequence[int]], depths: Sequence[int]) -> None:
        super().__init__()
        self.grids = grids
        self.patch_embed0 = _ConvNormAct(in_channels, _STEM, kernel=7, stride=(1, 2, 2))
        for stage, (width, below) in enumerate(zip(_WIDTHS, (_STEM, *_WIDTHS), strict=False)):
            self.add_module(f"patch_embed{stage + 1}", _PatchEmbedding(below, width))
            self.register_parameter(f"pos_embed{stage + 1}", _positions(grids[stage], width))
            blocks = [_Block(width, _HEADS[stage], _REDUCTIONS[stage], qkv_bias=True) for _ in range(depths[stage])]
            self.add_module(f"block{stage + 1}", nn.ModuleList(blocks))

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Stem and the four stages."""
        maps = [self.patch_embed0(volume)]
        for stage in range(4):
            x = getattr(self, f"patch_embed{stage + 1}").proj(maps[-1])
            positions = _resized(getattr(self, f"pos_embed{stage + 1}"), self.grids[stage], x.shape[2:])
            maps.append(_through(getattr(self, f"block{stage + 1}"), x, positions))
        return maps


class _PatchEmbedding(nn.Module):
    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = _ConvNormAct(in_channels, width, kernel=3, stride=2)


class _Upsample(nn.Module):
    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.ConvTranspose3d(in_channels, width, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class _ConvNormAct(nn.Module):
    def __init__(self, in_channels: int, width: int, kernel: int, stride: int | tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.InstanceNorm3d(width, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.norm(self.conv(x)), 0.01)


class _Attention(nn.Module):
    """Attention whose keys and values come from a grid that a strided convolution has coarsened."""

    def __init__(self, width: int, heads: int, reduction: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=qkv_bias)
        self.kv = nn.Linear(width, 2 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.reduction = reduction
        if reduction > 1:
            self.sr = nn.Conv3d(width, width, reduction, stride=reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """``B N F`` on ``grid`` → ``B N F``."""
        context = x
        if self.reduction > 1:
            if min(grid) < self.reduction:
                raise ValueError(
                    f"a token grid of {tuple(grid)} is smaller than the reduction {self.reduction}; enlarge the patch"
                )
            context = self.norm(self.sr(_as_map(x, grid)).flatten(2).transpose(1, 2))
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, reduction: int, qkv_bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads, reduction, qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width)

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        x = x + self.attn(self.norm1(x), grid)
        return x + self.mlp(self.norm2(x))


def _grid(size: Sequence[int], stage: int) -> tuple[int, ...]:
    strides = (2 << stage, 4 << stage, 4 << stage)
    return tuple(length // stride for length, stride in zip(size, strides, strict=True))


def _positions(grid: Sequence[int], width: int) -> nn.Parameter:
    positions = nn.Parameter(torch.empty(1, grid[0] * grid[1] * grid[2], width))
    nn.init.trunc_normal_(positions, std=0.02)
    return positions


def _resized(positions: Tensor, grid: Sequence[int], wanted: Sequence[int]) -> Tensor:
    if tuple(wanted) == tuple(grid):
        return positions
    return functional.interpolate(_as_map(positions, grid), tuple(wanted), mode="trilinear").flatten(2).transpose(1, 2)


def _through(blocks: nn.ModuleList, x: Tensor, positions: Tensor, norm: nn.Module | None = None) -> Tensor:
    grid = x.shape[2:]
    tokens = x.flatten(2).transpose(1, 2) + positions
    for block in blocks:
        tokens = block(tokens, grid)
    return _as_map(tokens if norm is None else norm(tokens), grid)


def _as_map(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(-1, tuple(grid))
