"""A linear layer on frozen embeddings: fitted with early stopping on validation, in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, linear

from medvl_evaluation.metrics import choose_thresholds

__all__ = ["Fitting", "Probe", "fit_probe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """How a probe is fitted.

    Args:
        exclusive: Cross-entropy over classes; otherwise binary cross-entropy per class, unknown labels left out.
        learning_rate: Of AdamW. The paper used 5e-3 and 5e-2; on unit vectors of 3,039 studies both gave the same areas
            to 0.004, the larger one in a tenth of the epochs.
        weight_decay: Of AdamW.
        epochs: At most.
        patience: Epochs without a lower validation loss before it stops; the best state is kept.
        batch_size: Studies per step.
    """

    exclusive: bool = False
    learning_rate: float = 5e-2
    weight_decay: float = 0.01
    epochs: int = 200
    patience: int = 20
    batch_size: int = 512

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs", "patience", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"linear probe: {name} is {getattr(self, name)}; it must be positive")
            if name != "learning_rate" and not isinstance(getattr(self, name), int):
                raise ValueError(f"linear probe: {name} is {getattr(self, name)!r}; it must be a whole number")


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted linear layer.

    Args:
        weight: ``C E``.
        bias: ``C``.
        thresholds: Score from which a class is decided, ``C``: chosen on validation by F1; 0 where it could not be.
        epochs: Epochs until the best state.
    """

    weight: Tensor
    bias: Tensor
    thresholds: np.ndarray
    epochs: int

    def scores(self, embeddings: Tensor) -> np.ndarray:
        """Logits ``N C`` of embeddings ``N E``."""
        return linear(embeddings, self.weight, self.bias).double().numpy()


def fit_probe(
    train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], fitting: Fitting, seed: int = 0
) -> Probe:
    """Fit one linear layer, from zero weights.

    Args:
        train: Embeddings ``N E`` (unit vectors) and labels ``N C`` (1, 0, NaN = unknown).
        validation: Likewise, for early stopping and thresholds.
        fitting: How.
        seed: Of the order of the batches.

    Raises:
        ValueError: If either has no known label: there is nothing to fit to, or to stop by.

    References:
        The recipe of X2CT-CLIP's linear evaluation, arXiv:2503.02162; no code copied.
    """
    (x, y), (held_x, held_y) = train, validation
    for what, labels in (("to fit to", y), ("to stop by", held_y)):
        if labels.isnan().all():
            raise ValueError(
                f"linear probe: none of the {len(labels)} studies {what} has a known label; "
                "give larger fractions, a larger validation share, or leave the evaluator out"
            )
    parameters = torch.zeros(y.shape[1], x.shape[1]), torch.zeros(y.shape[1])
    for parameter in parameters:
        parameter.requires_grad_()
    rate, decay = fitting.learning_rate, fitting.weight_decay
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    generator = torch.Generator().manual_seed(seed)
    best_loss, best_epoch, best = float("inf"), 0, _copies(parameters)
    for epoch in range(1, fitting.epochs + 1):
        for rows in torch.randperm(len(x), generator=generator).split(fitting.batch_size):
            optimizer.zero_grad()
            _loss(linear(x[rows], *parameters), y[rows], fitting.exclusive).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(_loss(linear(held_x, *parameters), held_y, fitting.exclusive))
        if loss < best_loss:
            best_loss, best_epoch, best = loss, epoch, _copies(parameters)
        elif epoch - best_epoch >= fitting.patience:
            break
    thresholds = _thresholds(held_y.numpy(), linear(held_x, *best).numpy())
    weight, bias = best
    return Probe(weight, bias, thresholds, best_epoch)


def _copies(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _loss(logits: Tensor, y: Tensor, exclusive: bool) -> Tensor:
    if exclusive:
        return cross_entropy(logits, y)
    known = (y == y).float()  # NaN differs from itself
    total = binary_cross_entropy_with_logits(logits, y.nan_to_num(0.0), known, reduction="sum")
    return total / known.sum().clamp(min=1)


def _thresholds(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Half way between the score chosen and the next lower one: a threshold on a score itself splits equal cases."""
    thresholds = choose_thresholds(labels, scores, "f1")
    for c, chosen in enumerate(thresholds):
        lower = scores[scores[:, c] < chosen, c]
        thresholds[c] = 0.0 if np.isnan(chosen) else (chosen + lower.max()) / 2 if len(lower) else chosen
    return thresholds
