from __future__ import annotations

import json
import logging
import os
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    RobertaConfig,
    RobertaModel,
)

from medvl_baseline.encoders.text import build_bert_small, build_hf_text
from medvl_baseline.texts.vocabulary import SPECIAL_TOKENS, wordpiece_vocabulary
from medvl_core.engine.weights import save_weights
from medvl_core.specs import TextInput

TEXTS = ["No pleural effusion.", "x", "", "Enlarged heart: cardiothoracic ratio 0.61, small bilateral effusions"]
TINY = {"hidden_size": 16, "layers": 2, "heads": 2}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = wordpiece_vocabulary(TEXTS * 3, folder / "vocab.txt", size=90)
    tokens = vocabulary.read_text().splitlines()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tokens), max_position_embeddings=40, **sizes)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, model_max_length=40).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    pieces = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    vocab = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocab, merges=[], model_max_length=20).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    text = {"vocab_size": 54, "max_position_embeddings": 20, **special, **sizes}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config={"image_size": 16, "patch_size": 8, **sizes})).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(params=["bert_small", "hf_text", "bert", "clip"])
def encoder(request, tmp_path):
    torch.manual_seed(0)
    if request.param == "bert_small":
        path = wordpiece_vocabulary(TEXTS * 3, tmp_path / "vocab.txt", size=90)
        return build_bert_small(vocabulary=path, max_length=40, **TINY).eval()
    if request.param == "hf_text":
        return build_hf_text(None, max_length=40, **TINY).eval()
    return build_hf_text(request.getfixturevalue(f"{request.param}_folder")).eval()


def test_output_is_one_token_per_piece(encoder):
    batch = encoder.tokenize(TEXTS)
    output = encoder(batch)
    length = batch.input_ids.shape[1]
    assert output.tokens.shape == (4, length, encoder.embed_dim)
    assert output.grid == (length,)
    assert output.pooled is None
    assert torch.equal(output.mask, batch.attention_mask)
    assert (batch.input_ids.dtype, batch.attention_mask.dtype) == (torch.int64, torch.bool)


def test_batch_is_padded_to_its_longest_text_and_no_further(encoder):
    lengths = [encoder.tokenize([text]).attention_mask.sum().item() for text in TEXTS]
    batch = encoder.tokenize(TEXTS)
    assert batch.attention_mask.sum(1).tolist() == lengths
    assert batch.input_ids.shape[1] == max(lengths)
    assert all(row[:n].all() and not row[n:].any() for row, n in zip(batch.attention_mask, lengths, strict=True))


def test_long_texts_are_cut_but_keep_their_closing_token(encoder):
    short, long = encoder.tokenize(["a"]), encoder.tokenize(["a " * 500])
    assert long.input_ids.shape[1] == encoder.input.max_length
    assert long.input_ids[0, -1] == short.input_ids[0, -1]
    assert long.input_ids[0, 0] == short.input_ids[0, 0]
    assert encoder(long).tokens.isfinite().all()


def test_padding_and_the_rest_of_the_batch_have_no_influence(encoder):
    together = encoder(encoder.tokenize(TEXTS))
    for i, text in enumerate(TEXTS):
        alone = encoder(encoder.tokenize([text])).tokens[0]
        torch.testing.assert_close(together.tokens[i, : len(alone)], alone, rtol=1e-4, atol=1e-5)
    batch = encoder.tokenize(TEXTS)
    other = batch.input_ids.masked_fill(~batch.attention_mask, 3)
    again = encoder(type(batch)(other, batch.attention_mask)).tokens
    assert torch.equal(again[batch.attention_mask], together.tokens[batch.attention_mask])


def test_gradients_reach_every_parameter_and_repeat_exactly(encoder):
    batch, gradients = encoder.tokenize(TEXTS), []
    for _ in range(2):
        encoder.zero_grad()
        encoder(batch).tokens.square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


def test_hf_text_equals_the_model_it_was_read_from(bert_folder):
    encoder = build_hf_text(bert_folder).eval()
    model = BertModel.from_pretrained(bert_folder).eval()
    batch = encoder.tokenize(TEXTS)
    expected = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).last_hidden_state
    mask = batch.attention_mask
    torch.testing.assert_close(encoder(batch).tokens[mask], expected[mask])
    assert encoder.input == TextInput(max_length=40, lower_case=True)
    assert encoder.tokenize(["No"]).input_ids[0, 0] == SPECIAL_TOKENS.index("[CLS]")


def test_the_text_half_of_a_clip_is_read_alone(clip_folder, caplog):
    with caplog.at_level(logging.INFO, "medvl_baseline.encoders.text"):
        encoder = build_hf_text(clip_folder).eval()
    assert "vision_model" in caplog.text
    batch = encoder.tokenize(["a cat"])
    assert batch.input_ids.tolist() == [[52, 26, 2, 0, 45, 53]]
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    torch.testing.assert_close(encoder(batch).tokens, clip.text_model(input_ids=batch.input_ids).last_hidden_state)


def test_a_language_model_head_is_left_out_and_said_so(bert_folder, tmp_path, caplog):
    for file in bert_folder.glob("tok*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    BertForMaskedLM(BertConfig.from_pretrained(bert_folder)).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "medvl_baseline.encoders.text"):
        build_hf_text(tmp_path)
    assert "cls.predictions.bias" in caplog.text


def test_a_file_that_lacks_parameters_is_refused(bert_folder, tmp_path):
    for file in bert_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the weights lack \['encoder.layer.1.output.dense.weight'\]"):
        build_hf_text(tmp_path)


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "model.safetensors or model.safetensors.index.json or pytorch_model.bin is missing"),
        ("tokenizer.json", r"tokenizer.json or vocab.txt or vocab.json \+ merges.txt or spiece.model is missing"),
    ],
)
def test_a_missing_file_is_named_with_its_folder(bert_folder, tmp_path, file, wanted):
    for other in bert_folder.iterdir():
        if other.name not in (file, "vocab.txt"):
            (tmp_path / other.name).write_bytes(other.read_bytes())
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}: {wanted}"):
        build_hf_text(tmp_path)


@pytest.mark.parametrize("path", ["nobody/no-such-model", "/nowhere/model"])
def test_a_missing_model_says_where_it_was_looked_for(path):
    with pytest.raises(
        FileNotFoundError, match=rf"^{path}: no such folder, and not in the hub cache \S+; wanted there"
    ):
        build_hf_text(path)


def test_a_model_in_the_hub_cache_is_found(bert_folder, tmp_path, monkeypatch):
    commit = "0" * 40
    snapshot = tmp_path / "models--some--bert" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "models--some--bert" / "refs").mkdir()
    (tmp_path / "models--some--bert" / "refs" / "main").write_text(commit)
    for file in bert_folder.iterdir():
        os.link(file, snapshot / file.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert build_hf_text("some/bert").embed_dim == 16


def test_code_in_a_model_folder_is_not_run(bert_folder, tmp_path):
    for file in bert_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own_bert", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match=r"trust_remote_code|does not recognize|own_bert"):
        build_hf_text(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_limits_of_the_model_hold(bert_folder, tmp_path):
    assert build_hf_text(bert_folder, max_length=7).tokenize(["a " * 50]).input_ids.shape[1] == 7
    with pytest.raises(ValueError, match="max_length=41 is beyond the model's 40 positions"):
        build_hf_text(bert_folder, max_length=41)
    with pytest.raises(ValueError, match=f"^{bert_folder}: heads, layers cannot be set"):
        build_hf_text(bert_folder, layers=2, heads=2)
    with pytest.raises(ValueError, match=r"without a path needs hidden_size, layers, heads; got \['heads'\]"):
        build_hf_text(None, heads=2)


def test_roberta_positions_start_after_the_padding_index(bert_folder, tmp_path):
    for file in bert_folder.glob("tok*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = RobertaConfig(vocab_size=90, max_position_embeddings=40, pad_token_id=0, **{
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32
    })  # fmt: skip
    RobertaModel(config).save_pretrained(tmp_path)
    encoder = build_hf_text(tmp_path).eval()
    assert encoder.input.max_length == 39
    assert encoder(encoder.tokenize(["a " * 100])).tokens.isfinite().all()


def test_bert_small_without_vocabulary_spells_words():
    encoder = build_bert_small(**TINY)
    ids = encoder.tokenize(["No (1.5 cm) {~}"]).input_ids[0]
    assert 1 not in ids
    assert len(ids) == 2 + len("No(1.5cm){~}")


def test_weights_of_another_vocabulary_are_refused(tmp_path):
    texts = TEXTS * 3
    one = wordpiece_vocabulary(texts, tmp_path / "one.txt", size=80)
    two = wordpiece_vocabulary([t.replace("effusion", "nodule") for t in texts], tmp_path / "two.txt", size=80)
    options = {**TINY, "max_length": 20}
    encoder = build_bert_small(vocabulary=one, **options)
    for file in ("w.safetensors", "w.pt"):
        save_weights(encoder, tmp_path / file)
        again = build_bert_small(vocabulary=one, weights=tmp_path / file, **options)
        assert all(torch.equal(x, y) for x, y in zip(encoder.parameters(), again.parameters(), strict=True))
        with pytest.raises(ValueError, match="trained with another vocabulary; give the"):
            build_bert_small(vocabulary=two, weights=tmp_path / file, **options)


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocab.txt: no vocabulary there; build one"):
        build_bert_small(vocabulary=tmp_path / "vocab.txt")
