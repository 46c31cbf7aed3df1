"""Vocabularies built from texts: the same bytes for the same texts, on every machine and in every process."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from medvl_core.engine.files import read_text, write_text

__all__ = [
    "SPECIAL_TOKENS",
    "bpe_merges",
    "byte_pieces",
    "read_word_weights",
    "word_weights",
    "wordpiece_tokenizer",
    "wordpiece_vocabulary",
    "words_of",
]

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
    texts = sorted(texts)
    request = json.dumps([texts, size, lower_case])
    return _kept_or_built(Path(path), request, lambda: _train(texts, size, lower_case))


def byte_pieces() -> list[str]:
    """The 512 pieces every byte-level vocabulary of CLIP starts with: each byte inside a word, then at its end."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [*map(chr, visible), *(chr(256 + i) for i in range(len(hidden)))]
    return [*letters, *(f"{letter}</w>" for letter in letters)]


def bpe_merges(texts: Iterable[str], path: Path | str, size: int = 2000) -> Path:
    """Build the merges of a byte-pair vocabulary like CLIP's, or keep the file that was built from the same texts.

    The file is CLIP's own format: a line with a version, then one merge per line. With ``byte_pieces`` before and the
    two special tokens after them, the merges are the whole vocabulary. Kept and rebuilt as by ``wordpiece_vocabulary``.

    Args:
        texts: Training texts, folded to lower case. Their order does not matter.
        path: File to write.
        size: Most tokens: 514 for the bytes and the special tokens, the others are merges.

    Returns:
        ``path``.

    Raises:
        ValueError: If there are no words in ``texts``, or ``size`` leaves no room for merges.

    References:
        Sennrich et al., Neural machine translation of rare words with subword units, arXiv:1508.07909.
    """
    texts = sorted(texts)
    return _kept_or_built(Path(path), json.dumps(["bpe", texts, size]), lambda: _train_bpe(texts, size))


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def word_weights(texts: Iterable[str], path: Path | str) -> Path:
    r"""Write how telling each word is: its inverse document frequency, smoothed; keep the file of the same texts.

    $1 + \ln\frac{1 + n}{1 + n_w}$ for a word in $n_w$ of n texts. One line per word: the word, a tab, the weight.

    Args:
        texts: Training texts. Their order does not matter.
        path: File to write.

    Raises:
        ValueError: If there are no words in ``texts``.
    """
    texts = sorted(texts)
    return _kept_or_built(Path(path), json.dumps(["word weights", texts]), lambda: _weigh(texts))


def read_word_weights(path: Path | str) -> dict[str, float]:
    """Read what `word_weights` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is no word with a positive weight. The message starts with the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no word weights; make them with medvl_baseline.texts.vocabulary.word_weights")
    weights: dict[str, float] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        word, _, value = line.partition("\t")
        try:
            weights[word] = float(value)
        except ValueError:
            weights[word] = math.nan
        if not word or not 0 < weights[word] < math.inf:
            raise ValueError(f"{path}: line {number} is {line!r}; each line is a word, a tab and a positive weight")
    if not weights:
        raise ValueError(f"{path}: is empty; make it with medvl_baseline.texts.vocabulary.word_weights")
    return weights


def _weigh(texts: Sequence[str]) -> list[str]:
    counts = Counter(word for text in texts for word in set(words_of(text)))
    if not counts:
        raise ValueError(f"no words in {len(texts)} texts; give texts with words")
    return [f"{word}\t{1 + math.log((1 + len(texts)) / (1 + n)):.6f}" for word, n in sorted(counts.items())]


def _kept_or_built(path: Path, request: str, build: Callable[[], Sequence[str]]) -> Path:
    record_path = path.with_name(path.name + ".json")
    digest = _sha256(request.encode())
    if path.is_file() and _read_record(record_path) == {"request": digest, "sha256": _sha256(path.read_bytes())}:
        return path
    content = "".join(f"{line}\n" for line in build())
    write_text(path, content)
    write_text(record_path, json.dumps({"request": digest, "sha256": _sha256(content.encode())}))
    return path


def _train_bpe(texts: Sequence[str], size: int) -> list[str]:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    fixed = byte_pieces()
    if size <= len(fixed) + 2 or not any(text.strip() for text in texts):
        raise ValueError(
            f"a byte-pair vocabulary of size={size} cannot be built from {len(texts)} texts; give texts with words, "
            f"and a size above the {len(fixed) + 2} bytes and special tokens"
        )
    # As for WordPiece: fixed numbers for the pieces of one byte make the trainer's ties deterministic.
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2, special_tokens=fixed, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return ["#version: 0.2", *(" ".join(pair) for pair in merges)]


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
