"""CLIP's two towers through transformers, each with its own projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medvl_baseline.encoders.clip_tokenizer import ClipTokenizer
from medvl_baseline.encoders.clip_weights import load_clip
from medvl_baseline.encoders.lora import add_lora
from medvl_baseline.encoders.text import check_vocabulary
from medvl_baseline.plugin import CLIP_IMAGE
from medvl_core.protocols import EncoderOutput, TokenBatch
from medvl_core.specs import ImageInput, TextInput
from medvl_imaging.images import check_images

__all__ = ["ClipImage", "ClipText", "build_clip_image", "build_clip_text"]

_TEMPERATURE = 0.07
_VARIANTS: dict[str, dict[str, Any]] = {
    "vit_b_32": {
        "image": {"patch": 32, "width": 768, "layers": 12, "heads": 12},
        "text": {"width": 512, "layers": 12, "heads": 8},
        "projection_dim": 512,
    },
    "vit_l_14": {
        "image": {"patch": 14, "width": 1024, "layers": 24, "heads": 16},
        "text": {"width": 768, "layers": 12, "heads": 12},
        "projection_dim": 768,
    },
}
_INPUTS = {
    "clip": CLIP_IMAGE,
    "chexzero": replace(CLIP_IMAGE, fit="contain", mean=(101.48761 / 255,) * 3, std=(83.43944 / 255,) * 3),
}


class ClipImage(nn.Module):
    """CLIP's vision tower. Every token is projected, so ``embed_dim`` is the width of the shared space.

    Args:
        model: A ``transformers.CLIPVisionModelWithProjection``.
        input: What it reads.
    """

    def __init__(self, model: Any, input: ImageInput) -> None:
        super().__init__()
        self.model = model
        self.input = input
        self.embed_dim: int = model.config.projection_dim
        self.temperature = _TEMPERATURE

    def forward(self, x: Tensor) -> EncoderOutput:
        """Encode a batch of images.

        Args:
            x: ``B 3 H W`` as ``input`` states.

        Returns:
            ``tokens`` ``B 1+N P``, the class token first, each through the last norm and the projection; ``pooled`` is
            the class token: CLIP's image embedding before normalisation.

        Raises:
            ValueError: If ``x`` does not have the shape of ``input``.
        """
        check_images(x, self)
        trunk = self.model.vision_model
        tokens = trunk.post_layernorm(trunk(pixel_values=x).last_hidden_state)
        tokens = self.model.visual_projection(tokens)
        patch = self.model.config.patch_size
        grid = (self.input.size[0] // patch, self.input.size[1] // patch)
        return EncoderOutput(tokens=tokens, grid=grid, pooled=tokens[:, 0])


class ClipText(nn.Module):
    """CLIP's text tower and its tokeniser. Every token is projected, so ``embed_dim`` is the width of the shared space.

    Its ``state_dict`` holds a digest of the vocabulary, checked on loading.

    Args:
        model: A ``transformers.CLIPTextModelWithProjection``.
        tokenizer: Its tokeniser.
    """

    vocabulary_sha256: Tensor

    def __init__(self, model: Any, tokenizer: ClipTokenizer) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.input = TextInput(max_length=tokenizer.max_length)
        self.embed_dim: int = model.config.projection_dim
        self.temperature = _TEMPERATURE
        self.register_buffer("vocabulary_sha256", torch.tensor(list(tokenizer.sha256), dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(check_vocabulary)  # type: ignore[no-untyped-call]

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        """Texts to token ids, see ``ClipTokenizer``."""
        return self.tokenizer(texts)

    def forward(self, x: TokenBatch) -> EncoderOutput:
        """Encode tokens ``B L`` to ``B L P``; ``pooled`` is the last valid token, the end of the text.

        Attention looks back only, so padding behind the end token has no influence and needs no mask.
        """
        hidden = self.model.text_model(input_ids=x.input_ids).last_hidden_state
        tokens = self.model.text_projection(hidden)
        last = x.attention_mask.sum(1) - 1
        pooled = tokens[torch.arange(len(tokens), device=tokens.device), last]
        return EncoderOutput(tokens=tokens, grid=(tokens.shape[1],), pooled=pooled, mask=x.attention_mask)


def build_clip_image(
    *,
    variant: Literal["vit_b_32", "vit_l_14"] = "vit_b_32",
    size: Sequence[int] = CLIP_IMAGE.size,
    patch: int | None = None,
    width: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    projection_dim: int | None = None,
    preprocessing: Literal["clip", "chexzero"] = "clip",
    window: Sequence[float] | None = (0.0, 255.0),
    attention: Literal["sdpa", "eager"] = "sdpa",
    gradient_checkpointing: bool = False,
    weights: str | Path = "random",
    lora_rank: int | None = None,
) -> ClipImage:
    """CLIP's vision tower with its projection. Use it in a ``Tower`` with ``embed_dim=None``: nothing is added to it.

    Args:
        variant: Sizes of a published model; each of the following replaces one of them.
        size: Pixels ``(H, W)``, equal, a multiple of ``patch``.
        patch: Pixels along a patch.
        width: Width inside the transformer.
        layers: Transformer blocks.
        heads: Attention heads; must divide ``width``.
        projection_dim: Width P of the shared space.
        preprocessing: ``"clip"``: shorter side to ``size``, centre crop, CLIP's mean and deviation (CLIP, RadCLIP).
            ``"chexzero"``: longer side to ``size``, zero padding, mean 101.48761 and deviation 83.43944 of 255
            (CheXzero, CXR-CML). Both cubic.
        window: Grey values from black to white: 8-bit files. ``None`` takes each image's own range: DICOM and 16 bit.
        attention: ``"sdpa"`` is fused; ``"eager"`` is the plain formula.
        gradient_checkpointing: Recompute blocks in the backward pass: less memory, about a third more time.
        weights: ``"random"``, or a checkpoint of a CLIP, see ``clip_weights.load_clip``.
        lora_rank: Train low-rank adapters of this rank, not the tower (the extra ``lora``); see ``lora.add_lora``.

    Returns:
        An encoder. Its ``temperature`` is that of the checkpoint, or 0.07.

    Raises:
        ValueError: If an option is unknown, or ``size`` and ``patch`` or ``width`` and ``heads`` do not fit.
        WeightsError: If the weights file is not there or does not fit, naming what is wrong.

    Note:
        CheXzero scales to 320 pixels with another filter first and then to 224. Here it is one step. Mean difference on
        seven radiographs: 0.2 of 255 grey values when square, about 2 when padded (the image lies half a pixel apart).

    References:
        Radford et al., arXiv:2103.00020. Tiu et al. (CheXzero), doi:10.1038/s41551-022-00936-9.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    _known("preprocessing", preprocessing, _INPUTS)
    sizes = _sizes(variant, "image", patch=patch, width=width, layers=layers, heads=heads)
    if len(size) != 2 or size[0] != size[1] or size[0] % sizes["patch"]:
        raise ValueError(f"CLIP image size is {tuple(size)}; give (n, n) with n a multiple of patch {sizes['patch']}")
    config = CLIPVisionConfig(
        image_size=size[0],
        patch_size=sizes["patch"],
        **_config(sizes, projection_dim or _VARIANTS[variant]["projection_dim"]),
    )
    model = _model(CLIPVisionModelWithProjection, config, attention, gradient_checkpointing)
    bounds = None if window is None else (float(window[0]), float(window[1]))
    encoder = ClipImage(model, replace(_INPUTS[preprocessing], size=tuple(size), window_hu=bounds))
    if weights != "random":
        encoder.temperature = load_clip(model, weights) or _TEMPERATURE
    if lora_rank is not None:
        add_lora(model, lora_rank)
    return encoder


def build_clip_text(
    *,
    variant: Literal["vit_b_32", "vit_l_14"] = "vit_b_32",
    vocabulary: str | Path | None = None,
    max_length: int = 77,
    width: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    projection_dim: int | None = None,
    attention: Literal["sdpa", "eager"] = "sdpa",
    gradient_checkpointing: bool = False,
    weights: str | Path = "random",
) -> ClipText:
    """CLIP's text tower with its projection. Use it in a ``Tower`` with ``embed_dim=None``; ``frozen=True`` freezes it.

    Args:
        variant: Sizes of a published model.
        vocabulary: See ``ClipTokenizer``. Published weights need CLIP's own of 49,408 tokens.
        max_length: Tokens kept, start and end included.
        width: Width inside the transformer.
        layers: Transformer blocks.
        heads: Attention heads; must divide ``width``.
        projection_dim: Width P of the shared space.
        attention: ``"sdpa"`` is fused; ``"eager"`` is the plain formula.
        gradient_checkpointing: Recompute blocks in the backward pass: less memory, about a third more time.
        weights: ``"random"``, or a checkpoint of a CLIP, see ``clip_weights.load_clip``.

    Returns:
        An encoder of ``TokenBatch``. Its ``temperature`` is that of the checkpoint, or 0.07.

    Raises:
        FileNotFoundError: If the vocabulary is not there.
        ValueError: If an option is unknown or the vocabulary is not like CLIP's.
        WeightsError: If the weights file is not there or does not fit, naming what is wrong.

    References:
        Radford et al., arXiv:2103.00020.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = _sizes(variant, "text", width=width, layers=layers, heads=heads)
    tokenizer = ClipTokenizer(vocabulary, max_length)
    config = CLIPTextConfig(
        vocab_size=tokenizer.size,
        max_position_embeddings=max_length,
        bos_token_id=tokenizer.end - 1,
        eos_token_id=tokenizer.end,
        pad_token_id=tokenizer.end,
        **_config(sizes, projection_dim or _VARIANTS[variant]["projection_dim"]),
    )
    model = _model(CLIPTextModelWithProjection, config, attention, gradient_checkpointing)
    encoder = ClipText(model, tokenizer)
    if weights != "random":
        encoder.temperature = load_clip(model, weights) or _TEMPERATURE
    return encoder


def _known(option: str, value: str, choices: Mapping[str, object]) -> None:
    if value not in choices:
        raise ValueError(f"CLIP {option} is {value!r}; choose one of {', '.join(choices)}")


def _sizes(variant: str, half: str, **given: int | None) -> dict[str, int]:
    _known("variant", variant, _VARIANTS)
    sizes = _VARIANTS[variant][half] | {name: value for name, value in given.items() if value is not None}
    if sizes["width"] % sizes["heads"]:
        raise ValueError(f"CLIP width {sizes['width']} is not a multiple of {sizes['heads']} heads; change one")
    return sizes


def _config(sizes: Mapping[str, int], projection_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": sizes["width"],
        "intermediate_size": 4 * sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "projection_dim": projection_dim,
    }


def _model(kind: Any, config: Any, attention: str, gradient_checkpointing: bool) -> nn.Module:
    _known("attention", attention, {"sdpa": None, "eager": None})
    config._attn_implementation = attention
    model = kind(config)
    if gradient_checkpointing:
        # renamed during transformers 5
        name = "activation_checkpointing_enable"
        enable = getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")
        enable({"use_reentrant": False})
    return model
