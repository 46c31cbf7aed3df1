"""Train, validation and test rows of a table of images."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from medvl_evaluation.splits.shares import k_folds, split_by_patient

__all__ = ["Folds", "SplitMode", "part_of", "split_rows", "with_folds"]

Part = TypeVar("Part")
_logger = logging.getLogger(__name__)
SplitMode = Literal["patients", "official", "image_stratified_compat"]
_MODES = ("patients", "official", "image_stratified_compat")


@dataclass(frozen=True, slots=True)
class Folds:
    """How a table is split.

    Args:
        split: ``"patients"``: folds of whole patients, stratified over all labels. ``"official"``: the set's own test
            list, and its own validation list or a share of the other patients. ``"image_stratified_compat"``: the split
            of the published CXR-CML code, for comparison only: folds of images (one patient is in several), stratified
            over combinations of labels, and the test fold is the validation split too.
        fold: Which fold is the test set, from 0.
        n_folds: Number of folds.
        validation_share: Share of all rows held out as validation; 0 leaves it empty.
        seed: Of the split. The published code's is 42.

    Raises:
        ValueError: If the split is unknown or there is no such fold.
    """

    split: SplitMode = "patients"
    fold: int = 0
    n_folds: int = 5
    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in _MODES:
            raise ValueError(f"split is {self.split!r}; choose one of {', '.join(_MODES)}")
        if not 0 <= self.fold < self.n_folds or self.n_folds < 2:
            raise ValueError(f"fold is {self.fold} of {self.n_folds} folds; count them from 0, and have two or more")


def with_folds(split: SplitMode = "patients") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a dataset's factory: its one argument ``folds`` becomes the options of :class:`Folds`.

    Callers, and who asks for the signature, see ``split``, ``fold``, ``n_folds``, ``validation_share`` and ``seed``.

    Args:
        split: Default of that option. Those of the others are the defaults of :class:`Folds`.
    """
    options = {field.name: field.default for field in fields(Folds)} | {"split": split}

    def decorate(factory: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(factory)
        def build(*args: Any, **given: Any) -> Any:
            folds = Folds(**{name: given.pop(name, default) for name, default in options.items()})
            return factory(*args, folds=folds, **given)

        signature = inspect.signature(factory)
        own = [parameter for name, parameter in signature.parameters.items() if name != "folds"]
        added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=options[name]) for name in options]
        build.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        return build

    return decorate


def part_of(where: Path, parts: Mapping[str, Part], split: str) -> Part:
    """``parts[split]``.

    Raises:
        ValueError: If there is no such split; the message starts with ``where``.
    """
    if split not in parts:
        raise ValueError(f"{where}: no split {split!r}; there are {', '.join(parts)}")
    return parts[split]


def split_rows(
    table: Path, subjects: np.ndarray, labels: np.ndarray, folds: Folds, official: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Rows of ``"train"``, ``"validation"`` and ``"test"``, ascending.

    Args:
        table: For messages.
        subjects: Patient of each row, ``N``.
        labels: ``N C``; 1, 0 or NaN.
        folds: How.
        official: ``"train"``, ``"validation"`` or ``"test"`` per row, where the set has such lists.

    Raises:
        ValueError: If there are too few patients, the set has no official split or a patient is on both sides of it.
            The message starts with the table.
    """
    try:
        if folds.split == "patients":
            parts = k_folds(subjects, folds.n_folds, folds.validation_share, labels, folds.seed)[folds.fold]
            return {"train": parts["train"], "validation": parts.get("val", np.empty(0, int)), "test": parts["test"]}
        if folds.split == "official":
            return _official(subjects, labels, folds, official)
        return _compat(subjects, labels, folds)
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from error


def _official(
    subjects: np.ndarray, labels: np.ndarray, folds: Folds, official: np.ndarray | None
) -> dict[str, np.ndarray]:
    if official is None:
        raise ValueError("this set has no official split; use split='patients'")
    parts = {name: np.flatnonzero(official == name) for name in ("train", "validation", "test")}
    for one, other in combinations(parts, 2):
        if both := sorted(set(map(str, subjects[parts[one]])) & set(map(str, subjects[parts[other]]))):
            lists = f"{one.replace('train', 'training')} and {other} lists"
            raise ValueError(f"patients {both[:5]} are in the official {lists}; get the lists again")
    rest = parts["train"]
    if len(parts["validation"]) or not len(rest) or folds.validation_share == 0:
        return parts
    share = folds.validation_share * len(subjects) / len(rest)
    inner = split_by_patient(subjects[rest], {"train": 1 - share, "validation": share}, labels[rest], folds.seed)
    return {**{name: rest[rows] for name, rows in inner.items()}, "test": parts["test"]}


def _compat(subjects: np.ndarray, labels: np.ndarray, folds: Folds) -> dict[str, np.ndarray]:
    from sklearn.model_selection import StratifiedKFold

    sets = ["".join("1" if value == 1 else "0" for value in row) for row in labels]
    splitter = StratifiedKFold(folds.n_folds, shuffle=True, random_state=folds.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # combinations of fewer images than folds: the usual case
        train, test = list(splitter.split(np.zeros(len(labels)), sets))[folds.fold]
    shared = len(set(subjects[train]) & set(subjects[test]))
    _logger.warning(
        "image_stratified_compat: %d patients are in training and test, and the test fold is the validation split; "
        "for comparison with published numbers only",
        shared,
    )
    return {"train": train, "validation": test, "test": test}
