"""Which studies a probe is fitted to and which it is tested on, fold by fold: patients kept whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from medvl_evaluation.evaluators.probe import Fitting, fit_probe
from medvl_evaluation.splits.shares import few_shot, k_folds, split_by_patient

__all__ = ["Fold", "Plan", "Scheme", "fit_folds"]

Scheme = Literal["k_fold", "rest", "train"]


@dataclass(frozen=True)
class Plan:
    """How studies are divided: see `LinearProbe`.

    Raises:
        ValueError: If a field breaks its rule.
    """

    scheme: Scheme
    fractions: tuple[float, ...]
    folds: int
    validation: float
    seed: int

    def __post_init__(self) -> None:
        if self.scheme not in ("k_fold", "rest", "train"):
            raise ValueError(f"LinearProbe: scheme is {self.scheme!r}; choose 'k_fold', 'rest' or 'train'")
        if not self.fractions or self.fractions[0] <= 0 or self.fractions[-1] > 1:
            raise ValueError(f"LinearProbe: fractions is {self.fractions}; give shares above 0 and at most 1")
        if self.scheme == "rest" and self.fractions[-1] == 1:
            raise ValueError("LinearProbe: scheme 'rest' tests what was not drawn, so every fraction is below 1")
        if self.folds < (2 if self.scheme == "k_fold" else 1) or not 0 < self.validation < 1:
            raise ValueError(
                f"LinearProbe: folds is {self.folds} and validation {self.validation}; give two folds or more "
                "(one draw or more), and a share between 0 and 1"
            )

    def seed_of(self, fold: int) -> int:
        """Seed of everything random in a fold."""
        return int(np.random.SeedSequence([self.seed, fold]).generate_state(1)[0])

    def draws(
        self, subjects: np.ndarray, labels: np.ndarray, n_tested: int, fraction: float
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of every fold: rows drawn to fit to, rows to test on.

        Args:
            subjects: Patient of each study to fit to, ``N``.
            labels: Their labels, ``N C``: every fraction holds its share of every label.
            n_tested: Evaluated studies.
            fraction: One of ``fractions``; a smaller one lies within a larger one.
        """
        every = np.arange(len(subjects))
        pools = [(every, np.arange(n_tested))] * self.folds
        if self.scheme == "k_fold":
            pools = [(fold["train"], fold["test"]) for fold in k_folds(subjects, self.folds, 0.0, labels, self.seed)]
        for fold, (pool, test) in enumerate(pools):
            drawn = pool[few_shot(subjects[pool], self.fractions, labels[pool], self.seed_of(fold))[fraction]]
            yield drawn, np.setdiff1d(every, drawn) if self.scheme == "rest" else test


@dataclass(frozen=True)
class Fold:
    """One fitted probe and what it gave: rows of the evaluated studies, their scores and decisions ``n C``."""

    rows: np.ndarray
    scores: np.ndarray
    decided: np.ndarray
    n_train: int
    n_validation: int
    epochs: int


def fit_folds(
    plan: Plan, fraction: float, fitting: Fitting, source: tuple[Tensor, Tensor], subjects: np.ndarray, target: Tensor
) -> list[Fold]:
    """Fit and test one probe per fold.

    Args:
        plan: How studies are divided.
        fraction: Share of the source's labels that may be used.
        fitting: How a probe is fitted.
        source: Embeddings ``N E`` and labels ``N C`` to fit to.
        subjects: Their patients, ``N``.
        target: Embeddings of the evaluated studies; those of ``source`` itself but for the scheme ``"train"``.
    """
    x, y = source
    shares = {"train": 1 - plan.validation, "validation": plan.validation}
    folds = []
    for number, (drawn, test) in enumerate(plan.draws(subjects, y.numpy(), len(target), fraction)):
        seed = plan.seed_of(number)
        parts = split_by_patient(subjects[drawn], shares, y.numpy()[drawn], seed)
        train, validation = drawn[parts["train"]], drawn[parts["validation"]]
        probe = fit_probe((x[train], y[train]), (x[validation], y[validation]), fitting, seed)
        scores = probe.scores(target[test])
        decided = np.eye(y.shape[1])[scores.argmax(axis=1)] if fitting.exclusive else scores >= probe.thresholds
        folds.append(Fold(test, scores, decided.astype(float), len(train), len(validation), probe.epochs))
    return folds
