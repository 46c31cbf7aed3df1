"""Studies from the rows of a CSV or parquet table that names image files."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medvl_baseline.reports.sections import split_report
from medvl_core.study import ImageSource, Report, Shared, Study
from medvl_imaging.radiograph import SimulatedRadiograph
from medvl_imaging.readers import FileSource
from medvl_imaging.tables import need_columns, number_or_text, read_label, read_table, refuse

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["FolderDataset"]

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")


class FolderDataset:
    """Studies from a table with one row per image set.

    The table needs a subject and a study column, and a CT column, a radiograph column or both (NIfTI, NRRD, DICOM
    folder; PNG, JPEG, DICOM, NIfTI). Everything is checked here, before training; images are read only when asked for.

    Args:
        table: CSV (UTF-8) or parquet file. Rows are counted as a spreadsheet shows them: the header is row 1.
        root: Folder that relative paths start from. ``None``: the table's own.
        ct_column: Column of CT paths; blank where a study has none.
        cxr_column: Column of radiograph paths; blank where a study has none.
        report_column: Column of whole reports, cut by ``medvl_baseline.reports.sections.split_report``.
        findings_column: Column of findings, used where there is no whole report.
        impression_column: Column of impressions, likewise.
        label_columns: Column or columns with 1, 0 or blank (unknown).
        metadata_columns: Columns to keep for subgroups (age, sex, scanner): a number where the cell is one, else text;
            a blank is left out.
        subject_column: Column of patients; no patient is ever in two splits.
        study_column: Column of study ids, unique.
        scan_column: Column that reconstructions of one acquisition share. Without it each study is its own scan.
        split_column: Column with ``train``, ``validation`` or ``test``. ``None`` splits by patient.
        shares: Shares of patients in the three splits when there is no split column.
        seed: Of that split.
        simulate_cxr: Give studies without a radiograph one simulated from their CT; a mapping holds options of
            ``medvl_imaging.radiograph.simulate_radiograph``.
        encoding: Of a CSV.

    Raises:
        FileNotFoundError: If the table or an image is missing.
        ValueError: If the table breaks a rule. The message starts with the table and names the row; several problems
            come in one list.
    """

    def __init__(
        self,
        table: str | Path,
        root: str | Path | None = None,
        *,
        ct_column: str = "ct",
        cxr_column: str = "cxr",
        report_column: str = "report",
        findings_column: str = "findings",
        impression_column: str = "impression",
        label_columns: str | Sequence[str] = (),
        metadata_columns: Sequence[str] = (),
        subject_column: str = "subject",
        study_column: str = "study",
        scan_column: str = "scan",
        split_column: str | None = None,
        shares: tuple[float, float, float] = (0.7, 0.1, 0.2),
        seed: int = 0,
        simulate_cxr: bool | Mapping[str, Any] = False,
        encoding: str = "utf-8",
    ) -> None:
        if table is None:  # what a config without --table gives
            raise ValueError("baseline/folder has no table; give one (--table studies.csv)")
        self.table = Path(table)
        self.root = self.table.parent if root is None else Path(root)
        self.label_names = (label_columns,) if isinstance(label_columns, str) else tuple(label_columns)
        self._metadata = tuple(metadata_columns)
        self._images = {"ct": ct_column, "cxr": cxr_column}
        self._texts = (report_column, findings_column, impression_column)
        self._ids = (study_column, subject_column, scan_column)
        self._simulate = None if simulate_cxr is False else {} if simulate_cxr is True else dict(simulate_cxr)

        rows = read_table(self.table, encoding)
        needed = [study_column, subject_column, *self.label_names, *metadata_columns]
        self._check_columns(rows, [*needed, *([split_column] if split_column else [])])
        problems: list[OSError | ValueError] = []
        self._studies, numbers = [], []
        for number, row in zip(rows.index, rows.to_dict("records"), strict=True):
            try:
                self._studies.append(self._study(number, row))
                numbers.append(number)
            except (OSError, ValueError) as error:
                problems.append(error)
        problems += self._repeated(numbers)
        self._split: dict[str, str] = {}
        if split_column:
            problems += self._read_split(numbers, rows.loc[numbers, split_column])
        refuse(problems)
        if not split_column:
            if "split" in rows:
                logger.warning("%s: its column 'split' is not used; split_column takes it", self.table)
            self._split = _split_subjects([study.subject_id for study in self._studies], shares, seed)

    def studies(self, split: Literal["train", "validation", "test"]) -> list[Study]:
        """The studies of a split, in the order of the table.

        Raises:
            ValueError: If there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"{self.table}: no split {split!r}; there are {', '.join(SPLITS)}")
        return [study for study in self._studies if self._split[study.subject_id] == split]

    def _check_columns(self, rows: DataFrame, needed: Sequence[str]) -> None:
        if not set(self._images.values()) & set(rows):
            needed = [*needed, " or ".join(self._images.values())]
        need_columns(self.table, rows, needed)
        if rows.empty:
            raise ValueError(f"{self.table}: the table has a header but no rows; add one row per study")

    def _study(self, number: int, row: Mapping[str, str]) -> Study:
        where = f"{self.table}, row {number}"
        study, subject, scan = (row.get(name, "") for name in self._ids)
        if not study or not subject:
            empty = self._ids[0] if not study else self._ids[1]
            raise ValueError(f"{where}: {empty} is empty; every row needs a study id and a subject id")
        return Study(
            study_id=study,
            subject_id=subject,
            scan_id=scan or study,
            images=self._row_images(where, row),
            report=self._row_report(row),
            labels={name: read_label(where, name, row[name]) for name in self.label_names},
            metadata={name: number_or_text(row[name]) for name in self._metadata if row[name]},
        )

    def _row_images(self, where: str, row: Mapping[str, str]) -> dict[str, ImageSource]:
        images: dict[str, ImageSource] = {}
        for modality, column in self._images.items():
            if name := row.get(column, ""):
                path = self.root / name
                if not path.exists():
                    raise FileNotFoundError(f"{where}: {column} {path} does not exist; correct the path or pass root")
                images[modality] = FileSource(path, "volume" if modality == "ct" else "radiograph")
        if not images:
            raise ValueError(
                f"{where}: neither {' nor '.join(self._images.values())} names a file; remove the row or add one"
            )
        if self._simulate is not None and "cxr" not in images:
            images["ct"] = Shared(images["ct"])  # read once for both
            images["cxr"] = SimulatedRadiograph(images["ct"], **self._simulate)
        return images

    def _row_report(self, row: Mapping[str, str]) -> Report | None:
        whole, findings, impression = (row.get(name, "") for name in self._texts)
        if whole:
            report = split_report(whole)
            return report if report.findings or report.impression else None
        return Report(findings, impression) if findings or impression else None

    def _repeated(self, numbers: list[int]) -> Iterator[ValueError]:
        """Study ids that come twice, and files of two patients."""
        first: dict[str, int] = {}
        owner: dict[Path, tuple[int, str]] = {}
        for number, study in zip(numbers, self._studies, strict=True):
            if (before := first.setdefault(study.study_id, number)) != number:
                yield ValueError(
                    f"{self.table}, row {number}: study {study.study_id!r} was already in row {before}; "
                    "give each image set its own id"
                )
            for image in study.images.values():
                source = image.source if isinstance(image, Shared) else image
                if isinstance(source, FileSource):
                    before, subject = owner.setdefault(source.path.resolve(), (number, study.subject_id))
                    if subject != study.subject_id:
                        yield ValueError(
                            f"{self.table}, row {number}: {source.path} belongs to another subject in row {before}; "
                            "one patient must have one subject id"
                        )

    def _read_split(self, numbers: Sequence[int], names: Sequence[str]) -> Iterator[ValueError]:
        """Split of each patient as stated; what is wrong with it."""
        first: dict[str, int] = {}
        for study, number, name in zip(self._studies, numbers, names, strict=True):
            if name not in SPLITS:
                yield ValueError(
                    f"{self.table}, row {number}: split is {name!r}; it must be one of {', '.join(SPLITS)}"
                )
                continue
            other = self._split.setdefault(study.subject_id, name)
            before = first.setdefault(study.subject_id, number)
            if other != name:
                yield ValueError(
                    f"{self.table}, row {number}: subject {study.subject_id!r} is in {name}, but in {other} in row "
                    f"{before}; keep a patient in one split"
                )


def _split_subjects(subjects: Sequence[str], shares: Sequence[float], seed: int) -> dict[str, str]:
    """Shuffle the patients and cut; a split with a share gets at least one patient while there are enough."""
    if len(shares) != 3 or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"shares are {tuple(shares)}; give three that are not negative and sum to 1")
    names = sorted(set(subjects))
    order = np.random.default_rng(seed).permutation(len(names))
    counts = np.floor(np.array(shares) * len(names) + 1e-9).astype(int)
    wanted = [i for i in np.argsort(shares)[::-1] if shares[i] > 0]
    for i in wanted if len(names) >= len(wanted) else wanted[: len(names)]:
        counts[i] = max(counts[i], 1)
    counts[wanted[0]] += len(names) - counts.sum()
    ends = np.cumsum(counts)
    return {names[k]: SPLITS[int(np.searchsorted(ends, at, side="right"))] for at, k in enumerate(order)}
