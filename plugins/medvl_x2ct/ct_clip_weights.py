"""Strict loading of CT-CLIP's published weights, one flat file with both towers."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from medvl_core.engine.weights import WeightsError, file_digest, load_weights

__all__ = ["PREFIX", "UNUSED", "load_ct_clip"]

PREFIX = "module."
"""Of keys written by a model inside ``DistributedDataParallel``."""

UNUSED = (
    "to_visual_latent_extra.weight",  # 600 MB: a second projection for a loss term that CT-CLIP leaves off
    "to_text_latent_extra.weight",
    "text_transformer.embeddings.position_ids",  # 0 to 511; newer transformers make it themselves
    "text_transformer.pooler.dense.*",  # CT-CLIP takes the first token
    "visual_transformer.to_patch_emb_first_frame.*",  # of a video model, as the next two
    "visual_transformer.to_pixels_first_frame.*",
    "visual_transformer.to_pixels.*",
    "visual_transformer.enc_*_transformer.layers.*.1.context_norm.*",  # never called without cross-attention
    "visual_transformer.vq._codebook.initted",  # these two belong to the codebook's own training
    "visual_transformer.vq._codebook.cluster_size",
)
"""Keys of the published file (patterns of ``fnmatch``) that no embedding depends on."""

_VISION = ("visual_transformer.*", "to_visual_latent.weight", "temperature")
_TEXT = ("text_transformer.*", "to_text_latent.weight")


def load_ct_clip(encoder: nn.Module, path: str | Path) -> str:
    """Load one tower from ``CT-CLIP_v2.pt``, from its conversion, or from a file of this tower alone.

    The other tower and the keys of ``UNUSED`` are left out; any other key is refused.

    Args:
        encoder: ``CtClipVit`` or ``CxrBert``; unchanged when anything does not fit.
        path: The file; read with ``weights_only``.

    Returns:
        SHA-256 of the file, for the manifest. The encoder keeps it as ``weights_sha256``.

    Raises:
        WeightsError: If the file is not there, or naming what is missing, unexpected or mis-shaped.
    """
    if not Path(path).is_file():
        raise WeightsError(
            f"{path}: no such weights file; wanted is CT-CLIP_v2.pt of the data set ibrahimhamamci/CT-RATE, folder "
            "models/CT-CLIP-Related, or its conversion by python -m medvl_x2ct.convert"
        )
    other = _TEXT if hasattr(encoder, "to_visual_latent") else _VISION
    load_weights(encoder, path, rename={PREFIX: ""}, ignore=(*UNUSED, *other))
    digest = file_digest(path)
    encoder.weights_sha256 = digest  # type: ignore[assignment]
    return digest
