"""What components exchange at run time. Imports torch; nothing on the discovery path imports this module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from medvl_core.specs import ImageInput, Metric, TextInput
from medvl_core.study import Study

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "AlignmentBatch",
    "Classifies",
    "Dataset",
    "Encoder",
    "EncoderOutput",
    "Evaluator",
    "LossOutput",
    "Predicts",
    "Scores",
    "TextEncoder",
    "TextSource",
    "TokenBatch",
]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token ids and their mask, both ``B L``, int64 and bool."""

    input_ids: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device | str) -> TokenBatch:
        """Both tensors on ``device``."""
        return TokenBatch(self.input_ids.to(device), self.attention_mask.to(device))

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class EncoderOutput:
    """What an encoder gives.

    Args:
        tokens: ``B N F``.
        grid: Shape of the token grid, ``prod(grid) == N`` (a CLS token is not part of the grid and comes first).
        pooled: The encoder's own pooled vector ``B F``, or ``None``.
        features: Its highest-resolution map ``B F *spatial``, or ``None``.
        mask: Valid tokens ``B N`` (bool), or ``None`` when all are.
        logits: Segmentation logits ``B K *spatial`` of an encoder that segments, finest first, or ``None``.
    """

    tokens: Tensor
    grid: tuple[int, ...]
    pooled: Tensor | None = None
    features: Tensor | None = None
    mask: Tensor | None = None
    logits: tuple[Tensor, ...] | None = None


@dataclass(slots=True)
class AlignmentBatch:
    """What a loss sees: the gathered batch.

    Args:
        embeddings: Modality → ``P E``, L2-normalised rows; row i of every modality is pair i.
        logit_scale: 1/τ as a 0-d tensor, already exponentiated and clamped.
        extras: Further per-pair entries that a loss ``needs``, e.g. ``"text_group": P`` (int64; equal for equal texts).
        terms: Filled by the weighted sum of losses: named, detached terms for the log.
    """

    embeddings: dict[str, Tensor]
    logit_scale: Tensor
    extras: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A 0-d ``total`` with graph, and named 0-d ``terms`` for the log."""

    total: Tensor
    terms: Mapping[str, Tensor]


@runtime_checkable
class Encoder(Protocol):
    """An ``nn.Module`` with its own ``embed_dim`` (F) and ``input``."""

    embed_dim: int
    input: ImageInput | TextInput

    def __call__(self, x: Any) -> EncoderOutput:
        """Volume ``B C X Y Z``, radiograph ``B C H W`` or ``TokenBatch`` → tokens."""


@runtime_checkable
class TextEncoder(Encoder, Protocol):
    """An encoder of text also owns its tokeniser."""

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        """Texts → padded token ids, on the CPU."""


@runtime_checkable
class TextSource(Protocol):
    """Makes the training text of each study."""

    def texts(self, studies: Sequence[Study], rng: np.random.Generator) -> list[str]:
        """One non-empty text per study, deterministic in ``rng``."""


@runtime_checkable
class Evaluator(Protocol):
    """Collects outputs of an evaluation pass, then computes metrics, their intervals, tables and figures.

    ``update`` receives a mapping with ``"embeddings"`` (modality → ``B E``, L2-normalised, fp32, CPU), ``"study_id"``,
    ``"subject_id"`` and ``"scan_id"`` (lists of B strings), ``"metadata"`` (B mappings), ``"labels"`` (``B C`` float,
    NaN = unknown; or absent), perhaps ``"voxel_counts"`` (B arrays, `medvl_core.engine.masks.voxel_counts`), and
    perhaps ``"prompt_embeddings"`` (``"positive"`` and ``"negative"`` → ``C E``) in place of a text tower.

    What it can do beyond, it says by the members of `Classifies`, `Scores` or `Predicts`, or of a protocol of
    `medvl_evaluation.abilities`.
    """

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of this instance by their full names."""

    def reset(self) -> None:
        """Forget everything collected."""

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch."""

    def compute(self) -> dict[str, float]:
        """Metrics over everything collected, by their full names."""

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap interval of each metric that has one; subjects are drawn whole."""

    def chance(self) -> dict[str, float]:
        """What guessing would give on the studies collected."""

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """File stem → table."""

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """Draw into ``folder``; the paths written."""


@runtime_checkable
class Classifies(Protocol):
    """Ability: it is fed labels ``B C``, of these ``classes``; ``baseline/external`` can wrap it."""

    classes: tuple[str, ...]


@runtime_checkable
class Scores(Classifies, Protocol):
    """Ability: it scores studies by class; ``baseline/subgroups`` can wrap it."""

    def predictions(self) -> Any:
        """`medvl_evaluation.predictions.Predictions` of the studies collected."""


@runtime_checkable
class Predicts(Scores, Protocol):
    """Ability: its score of a study needs no label and no other study: inference, thresholds of validation studies.

    ``stem`` names its table, ``<stem>_predictions``; ``prompts`` are its texts: side → those of each class.
    """

    stem: str
    prompts: Mapping[str, Sequence[Sequence[str]]]

    def predict(self, embeddings: Mapping[str, Tensor]) -> np.ndarray:
        """Modality → ``N E`` to probabilities ``N C``; NaN where a study cannot be judged."""


@runtime_checkable
class Dataset(Protocol):
    """Gives the studies of a split. ``label_names`` are the columns of its label vectors, in order."""

    label_names: tuple[str, ...]

    def studies(self, split: Literal["train", "validation", "test"]) -> Iterable[Study]:
        """The studies of a split, in a stable order; no subject is in two splits."""
