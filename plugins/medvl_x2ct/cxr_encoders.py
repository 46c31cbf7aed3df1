"""The radiograph encoders of X2CT-CLIP: a trunk, the mean over its tokens, a projection to CT-CLIP's latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medvl_core.build import build_encoder
from medvl_core.protocols import EncoderOutput
from medvl_core.specs import ImageInput
from medvl_imaging.images import check_images
from medvl_x2ct.cxr_weights import initialise
from medvl_x2ct.plugin import IMAGENET_RADIOGRAPH, SWIN_RADIOGRAPH

__all__ = ["CxrEncoder", "build_resnet50", "build_swin_t"]

Initialisation = Literal["imagenet", "random", "cxr_clip"]
_IMAGENET = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # mean and standard deviation of torchvision's weights
_NONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class CxrEncoder(nn.Module):
    """A trunk of three channels on grey radiographs, its tokens projected to the shared space.

    The one channel is repeated and normalised here: what is stored and augmented stays one channel in a plain range.

    Args:
        trunk: An encoder of 3-channel images with tokens.
        input: The one-channel image.
        statistics: Mean and standard deviation of each channel, in the units of ``input.output_range``.
        latent: Width of the shared space.
    """

    mean: Tensor
    std: Tensor
    weights_sha256: str | None = None

    def __init__(
        self, trunk: Any, input: ImageInput, statistics: tuple[Sequence[float], Sequence[float]], latent: int
    ) -> None:
        super().__init__()
        self.xray_encoder = trunk
        self.to_xray_latent = nn.Linear(trunk.embed_dim, latent, bias=False)
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.input = input
        self.embed_dim = latent

    def forward(self, x: Tensor) -> EncoderOutput:
        """Encode radiographs.

        Args:
            x: ``B 1 H W`` as ``input`` states.

        Returns:
            ``tokens`` projected, ``B N E``; ``pooled`` is their mean, the latent before its normalisation; ``features``
            is the trunk's map, unprojected.

        Raises:
            ValueError: If ``x`` does not have the shape of ``input``.
        """
        check_images(x, self)
        output = self.xray_encoder((x - self.mean) / self.std)
        tokens = self.to_xray_latent(output.tokens)
        return EncoderOutput(tokens=tokens, grid=output.grid, pooled=tokens.mean(1), features=output.features)


def build_resnet50(
    *,
    size: Sequence[int] = IMAGENET_RADIOGRAPH.size,
    base_width: int = 64,
    latent: int = 512,
    initialisation: Initialisation = "imagenet",
    weights: str | Path | None = None,
) -> CxrEncoder:
    """ResNet-50, global average, projection without bias.

    Put it into ``Tower(encoder, pooling=None, embed_dim=None)``: it ends in the shared space.

    Args:
        size: Pixels ``(H, W)``.
        base_width: Channels of the first stage.
        latent: Width E of the shared space.
        initialisation: ``"imagenet"`` (what the paper's numbers look like), ``"random"``, or ``"cxr_clip"``, which also
            sets the projection and leaves out its bias, as the authors do.
        weights: The file of the initialisation: torchvision's ``resnet50-11ad3fa6.pth`` (IMAGENET1K_V2; ``None`` looks
            into torch's hub folder), or CXR-CLIP's ``r50_mcc.tar``.

    Returns:
        An encoder with stride 32 that reads [0, 1].

    Raises:
        ValueError: If the initialisation is unknown, or ``"random"`` with weights.
        WeightsError: If the file is not there, naming the one that is wanted, or does not fit, naming the keys.

    References:
        arXiv:2503.02162; He et al., arXiv:1512.03385; weights of Soombit-ai/cxr-clip@3118885.
    """
    trunk = build_encoder("baseline/resnet50_2d", size=size, channels=3, base_width=base_width)
    encoder = CxrEncoder(trunk, replace(IMAGENET_RADIOGRAPH, size=tuple(size)), _IMAGENET, latent)
    initialise(encoder, "resnet50", initialisation, weights)
    return encoder


def build_swin_t(
    *,
    size: Sequence[int] = SWIN_RADIOGRAPH.size,
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 7,
    latent: int = 512,
    initialisation: Initialisation = "imagenet",
    weights: str | Path | None = None,
) -> CxrEncoder:
    """Swin-T, mean over tokens (CXR-CLIP itself takes the first one), projection without bias.

    Args:
        size: Pixels ``(H, W)``.
        embed_dim: Width of the first stage.
        depths: Blocks per stage.
        num_heads: Attention heads per stage.
        window_size: Tokens along a side of an attention window.
        latent: Width E of the shared space.
        initialisation: As for ``build_resnet50``.
        weights: The file of the initialisation: the folder of microsoft/swin-tiny-patch4-window7-224 (``None`` looks
            into the hub cache), or CXR-CLIP's ``swint_mcc.tar``.

    Returns:
        An encoder with stride 32 that reads [-1, 1].

    Raises:
        ValueError: If the initialisation is unknown, or ``"random"`` with weights, or sizes do not go together.
        WeightsError: If the file is not there, naming the one that is wanted, or does not fit, naming the keys.

    References:
        arXiv:2503.02162; Liu et al., arXiv:2103.14030; weights of Soombit-ai/cxr-clip@3118885.
    """
    trunk = build_encoder(
        "baseline/swin_t_2d",
        size=size,
        channels=3,
        embed_dim=embed_dim,
        depths=depths,
        num_heads=num_heads,
        window_size=window_size,
    )
    encoder = CxrEncoder(trunk, replace(SWIN_RADIOGRAPH, size=tuple(size)), _NONE, latent)
    initialise(encoder, "swin_t", initialisation, weights)
    return encoder
