"""CLIP's byte-pair tokeniser over a vocabulary on disk, or over one of one's own."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvl_baseline.texts.vocabulary import byte_pieces
from medvl_core.protocols import TokenBatch

__all__ = ["ClipTokenizer"]

_START, _END = "<|startoftext|>", "<|endoftext|>"
_CLIP_SIZE = 49_408
_PROBE = "a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407]


class ClipTokenizer:
    """CLIP's byte-pair tokeniser: lower case, a start and an end token, at most ``max_length`` tokens.

    Args:
        vocabulary: Folder with ``tokenizer.json`` or ``vocab.json`` and ``merges.txt``; or a file of merges: OpenAI's
            ``bpe_simple_vocab_16e6.txt.gz``, or one from ``medvl_baseline.texts.vocabulary.bpe_merges``. ``None``
            spells every word in bytes: nothing is unknown, but texts get long.
        max_length: Tokens kept, start and end included.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If the vocabulary is not CLIP's or one like it.
    """

    def __init__(self, vocabulary: str | Path | None, max_length: int) -> None:
        name = "the byte vocabulary" if vocabulary is None else str(vocabulary)
        self._tokenizer = _tokenizer(None if vocabulary is None else Path(vocabulary))
        self.max_length = max_length
        self._tokenizer.padding_side = self._tokenizer.truncation_side = "right"
        ids: Mapping[str, int] = self._tokenizer.get_vocab()
        # CLIPTokenizer takes unknown options in silence and then knows its special tokens only.
        lost = [piece for piece in (*byte_pieces(), _START, _END) if piece not in ids]
        if lost or ids[_END] != len(ids) - 1:
            raise ValueError(
                f"{name}: {len(ids)} tokens, of which {len(lost)} bytes or special tokens are missing, is no "
                "vocabulary of CLIP; give the folder of a CLIP model, or its merges"
            )
        if len(ids) == _CLIP_SIZE and (found := self._tokenizer(_PROBE[0])["input_ids"]) != _PROBE[1]:
            raise ValueError(
                f"{name}: {_PROBE[0]!r} becomes {found}, not {_PROBE[1]}; the merges are not those of CLIP"
            )
        self.end: int = ids[_END]
        self.size = len(ids)
        listed = "\n".join(sorted(ids, key=ids.__getitem__))
        self.sha256: bytes = hashlib.sha256(listed.encode()).digest()

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Texts to token ids, padded to the longest; the end token survives truncation."""
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return TokenBatch(batch["input_ids"], batch["attention_mask"].bool())

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before truncation, start and end included."""
        return [len(ids) for ids in self._tokenizer(list(texts), verbose=False)["input_ids"]]


def _tokenizer(vocabulary: Path | None) -> Any:
    from transformers import CLIPTokenizer

    if vocabulary is None:
        merges: list[tuple[str, str]] = []
    elif vocabulary.is_dir():
        if not (vocabulary / "tokenizer.json").is_file() and not (
            (vocabulary / "vocab.json").is_file() and (vocabulary / "merges.txt").is_file()
        ):
            raise FileNotFoundError(
                f"{vocabulary}: holds neither tokenizer.json nor vocab.json and merges.txt; copy them"
            )
        return CLIPTokenizer.from_pretrained(vocabulary, local_files_only=True)
    elif vocabulary.is_file():
        merges = _read_merges(vocabulary)
    else:
        raise FileNotFoundError(f"{vocabulary}: no vocabulary there; give CLIP's, or build one with text.bpe_merges")
    pieces = [*byte_pieces(), *("".join(pair) for pair in merges), _START, _END]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)  # type: ignore[arg-type]


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """Merges after the line with the version; of OpenAI's file, those that CLIP uses."""
    content = path.read_bytes()
    lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8").splitlines()[1:]
    pairs: list[Any] = [tuple(line.split(" ")) for line in lines if line][: _CLIP_SIZE - len(byte_pieces()) - 2]
    for number, pair in enumerate(pairs, 2):
        if len(pair) != 2:
            raise ValueError(f"{path}, line {number}: {' '.join(pair)!r} is no merge of two pieces; give CLIP's merges")
    return pairs
