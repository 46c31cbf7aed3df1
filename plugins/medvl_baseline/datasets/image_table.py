"""Images named by a table, one a row, with labels: what the public sets have in common."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from medvl_core.errors import did_you_mean
from medvl_core.study import ImageSource, Study
from medvl_evaluation.splits.folds import Folds, part_of, split_rows
from medvl_imaging.readers import FileSource
from medvl_imaging.readers.listing import named_format
from medvl_imaging.tables import number_or_text, refuse

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["ImageTable", "check_ids", "find_table", "keep_views", "label_column", "listed_files"]

_logger = logging.getLogger(__name__)
_IDS = ("study", "subject", "scan", "path")


class ImageTable:
    """Studies of one image each. Plugins build it by a function per public set.

    Rows without a file on disk are left out and counted in the log: any part of a set is a dataset.

    Args:
        table: Where the rows come from, for messages.
        films: One row per image, numbered as in ``table``: columns ``study``, ``subject``, ``scan``, ``path`` (blank
            where the file is not there), all others become ``metadata``.
        labels: Same rows, one column per label: 1, 0 or NaN.
        rare: Labels of the group ``"rare"``; the others are ``"base"``.
        folds: How to split, see ``folds.split_rows``.
        official: ``"train"``, ``"validation"`` or ``"test"`` per row, for the mode ``"official"``.
        modality: Name of the image in its study.
        source: Path → image. ``None``: a radiograph file.

    Raises:
        FileNotFoundError: If no row has a file.
        ValueError: If an id is blank or repeated or ``rare`` names no label. The message starts with table and row.
    """

    def __init__(
        self,
        table: Path,
        films: DataFrame,
        labels: DataFrame,
        *,
        folds: Folds,
        rare: Sequence[str] = (),
        official: Sequence[str] | None = None,
        modality: str = "cxr",
        source: Callable[[str], ImageSource] | None = None,
    ) -> None:
        self.label_names = tuple(labels.columns)
        self.label_groups = _groups(self.label_names, rare)
        self._table, self._modality, self._source = table, modality, source or _radiograph
        check_ids(table, films)
        there = films["path"].ne("").to_numpy()
        if not there.any():
            raise FileNotFoundError(
                f"{table}: no file of its {len(films)} rows is there; the first is {films['study'].iloc[0]!r}"
                if len(films)
                else f"{table}: no row is left after the filters; choose other views or labels"
            )
        if not there.all():
            _logger.info("%s: %d of %d rows have no file here and are left out", table, (~there).sum(), len(there))
        self._films, self._labels = films[there], labels[there].to_numpy(np.float16)  # 1, 0 and NaN
        stated = None if official is None else np.asarray(official)[there]
        self._rows = split_rows(table, self._films["subject"].to_numpy(), self._labels, folds, stated)

    def studies(self, split: Literal["train", "validation", "test"]) -> list[Study]:
        """The studies of a split, in the order of the table.

        Raises:
            ValueError: If there is no such split.
        """
        rows = part_of(self._table, self._rows, split)
        chosen = self._films.iloc[rows]
        metadata = chosen.drop(columns=list(_IDS)).to_dict("records")
        ids = zip(*(chosen[name] for name in _IDS), strict=True)
        columns = {name: i for i, name in enumerate(self.label_names)}
        return [
            Study(
                study_id=study,
                subject_id=subject,
                scan_id=scan,
                images={self._modality: self._source(path)},
                labels=_Labels(columns, self._labels[row]),
                metadata={name: number_or_text(cell) for name, cell in kept.items() if cell},
            )
            for row, (study, subject, scan, path), kept in zip(rows, ids, metadata, strict=True)
        ]


def _radiograph(path: str) -> ImageSource:
    return FileSource(Path(path), "radiograph")


class _Labels(Mapping[str, float]):
    """A row of the label matrix by name: a quarter of a million dictionaries would fill a gigabyte."""

    __slots__ = ("_columns", "_row")

    def __init__(self, columns: Mapping[str, int], row: np.ndarray) -> None:
        self._columns, self._row = columns, row

    def __getitem__(self, name: str) -> float:
        return float(self._row[self._columns[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return repr(dict(self))


def find_table(folder: str | Path, pattern: str) -> Path:
    """The one file of ``folder`` that fits ``pattern``, plain or gzipped.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If there is more than one.
    """
    found = sorted([*Path(folder).glob(pattern), *Path(folder).glob(pattern + ".gz")])
    if not found:
        raise FileNotFoundError(f"{folder}: no table {pattern} or {pattern}.gz; copy it there")
    if len(found) > 1:
        raise ValueError(f"{folder}: {' and '.join(path.name for path in found)} both fit {pattern}; keep one")
    return found[0]


def listed_files(folders: Iterable[Path]) -> dict[str, str]:
    """Name → path of every picture in ``folders``: each folder is listed once, not asked for every file.

    Raises:
        ValueError: If two folders hold a file of the same name.
    """
    found: dict[str, str] = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                if named_format(entry.name) != "picture":
                    continue
                if other := found.get(entry.name):
                    raise ValueError(f"{entry.path}: also at {other}; keep one of the two")
                found[entry.name] = entry.path
    return found


def label_column(table: Path, rows: DataFrame, name: str, read: Callable[[str, str, str], float]) -> np.ndarray:
    """A label of every row; each different cell is read once, so that its first row stands in the message.

    Args:
        table: For messages.
        rows: Its cells as text.
        name: The column.
        read: ``(where, name, cell) -> value``.
    """
    cells = rows[name]
    values = [read(f"{table}, row {number}", name, cell) for number, cell in cells.drop_duplicates().items()]
    return np.array(values, np.float32)[cells.factorize()[0]]  # both in the order of first appearance


def keep_views(table: Path, rows: DataFrame, column: str, views: Sequence[str] | None) -> DataFrame:
    """Rows whose view is one of ``views``; a blank view is none of them. ``None`` keeps every row.

    Raises:
        ValueError: If the table has none of them.
    """
    if views is None:
        return rows
    kept = rows[rows[column].isin(list(views))]
    if kept.empty:
        there = ", ".join(sorted(set(rows[column]) - {""})[:12])
        raise ValueError(f"{table}: {column} is never one of {tuple(views)}; it is {there}")
    return kept


def check_ids(table: Path, films: DataFrame) -> None:
    """Refuse a blank study or subject id, and a study that comes twice.

    Raises:
        ValueError: With the table and the row.
    """
    problems = [
        ValueError(f"{table}, row {row}: the {name} id is blank; fill it in")
        for name in ("study", "subject")
        for row in films.index[films[name].eq("")]
    ]
    twice = films["study"].loc[films["study"].ne("") & films["study"].duplicated()]
    problems += [
        ValueError(f"{table}, row {row}: image {name!r} is in the table before; remove one row")
        for row, name in twice.items()
    ]
    refuse(problems)


def _groups(names: tuple[str, ...], rare: Sequence[str]) -> dict[str, tuple[str, ...]]:
    for name in rare:
        if name not in names:
            raise ValueError(f"rare names {name!r}, which is no label{did_you_mean(name, names)}")
    if not rare:
        return {}
    return {"base": tuple(n for n in names if n not in rare), "rare": tuple(n for n in names if n in rare)}
