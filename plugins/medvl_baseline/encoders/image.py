"""Image encoders: networks of MONAI and transformers behind one call, ``B C *size`` to tokens.

Nothing here defines a network. MONAI takes seconds to import, so the builders import it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from medvl_baseline.plugin import CHEST_CT, RADIOGRAPH
from medvl_core.protocols import EncoderOutput
from medvl_core.specs import ImageInput
from medvl_imaging.images import check_images

__all__ = ["MapEncoder", "build_resnet18_2d", "build_resnet50_2d", "build_resnet_3d", "build_swin_t_2d", "build_vit_3d"]

_RESNET_LAYERS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_CHANNELS_PER_GROUP = 16  # Wu and He, arXiv:1803.08494, table 3: the best fixed number of channels per group


class MapEncoder(nn.Module):
    """A network whose result is one map ``B F *grid``: its cells are the tokens.

    Args:
        trunk: The network. Its ``state_dict`` is what weight files hold.
        to_map: ``(trunk, x) -> B F *grid``.
        input: What ``x`` must be.
        embed_dim: Width F.
    """

    def __init__(
        self, trunk: nn.Module, to_map: Callable[[nn.Module, Tensor], Tensor], *, input: ImageInput, embed_dim: int
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self._to_map = to_map
        self.input = input
        self.embed_dim = embed_dim

    def forward(self, x: Tensor) -> EncoderOutput:
        """Encode a batch of images.

        Args:
            x: ``B C X Y Z`` or ``B C H W`` as ``input`` states.

        Returns:
            ``tokens`` ``B N F`` in the row-major order of ``grid``, ``features`` ``B F *grid``, no ``pooled`` vector.

        Raises:
            ValueError: If ``x`` does not have the shape of ``input``.
        """
        check_images(x, self)
        features = self._to_map(self.trunk, x)
        return EncoderOutput(
            tokens=features.flatten(2).transpose(1, 2), grid=tuple(features.shape[2:]), features=features
        )


def _resnet_2d(
    depth: Literal[18, 50],
    *,
    size: Sequence[int] = RADIOGRAPH.size,
    channels: int = 1,
    base_width: int = 64,
    norm: Literal["batch", "group"] = "batch",
    weights: str | Path = "random",
) -> MapEncoder:
    """2D ResNet of MONAI with stride 32; F = 8 ``base_width``, or 32 for depth 50.

    Args:
        depth: 18 or 50 layers.
        size: Pixels ``(H, W)``.
        channels: Input channels.
        base_width: Channels of the first stage.
        norm: ``"group"`` (16 channels a group) keeps samples apart in training too: take it for small batches.
        weights: ``"random"``, or a state dict (.safetensors, .pt). With the defaults and 3 channels torchvision's files
            fit: the keys are the same, their ``fc`` is left out.

    Raises:
        ValueError: If ``size`` or ``norm`` is not usable.
        WeightsError: If the weights file is not there or does not fit, naming what is wrong.

    References:
        He et al., arXiv:1512.03385.
    """
    return _resnet(depth, replace(RADIOGRAPH, size=tuple(size), channels=channels), base_width, norm, weights)


build_resnet18_2d = partial(_resnet_2d, 18)
"""ResNet-18 of MONAI, see ``_resnet_2d``."""

build_resnet50_2d = partial(_resnet_2d, 50)
"""ResNet-50 of MONAI, see ``_resnet_2d``."""


def build_resnet_3d(
    *,
    size: Sequence[int] = CHEST_CT.size,
    depth: Literal[10, 18, 34, 50] = 18,
    channels: int = 1,
    base_width: int = 64,
    norm: Literal["batch", "group"] = "batch",
    weights: str | Path = "random",
) -> MapEncoder:
    """3D ResNet of MONAI with stride 32; F = 8 ``base_width``, or 32 for depth 50.

    Args:
        size: Voxels ``(X, Y, Z)``.
        depth: 10, 18, 34 or 50 layers.
        channels: As for the 2D networks, see ``_resnet_2d``; so are all further options, errors and the source.
        base_width: See there.
        norm: See there.
        weights: See there; torchvision has none.
    """
    return _resnet(depth, replace(CHEST_CT, size=tuple(size), channels=channels), base_width, norm, weights)


def build_swin_t_2d(
    *,
    size: Sequence[int] = RADIOGRAPH.size,
    channels: int = 1,
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 7,
    weights: str | Path = "random",
) -> MapEncoder:
    """Swin transformer of transformers, by default Swin-T; F = ``embed_dim`` doubled per stage after the first.

    Args:
        size: Pixels ``(H, W)``.
        channels: Input channels.
        embed_dim: Width of the first stage.
        depths: Blocks per stage.
        num_heads: Attention heads per stage.
        window_size: Tokens along a side of an attention window; less in stages that have less, e.g. below 224 pixels.
        weights: ``"random"``, or a state dict (.safetensors, .pt) of ``transformers.SwinModel`` without pooler, made
            with the same windows.

    Returns:
        An encoder with stride 4 times 2 per stage after the first. No stochastic depth.

    Raises:
        ValueError: If ``depths`` and ``num_heads`` differ in length or ``size`` is not a multiple of the stride.
        WeightsError: If the weights file is not there or does not fit, naming what is wrong.

    References:
        Liu et al., arXiv:2103.14030.
    """
    from transformers import SwinConfig, SwinModel

    if len(depths) != len(num_heads):
        raise ValueError(
            f"depths {tuple(depths)} and num_heads {tuple(num_heads)} differ in length; give one per stage"
        )
    stride = 4 * 2 ** (len(depths) - 1)
    _require_multiple(size, (stride, stride))
    config = SwinConfig(
        image_size=(size[0], size[1]),
        num_channels=channels,
        embed_dim=embed_dim,
        depths=list(depths),
        num_heads=list(num_heads),
        window_size=window_size,
        drop_path_rate=0.0,
    )
    to_map = partial(_swin_map, grid=tuple(n // stride for n in size))
    trunk = SwinModel(config, add_pooling_layer=False)
    _fit_windows(trunk, size, window_size)
    return _finish(trunk, to_map, replace(RADIOGRAPH, size=tuple(size), channels=channels), config.hidden_size, weights)


def build_vit_3d(
    *,
    size: Sequence[int] = CHEST_CT.size,
    channels: int = 1,
    patch: Sequence[int] = (16, 16, 16),
    hidden_size: int = 768,
    layers: int = 12,
    heads: int = 12,
    weights: str | Path = "random",
) -> MapEncoder:
    """3D vision transformer of MONAI, without a class token; F = ``hidden_size``.

    Args:
        size: Voxels ``(X, Y, Z)``.
        channels: Input channels.
        patch: Voxels of a patch; must divide ``size``.
        hidden_size: Token width; its feed-forward layers are four times as wide.
        layers: Transformer blocks.
        heads: Attention heads; must divide ``hidden_size``.
        weights: ``"random"``, or a state dict (.safetensors, .pt) of ``monai.networks.nets.ViT``.

    Returns:
        An encoder with one token per patch.

    Raises:
        ValueError: If ``patch`` does not divide ``size`` or ``heads`` does not divide ``hidden_size``.
        WeightsError: If the weights file is not there or does not fit, naming what is wrong.

    References:
        Dosovitskiy et al., arXiv:2010.11929.
    """
    from monai.networks.nets import ViT

    _require_multiple(size, patch)
    trunk = ViT(
        in_channels=channels,
        img_size=tuple(size),
        patch_size=tuple(patch),
        hidden_size=hidden_size,
        mlp_dim=4 * hidden_size,
        num_layers=layers,
        num_heads=heads,
        spatial_dims=len(size),
    )
    for block in trunk.blocks:
        # MONAI keeps this norm for old checkpoints but never calls it: DDP would wait for its gradient.
        block.norm_cross_attn.requires_grad_(False)
    to_map = partial(_vit_map, grid=tuple(n // p for n, p in zip(size, patch, strict=True)))
    return _finish(trunk, to_map, replace(CHEST_CT, size=tuple(size), channels=channels), hidden_size, weights)


def _resnet(depth: int, input: ImageInput, base_width: int, norm: str, weights: str | Path) -> MapEncoder:
    from monai.networks.nets import ResNet

    if depth not in _RESNET_LAYERS:
        raise ValueError(f"ResNet depth is {depth}; choose one of {sorted(_RESNET_LAYERS)}")
    if norm not in ("batch", "group"):
        raise ValueError(f"ResNet norm is {norm!r}; choose 'batch' or 'group'")
    block = "bottleneck" if depth >= 50 else "basic"
    trunk = ResNet(
        block,
        list(_RESNET_LAYERS[depth]),
        [base_width * 2**stage for stage in range(4)],
        spatial_dims=len(input.size),
        n_input_channels=input.channels,
        conv1_t_stride=2,
        bias_downsample=False,
        feed_forward=False,
    )
    if norm == "group":
        _batch_to_group_norm(trunk)
    embed_dim = base_width * (32 if block == "bottleneck" else 8)
    return _finish(trunk, _resnet_map, input, embed_dim, weights, ignore=("fc.*",))


def _resnet_map(trunk: Any, x: Tensor) -> Tensor:
    x = trunk.maxpool(trunk.act(trunk.bn1(trunk.conv1(x))))
    return trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(x))))


def _swin_map(trunk: nn.Module, x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return trunk(x).last_hidden_state.transpose(1, 2).unflatten(2, grid)


def _fit_windows(trunk: nn.Module, size: Sequence[int], window_size: int) -> None:
    """Where a stage has fewer tokens than a window, its window is that small, and so is its table of biases.

    As in the authors' code; transformers' makes the window small but not the table, and fails in the forward pass.
    """
    for stage, layer in enumerate(trunk.encoder.layers):  # type: ignore[union-attr, arg-type]
        side = min(size) // (4 * 2**stage)
        for block in layer.blocks if side < window_size else ():
            bias = block.attention.relative_position_bias
            heads = bias.relative_position_bias_table.shape[1]
            block.attention.relative_position_bias = type(bias)(heads, (side, side))


def _vit_map(trunk: nn.Module, x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return trunk(x)[0].transpose(1, 2).unflatten(2, grid)


def _batch_to_group_norm(module: nn.Module) -> None:
    # MONAI's own ``norm`` option reaches the stem only (1.6.1), so the layers are exchanged afterwards.
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            groups = math.gcd(child.num_features, max(1, child.num_features // _CHANNELS_PER_GROUP))
            setattr(module, name, nn.GroupNorm(groups, child.num_features))
        else:
            _batch_to_group_norm(child)


def _require_multiple(size: Sequence[int], step: Sequence[int]) -> None:
    if len(size) != len(step) or any(n % s for n, s in zip(size, step, strict=True)):
        raise ValueError(f"image size {tuple(size)} is not a multiple of {tuple(step)}; choose another size")


def _finish(
    trunk: nn.Module,
    to_map: Callable[[nn.Module, Tensor], Tensor],
    input: ImageInput,
    embed_dim: int,
    weights: str | Path,
    ignore: Sequence[str] = (),
) -> MapEncoder:
    if weights != "random":
        from medvl_core.engine.weights import load_weights

        load_weights(trunk, weights, ignore=ignore)
    return MapEncoder(trunk, to_map, input=input, embed_dim=embed_dim)
