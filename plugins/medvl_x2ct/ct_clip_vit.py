"""The CT tower of CT-CLIP as an encoder: volume → codes of CTViT → latent of the shared space."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from medvl_core.protocols import EncoderOutput
from medvl_imaging.images import check_images
from medvl_x2ct.ctvit import CTViT
from medvl_x2ct.plugin import CT_CLIP_INPUT

__all__ = ["CtClipVit", "build_ct_clip_vit"]


class CtClipVit(nn.Module):
    """CTViT, mean over the slices of tokens, and the projection to the latent. Its names are those of CT-CLIP's file.

    Args:
        network: The network.
        patch: Voxels ``(X, Y, Z)`` of a patch.
        dim: Token width F of the network.
        latent: Width of the shared space.
    """

    temperature: Tensor
    weights_sha256: str | None = None

    def __init__(self, network: CTViT, patch: tuple[int, int, int], dim: int, latent: int) -> None:
        super().__init__()
        self.visual_transformer = network
        self.to_visual_latent = nn.Linear(network.grid_size**2 * dim, latent, bias=False)
        self.register_buffer("temperature", torch.tensor(1.0))
        self.embed_dim = latent
        self.input = replace(CT_CLIP_INPUT, size=tuple(network.grid_size * n for n in patch))

    @property
    def teacher_scale(self) -> float:
        """What CT-CLIP multiplied its cosines by, 1/τ: the exponential of the parameter it calls temperature."""
        return float(self.temperature.exp())

    def forward(self, x: Tensor) -> EncoderOutput:
        """Encode volumes.

        Args:
            x: ``B 1 X Y Z`` as ``input`` states. Depth is put first here, as the network reads it.

        Returns:
            ``tokens`` (codes, ``B N F``) and the same as ``features`` ``B F X Y Z``, in the axes of ``x``; ``pooled``
            is the latent ``B E`` before its normalisation. E = F with the published sizes.

        Raises:
            ValueError: If ``x`` does not have the shape of ``input``.
        """
        check_images(x, self)
        codes = self.visual_transformer(x.permute(0, 1, 4, 2, 3))
        with torch.autocast(x.device.type, enabled=False):
            pooled = self.to_visual_latent(codes.mean(1).flatten(1))
        features = codes.permute(0, 4, 2, 3, 1)
        return EncoderOutput(
            tokens=features.flatten(2).transpose(1, 2),
            grid=tuple(features.shape[2:]),
            pooled=pooled,
            features=features,
        )


def build_ct_clip_vit(
    *,
    image_size: int = 480,
    frames: int = 240,
    patch_size: int = 20,
    temporal_patch_size: int = 10,
    dim: int = 512,
    depth: int = 4,
    heads: int = 8,
    dim_head: int = 32,
    codebook_size: int = 8192,
    latent: int = 512,
    weights: str | Path = "random",
) -> CtClipVit:
    """The CT tower of CT-CLIP, by default in its published size (174 million parameters, 151 of them one matrix).

    Put it into ``Tower(encoder, pooling=None, embed_dim=None, frozen=True)``: it ends in the shared space.

    Args:
        image_size: Voxels along x and y.
        frames: Slices.
        patch_size: Voxels of a patch along x and y.
        temporal_patch_size: Slices of a patch; ``frames / temporal_patch_size`` equals ``image_size / patch_size``.
        dim: Token width F.
        depth: Layers of the spatial and of the temporal transformer.
        heads: Attention heads.
        dim_head: Width of a head.
        codebook_size: Codes of the quantiser.
        latent: Width E of the shared space.
        weights: ``"random"``, or ``CT-CLIP_v2.pt`` or its conversion by ``python -m medvl_x2ct.convert``.

    Returns:
        An encoder of volumes in the axes LPS, the order in which CT-RATE's files lie.

    Raises:
        ValueError: If the token grid is not cubic.
        WeightsError: If the weights file is not there or does not fit, naming what is wrong.

    References:
        Hamamci et al., arXiv:2403.17834.
    """
    with nullcontext() if weights == "random" else torch.device("meta"):  # nothing is drawn just to be overwritten
        network = CTViT(
            frames=frames,
            image_size=image_size,
            temporal_patch_size=temporal_patch_size,
            patch_size=patch_size,
            dim=dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            codebook_size=codebook_size,
        )
        encoder = CtClipVit(network, (patch_size, patch_size, temporal_patch_size), dim, latent)
    if weights != "random":
        from medvl_x2ct.ct_clip_weights import load_ct_clip

        load_ct_clip(encoder, weights)
    return encoder
