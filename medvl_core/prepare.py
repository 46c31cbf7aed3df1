"""Pairs of CT and radiograph made ready before training: the work of one study, and the tables of a whole pass."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medvl_core.data import ImageRows, rng_for
from medvl_core.embedding import FrozenEmbedding
from medvl_core.files import safe_name, write_text
from medvl_core.protocols import TextSource
from medvl_core.radiograph import SimulatedRadiograph
from medvl_core.readers import FileSource
from medvl_core.scale import ScaleReport
from medvl_core.study import Image, ImageSource, Report, Shared, Study

__all__ = ["PrepareStudy", "source_version", "write_tables"]

_COLUMNS = ("study", "subject", "scan", "split", "ct", "cxr", "findings", "impression")


@dataclass(frozen=True)
class PrepareStudy:
    """What preparation does with one study; a function for ``medvl_core.scale.map_studies``.

    The CT is read once. A simulated radiograph is written as 16-bit PNG, from its own minimum to its maximum. What
    ``images`` and ``embeddings`` make goes to their stores under the address where training looks for it.

    Args:
        folder: Gets ``cxr/`` and ``ct/``.
        write_ct: Write CTs that are no plain HU file (raw values, arrays) as ``ct/<study>.nii.gz``, int16 HU.
        images: Standardised images to keep.
        embeddings: Frozen embeddings to keep.
        text: Checked to have a text for every study, so that a report without one is found now. ``None``: not.
    """

    folder: Path
    write_ct: bool = False
    images: Sequence[ImageRows] = ()
    embeddings: Sequence[FrozenEmbedding] = field(default=())
    text: TextSource | None = None

    def __call__(self, study: Study) -> dict[str, Any]:
        """The study's row of the table, and its files and store rows.

        Raises:
            ValueError: If the study has no text, or an image cannot be used (``ImageError``).
        """
        if self.text is not None:
            self.text.texts([study], rng_for(0, "text"))
        row = _about(study)
        if "ct" in study.images:
            row["ct"] = self._ct(study)
        if "cxr" in study.images:
            row["cxr"] = self._cxr(study)
        for rows in self.images:
            if rows.store is not None and rows.modality in study.images:
                rows.store.put([rows.key(study)], rows.make(study).numpy()[None])
        for embedding in self.embeddings:
            embedding.embed(study)
        return row

    def task(self) -> str:
        """What the results depend on besides the study."""
        stores = [str(rows.store.folder) for rows in self.images if rows.store is not None]
        addresses = [embedding.address() for embedding in self.embeddings]
        return json.dumps([self.write_ct, stores, addresses, self.text is not None])

    def _ct(self, study: Study) -> str:
        source = _origin(study.images["ct"])
        study.images["ct"].load()  # refuses a bad volume, even where nothing is written
        if isinstance(source, FileSource):
            return str(source.path.resolve())
        if not self.write_ct:
            return ""
        path = self._target("ct", study, ".nii.gz")
        _write_nifti(path, study.images["ct"].load())
        return str(path.relative_to(self.folder))

    def _cxr(self, study: Study) -> str:
        source = study.images["cxr"]
        if isinstance(source, FileSource):
            source.load()
            return str(source.path.resolve())
        path = self._target("cxr", study, ".png")
        _write_png(path, source.load().array)
        return str(path.relative_to(self.folder))

    def _target(self, kind: str, study: Study, suffix: str) -> Path:
        path = self.folder / kind / (safe_name(study.study_id) + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def source_version(study: Study) -> str:
    """Digest of size and time of every file behind the study, and of the radiograph's options; nothing is read."""
    parts: list[Any] = []
    for modality, source in sorted(study.images.items()):
        parts.append(modality)
        if isinstance(source, SimulatedRadiograph):
            parts.append({name: value for name, value in vars(source).items() if name != "source"})
        origin = _origin(source)
        path = getattr(origin, "path", None)
        files = [] if path is None else sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
        parts += [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
        parts += [origin.fingerprint()] if path is None else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write_tables(folder: Path, studies: Mapping[str, Sequence[Study]], report: ScaleReport) -> tuple[Path, Path]:
    """Write ``studies.csv``, which ``baseline/folder`` reads, and ``failed.csv``, with a reason per study.

    Args:
        folder: Where.
        studies: Split → its studies, in the order of the rows.
        report: Outcome of the map.

    Returns:
        The two files.
    """
    labels = dict.fromkeys(name for part in studies.values() for study in part for name in study.labels)
    rows = []
    for split, part in studies.items():
        for study in part:
            if study.study_id in report.records:
                record = report.records[study.study_id]
                rows.append([{**record, "split": split}.get(c, "") for c in _COLUMNS])
                rows[-1] += [record["labels"].get(name, "") for name in labels]
    table = write_text(folder / "studies.csv", _csv([*_COLUMNS, *labels], rows))
    failed = [[study_id, reason] for study_id, reason in report.failed.items()]
    return table, write_text(folder / "failed.csv", _csv(["study", "reason"], failed))


def _about(study: Study) -> dict[str, Any]:
    report = study.report or Report()
    return {
        "study": study.study_id,
        "subject": study.subject_id,
        "scan": study.scan_id,
        "findings": report.findings,
        "impression": report.impression,
        "labels": {name: int(value) for name, value in study.labels.items() if value == value},
    }


def _origin(source: ImageSource) -> ImageSource:
    while isinstance(source, Shared | SimulatedRadiograph):
        source = source.source
    return source


def _write_png(path: Path, array: np.ndarray) -> None:
    from PIL import Image as Picture

    low, high = float(array.min()), float(array.max())
    if low == high:
        raise ValueError(f"{path.stem}: the simulated radiograph is {low:g} everywhere; look at the CT")
    grey = np.rint((array.astype(np.float64) - low) * (65535 / (high - low))).astype(np.uint16)
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    Picture.fromarray(grey).save(partial, format="PNG")
    partial.replace(path)


def _write_nifti(path: Path, image: Image) -> None:
    import nibabel as nib

    partial = path.with_name(f".{os.getpid()}-{path.name}")
    nib.save(nib.Nifti1Image(np.rint(image.array).astype(np.int16), image.affine), partial)
    partial.replace(path)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
