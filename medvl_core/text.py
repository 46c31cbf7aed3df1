"""WordPiece vocabularies built from texts: the same bytes for the same texts, on every machine and in every process."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["SPECIAL_TOKENS", "wordpiece_tokenizer", "wordpiece_vocabulary"]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Ids 0 to 4 of every vocabulary built here."""


def wordpiece_tokenizer(vocabulary: Sequence[str], *, lower_case: bool = True) -> Any:
    """The ``tokenizers.Tokenizer`` of BERT over a vocabulary: ``[CLS] pieces [SEP]``, no padding or truncation set.

    Args:
        vocabulary: Tokens, position = id. Must contain ``SPECIAL_TOKENS``.
        lower_case: Whether to fold case and strip accents.

    Returns:
        A ``tokenizers.Tokenizer``.

    Raises:
        ValueError: If a special token is missing or a token occurs twice.

    References:
        Devlin et al., arXiv:1810.04805.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {token: i for i, token in enumerate(vocabulary)}
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing or len(ids) != len(vocabulary):
        raise ValueError(
            f"vocabulary of {len(vocabulary)} tokens ({len(ids)} different) lacks {missing}; "
            "give one line per token, each once, and the BERT special tokens"
        )
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def wordpiece_vocabulary(texts: Iterable[str], path: Path | str, size: int = 2000, lower_case: bool = True) -> Path:
    """Build a WordPiece vocabulary, or keep the one that was built from the same texts.

    The file is BERT's ``vocab.txt``: one token per line, line number = id, ``SPECIAL_TOKENS`` first. ``<path>.json``
    beside it records what it was built from; when that no longer matches, or the file was changed, it is built again.

    Args:
        texts: Training texts. Their order does not matter.
        path: Vocabulary file to write.
        size: Most tokens, special tokens and single characters included.
        lower_case: Whether to fold case and strip accents first. Give the tokeniser the same.

    Returns:
        ``path``.

    Raises:
        ValueError: If there are no words in ``texts``, or their characters alone need more than ``size`` tokens.

    Note:
        The trainer of ``tokenizers`` numbers inner characters in the random order of a hash map and breaks ties by
        those numbers, so that two runs disagree. Giving it all characters in sorted order makes it deterministic.

    References:
        Schuster and Nakajima, Japanese and Korean voice search, 2012, doi:10.1109/ICASSP.2012.6289079.
    """
    path = Path(path)
    record_path = path.with_name(path.name + ".json")
    texts = sorted(texts)
    request = hashlib.sha256(json.dumps([texts, size, lower_case]).encode()).hexdigest()
    if path.is_file() and _read_record(record_path) == {"request": request, "sha256": _sha256(path.read_bytes())}:
        return path
    content = "".join(f"{token}\n" for token in _train(texts, size, lower_case)).encode()
    _write_atomically(path, content)
    _write_atomically(record_path, json.dumps({"request": request, "sha256": _sha256(content)}).encode())
    return path


def _train(texts: Sequence[str], size: int, lower_case: bool) -> list[str]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    normalised = (tokenizer.normalizer.normalize_str(text) for text in texts)
    words = {word for text in normalised for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    first = sorted({word[0] for word in words})
    inner = sorted({f"##{character}" for word in words for character in word[1:]})
    fixed = [*SPECIAL_TOKENS, *first, *inner]
    if not words or len(fixed) > size:
        raise ValueError(
            f"a vocabulary of size={size} cannot be built from {len(texts)} texts: {len(words)} words, "
            f"{len(fixed)} special tokens and characters; give more texts or a larger size"
        )
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=fixed, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ids = tokenizer.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def _read_record(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None  # never written, or cut off: build again


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_atomically(path: Path, content: bytes) -> None:
    # A reader (another rank, a resumed run) sees the old file or the new one, never a part.
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # also on Ctrl-C: no temporary file stays
        os.unlink(temporary)
        raise
