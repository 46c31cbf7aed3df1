"""The reports that lie nearest to a radiograph in the shared space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medvl_core.study import Report, Study
from medvl_imaging.embedding import FrozenEmbedding
from medvl_imaging.tables import need_columns, read_table

__all__ = ["NearestReports"]


class NearestReports:
    """Looks reports up by cosine. Their embeddings are kept; those that training made are found by their content.

    Args:
        table: CSV or parquet with a column ``study`` and ``findings``, ``impression`` or both, or ``report``: such as
            the ``studies.csv`` of preparation. Rows without text are left out.
        embedding: Of the report tower, with the text source of training and the store of its rows.
        n: Reports per radiograph.
        show_text: Give the reports' text, not only their study ids.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If a column is missing, no row has text, or a study repeats; the message starts with the table.
    """

    def __init__(self, table: str | Path, embedding: FrozenEmbedding, n: int = 3, show_text: bool = False) -> None:
        if n < 1:
            raise ValueError(f"nearest reports: n is {n}; at least 1")
        self.studies = _reports(Path(table))
        self.embedding, self.n, self.show_text = embedding, n, show_text

    def find(self, rows: Tensor) -> list[list[dict[str, Any]]]:
        """For each row the nearest reports, best first: ``study``, ``cosine`` and, where asked for, ``report``.

        Args:
            rows: ``N E``, L2-normalised.
        """
        self.embedding.prepare(self.studies)
        gallery = torch.stack([self.embedding(study) for study in self.studies])
        cosine, place = (rows.float() @ gallery.T).topk(min(self.n, len(gallery)))
        return [
            [self._entry(i, value) for i, value in zip(ids, values, strict=True)]
            for ids, values in zip(place.tolist(), cosine.tolist(), strict=True)
        ]

    def _entry(self, index: int, cosine: float) -> dict[str, Any]:
        study = self.studies[index]
        entry: dict[str, Any] = {"study": study.study_id, "cosine": round(cosine, 6)}
        if self.show_text and study.report is not None:
            entry["report"] = " ".join(filter(None, (study.report.findings, study.report.impression)))
        return entry


def _reports(path: Path) -> list[Study]:
    rows = read_table(path)
    need_columns(path, rows, ["study"])
    sections = [name for name in ("findings", "impression") if name in rows]
    need_columns(path, rows, sections or ["report"])
    studies: dict[str, Study] = {}
    for number, row in zip(rows.index, rows.to_dict("records"), strict=True):
        name = row["study"]
        if not name or name in studies:
            raise ValueError(f"{path}, row {number}: study {name!r} is blank or there twice; give every row its own id")
        report = Report(**{section: row[section] for section in sections}) if sections else Report(row["report"])
        if report.findings or report.impression:
            studies[name] = Study(study_id=name, subject_id=name, scan_id=name, images={}, report=report)
    if not studies:
        raise ValueError(f"{path}: no row has text in {', '.join(sections or ['report'])}; give a table of reports")
    return list(studies.values())
