"""The text tower of CT-CLIP: CXR-BERT, its first token, and the projection to the latent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from medvl_core.build import build_encoder
from medvl_core.protocols import EncoderOutput, TokenBatch
from medvl_core.specs import TextInput

__all__ = ["CxrBert", "build_cxr_bert"]


class CxrBert(nn.Module):
    """A BERT whose tokens are projected to the shared space. Its names are those of CT-CLIP's file.

    Args:
        bert: ``baseline/bert_small`` in any size: a ``transformers.BertModel`` with its tokeniser.
        latent: Width of the shared space.
    """

    input: TextInput
    weights_sha256: str | None = None

    def __init__(self, bert: Any, latent: int) -> None:
        super().__init__()
        self.text_transformer = bert.model
        self.to_text_latent = nn.Linear(bert.embed_dim, latent, bias=False)
        self.embed_dim = latent
        self.input = bert.input
        self._tokenize = bert.tokenize  # bound, so that its owner is no part of this module

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        """Texts to token ids, padded to the longest; the closing ``[SEP]`` survives truncation."""
        return self._tokenize(texts)

    def forward(self, x: TokenBatch) -> EncoderOutput:
        """Encode tokens ``B L``.

        Returns:
            ``tokens`` projected, ``B L E``; ``pooled`` is the first of them, the latent before its normalisation.
        """
        hidden = self.text_transformer(input_ids=x.input_ids, attention_mask=x.attention_mask.long()).last_hidden_state
        tokens = self.to_text_latent(hidden)
        return EncoderOutput(tokens=tokens, grid=(tokens.shape[1],), pooled=tokens[:, 0], mask=x.attention_mask)


def build_cxr_bert(
    *,
    vocabulary: str | Path | None = None,
    hidden_size: int = 768,
    layers: int = 12,
    heads: int = 12,
    max_length: int = 512,
    dropout: float = 0.25,
    latent: int = 512,
    weights: str | Path = "random",
) -> CxrBert:
    """The text tower of CT-CLIP, by default in its published size (109 million parameters).

    Put it into ``Tower(encoder, pooling=None, embed_dim=None, frozen=True)``: it ends in the shared space.

    Args:
        vocabulary: ``vocab.txt`` of microsoft/BiomedVLP-CXR-BERT-specialized, or the folder it lies in; folded to lower
            case. ``None`` spells every word in single characters, for tests.
        hidden_size: Token width.
        layers: Transformer blocks.
        heads: Attention heads.
        max_length: Tokens kept, special tokens included.
        dropout: Share of units dropped in training.
        latent: Width E of the shared space.
        weights: ``"random"``, or ``CT-CLIP_v2.pt`` or its conversion by ``python -m medvl_x2ct.convert``. CXR-BERT was
            trained further inside CT-CLIP, so weights of CXR-BERT itself are others.

    Returns:
        An encoder of ``TokenBatch``.

    Raises:
        FileNotFoundError: If the vocabulary is not there.
        ValueError: If it is no BERT vocabulary, or weights are given without one.
        WeightsError: If the weights file is not there or does not fit, naming what is wrong.

    References:
        Boecking et al., arXiv:2204.09817; Hamamci et al., arXiv:2403.17834.
    """
    if vocabulary is None and weights != "random":
        raise ValueError(
            f"{weights}: these weights need the vocabulary they were trained with; "
            "give vocabulary=vocab.txt of microsoft/BiomedVLP-CXR-BERT-specialized"
        )
    bert = build_encoder(
        "baseline/bert_small",
        vocabulary=None if vocabulary is None else _vocabulary(Path(vocabulary)),
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        max_length=max_length,
        dropout=dropout,
    )
    encoder = CxrBert(bert, latent)
    if weights != "random":
        from medvl_x2ct.ct_clip_weights import load_ct_clip

        load_ct_clip(encoder, weights)
    return encoder


def _vocabulary(path: Path) -> Path:
    path = path / "vocab.txt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no vocabulary there; wanted is vocab.txt of microsoft/BiomedVLP-CXR-BERT-specialized, "
            "copy it from that model's folder"
        )
    return path
