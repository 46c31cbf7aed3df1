"""A volume as the tokens of its slices, each embedded by a 2D encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medvl_core.build import build_encoder, build_pooling
from medvl_core.engine.alignment import Tower
from medvl_core.protocols import EncoderOutput
from medvl_core.specs import ImageInput
from medvl_imaging.images import check_images
from medvl_imaging.transforms import Normalise
from medvl_radclip.plugin import SLICES

__all__ = ["SliceEncoder", "build_slices"]

_AXES = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}
"""Columns, rows and slices of each plane in the radiologist's view: rows downwards, the patient's right on the left."""


class SliceEncoder(nn.Module):
    """Slices of a volume, one token each. Blank slices (0 everywhere, see ``fit="slices"``) are masked.

    Args:
        tower: Embeds one slice; its projection is part of it, its L2 norm is not.
        input: What the volume is standardised to: ``X Y`` of a slice, then slices.
        frozen: No gradients, and eval mode even under ``.train()``.
        slice_batch: Slices embedded at a time.
    """

    def __init__(self, tower: Tower, input: ImageInput, frozen: bool = True, slice_batch: int = 32) -> None:
        super().__init__()
        self.tower = tower
        self.input = input
        self.embed_dim: int = tower.embed_dim
        self.n_tokens: int = input.size[2]
        self.frozen = frozen
        self.slice_batch = slice_batch
        if frozen:
            self.freeze()

    def freeze(self) -> None:
        """From now on no gradients, and eval mode: after a tower that is shared has been trained as a 2D encoder."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> SliceEncoder:
        """As usual, but a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    def forward(self, x: Tensor) -> EncoderOutput:
        """Encode a batch of volumes.

        Args:
            x: ``B 1 X Y S`` in [0, 1] as ``input`` states.

        Returns:
            ``tokens`` ``B S F``, zeros where ``mask`` ``B S`` is false; no pooled vector.

        Raises:
            ValueError: If ``x`` does not have the shape of ``input``.
        """
        check_images(x, self)
        slices = x.permute(0, 4, 1, 3, 2)  # B S 1 H W
        mask = slices.flatten(2).amax(-1) > 0
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            rows = [self.tower.project(self._as_image(part)) for part in slices[mask].split(self.slice_batch)]
        tokens = x.new_zeros(*mask.shape, self.embed_dim, dtype=torch.float32)
        tokens[mask] = torch.cat(rows)
        return EncoderOutput(tokens=tokens, grid=(self.n_tokens,), mask=mask)

    def _as_image(self, grey: Tensor) -> Tensor:
        """Grey values ``n 1 H W`` in [0, 1] as the 2D encoder reads them."""
        input: ImageInput = self.tower.encoder.input  # type: ignore[assignment]
        low, high = input.output_range
        image = (low + (high - low) * grey).repeat(1, input.channels, 1, 1)
        if input.mean is None or input.std is None:
            return image
        return Normalise(input.mean, input.std)(image.movedim(1, 0)).movedim(0, 1)


def build_slices(
    encoder: str | nn.Module = "baseline/clip_image",
    *,
    options: Mapping[str, Any] | None = None,
    pooling: str | None = None,
    plane: Literal["axial", "coronal", "sagittal"] = "axial",
    max_slices: int = SLICES.size[2],
    window: Sequence[float] | None = None,
    frozen: bool = True,
    slice_batch: int = 32,
) -> SliceEncoder:
    """A 2D encoder as an encoder of volumes.

    The volume is reoriented, its values are mapped to [0, 1] (``window``), at most ``max_slices`` evenly spread slices
    are kept, each is scaled into the encoder's square with black borders. The published text says "z-score" and no
    more; a z-score straight into CLIP's mean and deviation would be far from what CLIP has seen, so it is cut at ±3 and
    mapped to the grey values of an 8-bit image.

    Args:
        encoder: Name of a 2D encoder; or an encoder, or a ``Tower`` around one, that exists: it is shared, not copied.
        options: Options of the encoder that ``encoder`` names.
        pooling: Name of a pooling for an encoder without a pooled vector of its own, e.g. ``"baseline/mean"``.
        plane: Which way the volume is cut. Slices run towards the head, the back or the patient's left.
        max_slices: Slices N of the result; fewer are filled up with masked ones.
        window: Values from black to white, e.g. (-1000, 400) HU. ``None``: mean ± 3 standard deviations of the volume.
        frozen: Whether the encoder is left as it is.
        slice_batch: Slices embedded at a time; less memory when smaller, the same result.

    Raises:
        ValueError: If an option does not fit, or the encoder is not for square 2D images.

    References:
        RadCLIP, arXiv:2403.09948, section 3; no code for volumes was published.
    """
    if plane not in _AXES or max_slices < 1 or slice_batch < 1:
        raise ValueError(
            f"plane is {plane!r}, max_slices {max_slices}, slice_batch {slice_batch}; "
            f"choose from {', '.join(_AXES)}, and at least 1"
        )
    if isinstance(encoder, nn.Module) and options:
        raise ValueError(f"options {sorted(options)} are for an encoder given by name; this one is built already")
    built = build_encoder(encoder, **(options or {})) if isinstance(encoder, str) else encoder
    tower = (
        built if isinstance(built, Tower) else Tower(built, build_pooling(pooling) if pooling else None, embed_dim=None)
    )
    flat: Any = tower.encoder.input
    if not isinstance(flat, ImageInput) or len(flat.size) != 2 or flat.size[0] != flat.size[1]:
        raise ValueError(f"{type(tower.encoder).__name__} reads {flat}; slices need an encoder of square 2D images")
    input = replace(
        SLICES,
        size=(*flat.size, max_slices),
        axcodes=_AXES[plane],
        interpolation=flat.interpolation,
        window_hu=None if window is None else (float(window[0]), float(window[1])),
        window_sd=SLICES.window_sd if window is None else None,
    )
    return SliceEncoder(tower, input, frozen, slice_batch)
