from __future__ import annotations

import gzip
import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from medvl_baseline.encoders.clip import build_clip_text
from medvl_baseline.encoders.clip_tokenizer import ClipTokenizer
from medvl_baseline.texts.vocabulary import bpe_merges, byte_pieces
from medvl_core.engine.weights import load_weights, save_weights

TEXTS = [f"{name} is present." for name in ("Pleural Effusion", "Edema", "Pneumothorax", "Rib Fracture")] * 5


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    return bpe_merges(TEXTS, tmp_path_factory.mktemp("vocabulary") / "merges.txt", size=700)


def test_a_vocabulary_of_ones_own_knows_its_words(merges):
    tokenizer = ClipTokenizer(merges, 77)
    ids = tokenizer(["edema is present."]).input_ids[0]
    assert len(ids) == 6  # start, three words, the stop, end
    assert (ids[0], ids[-1]) == (tokenizer.size - 2, tokenizer.size - 1)
    assert torch.equal(tokenizer(["  EDEMA  is\npresent . "]).input_ids[0], ids)
    assert tokenizer(["never seen: ü"]).attention_mask.all()


def test_long_texts_keep_their_end_and_padding_is_masked(merges):
    tokenizer = ClipTokenizer(merges, 77)
    texts = ["edema " * 200, "edema"]
    batch = tokenizer(texts)
    assert batch.input_ids.shape == (2, 77)
    assert batch.input_ids[0, -1] == tokenizer.end
    assert batch.attention_mask.sum(1).tolist() == [77, 3]
    assert tokenizer.count(texts) == [202, 3]
    assert torch.equal(tokenizer(texts).input_ids, batch.input_ids)  # counting leaves no state behind


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json and merges.txt", "gz"])
def test_every_form_of_a_vocabulary_gives_the_same_ids(merges, tmp_path, form):
    expected = ClipTokenizer(merges, 77)
    if form == "gz":
        path = tmp_path / "bpe.txt.gz"
        path.write_bytes(gzip.compress(merges.read_bytes()))
    else:
        path = tmp_path
        expected._tokenizer.save_pretrained(path)
        if form != "tokenizer.json":
            (path / "tokenizer.json").unlink()
            ids = expected._tokenizer.get_vocab()
            (path / "vocab.json").write_text(json.dumps(ids))
            (path / "merges.txt").write_bytes(merges.read_bytes())
    tokenizer = ClipTokenizer(path, 77)
    assert tokenizer.sha256 == expected.sha256
    assert torch.equal(tokenizer(TEXTS).input_ids, expected(TEXTS).input_ids)


def test_a_vocabulary_without_bytes_is_refused(tmp_path):
    # What CLIPTokenizer(vocab_file=..., merges_file=...) gives: the arguments are taken and ignored.
    CLIPTokenizer(vocab_file="vocab.json", merges_file="merges.txt").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"[23] tokens, of which 51\d bytes or special tokens are missing"):
        ClipTokenizer(tmp_path, 77)


def test_merges_that_are_not_clips_are_refused_at_clips_size(tmp_path):
    pieces = byte_pieces()
    wrong = [f"{a} {b}" for a in pieces[:256] for b in pieces[:256]][: 49_408 - 514]
    path = tmp_path / "merges.txt"
    path.write_text("\n".join(["#version: 0.2", *wrong]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"'a photo of a cat' becomes \[49406, .*the merges are not those of CLIP"):
        ClipTokenizer(path, 77)


def test_clips_own_vocabulary():
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        pytest.skip("CLIP's vocabulary is in the package open_clip_torch, which is not installed")
    tokenizer = ClipTokenizer(Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz", 77)
    assert tokenizer.size == 49_408
    assert tokenizer(["a photo of a cat"]).input_ids.tolist() == [[49406, 320, 1125, 539, 320, 2368, 49407]]


def test_faults_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone: no vocabulary there; give CLIP's"):
        ClipTokenizer(tmp_path / "gone", 77)
    with pytest.raises(FileNotFoundError, match=r"holds neither tokenizer\.json nor vocab\.json and merges\.txt"):
        ClipTokenizer(tmp_path, 77)
    (tmp_path / "merges.txt").write_text("#version\na b\na b c\n")
    with pytest.raises(ValueError, match=r"merges\.txt, line 3: 'a b c' is no merge"):
        ClipTokenizer(tmp_path / "merges.txt", 77)


def test_weights_of_another_vocabulary_are_refused(merges, tmp_path):
    sizes = {"width": 16, "layers": 1, "heads": 2, "projection_dim": 8}
    path = save_weights(build_clip_text(vocabulary=merges, **sizes), tmp_path / "w.safetensors")
    load_weights(build_clip_text(vocabulary=merges, **sizes), path)
    other = tmp_path / "merges.txt"
    lines = merges.read_text(encoding="utf-8").splitlines()
    other.write_text("\n".join([lines[0], *lines[2:], lines[1]]), encoding="utf-8")
    with pytest.raises(ValueError, match="trained with another vocabulary"):
        load_weights(build_clip_text(vocabulary=other, **sizes), path)


def test_tokenizer_goes_to_worker_processes(merges):
    tokenizer = ClipTokenizer(merges, 77)
    assert torch.equal(pickle.loads(pickle.dumps(tokenizer))(TEXTS).input_ids, tokenizer(TEXTS).input_ids)
