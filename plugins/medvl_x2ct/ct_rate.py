"""CT-RATE on disk: reports, labels and metadata tables beside the volumes of release v1 or v2."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medvl_core.study import ImageSource, Report, Shared, Study
from medvl_evaluation.splits.folds import part_of
from medvl_imaging.radiograph import SimulatedRadiograph
from medvl_imaging.tables import need_columns, read_label, read_table
from medvl_x2ct.ct_rate_volume import CtRateVolume, MetadataRow
from medvl_x2ct.labels import collapse, load_label_set

__all__ = ["CtRateDataset", "read_excluded", "with_radiograph"]

logger = logging.getLogger(__name__)
_KINDS = {"reports": r"reports", "labels": r"(?:predicted_)?labels", "metadata": r"metadata"}
_NAME = re.compile(r"(train|valid)_\d+_[A-Za-z]+_\d+")
_TABLE = r"(?:.*_)?{split}_{kind}\.csv"
_SPLITS = {"train": "train", "valid": "valid(?:ation)?"}
_GEOMETRY = (
    "RescaleSlope",
    "RescaleIntercept",
    "XYSpacing",
    "ZSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
)
_SUBGROUPS = {"PatientSex": "sex", "Manufacturer": "manufacturer", "ConvolutionKernel": "kernel"}


@dataclass(frozen=True, slots=True)
class _Row:
    where: str
    cells: Mapping[str, str]


class CtRateDataset:
    """CT-RATE as studies: CT in HU, a radiograph simulated from it, report, labels.

    One study per reconstruction (``train_1_a_1``); those of one scan share ``scan_id`` (``train_1_a``), the patient is
    ``train_1``. The official valid set is the split ``test``; ``validation`` is a share of the training patients, so
    nothing is chosen on the test set. Tables are found by name, with either spelling (``train``/``valid``/
    ``validation``) and any prefix (``dataset_``), in ``folder`` or one level below; volumes in CT-RATE's tree or flat.
    Rows without a volume on disk are left out and counted in the log: any part of CT-RATE is a dataset.

    Args:
        folder: CT-RATE's ``dataset`` folder, or the one above it.
        version: ``"v1"`` or ``"v2"``. ``None`` goes by the folder: ``train``, or ``train_fixed``. Voxels must agree.
        validation_share: Share of training patients held out as ``validation``. 0 trains on all of them and leaves
            ``validation`` empty.
        seed: Of that share. A patient's place depends on the seed and the patient only, not on what is on disk.
        label_set: A name in ``medvl_x2ct.labels.LABEL_SETS`` or a JSON file.
        simulate_cxr: Options of ``medvl_imaging.radiograph.simulate_radiograph``; ``False`` leaves the radiograph out.
        exclude: File of study or volume names to leave out, one a line or in the first column, such as the list of bad
            cases that preparation writes.

    Raises:
        FileNotFoundError: If a table, or every volume, is missing.
        ValueError: If a table breaks a rule; the message names file and row. Volumes are checked when they are read.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        version: Literal["v1", "v2"] | None = None,
        validation_share: float = 0.05,
        seed: int = 0,
        label_set: str = "ct_rate_18",
        simulate_cxr: bool | Mapping[str, Any] = True,
        exclude: str | Path | None = None,
    ) -> None:
        if version not in (None, "v1", "v2") or not 0 <= validation_share < 1:
            raise ValueError(
                f"version is {version!r}, validation_share {validation_share}; give 'v1' or 'v2', and a share in [0, 1)"
            )
        folder = Path(folder)
        self.folder = folder / "dataset" if (folder / "dataset").is_dir() else folder
        self.version, self.simulate_cxr = version, simulate_cxr
        self._sources = load_label_set(label_set, "ct_rate")
        self.label_names = tuple(self._sources)
        excluded = read_excluded(exclude)
        found = {split: list(self._split(split, excluded)) for split in _SPLITS}
        if not any(found.values()):
            raise FileNotFoundError(
                f"{self.folder}: no volume of any table row is there; give CT-RATE's dataset folder, with "
                "train, valid, train_fixed or valid_fixed inside"
            )
        held = _held_out(sorted({study.subject_id for study in found["train"]}), validation_share, seed)
        self._studies = {
            "train": [study for study in found["train"] if study.subject_id not in held],
            "validation": [study for study in found["train"] if study.subject_id in held],
            "test": found["valid"],
        }

    def studies(self, split: Literal["train", "validation", "test"]) -> list[Study]:
        """The studies of a split, in the order of the reports table.

        Raises:
            ValueError: If there is no such split.
        """
        return list(part_of(self.folder, self._studies, split))

    def _split(self, split: str, excluded: frozenset[str]) -> Iterator[Study]:
        tables = {kind: self._table(split, kind) for kind in _KINDS}
        version, bases = self._bases(split)
        if not any(tables.values()) or not bases:
            return
        needed = {
            "reports": ("Findings_EN", "Impressions_EN"),
            "labels": tuple(sorted({name for names in self._sources.values() for name in names})),
            "metadata": _GEOMETRY if version == "v1" else (),
        }
        if version == "v2" and tables["metadata"] is None:
            del needed["metadata"]
        rows = {kind: self._rows(split, kind, tables[kind], columns) for kind, columns in needed.items()}
        absent = 0
        for name, report in rows["reports"].items():
            if name in excluded:
                continue
            if name not in rows["labels"]:
                raise ValueError(f"{report.where}: {name} has no row in {tables['labels']}; add it")
            path = _volume(name, bases)
            if path is None:
                absent += 1
                continue
            volume = CtRateVolume(path, version, _geometry(rows.get("metadata", {}).get(name)))
            yield self._study(name, volume, report, rows["labels"][name], rows.get("metadata", {}).get(name))
        if absent:
            logger.info("%s: %d of %d rows of %s have no volume here", self.folder, absent, len(rows["reports"]), split)

    def _table(self, split: str, kind: str) -> Path | None:
        pattern = re.compile(_TABLE.format(split=_SPLITS[split], kind=_KINDS[kind]))
        found = [
            p for glob in ("*.csv", "*/*.csv") for p in sorted(self.folder.glob(glob)) if pattern.fullmatch(p.name)
        ]
        if len(found) > 1:
            raise ValueError(
                f"{self.folder}: two {split} {kind} tables, {found[0].name} and {found[1].relative_to(self.folder)}; "
                "keep one"
            )
        return found[0] if found else None

    def _rows(self, split: str, kind: str, path: Path | None, needed: Sequence[str]) -> dict[str, _Row]:
        if path is None:
            raise FileNotFoundError(
                f"{self.folder}: no {split} {kind} table (such as {split}_{kind}.csv) beside the others; download it"
            )
        table = read_table(path)
        need_columns(path, table, ["VolumeName", *needed])
        rows: dict[str, _Row] = {}
        for number, cells in zip(table.index, table.to_dict("records"), strict=True):
            row = _Row(f"{path}, row {number}", cells)
            name = cells["VolumeName"].removesuffix(".nii.gz")
            if not _NAME.fullmatch(name):
                raise ValueError(f"{row.where}: VolumeName {name!r} is not like train_1_a_1.nii.gz")
            if name in rows:
                raise ValueError(f"{row.where}: {name} was already in{rows[name].where.rpartition(',')[2]}; remove one")
            rows[name] = row
        return rows

    def _bases(self, split: str) -> tuple[Literal["v1", "v2"], list[Path]]:
        """The release, and the folders that may hold its volumes."""
        suffixes: tuple[tuple[Literal["v1", "v2"], str], ...] = (("v1", ""), ("v2", "_fixed"))
        named = {
            version: [f for prefix in ("", "dataset_") if (f := self.folder / f"{prefix}{split}{suffix}").is_dir()]
            for version, suffix in suffixes
        }
        if self.version is not None:
            return self.version, [*named[self.version], self.folder]
        if named["v1"] and named["v2"]:
            raise ValueError(
                f"{self.folder}: holds {split} (v1) and {split}_fixed (v2); say which with version='v1' or version='v2'"
            )
        if not named["v1"] and not named["v2"] and any(self.folder.glob(f"{split}_*.nii.gz")):
            raise ValueError(
                f"{self.folder}: volumes lie in no folder {split} or {split}_fixed, so their release is in doubt; "
                "pass version='v1' (raw values) or version='v2' (HU)"
            )
        return ("v2", named["v2"]) if named["v2"] else ("v1", named["v1"])

    def _study(self, name: str, volume: CtRateVolume, report: _Row, labels: _Row, metadata: _Row | None) -> Study:
        columns = [column for names in self._sources.values() for column in names]
        values = {column: read_label(labels.where, column, labels.cells[column]) for column in columns}
        texts = [_given(report.cells[column]) for column in ("Findings_EN", "Impressions_EN")]
        return Study(
            study_id=name,
            subject_id=name.rsplit("_", 2)[0],
            scan_id=name.rsplit("_", 1)[0],
            images=with_radiograph(volume, self.simulate_cxr),
            report=Report(*texts) if any(texts) else None,
            labels=collapse(values, self._sources),
            metadata=_subgroups(metadata.cells) if metadata else {},
        )


def with_radiograph(ct: ImageSource, simulate: bool | Mapping[str, Any]) -> dict[str, ImageSource]:
    """The CT and, unless ``simulate`` is ``False``, the radiograph made from it; the CT is read once for both."""
    if simulate is False:
        return {"ct": ct}
    shared = Shared(ct)
    return {"ct": shared, "cxr": SimulatedRadiograph(shared, **({} if simulate is True else simulate))}


def read_excluded(path: str | Path | None) -> frozenset[str]:
    """Study names of a list, one a line or in the first column of a CSV.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if path is None:
        return frozenset()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such list of studies to exclude; leave exclude out, or name a file")
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    names = frozenset(line.split(",")[0].strip().strip('"').removesuffix(".nii.gz") for line in lines)
    logger.info("%s: %d names to leave out", path, len(names - {"", "study"}))
    return names


def _volume(name: str, bases: list[Path]) -> Path | None:
    """``base/train_1/train_1_a/train_1_a_1.nii.gz``, or flat in the base."""
    tree = Path(name.rsplit("_", 2)[0], name.rsplit("_", 1)[0], f"{name}.nii.gz")
    return next((p for base in bases for p in (base / tree, base / tree.name) if p.is_file()), None)


def _geometry(row: _Row | None) -> MetadataRow | None:
    if row is None or any(column not in row.cells for column in _GEOMETRY):
        return None
    return MetadataRow(row.where, *(row.cells[column] for column in _GEOMETRY))


def _given(text: str) -> str:
    return "" if text.lower().rstrip(".") in ("not given", "nan") else text


def _subgroups(row: Mapping[str, str]) -> dict[str, str | float]:
    kept: dict[str, str | float] = {name: row[column] for column, name in _SUBGROUPS.items() if row.get(column)}
    if age := re.fullmatch(r"0*(\d+)Y", row.get("PatientAge", "")):
        kept["age"] = float(age[1])
    return kept


def _held_out(subjects: list[str], share: float, seed: int) -> set[str]:
    """Patients whose hash falls below the share; at least one, if there are two and the share is not 0."""
    place = {s: int(hashlib.sha256(f"{seed} {s}".encode()).hexdigest()[:12], 16) / 16**12 for s in subjects}
    held = {subject for subject in subjects if place[subject] < share}
    if share and not held and len(subjects) > 1:
        held = {min(subjects, key=place.__getitem__)}
    return held
