"""A bag of fixed random word vectors: a text encoder without weights, downloads or training."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from medvl_baseline.texts.vocabulary import read_word_weights, words_of
from medvl_core.protocols import EncoderOutput, TokenBatch
from medvl_core.specs import TextInput

__all__ = ["WordVectors"]


class WordVectors(nn.Module):
    """Each word a fixed random unit vector times its weight; a mean pooling makes texts with rare words alike.

    Words are numbered by a checksum, so any word has a vector; two words share one with chance 1 / ``buckets``.
    A stand-in where no trained text model is at hand: it knows nothing of synonyms.

    Args:
        weights: File of `medvl_baseline.texts.vocabulary.word_weights` (inverse document frequencies); a word that it
            does not hold has the largest weight in it. ``None`` weighs all words alike.
        width: Vector width F.
        buckets: Number of vectors.
        max_length: Words kept.
        seed: Of the vectors.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        width: int = 128,
        buckets: int = 16384,
        max_length: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(width, buckets, max_length) < 2:
            raise ValueError(f"width {width}, buckets {buckets}, max_length {max_length}; each must be at least 2")
        generator = torch.Generator().manual_seed(seed)
        vectors = nn.functional.normalize(torch.randn(buckets, width, generator=generator), dim=1)
        self.embed_dim = width
        self.input = TextInput(max_length=max_length, lower_case=True)
        if weights is not None:
            found = read_word_weights(weights)
            scale = torch.full((buckets,), max(found.values()))
            for word, weight in found.items():
                scale[self._number(word, buckets)] = weight
            vectors = vectors * scale[:, None]
        self.vectors = nn.Parameter(torch.cat([torch.zeros(1, width), vectors]), requires_grad=False)

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        """Words to numbers from 1, padded with 0; a text without a word is one word of its own."""
        buckets = len(self.vectors) - 1
        rows = [[1 + self._number(word, buckets) for word in words_of(text) or [text]] for text in texts]
        rows = [row[: self.input.max_length] for row in rows]
        ids = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = torch.tensor(row)
        return TokenBatch(ids, ids > 0)

    def forward(self, x: TokenBatch) -> EncoderOutput:
        """Vectors ``B L F`` of the words; order plays no part."""
        tokens = self.vectors[x.input_ids] * x.attention_mask[..., None]
        return EncoderOutput(tokens=tokens, grid=(tokens.shape[1],), mask=x.attention_mask)

    @staticmethod
    def _number(word: str, buckets: int) -> int:
        return zlib.crc32(word.encode()) % buckets
