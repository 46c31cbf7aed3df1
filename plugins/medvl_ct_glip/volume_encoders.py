"""Volume encoders that give a high-resolution map and segmentation logits: nnU-Net, MiT, and two networks of MONAI."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, cat, nn
from torch.nn import functional

from medvl_core.protocols import EncoderOutput
from medvl_core.specs import ImageInput
from medvl_ct_glip.checkpoints import load_nnunet, load_unimiss
from medvl_ct_glip.mit import MIT_DEPTHS, MiT
from medvl_ct_glip.plugin import BODY_CT

__all__ = ["SegmentingEncoder", "build_dynunet", "build_mit", "build_nnunet", "build_swin_unetr", "input_of_plans"]

Maps = tuple[Tensor, tuple[Tensor, ...]]
"""Highest-resolution decoder map, and logits (finest first)."""


class SegmentingEncoder(nn.Module):
    """An encoder-decoder network behind the encoder protocol.

    Args:
        network: Reads volumes depth first; its state dict is what weight files hold.
        to_maps: ``(network, volume B C Z Y X) -> (features, logits)``.
        input: What the volume must be. Any patch of the same spacing works where the network allows it.
        embed_dim: Width F of ``features``.
        num_classes: Segmentation classes with background.
    """

    def __init__(
        self,
        network: nn.Module,
        to_maps: Callable[[Any, Tensor], Maps],
        *,
        input: ImageInput,
        embed_dim: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.network = network
        self._to_maps = to_maps
        self.input = input
        self.embed_dim = embed_dim
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> EncoderOutput:
        """Encode a batch of volumes or patches.

        Args:
            x: ``B C X Y Z``.

        Returns:
            ``features`` ``B F X' Y' Z'`` at the network's highest resolution; ``tokens`` ``B N F``, their means over
            cells of 8 x 8 x 8 for global poolings; ``logits`` finest first, each ``B K X Y Z`` at its own resolution.

        Raises:
            ValueError: If the volume has other channels or fewer than three axes.
        """
        if x.ndim != 5 or x.shape[1] != self.input.channels:
            raise ValueError(
                f"volume batch has shape {tuple(x.shape)}; this encoder reads B {self.input.channels} X Y Z"
            )
        features, logits = self._to_maps(self.network, _turned(x))
        features = _turned(features)
        cells = functional.avg_pool3d(features, [min(8, length) for length in features.shape[2:]], ceil_mode=True)
        return EncoderOutput(
            tokens=cells.flatten(2).transpose(1, 2),
            grid=tuple(cells.shape[2:]),
            features=features,
            logits=tuple(map(_turned, logits)),
        )


def build_nnunet(
    *,
    size: Sequence[int] = BODY_CT.size,
    spacing_mm: Sequence[float] | None = BODY_CT.spacing_mm,
    num_classes: int = 105,
    plans: str | Path | None = None,
    features: Sequence[int] = (32, 64, 128, 256, 320, 320),
    blocks: int = 2,
    first_stride: int = 1,
    weights: str | Path | None = None,
) -> SegmentingEncoder:
    """PlainConvUNet as nnU-Net configures it.

    Args:
        size: Patch (X, Y, Z); ignored when ``plans`` gives one.
        spacing_mm: Of the patch, likewise.
        num_classes: With background.
        plans: ``plans.json`` of nnU-Net v2: architecture, patch, spacing and intensities of its ``3d_fullres``.
        features: Channels per stage without plans: the usual 3d_fullres network, kernel 3, stride 2 below the first.
        blocks: Convolutions per stage without plans.
        first_stride: Of the first stage without plans; 2 halves the resolution of features and logits, at a quarter of
            the time.
        weights: ``checkpoint_final.pth`` of nnU-Net v2, of the same plans and classes; ``None`` starts fresh.

    Raises:
        ValueError: If the plans have no 3d_fullres, or name a network other than nnU-Net's U-Nets.
        WeightsError: If the weights are not there or do not fit, naming what is wrong.
    """
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    if plans is not None:
        network, input = _network_of_plans(plans, num_classes)
    else:
        input = _patch(size, spacing_mm)
        network = PlainConvUNet(
            input_channels=1,
            n_stages=len(features),
            features_per_stage=list(features),
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            strides=[first_stride] + [2] * (len(features) - 1),
            n_conv_per_stage=blocks,
            num_classes=num_classes,
            n_conv_per_stage_decoder=blocks,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"negative_slope": 0.01},
            deep_supervision=True,
        )
        network.apply(network.initialize)
    if weights is not None:
        load_nnunet(network, weights)
    width = network.encoder.output_channels[0]
    return SegmentingEncoder(network, _unet_maps, input=input, embed_dim=width, num_classes=num_classes)


def build_mit(
    *,
    variant: Literal["small", "tiny"] = "small",
    size: Sequence[int] = BODY_CT.size,
    spacing_mm: Sequence[float] | None = BODY_CT.spacing_mm,
    num_classes: int = 105,
    weights: str | Path | None = None,
    branch: Literal["student", "teacher"] = "student",
) -> SegmentingEncoder:
    """MiT of UniMiSS with its decoder.

    Args:
        variant: Depth.
        size: Patch (X, Y, Z); must divide by (32, 32, 16).
        spacing_mm: Of the patch.
        num_classes: With background.
        weights: ``UniMiss_small.pth``, published for the variant ``"small"``; ``None`` starts fresh. The segmentation
            heads and the last stage of the decoder always do.
        branch: Which of the two networks in that file.

    Raises:
        ValueError: If there is no such variant, or the size does not divide.
        WeightsError: If the weights are not there or do not fit, naming what is wrong.
    """
    if variant not in MIT_DEPTHS:
        raise ValueError(f"MiT variant {variant!r} is none of {sorted(MIT_DEPTHS)}")
    network = MiT(tuple(size)[::-1], num_classes, MIT_DEPTHS[variant])
    if weights is not None:
        load_unimiss(network, weights, branch)
    input = _patch(size, spacing_mm)
    return SegmentingEncoder(network, _mit_maps, input=input, embed_dim=32, num_classes=num_classes)


def build_dynunet(
    *,
    size: Sequence[int] = BODY_CT.size,
    spacing_mm: Sequence[float] | None = BODY_CT.spacing_mm,
    num_classes: int = 105,
    features: Sequence[int] = (32, 64, 128, 256, 320, 320),
) -> SegmentingEncoder:
    """MONAI's DynUNet in the same role."""
    from monai.networks.nets import DynUNet

    stages = len(features)
    network = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=num_classes,
        kernel_size=[3] * stages,
        strides=[1] + [2] * (stages - 1),
        upsample_kernel_size=[2] * (stages - 1),
        filters=list(features),
    )
    input = _patch(size, spacing_mm)
    return SegmentingEncoder(network, _dynunet_maps, input=input, embed_dim=features[0], num_classes=num_classes)


def build_swin_unetr(
    *,
    size: Sequence[int] = BODY_CT.size,
    spacing_mm: Sequence[float] | None = BODY_CT.spacing_mm,
    num_classes: int = 105,
    feature_size: int = 24,
) -> SegmentingEncoder:
    """MONAI's SwinUNETR in the same role; ``size`` must divide by 32."""
    from monai.networks.nets import SwinUNETR

    trunk: Any = SwinUNETR(in_channels=1, out_channels=num_classes, feature_size=feature_size)
    network = nn.ModuleDict({"head": trunk.out, "trunk": trunk})
    trunk.out = nn.Identity()
    input = _patch(size, spacing_mm)
    return SegmentingEncoder(network, _swin_maps, input=input, embed_dim=feature_size, num_classes=num_classes)


def input_of_plans(plans: str | Path) -> ImageInput:
    """Patch, spacing and intensities that nnU-Net's ``3d_fullres`` plans state: clip to percentiles, then z-score."""
    content = json.loads(Path(plans).read_text())
    try:
        configuration = content["configurations"]["3d_fullres"]
        (stated,) = content["foreground_intensity_properties_per_channel"].values()
        size, spacing = configuration["patch_size"], configuration["spacing"]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{plans}: no one-channel 3d_fullres plans ({error!r}); give plans.json of nnU-Net v2"
        ) from error
    if list(content.get("transpose_forward", [0, 1, 2])) != [0, 1, 2]:
        raise ValueError(f"{plans}: transpose_forward is {content['transpose_forward']}; only [0, 1, 2] is supported")
    low, high = float(stated["percentile_00_5"]), float(stated["percentile_99_5"])
    mean, std = float(stated["mean"]), max(float(stated["std"]), 1e-8)
    return replace(
        BODY_CT,
        size=tuple(map(int, size[::-1])),
        spacing_mm=tuple(map(float, spacing[::-1])),
        window_hu=(low, high),
        output_range=(low, high),
        pad_value=low,
        mean=(mean,),
        std=(std,),
    )


def _patch(size: Sequence[int], spacing_mm: Sequence[float] | None) -> ImageInput:
    spacing = None if spacing_mm is None else tuple(map(float, spacing_mm))
    return replace(BODY_CT, size=tuple(size), spacing_mm=spacing)


def _network_of_plans(plans: str | Path, num_classes: int) -> tuple[Any, ImageInput]:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    input = input_of_plans(plans)
    configuration = PlansManager(str(plans)).get_configuration("3d_fullres")
    name = configuration.network_arch_class_name
    if not name.endswith((".PlainConvUNet", ".ResidualEncoderUNet")):  # the class is imported by this name
        raise ValueError(
            f"{plans}: the network is {name}; only PlainConvUNet and ResidualEncoderUNet are built from plans"
        )
    network = get_network_from_plans(
        name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        input.channels,
        num_classes,
        deep_supervision=True,
    )
    return network, input


def _unet_maps(network: Any, volume: Tensor) -> Maps:
    """The decoder of dynamic-network-architectures, step by step: its own forward keeps the features to itself."""
    skips = network.encoder(volume)
    decoder, x, logits = network.decoder, skips[-1], []
    for level, (up, stage, head) in enumerate(
        zip(decoder.transpconvs, decoder.stages, decoder.seg_layers, strict=True)
    ):
        x = stage(cat([up(x), skips[-(level + 2)]], dim=1))
        logits.append(head(x))
    return x, tuple(logits[::-1])


def _mit_maps(network: MiT, volume: Tensor) -> Maps:
    features, logits, auxiliary = network(volume)
    return features, (logits, *auxiliary)


def _dynunet_maps(network: Any, volume: Tensor) -> Maps:
    features = network.skip_layers(volume)
    return features, (network.output_block(features),)


def _swin_maps(network: Any, volume: Tensor) -> Maps:
    features = network["trunk"](volume)
    return features, (network["head"](features),)


def _turned(x: Tensor) -> Tensor:
    """``B C X Y Z`` ↔ ``B C Z Y X``, a view."""
    return x.permute(0, 1, 4, 3, 2)
