"""Scores of single cases as a table that another run can be compared with: written by evaluations, read checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PREDICTION_COLUMNS", "Predictions", "read_predictions"]

PREDICTION_COLUMNS = ("study_id", "subject_id", "class", "label", "score", "probability")
"""Columns of every ``*_predictions`` table: one line per study and class."""


@dataclass(frozen=True)
class Predictions:
    """Labels and scores of cases, in the order evaluated.

    Args:
        study_id: N ids, each once.
        subject_id: Patient of each study, N.
        classes: C names.
        labels: ``N C``; 1, 0 or NaN (unknown).
        scores: ``N C``, what rankings and areas are computed from: any monotone scale, e.g. log odds.
        probabilities: ``N C`` in [0, 1], or ``None`` when the scores are none.

    Raises:
        ValueError: If a study or a class repeats, or a shape does not fit.
    """

    study_id: Sequence[str]
    subject_id: Sequence[str]
    classes: Sequence[str]
    labels: NDArray[np.float64]
    scores: NDArray[np.float64]
    probabilities: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        for what, names in (("study", self.study_id), ("class", self.classes)):
            if twice := _first_repeated(names):
                raise ValueError(f"predictions: {what} {twice!r} appears twice; a prediction needs a {what} of its own")
        shape = (len(self.study_id), len(self.classes))
        shapes = {"labels": self.labels.shape, "scores": self.scores.shape}
        if self.probabilities is not None:
            shapes["probabilities"] = self.probabilities.shape
        if len(self.subject_id) != shape[0] or set(shapes.values()) != {shape}:
            raise ValueError(f"predictions of {shape[0]} studies and {shape[1]} classes, but {shapes}; they must agree")

    def table(self) -> pd.DataFrame:
        """One line per study and class with the columns of `PREDICTION_COLUMNS`; blank = unknown."""
        import pandas as pd

        n, count = self.labels.shape
        probabilities = np.full((n, count), np.nan) if self.probabilities is None else self.probabilities
        return pd.DataFrame(
            {
                "study_id": np.repeat(np.asarray(self.study_id, dtype=object), count),
                "subject_id": np.repeat(np.asarray(self.subject_id, dtype=object), count),
                "class": np.tile(np.asarray(self.classes, dtype=object), n),
                "label": self.labels.ravel(),
                "score": self.scores.ravel(),
                "probability": probabilities.ravel(),
            }
        )

    def sorted(self, classes: Sequence[str]) -> Predictions:
        """The same in the order of the study ids and of ``classes``."""
        rows = np.argsort(np.asarray(self.study_id), kind="stable")
        columns = [list(self.classes).index(name) for name in classes]
        part = np.ix_(rows, np.array(columns))
        return Predictions(
            tuple(self.study_id[i] for i in rows),
            tuple(self.subject_id[i] for i in rows),
            tuple(classes),
            self.labels[part],
            self.scores[part],
            None if self.probabilities is None else self.probabilities[part],
        )


def read_predictions(path: str | Path) -> Predictions:
    """Read a ``*_predictions.csv`` of an evaluation folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a column is missing, a study lacks a class, has it twice or has two subjects, a label is none of
            1, 0, blank, a score is not a number, or a probability is outside [0, 1], or blank while others are not. The
            message starts with the file.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no predictions; run the evaluation again, it writes them")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' ParserError and EmptyDataError are ValueErrors
        raise ValueError(f"{path}: not a CSV table ({error}); run the evaluation again") from error
    if missing := [name for name in PREDICTION_COLUMNS if name not in table]:
        raise ValueError(f"{path}: no column {', '.join(missing)}; a table of predictions has {PREDICTION_COLUMNS}")
    numbers = {name: _numbers(path, table[name]) for name in ("label", "score", "probability")}
    studies, classes = (list(dict.fromkeys(table[name])) for name in ("study_id", "class"))
    shape = (len(studies), len(classes))
    whole = len(table) == shape[0] * shape[1] and len(table.drop_duplicates(["study_id", "class"])) == len(table)
    if len(table) == 0 or not whole:
        raise ValueError(
            f"{path}: {len(table)} lines for {shape[0]} studies and {shape[1]} classes; every study needs one line per "
            "class. Was it cut off or edited? Run the evaluation again"
        )
    place = np.ravel_multi_index(
        (pd.Index(studies).get_indexer(table["study_id"]), pd.Index(classes).get_indexer(table["class"])), shape
    )
    order = np.argsort(place)
    labels, scores, probabilities = (numbers[name][order].reshape(shape) for name in numbers)
    subjects = table["subject_id"].to_numpy()[order].reshape(shape)
    none = np.isnan(probabilities).all()
    faults = {
        "a label other than 1, 0 and blank (unknown)": ~(np.isnan(labels) | np.isin(labels, (0, 1))),
        "no score": np.isnan(scores),
        "no probability between 0 and 1": ~(none | ((probabilities >= 0) & (probabilities <= 1))),
        "another subject than before": subjects != subjects[:, :1],
    }
    for fault, where in faults.items():
        if where.any():
            study, name = np.argwhere(where)[0]
            raise ValueError(f"{path}: study {studies[study]!r} has {fault} for {classes[name]!r}; evaluate again")
    given = None if none else probabilities
    return Predictions(tuple(studies), tuple(subjects[:, 0]), tuple(classes), labels, scores, given)


def _numbers(path: Path, column: pd.Series[str]) -> NDArray[np.float64]:
    try:
        return np.array([float(cell) if cell else np.nan for cell in column])
    except ValueError as error:
        raise ValueError(f"{path}: column {column.name} holds something that is no number ({error})") from error


def _first_repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
