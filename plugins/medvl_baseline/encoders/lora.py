"""Low-rank adapters for CLIP's vision tower, through peft."""

from __future__ import annotations

from torch import nn

__all__ = ["add_lora"]


def add_lora(model: nn.Module, rank: int) -> None:
    """Add trainable low-rank matrices to queries and values; all else freezes, but for the last projection.

    The model's outputs do not change until they are trained: one of the two matrices starts as zeros. Scale 2, no
    dropout.

    Args:
        model: A ``transformers.CLIPVisionModelWithProjection``, its weights loaded. Changed in place.
        rank: Rank of the matrices.

    Raises:
        ValueError: If the rank is below 1, or peft is not installed.

    References:
        Hu et al., LoRA: low-rank adaptation of large language models, arXiv:2106.09685.
    """
    if rank < 1:
        raise ValueError(f"lora_rank is {rank}; give at least 1, or None for full training")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f"lora_rank is {rank}, but peft is not installed; pip install 'medvl[lora]'") from error
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"]), model)
    model.visual_projection.requires_grad_(True)
