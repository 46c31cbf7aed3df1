"""Contract checks of encoders."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from medvl_core.protocols import EncoderOutput, TokenBatch
from medvl_core.specs import ImageInput
from medvl_core.testing import modules
from medvl_core.testing.harness import ROWS, Subject, as_module, require, require_close

__all__ = ["CHECKS"]

_TEXTS = (
    "No pleural effusion.",
    "The heart is enlarged. There is a small left pleural effusion with adjacent atelectasis of the lower lobe.",
    "Clear lungs.",
)


def _batch(encoder: Any) -> Tensor | TokenBatch:
    """Random images in the range of ``encoder.input``, or tokenised texts of different lengths."""
    if not isinstance(encoder.input, ImageInput):
        return encoder.tokenize(list(_TEXTS))  # type: ignore[no-any-return]
    low, high = encoder.input.output_range
    shape = (ROWS, encoder.input.channels, *encoder.input.size)
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _row(batch: Tensor | TokenBatch, index: int) -> Tensor | TokenBatch:
    rows = slice(index, index + 1)
    if isinstance(batch, TokenBatch):
        return TokenBatch(batch.input_ids[rows], batch.attention_mask[rows])
    return batch[rows]


def _parts(output: EncoderOutput) -> list[Tensor]:
    """The float parts of an output; tokens outside the mask carry no meaning and are zeroed."""
    tokens = output.tokens if output.mask is None else output.tokens * output.mask[..., None]
    return [tokens, *(part for part in (output.pooled, output.features, *(output.logits or ())) if part is not None)]


def _run(encoder: Any) -> list[Tensor]:
    return _parts(encoder(_batch(encoder)))


def shapes(subject: Subject) -> None:
    """Tokens, pooled vector, features and mask have the shapes that ``embed_dim`` and ``grid`` announce."""
    encoder: Any = as_module(subject.build(), subject).eval()
    dims = subject.spec.spatial_dims
    expected = 0 if not isinstance(encoder.input, ImageInput) else len(encoder.input.size)
    require(dims == expected, subject, f"spatial_dims is {dims} but its input has {expected}")
    with torch.no_grad():
        output = encoder(_batch(encoder))
    require(isinstance(output, EncoderOutput), subject, f"forward gave {type(output).__name__}, not EncoderOutput")
    require(output.tokens.ndim == 3, subject, f"tokens have shape {tuple(output.tokens.shape)}; they must be B N F")
    rows, tokens, width = output.tokens.shape
    require(rows == ROWS, subject, f"{ROWS} rows in, {rows} out")
    require(width == encoder.embed_dim, subject, f"tokens are {width} wide but embed_dim is {encoder.embed_dim}")
    cells = math.prod(output.grid)
    require(tokens - cells in (0, 1), subject, f"{tokens} tokens for grid {output.grid}; a CLS token may come on top")
    if output.pooled is not None:
        require(
            output.pooled.shape == (rows, width), subject, f"pooled has shape {tuple(output.pooled.shape)}, not B F"
        )
    if output.features is not None:
        shape = tuple(output.features.shape)
        require(len(shape) == 2 + dims and shape[0] == rows, subject, f"features have shape {shape}, not B F *spatial")
    if output.mask is not None:
        good = output.mask.shape == (rows, tokens) and output.mask.dtype == torch.bool
        require(good, subject, f"mask is {output.mask.dtype} {tuple(output.mask.shape)}; it must be bool B N")
    require(all(bool(part.isfinite().all()) for part in _parts(output)), subject, "an output is not finite")


def rows_are_independent(subject: Subject) -> None:
    """In eval mode row i of the output does not depend on the other rows of the batch."""
    encoder: Any = as_module(subject.build(), subject).eval()
    batch = _batch(encoder)
    with torch.no_grad():
        together = _parts(encoder(batch))
        for index in range(ROWS):
            alone = _parts(encoder(_row(batch, index)))
            for whole, part in zip(together, alone, strict=True):
                require_close(part, whole[index : index + 1], subject, f"row {index} depends on the rest of the batch")


def padding_has_no_influence(subject: Subject) -> None:
    """Text only: other ids at padded positions change nothing, and the mask says which tokens are valid."""
    encoder: Any = as_module(subject.build(), subject).eval()
    batch = _batch(encoder)
    if not isinstance(batch, TokenBatch):
        return
    padded = ~batch.attention_mask.bool()
    require(bool(padded.any()), subject, "tokenize gave texts of different lengths without padding")
    # ids of the batch itself: the size of the vocabulary is the encoder's own business
    changed = batch.input_ids.masked_fill(padded, _some_id(batch))
    with torch.no_grad():
        output = encoder(batch)
        require(output.mask is not None, subject, "padded texts need EncoderOutput.mask")
        other = _parts(encoder(TokenBatch(changed, batch.attention_mask)))
    for before, after in zip(_parts(output), other, strict=True):
        require_close(after, before, subject, "the ids of padded tokens change the output")


def _some_id(batch: TokenBatch) -> int:
    """An id of a valid token, so surely inside the vocabulary, that is not the padding id."""
    mask = batch.attention_mask.bool()
    padding = int(batch.input_ids[~mask][0])
    return next(int(token) for token in batch.input_ids[mask] if int(token) != padding)


def gradients(subject: Subject) -> None:
    """A gradient reaches every trainable parameter."""
    modules.gradients(subject, _run)


def finite_in_bf16(subject: Subject) -> None:
    """Outputs are finite under bfloat16 autocast."""
    modules.bf16_is_finite(subject, _run)


def state_dict(subject: Subject) -> None:
    """The state dict holds everything the outputs depend on."""
    modules.state_dict_round_trip(subject, _run)


def global_rng(subject: Subject) -> None:
    """The global random states stay as they are."""
    modules.global_rng(subject, _run)


CHECKS = (
    shapes,
    rows_are_independent,
    padding_has_no_influence,
    gradients,
    finite_in_bf16,
    state_dict,
    global_rng,
)
