"""Text encoders: any transformers model on disk, and a small BERT over a WordPiece vocabulary of one's own."""

from __future__ import annotations

import hashlib
import logging
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medvl_baseline.texts.vocabulary import SPECIAL_TOKENS, wordpiece_tokenizer
from medvl_core.protocols import EncoderOutput, TokenBatch
from medvl_core.specs import TextInput

__all__ = ["BertSmall", "HfText", "build_bert_small", "build_hf_text", "check_vocabulary"]

_logger = logging.getLogger(__name__)

_CONFIG_FILES = (("config.json",),)
_WEIGHT_FILES = (("model.safetensors",), ("model.safetensors.index.json",), ("pytorch_model.bin",))
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"), ("spiece.model",))


class HfText(nn.Module):
    """A transformers text model with its tokeniser.

    Args:
        model: Called with ``input_ids`` and ``attention_mask``; gives ``last_hidden_state``.
        tokenizer: Its transformers tokeniser.
        max_length: Tokens kept, special tokens included.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int) -> None:
        super().__init__()
        if tokenizer.pad_token_id is None:
            raise ValueError(
                f"{tokenizer.name_or_path}: the tokeniser has no padding token; set pad_token in its files"
            )
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        self.model = model
        self.embed_dim: int = model.config.hidden_size
        self.input = TextInput(max_length=max_length, lower_case=bool(getattr(tokenizer, "do_lower_case", False)))
        self._tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        """Texts to token ids, padded to the longest; the closing special token survives truncation."""
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.input.max_length, return_tensors="pt"
        )
        return TokenBatch(batch["input_ids"], batch["attention_mask"].bool())

    def forward(self, x: TokenBatch) -> EncoderOutput:
        """Encode tokens ``B L`` to ``B L F``; tokens where ``mask`` is false mean nothing."""
        return _encode(self.model, x)


class BertSmall(nn.Module):
    """A BERT with a WordPiece tokeniser. Its ``state_dict`` holds a digest of the vocabulary, checked on loading.

    Args:
        model: A ``transformers.BertModel``.
        vocabulary: Tokens, position = id.
        input: Length and case folding.
    """

    vocabulary_sha256: Tensor

    def __init__(self, model: Any, vocabulary: Sequence[str], input: TextInput) -> None:
        super().__init__()
        self.model = model
        self.embed_dim: int = model.config.hidden_size
        self.input = input
        self._tokenizer = wordpiece_tokenizer(vocabulary, lower_case=input.lower_case)
        self._tokenizer.enable_truncation(input.max_length)
        self._tokenizer.enable_padding(pad_id=self._tokenizer.token_to_id("[PAD]"))
        digest = hashlib.sha256("\n".join(vocabulary).encode()).digest()
        self.register_buffer("vocabulary_sha256", torch.tensor(list(digest), dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(check_vocabulary)  # type: ignore[no-untyped-call]

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        """Texts to token ids, padded to the longest; the closing ``[SEP]`` survives truncation."""
        encodings = self._tokenizer.encode_batch(list(texts))
        return TokenBatch(
            torch.tensor([encoding.ids for encoding in encodings]),
            torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.bool),
        )

    def forward(self, x: TokenBatch) -> EncoderOutput:
        """Encode tokens ``B L`` to ``B L F``; tokens where ``mask`` is false mean nothing."""
        return _encode(self.model, x)


def build_hf_text(
    path: str | Path | None,
    *,
    max_length: int | None = None,
    hidden_size: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
) -> HfText | BertSmall:
    """A text encoder from a folder in the transformers layout, or from the local hub cache. Never goes online.

    Unused parts of the file (a masked-language head, the image half of a CLIP) are left out and logged; the pooler of
    BERT-like models is dropped, since pooling happens outside. No code from the folder is run.

    Args:
        path: Folder, or ``"organisation/name"`` already in the hub cache. ``None`` builds a random BERT with
            character pieces from ``hidden_size``, ``layers`` and ``heads``, for tests.
        max_length: Tokens kept, special tokens included. ``None`` takes the model's own limit, at most 512.
        hidden_size: Token width; only without ``path``.
        layers: Transformer blocks; only without ``path``.
        heads: Attention heads; only without ``path``.

    Returns:
        An encoder of ``TokenBatch``.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing; the message names folder and files.
        ValueError: If sizes are given together with ``path`` or missing without it, if the file lacks parameters of
            the model, or if ``max_length`` is beyond the model's limit.
    """
    sizes = {"hidden_size": hidden_size, "layers": layers, "heads": heads}
    given = sorted(name for name, value in sizes.items() if value is not None)
    if path is None:
        if hidden_size is None or layers is None or heads is None:
            raise ValueError(
                f"hf_text without a path needs {', '.join(sizes)}; got {given}. Give a model folder to read one"
            )
        return build_bert_small(hidden_size=hidden_size, layers=layers, heads=heads, max_length=max_length or 512)
    if given:
        raise ValueError(f"{path}: {', '.join(given)} cannot be set, the model's config.json says them; leave them out")
    folder = _model_folder(path)
    model = _load_model(folder)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    limit = min(512, tokenizer.model_max_length, _positions(model))
    if max_length is not None and max_length > limit:
        raise ValueError(
            f"{path}: max_length={max_length} is beyond the model's {limit} positions; choose at most {limit}"
        )
    return HfText(model, tokenizer, max_length or limit)


def build_bert_small(
    *,
    vocabulary: str | Path | None = None,
    hidden_size: int = 192,
    layers: int = 4,
    heads: int = 4,
    max_length: int = 128,
    dropout: float = 0.1,
    lower_case: bool = True,
    weights: str | Path = "random",
) -> BertSmall:
    """A BERT to train from scratch; its feed-forward layers are four times as wide as its tokens.

    Args:
        vocabulary: ``vocab.txt``, one token per line, e.g. from `medvl_baseline.texts.vocabulary.wordpiece_vocabulary`.
            ``None`` spells every word in single printable ASCII characters: nothing is unknown, but texts get long.
        hidden_size: Token width F.
        layers: Transformer blocks.
        heads: Attention heads; must divide ``hidden_size``.
        max_length: Tokens kept, special tokens included.
        dropout: Share of units dropped in training, in the layers and in the attention.
        lower_case: Whether to fold case; as the vocabulary was built.
        weights: ``"random"``, or a state dict (.safetensors, .pt) of this encoder.

    Returns:
        An encoder of ``TokenBatch``.

    Raises:
        FileNotFoundError: If the vocabulary is not there.
        WeightsError: If the weights file is not there or does not fit.
        ValueError: If the vocabulary is no BERT vocabulary, or the weights belong to another one.

    References:
        Devlin et al., arXiv:1810.04805.
    """
    from transformers import BertConfig, BertModel

    tokens = _character_pieces() if vocabulary is None else _read_vocabulary(Path(vocabulary))
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=max_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokens.index("[PAD]"),
    )
    encoder = BertSmall(
        BertModel(config, add_pooling_layer=False), tokens, TextInput(max_length=max_length, lower_case=lower_case)
    )
    if weights != "random":
        from medvl_core.engine.weights import load_weights

        load_weights(encoder, weights)
    return encoder


def _encode(model: nn.Module, x: TokenBatch) -> EncoderOutput:
    tokens = model(input_ids=x.input_ids, attention_mask=x.attention_mask.long()).last_hidden_state
    return EncoderOutput(tokens=tokens, grid=(tokens.shape[1],), mask=x.attention_mask)


def _character_pieces() -> list[str]:
    characters = sorted(set(string.printable) - set(string.whitespace))
    return [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]


def _read_vocabulary(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no vocabulary there; build one with medvl_baseline.texts.vocabulary.wordpiece_vocabulary"
        )
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def check_vocabulary(module: Any, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """A hook before loading: weights with another ``vocabulary_sha256`` than the module's are refused."""
    theirs = state_dict.get(f"{prefix}vocabulary_sha256")
    if theirs is not None and not torch.equal(theirs.cpu(), module.vocabulary_sha256.cpu()):
        raise ValueError("these weights were trained with another vocabulary; give the file they were trained with")


def _model_folder(path: str | Path) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(str(path), local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError):
            raise FileNotFoundError(
                f"{path}: no such folder, and not in the hub cache {constants.HF_HUB_CACHE}; wanted there are "
                f"config.json, model.safetensors and tokenizer.json. Copy them, or run: hf download {path}"
            ) from None
    for choices in (_CONFIG_FILES, _WEIGHT_FILES, _TOKENIZER_FILES):
        if not any(all((folder / name).is_file() for name in files) for files in choices):
            wanted = " or ".join(" + ".join(files) for files in choices)
            raise FileNotFoundError(f"{folder}: {wanted} is missing; copy the whole model folder there")
    return folder


def _positions(model: nn.Module) -> int:
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):  # RoBERTa and its kin count from behind the padding index
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None) or 512


def _load_model(folder: Path) -> nn.Module:
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoConfig, AutoModel, AutoModelForTextEncoding

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    auto = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    model, report = auto.from_pretrained(
        folder,
        config=config,
        local_files_only=True,
        trust_remote_code=False,
        dtype=torch.float32,
        output_loading_info=True,
    )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    misshaped = sorted(str(key) for key in report["mismatched_keys"])
    if missing or misshaped:
        raise ValueError(
            f"{folder}: the weights lack {missing} and have another shape for {misshaped}; get the full model"
        )
    if report["unexpected_keys"]:
        _logger.info("%s: left out %s", folder, sorted(report["unexpected_keys"]))
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # never used, and DDP would wait for its gradient
    return model
