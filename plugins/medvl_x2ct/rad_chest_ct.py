"""RAD-ChestCT on disk: npz arrays, a metadata table, and labels by abnormality and location."""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medvl_core.study import Image, Study
from medvl_evaluation.splits.folds import part_of
from medvl_imaging.readers.checks import ImageError, check_affine, check_budget, check_ct
from medvl_imaging.tables import need_columns, read_label, read_table
from medvl_x2ct.ct_rate import read_excluded, with_radiograph
from medvl_x2ct.hounsfield import is_hu
from medvl_x2ct.labels import collapse, load_label_set

__all__ = ["RadChestDataset", "RadChestVolume", "orient_rad_chest"]

logger = logging.getLogger(__name__)
_VERSION = 1  # part of every fingerprint: raise it when load gives other values
_METADATA = "CT_Scan_Metadata_*.csv"
_LABELS = "img*_Abnormality_and_Location_Labels.csv"
_SPLITS = {"trn": "train", "val": "validation", "tst": "test"}


def orient_rad_chest(stored: np.ndarray, spacing_mm: float) -> Image:
    """The anatomy of a stored array: slices run from head to foot, rows to the back, columns to the patient's left.

    The published array carries no geometry. This order is what two public pipelines that feed it to CT-CLIP undo: they
    swap the axes of the plane and reverse the slices.

    Args:
        stored: Slices, rows, columns.
        spacing_mm: Of the isotropic grid.

    Returns:
        ``X Y Z``, a view, to the patient's left, back and feet, with the affine that says so. The origin is unknown:
        the first voxel is at 0.
    """
    return Image(stored.transpose(2, 1, 0), np.diag([-spacing_mm, -spacing_mm, -spacing_mm, 1.0]))


@dataclass(frozen=True, slots=True)
class RadChestVolume:
    """One ``.npz`` in HU, oriented by its anatomy.

    Args:
        path: The file; its array is called ``ct``.
        spacing: ``final_spacing`` of the metadata: one number, or a list of three equal ones, in mm.
        where: Metadata table and row, for messages.
    """

    path: Path
    spacing: str
    where: str

    def load(self) -> Image:
        """Read and check it: ``X Y Z`` float32, HU, and the affine.

        Raises:
            ImageError: If the file is damaged or its values are not HU.
        """
        stored = self._array().astype(np.float32)
        if not is_hu(stored):
            raise ImageError(
                f"{self.path}: values {stored.min():g} to {stored.max():g} are not HU (air near -1000, tissue near 0); "
                "RAD-ChestCT's arrays are, so download it again or exclude it"
            )
        image = orient_rad_chest(check_ct(self.path, stored), self._spacing())
        assert image.affine is not None  # made from the spacing
        return Image(image.array, check_affine(self.path, image.affine))

    def fingerprint(self) -> str:
        """Digest of the array's checksum, which the archive keeps, and of the spacing."""
        with self._archive() as archive:
            entry = archive.getinfo("ct.npy")
        content = [_VERSION, entry.file_size, entry.CRC, self.spacing]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _archive(self) -> zipfile.ZipFile:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file; check the dataset's folder")
        try:
            archive = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise ImageError(f"{self.path}: damaged npz file ({error}); download it again") from error
        if "ct.npy" not in archive.namelist():
            archive.close()
            raise ImageError(f"{self.path}: holds no array called 'ct'; is it a file of RAD-ChestCT?")
        return archive

    def _array(self) -> np.ndarray:
        with self._archive() as archive:
            check_budget(self.path, [archive.getinfo("ct.npy").file_size], 1)
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                array = np.asarray(arrays["ct"])
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ImageError(f"{self.path}: damaged array ({error}); download it again") from error
        if array.ndim != 3 or min(array.shape) < 2 or array.dtype.kind not in "iuf":
            raise ImageError(
                f"{self.path}: {array.dtype} of shape {array.shape} is no volume of slices, rows and columns"
            )
        return array

    def _spacing(self) -> float:
        try:
            value = ast.literal_eval(self.spacing)
            numbers = [float(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
        except (ValueError, SyntaxError, TypeError):
            numbers = []
        if len(numbers) not in (1, 3) or not np.isfinite(numbers).all() or np.ptp(numbers) > 1e-3:
            raise ImageError(
                f"{self.where}: final_spacing is {self.spacing!r}; one number or three equal ones in mm are read, "
                "because the order of unequal ones is not documented"
            )
        return numbers[0]


class RadChestDataset:
    """RAD-ChestCT as studies: CT in HU, a radiograph simulated from it, labels. It has no reports.

    Volumes ``{trn,val,tst}NNNNN.npz`` lie in ``folder`` or one level below, tables likewise. A label is 1 if any
    location of any of its abnormalities is: columns are ``<abnormality>*<location>``, found by the prefix up to the
    ``*``, so that ``nodule`` does not take ``nodulegr1cm``.

    Args:
        folder: Holds the npz files and tables.
        label_set: A name in ``medvl_x2ct.labels.LABEL_SETS`` that can be made from RAD-ChestCT, or a JSON file.
        split: ``"official"``, or ``"test"``: every scan is a test scan (external validation).
        seed: Not used; every dataset takes one.
        simulate_cxr: Options of ``medvl_imaging.radiograph.simulate_radiograph``; ``False`` leaves the radiograph out.
        exclude: File of study names to leave out, one a line or in the first column.

    Raises:
        FileNotFoundError: If a table, or every volume, is missing.
        ValueError: If a table breaks a rule, or a patient is in two splits; the message names file and row. Volumes are
            checked when they are read.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        label_set: str = "rad_chest_16",
        split: Literal["official", "test"] = "official",
        seed: int = 0,
        simulate_cxr: bool | Mapping[str, Any] = True,
        exclude: str | Path | None = None,
    ) -> None:
        if split not in ("official", "test"):
            raise ValueError(f"split is {split!r}; give 'official' or 'test'")
        self.folder, self.simulate_cxr = Path(folder), simulate_cxr
        self._sources = load_label_set(label_set, "rad_chest_ct")
        self.label_names = tuple(self._sources)
        self._studies: dict[str, list[Study]] = {name: [] for name in _SPLITS.values()}
        owner: dict[str, tuple[str, str]] = {}
        for where, study in self._rows(read_excluded(exclude)):
            part = "test" if split == "test" else _SPLITS[study.study_id[:3]]
            other, before = owner.setdefault(study.subject_id, (part, where))
            if other != part:
                raise ValueError(
                    f"{where}: its patient is in {part}, but in {other} in{before.rpartition(',')[2]}; exclude a scan"
                )
            self._studies[part].append(study)

    def studies(self, split: Literal["train", "validation", "test"]) -> list[Study]:
        """The studies of a split, in the order of the metadata table.

        Raises:
            ValueError: If there is no such split.
        """
        return list(part_of(self.folder, self._studies, split))

    def _rows(self, excluded: frozenset[str]) -> Iterator[tuple[str, Study]]:
        """Table and row, and the study, of every row with a volume."""
        labels, table = self._labels(), self._one(_METADATA)
        volumes = {path.stem: path for glob in ("*.npz", "*/*.npz") for path in sorted(self.folder.glob(glob))}
        rows = read_table(table)
        need_columns(table, rows, ["VolumeAcc_DEID", "NoteAcc_DEID", "MRN_DEID", "final_spacing"])
        first: dict[str, int] = {}
        for number, row in zip(rows.index, rows.to_dict("records"), strict=True):
            where, name = f"{table}, row {number}", row["VolumeAcc_DEID"].removesuffix(".npz")
            if first.setdefault(name, number) != number:
                raise ValueError(f"{where}: VolumeAcc_DEID {name!r} was already in row {first[name]}; remove one")
            if name[:3] not in _SPLITS:
                raise ValueError(f"{where}: VolumeAcc_DEID {name!r} starts with none of {', '.join(_SPLITS)}")
            if name in volumes and name not in excluded:
                volume = RadChestVolume(volumes[name], row["final_spacing"], where)
                yield where, self._study(where, name, row, volume, labels)
        found = len(volumes.keys() & first.keys())
        logger.info("%s: %d of %d rows have a volume here", self.folder, found, len(rows))
        if not found:
            raise FileNotFoundError(f"{self.folder}: no npz file of any row of {table.name} is there; give its folder")

    def _study(
        self,
        where: str,
        name: str,
        row: Mapping[str, str],
        volume: RadChestVolume,
        labels: Mapping[str, dict[str, float]],
    ) -> Study:
        note, patient = row["NoteAcc_DEID"], row["MRN_DEID"]
        if note not in labels or not patient:
            lacks = "MRN_DEID is empty" if note in labels else f"NoteAcc_DEID {note!r} has no row in a table {_LABELS}"
            raise ValueError(f"{where}: {lacks}; correct it or exclude {name}")
        return Study(
            study_id=name,
            subject_id=f"mrn{patient}",
            scan_id=note,
            images=with_radiograph(volume, self.simulate_cxr),
            labels=labels[note],
        )

    def _one(self, pattern: str) -> Path:
        found = [path for glob in (pattern, f"*/{pattern}") for path in sorted(self.folder.glob(glob))]
        if len(found) != 1:
            raise FileNotFoundError(
                f"{self.folder}: {len(found)} tables are named {pattern}, one is needed; give RAD-ChestCT's folder"
            )
        return found[0]

    def _labels(self) -> dict[str, dict[str, float]]:
        """Note → labels, from the tables of all splits."""
        paths = [path for glob in (_LABELS, f"*/{_LABELS}") for path in sorted(self.folder.glob(glob))]
        if not paths:
            raise FileNotFoundError(f"{self.folder}: no table named {_LABELS}; download RAD-ChestCT's label tables")
        tokens = {token for names in self._sources.values() for token in names}
        found: dict[str, dict[str, float]] = {}
        for path in paths:
            table = read_table(path, only=lambda name: name == "NoteAcc_DEID" or name.split("*")[0] in tokens)
            need_columns(path, table, ["NoteAcc_DEID"])
            columns = {token: _columns(path, list(table), token) for token in sorted(tokens)}
            for number, row in zip(table.index, table.to_dict("records"), strict=True):
                where, note = f"{path}, row {number}", row.pop("NoteAcc_DEID")
                if note in found:
                    raise ValueError(f"{where}: NoteAcc_DEID {note!r} was already in an earlier row; remove one")
                values = {column: read_label(where, column, cell) for column, cell in row.items()}
                found[note] = collapse(collapse(values, columns), self._sources)
        return found


def _columns(path: Path, header: list[str], token: str) -> list[str]:
    columns = [column for column in header if column.startswith(f"{token}*")]
    if not columns:
        raise ValueError(f"{path}: no column '{token}*<location>'; the label set needs it, choose another or a file")
    return columns
