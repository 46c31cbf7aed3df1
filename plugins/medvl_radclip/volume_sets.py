"""Public sets of volumes."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread

from medvl_baseline.datasets.image_table import ImageTable
from medvl_evaluation.splits.folds import Folds, with_folds
from medvl_imaging.readers.listing import image_files, series_folders, volume_paths
from medvl_imaging.tables import need_columns, read_table
from medvl_radclip.captions import modality_name
from medvl_radclip.classed import classed_table, row

__all__ = ["build_covid_ct_md", "build_dicom_collection", "build_ixi"]

_logger = logging.getLogger(__name__)
_COVID = {"covid": "COVID-19", "cap": "Pneumonia", "normal": "Normal"}
_SPOKEN = {"COVID-19": "covid", "Pneumonia": "pneumonia", "Normal": "normal"}
_SEX = "SEX_ID (1=m, 2=f)"
_SEXES = {"1": "male", "2": "female"}
_TAGS = ["PatientID", "Modality", "BodyPartExamined", "SeriesDescription"]


@with_folds()
def build_covid_ct_md(
    folder: str | Path,
    *,
    folds: Folds,
) -> ImageTable:
    """COVID-CT-MD: 305 chest CTs, a DICOM folder per patient; COVID-19, pneumonia (CAP) or normal.

    The class is read off the folders' names (``COVID-19 Cases/P001``, ``Cap Cases/cap001``,
    ``Normal Cases/normal001``); releases differ in spelling.

    Args:
        folder: The set, under any name.
        folds: Five options, see ``medvl_evaluation.splits.folds.with_folds``.

    Raises:
        FileNotFoundError: If there is no DICOM folder.
        ValueError: If a folder's path names no class, or more than one.
    """
    folder = Path(folder)
    rows = []
    for path in series_folders(image_files(folder)):
        name = path.relative_to(folder).as_posix()
        plain = name.lower().replace("covid-ct-md", "")  # the name of the set itself
        found = {class_ for word, class_ in _COVID.items() if re.search(rf"(^|[^a-z]){word}", plain)}
        if len(found) != 1:
            raise ValueError(
                f"{path}: its path names {' and '.join(sorted(found)) or 'no class'}; "
                "one of covid, cap, normal must be in a folder's name"
            )
        (class_,) = found
        rows.append(row(name, name, str(path), class_, ("Lung", "CT", _SPOKEN[class_])))
    return classed_table(folder, rows, folds=folds, kind="volume", classes=list(_COVID.values()))


@with_folds()
def build_ixi(
    folder: str | Path,
    *,
    sequence: str = "T1",
    table: str | Path | None = None,
    folds: Folds,
) -> ImageTable:
    """IXI: brain MR of healthy people with their sex, ``IXI002-Guys-0828-T1.nii.gz`` and so on.

    Files without a row, rows without a file, and people with rows that disagree are left out and counted in the log.

    Args:
        folder: Holds the files, at any depth.
        sequence: ``"T1"``, ``"T2"``, ``"PD"`` or ``"MRA"``.
        table: ``IXI.xls`` (needs the extra ``xls``), or the same as CSV. ``None``: the one in ``folder``.
        folds: Five options, see ``medvl_evaluation.splits.folds.with_folds``.

    Raises:
        FileNotFoundError: If the table or every file is missing.
        ValueError: If a row breaks a rule. The message starts with table and row.
    """
    folder = Path(folder)
    people = _people(_ixi_table(folder) if table is None else Path(table))
    rows, without = [], []
    for path in volume_paths(image_files(folder)):
        if not (parts := re.fullmatch(rf"IXI(\d+)-(\w+)-\d+-{re.escape(sequence)}\.nii(\.gz)?", path.name)):
            continue
        person = int(parts[1])
        if person not in people:
            without.append(path.name)
            continue
        sex, age = people[person]
        study = path.name.partition(".")[0]
        words = ("Brain", "MRI", sex)
        rows.append(row(study, f"IXI{person:03d}", str(path), sex, words, site=parts[2], age=age))
    if without:
        _logger.info("%s: %d files have no usable row and are left out: %s", folder, len(without), without[:5])
    return classed_table(folder, rows, folds=folds, kind="scan", classes=["male", "female"])


@with_folds()
def build_dicom_collection(
    folder: str | Path,
    *,
    modalities: Sequence[str] = ("CT", "MR"),
    min_slices: int = 8,
    region: str = "",
    labels: str | Path | None = None,
    folds: Folds,
) -> ImageTable:
    """A collection as TCIA's and IDC's clients store it: a folder per DICOM series, at any depth.

    Args:
        folder: The collection, or several.
        modalities: DICOM codes to keep, of CT, MR and PT. Series of others are left out and counted in the log, as are
            folders whose first file cannot be read, each with its reason.
        min_slices: Series with fewer files (scouts) are left out too.
        region: For captions where the series does not state its ``BodyPartExamined``.
        labels: CSV with columns ``patient`` and ``label``: the class of each patient, whose other series are left out.
            ``None``: the class is the modality.
        folds: Five options, see ``medvl_evaluation.splits.folds.with_folds``.

    Raises:
        FileNotFoundError: If no series is left, or ``labels`` is missing.
        ValueError: If a row of ``labels`` breaks a rule.
    """
    folder = Path(folder)
    classes = None if labels is None else _patient_labels(Path(labels))
    rows, left_out = [], 0
    for path, files in series_folders(image_files(folder)).items():
        try:
            header = dcmread(files[0], stop_before_pixels=True, specific_tags=_TAGS)
            patient, modality, part, series = (str(header.get(tag) or "").strip() for tag in _TAGS)
        except Exception as error:  # malformed files raise many types
            _logger.warning("%s: left out, its header cannot be read (%s)", files[0], error)
            continue
        label = modality_name(modality) if classes is None else classes.get(patient, "")
        if modality not in modalities or len(files) < min_slices or not label or not patient:
            left_out += 1
            continue
        words = (part or region, modality_name(modality), "" if classes is None else label)
        rows.append(row(path.relative_to(folder).as_posix(), patient, str(path), label, words, series=series))
    _logger.info("%s: %d series, %d left out", folder, len(rows), left_out)
    return classed_table(folder, rows, folds=folds, kind="scan")


def _ixi_table(folder: Path) -> Path:
    found = [path for name in ("IXI.xls", "IXI.xlsx", "IXI.csv") if (path := folder / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{folder}: no IXI.xls, IXI.xlsx or IXI.csv; copy it there or pass table")
    return found[-1]


def _people(table: Path) -> dict[int, tuple[str, str]]:
    """Number → sex and age."""
    rows = read_table(table)
    need_columns(table, rows, ("IXI_ID", _SEX, "AGE"))
    found: dict[int, set[tuple[str, str]]] = {}
    for number, person, sex, age in zip(rows.index, rows["IXI_ID"], rows[_SEX], rows["AGE"], strict=True):
        if not person.removesuffix(".0").isdigit() or sex.removesuffix(".0") not in _SEXES:
            raise ValueError(
                f"{table}, row {number}: IXI_ID is {person!r}, sex {sex!r}; they must be a number, and 1 or 2"
            )
        found.setdefault(int(float(person)), set()).add((_SEXES[sex.removesuffix(".0")], age))
    unclear = sorted(person for person, facts in found.items() if len({sex for sex, _ in facts}) > 1)
    if unclear:
        _logger.info(
            "%s: %d people have rows that disagree on their sex and are left out: %s", table, len(unclear), unclear
        )
    return {person: max(facts) for person, facts in found.items() if person not in unclear}


def _patient_labels(table: Path) -> dict[str, str]:
    rows = read_table(table)
    need_columns(table, rows, ("patient", "label"))
    found: dict[str, str] = {}
    for number, patient, label in zip(rows.index, rows["patient"], rows["label"], strict=True):
        if not patient or not label:
            raise ValueError(f"{table}, row {number}: patient {patient!r}, label {label!r}; both must be filled in")
        if found.setdefault(patient, label) != label:
            raise ValueError(
                f"{table}, row {number}: patient {patient!r} was {found[patient]!r} before; keep one label"
            )
    return found
