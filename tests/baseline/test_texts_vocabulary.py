from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medvl_baseline.texts.vocabulary import (
    SPECIAL_TOKENS,
    bpe_merges,
    byte_pieces,
    read_word_weights,
    word_weights,
    wordpiece_tokenizer,
    wordpiece_vocabulary,
    words_of,
)

_BUILD = """
import sys
from pathlib import Path
from medvl_baseline.texts.vocabulary import wordpiece_vocabulary
wordpiece_vocabulary(Path(sys.argv[1]).read_text().split("\\n"), sys.argv[2], size=220)
"""


@pytest.fixture
def texts() -> list[str]:
    """Many words of equal frequency, so that ties decide the vocabulary."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijk"), rng.integers(2, 8))) for _ in range(300)]
    return [" ".join(rng.choice(words, 12)) + "." for _ in range(200)]


def test_same_texts_give_the_same_bytes_in_every_process_and_order(texts, tmp_path):
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(texts))
    for seed in ("1", "2", "3"):
        target = tmp_path / seed
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "TOKENIZERS_PARALLELISM": "true" if seed == "1" else "false",
        }
        subprocess.run([sys.executable, "-c", _BUILD, source, target], check=True, env=environment)
    wordpiece_vocabulary(texts[::-1], tmp_path / "reversed", size=220)
    contents = [(tmp_path / name).read_bytes() for name in ("1", "2", "3", "reversed")]
    assert len(set(contents)) == 1


def test_vocabulary_is_full_starts_with_special_tokens_and_keeps_every_character(texts, tmp_path):
    tokens = wordpiece_vocabulary(texts, tmp_path / "vocab.txt", size=220).read_text().splitlines()
    assert tokens[:5] == list(SPECIAL_TOKENS)
    assert len(tokens) == len(set(tokens)) == 220
    tokenizer = wordpiece_tokenizer(tokens)
    assert all("[UNK]" not in tokenizer.encode(text).tokens for text in texts)


def test_frequent_words_become_single_tokens(tmp_path):
    texts = ["No pleural effusion.", "Small pleural effusion.", "Large Pleural effusion?"] * 5
    tokens = wordpiece_vocabulary(texts, tmp_path / "vocab.txt", size=120).read_text().splitlines()
    assert {"pleural", "effusion"} <= set(tokens)
    assert wordpiece_tokenizer(tokens).encode("PLEURAL effusion").tokens == ["[CLS]", "pleural", "effusion", "[SEP]"]


def test_case_is_kept_on_request(tmp_path):
    path = wordpiece_vocabulary(["Heart heart"], tmp_path / "vocab.txt", size=60, lower_case=False)
    tokens = path.read_text().splitlines()
    assert wordpiece_tokenizer(tokens, lower_case=False).encode("Heart").tokens == ["[CLS]", "Heart", "[SEP]"]


@pytest.mark.parametrize("change", ["texts", "size", "lower_case", "damaged file", "cut-off record"])
def test_file_is_kept_while_it_matches_and_built_again_otherwise(change, texts, tmp_path):
    path = tmp_path / "vocab.txt"
    wordpiece_vocabulary(texts, path, size=220)
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    assert wordpiece_vocabulary(iter(texts), path, size=220) == path
    assert path.stat().st_mtime_ns == written
    request: dict = {"texts": texts, "size": 220}
    if change == "texts":
        request["texts"] = [*texts, "effusion zz"]
    elif change == "size":
        request["size"] = 200
    elif change == "lower_case":
        request["lower_case"] = False
    elif change == "damaged file":
        path.write_bytes(content[:-3])
    else:
        record = Path(f"{path}.json")
        record.write_text(record.read_text()[:10])
    wordpiece_vocabulary(path=path, **request)
    assert path.stat().st_mtime_ns != written
    assert (path.read_bytes() == content) == (change in ("lower_case", "damaged file", "cut-off record"))


def test_vocabulary_of_another_request_is_never_taken_for_ours(texts, tmp_path):
    # Killed between the two files: the record still speaks of the old request, but the vocabulary is the new one's.
    path = tmp_path / "vocab.txt"
    wordpiece_vocabulary(texts, path, size=220)
    ours = path.read_bytes()
    wordpiece_vocabulary(texts, tmp_path / "other", size=200)
    (tmp_path / "other").replace(path)
    assert wordpiece_vocabulary(texts, path, size=220).read_bytes() == ours


def test_failed_write_leaves_the_old_file_and_no_part(texts, tmp_path, monkeypatch):
    path = wordpiece_vocabulary(texts, tmp_path / "vocab.txt", size=220)
    before = hashlib.sha256(path.read_bytes()).hexdigest()

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        wordpiece_vocabulary(texts, path, size=200)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vocab.txt", "vocab.txt.json"]


def test_too_small_a_size_or_no_words_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"size=8 cannot be built from 1 texts: 1 words, 12 special tokens"):
        wordpiece_vocabulary(["effusion"], tmp_path / "vocab.txt", size=8)
    with pytest.raises(ValueError, match="0 words"):
        wordpiece_vocabulary([" "], tmp_path / "vocab.txt")


def test_tokenizer_rejects_a_vocabulary_that_is_not_berts():
    with pytest.raises(ValueError, match=r"lacks \['\[MASK\]'\]"):
        wordpiece_tokenizer([*SPECIAL_TOKENS[:4], "a"])
    with pytest.raises(ValueError, match=r"7 tokens \(6 different"):
        wordpiece_tokenizer([*SPECIAL_TOKENS, "a", "a"])


def test_byte_pair_merges_are_the_same_in_every_process_and_kept(texts, tmp_path):
    code = (
        "import sys; from medvl_baseline.texts.vocabulary import bpe_merges; "
        "bpe_merges(sys.stdin.read().split('\\0'), sys.argv[1], size=600)"
    )
    for name in ("one", "two"):
        shuffled = texts if name == "one" else texts[::-1]
        run = [sys.executable, "-c", code, str(tmp_path / name)]
        subprocess.run(run, input="\0".join(shuffled), text=True, check=True)
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "two").read_bytes()
    lines = content.decode().splitlines()
    assert lines[0] == "#version: 0.2"
    assert all(len(line.split(" ")) == 2 for line in lines[1:])
    assert 1 < len(lines) <= 600 - 514 + 1
    before = (tmp_path / "one").stat().st_mtime_ns
    assert bpe_merges(texts, tmp_path / "one", size=600).stat().st_mtime_ns == before
    assert bpe_merges(texts, tmp_path / "one", size=550).read_bytes() != content


def test_byte_pieces_are_all_bytes_in_clips_order():
    pieces = byte_pieces()
    assert len(set(pieces)) == 512
    assert pieces[:2] == ["!", '"']
    assert pieces[256] == "!</w>"


def test_too_small_a_byte_pair_vocabulary_or_no_words_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"size=514 cannot be built from 1 texts; .* a size above the 514"):
        bpe_merges(["effusion"], tmp_path / "merges.txt", size=514)
    with pytest.raises(ValueError, match="give texts with words"):
        bpe_merges([" "], tmp_path / "merges.txt")


def test_word_weights_are_inverse_document_frequencies(tmp_path):
    texts = ["Fatty liver.", "fatty spleen", "no Fatty change", "liver"]
    path = word_weights(texts, tmp_path / "w.tsv")
    found = read_word_weights(path)
    assert found["fatty"] == pytest.approx(1 + math.log(5 / 4), abs=1e-6)
    assert found["spleen"] == pytest.approx(1 + math.log(5 / 2), abs=1e-6)
    assert set(found) == {"fatty", "liver", "spleen", "no", "change"}
    before = path.stat().st_mtime_ns
    word_weights(texts[::-1], path)
    assert path.stat().st_mtime_ns == before
    assert words_of("Left-sided 12 mm.") == ["left", "sided", "12", "mm"]


@pytest.mark.parametrize(("content", "message"), [("a\t-1\n", "line 1 is"), ("", "is empty"), ("\t1\n", "line 1 is")])
def test_wrong_word_weights_are_refused(tmp_path, content, message):
    (tmp_path / "w.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_word_weights(tmp_path / "w.tsv")
    with pytest.raises(FileNotFoundError, match="no word weights; make them"):
        read_word_weights(tmp_path / "none.tsv")
    with pytest.raises(ValueError, match="no words in 1 texts"):
        word_weights(["?"], tmp_path / "x.tsv")
