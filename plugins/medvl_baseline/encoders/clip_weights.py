"""CLIP checkpoints, in the layout of OpenAI or of transformers, into either half of a CLIP. Strict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from medvl_core.engine.weights import WeightsError, load_state, read_checkpoint

__all__ = ["load_clip", "read_clip"]

_OPENAI_NAMES = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),  # misspelt in transformers too
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_projection.weight", "text_projection"),
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
_FUSED = re.compile(r"\.self_attn\.([qkv])_proj\.")
_TRANSPOSED = ("visual_projection.weight", "text_projection.weight")
# Of the other half, and of both: known, and not for this module.
_OPENAI_VISION, _OPENAI_TEXT = (
    ("visual.",),
    ("transformer.", "token_embedding.", "positional_", "ln_final.", "text_proj"),
)
_HF_VISION, _HF_TEXT = ("vision_model.", "visual_projection."), ("text_model.", "text_projection.")
_UNUSED = re.compile(
    # the temperature; index buffers of older transformers; numbers in OpenAI's own files; unused parts of CXR-CML
    r"logit_scale|(vision|text)_model\.embeddings\.position_ids|input_resolution|context_length|vocab_size"
    r"|temp|cxr_bert\..+|bert_projection\..+"
)


def read_clip(path: str | Path) -> dict[str, Tensor]:
    """Read a CLIP checkpoint as it is named in the file, without wrappers.

    Args:
        path: ``.safetensors`` or torch file: a flat state dict, or one under ``"model"`` or ``"state_dict"``, with or
            without ``module.`` before every key.

    Returns:
        Key of the file, without ``module.``, → tensor.

    Raises:
        WeightsError: If the file is missing, damaged or holds no state dict.
    """
    content = read_checkpoint(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(
            f"{path}: not a state dict (name → tensor), neither flat nor under 'model'; convert it first"
        )
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def load_clip(model: nn.Module, path: str | Path) -> float | None:
    """Load one half of a CLIP from a checkpoint of both halves, or of this half.

    Layouts are told apart by their keys. OpenAI's (CLIP, CheXzero, CXR-CML): the fused ``in_proj`` is split into query,
    key and value, the projections are transposed. Transformers' (``RadCLIP.pth``): ``position_ids``, which some
    versions write, are left out. The other half, the temperature and CXR-CML's unused ``temp``, ``cxr_bert.*`` and
    ``bert_projection.*`` are known and not needed; any other key is refused.

    Args:
        model: ``CLIPVisionModelWithProjection`` or ``CLIPTextModelWithProjection``; unchanged when something does not
            fit.
        path: See ``read_clip``.

    Returns:
        The checkpoint's temperature τ, ``exp(-logit_scale)``, or ``None`` when it has none.

    Raises:
        WeightsError: Naming what is missing, unexpected or mis-shaped as the file names it.
    """
    content = read_clip(path)
    scale = content.get("logit_scale")
    temperature = None if scale is None else math.exp(-float(scale))
    vision = hasattr(model, "visual_projection")
    openai = not any(key.startswith((*_HF_VISION, *_HF_TEXT)) for key in content)
    other = (_OPENAI_TEXT, _OPENAI_VISION) if openai else (_HF_TEXT, _HF_VISION)
    left = {
        key: value
        for key, value in content.items()
        if not key.startswith(other[0 if vision else 1]) and not _UNUSED.fullmatch(key)
    }
    if not openai:
        load_state(model, left, path)
        return temperature
    state, names, used = {}, {}, set()
    for key in model.state_dict():
        names[key] = source = _openai_name(key)
        if source in left:
            used.add(source)
            state[key] = _converted(key, left[source])
    load_state(model, {**state, **{key: left[key] for key in left if key not in used}}, path, names)
    return temperature


def _openai_name(key: str) -> str:
    key = _FUSED.sub(".attn.in_proj_", key)
    for own, theirs in _OPENAI_NAMES:
        key = key.replace(own, theirs)
    return key


def _converted(key: str, value: Tensor) -> Tensor:
    if part := _FUSED.search(key):
        thirds = torch.tensor_split(value, 3)  # uneven thirds then fail by their shape
        return thirds["qkv".index(part[1])]
    return value.T if key in _TRANSPOSED and value.ndim == 2 else value
