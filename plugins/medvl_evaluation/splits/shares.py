"""Splits that keep patients whole: by share, stratified over several labels, few-shot, and k-fold. All seeded.

Indices come back, never copies: ``[studies[i] for i in split["test"]]``. Patients are placed at random where no label
asks for anything else, and the same seed gives the same split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["few_shot", "k_folds", "split_by_patient"]

_TIE = 1e-6  # rows; what parts lack is a sum of fractions


def split_by_patient(
    patients: ArrayLike, shares: Mapping[str, float], labels: ArrayLike | None = None, seed: int | Sequence[int] = 0
) -> dict[str, NDArray[np.intp]]:
    """Divide rows by share, whole patients at a time; with labels, every label is divided by those shares too.

    Iterative stratification [1], of patients instead of rows: the label with the fewest positives left is dealt out
    next, each patient to the part that lacks most of it, then the part that lacks most rows.

    Args:
        patients: Patient of each row, ``N``.
        shares: Part → its share of the rows; they sum to 1.
        labels: ``N C``; 1, 0, or NaN = unknown (not a positive). ``None``: patients at random.
        seed: Of the order of patients and of ties, as ``numpy.random.default_rng`` takes it.

    Returns:
        Part → its rows, ascending. Shares are met as closely as whole patients allow.

    Raises:
        ValueError: If the shares are not positive or do not sum to 1, sizes differ, or a part stays empty.

    References:
        [1] Sechidis et al., On the stratification of multi-label data, ECML PKDD 2011,
        doi:10.1007/978-3-642-23808-6_10. No code consulted.
    """
    parts = np.array(list(shares.values()), dtype=float)
    if len(parts) == 0 or (parts <= 0).any() or not np.isclose(parts.sum(), 1):
        raise ValueError(f"shares {dict(shares)} sum to {parts.sum():g}; give positive shares that sum to 1")
    code, counts = _patient_counts(patients, labels)
    part_of = _deal(counts, parts, np.random.default_rng(seed))[code]
    split = {name: np.flatnonzero(part_of == k) for k, name in enumerate(shares)}
    if empty := [name for name, rows in split.items() if len(rows) == 0]:
        raise ValueError(
            f"{len(counts)} patients leave {empty} empty at shares {dict(shares)}; give more patients or larger shares"
        )
    return split


def few_shot(
    patients: ArrayLike, fractions: Sequence[float], labels: ArrayLike | None = None, seed: int = 0
) -> dict[float, NDArray[np.intp]]:
    """Nested stratified subsets of a training set: the 1 % lie within the 10 %, which lie within the 100 %.

    Args:
        patients: Patient of each row, ``N``.
        fractions: Each in (0, 1].
        labels: See `split_by_patient`.
        seed: See `split_by_patient`.

    Returns:
        Fraction → rows, ascending.

    Raises:
        ValueError: If a fraction is not in (0, 1] or selects no patient, or sizes differ.
    """
    steps = sorted(set(map(float, fractions)))
    if not steps or steps[0] <= 0 or steps[-1] > 1:
        raise ValueError(f"fractions {list(fractions)}; give at least one, each above 0 and at most 1")
    edges = steps if steps[-1] == 1 else [*steps, 1.0]
    shares = {str(edge): width for edge, width in zip(edges, np.diff([0.0, *edges]).tolist(), strict=True)}
    rings = split_by_patient(patients, shares, labels, seed)
    subsets, rows = {}, np.empty(0, dtype=np.intp)
    for step in steps:
        rows = np.sort(np.concatenate([rows, rings[str(step)]]))
        subsets[step] = rows
    return subsets


def k_folds(
    patients: ArrayLike, k: int = 5, validation: float = 0.1, labels: ArrayLike | None = None, seed: int = 0
) -> list[dict[str, NDArray[np.intp]]]:
    """Folds with ``train``, ``val`` and ``test`` rows; every row is tested once. The defaults give 70/10/20.

    Args:
        patients: Patient of each row, ``N``.
        k: Number of folds; each tests 1 / k of the rows.
        validation: Share of *all* rows, taken from those not tested; 0 leaves ``val`` out.
        labels: See `split_by_patient`.
        seed: See `split_by_patient`.

    Returns:
        One dictionary per fold.

    Raises:
        ValueError: If ``k`` is below 2, ``validation`` leaves nothing to train on, sizes differ, or a part stays empty.
    """
    if k < 2 or not 0 <= validation < 1 - 1 / k:
        raise ValueError(f"k={k}, validation={validation}; give two folds or more, and leave a share to train on")
    patients = np.asarray(patients)
    matrix = None if labels is None else np.asarray(labels)
    tests = split_by_patient(patients, dict.fromkeys(map(str, range(k)), 1 / k), matrix, seed)
    folds = []
    for fold, test in enumerate(tests.values()):
        rest = np.setdiff1d(np.arange(len(patients)), test)
        parts = {"train": rest}
        if validation > 0:
            share = validation / (1 - 1 / k)
            own = None if matrix is None else matrix[rest]
            inner = split_by_patient(patients[rest], {"train": 1 - share, "val": share}, own, [seed, fold])
            parts = {name: rest[rows] for name, rows in inner.items()}
        folds.append({**parts, "test": test})
    return folds


def _patient_counts(patients: ArrayLike, labels: ArrayLike | None) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Patient code of each row, and per patient its number of rows (column 0) and of positives of each label."""
    patients = np.asarray(patients)
    positive = np.zeros((len(patients), 0), dtype=bool) if labels is None else np.asarray(labels) == 1
    if patients.ndim != 1 or positive.ndim != 2 or len(positive) != len(patients) or len(patients) == 0:
        raise ValueError(
            f"patients {patients.shape} and labels {positive.shape}; expected N and N x classes, N at least 1"
        )
    code = np.unique(patients, return_inverse=True)[1]
    columns = [np.bincount(code), *(np.bincount(code, weights=column).astype(np.int64) for column in positive.T)]
    return code, np.stack(columns, axis=1)


def _deal(counts: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.intp]:
    """Part of each patient."""
    lacking = shares[:, None] * counts.sum(axis=0)
    part_of = np.full(len(counts), -1)
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts[order, 0], kind="stable")]  # large patients while there is room to even them out
    left = counts.sum(axis=0)

    def place(patient: int, column: int) -> None:
        most = np.flatnonzero(lacking[:, column] > lacking[:, column].max() - _TIE)
        most = most[lacking[most, 0] > lacking[most, 0].max() - _TIE]
        part = most[rng.integers(len(most))]
        part_of[patient] = part
        lacking[part] -= counts[patient]
        left[:] -= counts[patient]

    while (left[1:] > 0).any():
        label = 1 + int(np.argmin(np.where(left[1:] > 0, left[1:], np.inf)))
        for patient in order[(part_of[order] < 0) & (counts[order, label] > 0)]:
            place(patient, label)
    for patient in order[part_of[order] < 0]:
        place(patient, 0)
    return part_of
