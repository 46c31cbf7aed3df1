"""Pairs of CT and radiograph made ready before training: the work of one study, and the tables of a whole pass."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medvl_core.engine.files import atomic, safe_name, write_csv
from medvl_core.engine.loading import rng_for
from medvl_core.protocols import TextSource
from medvl_core.study import Image, ImageSource, Report, Shared, Study
from medvl_imaging.embedding import FrozenEmbedding
from medvl_imaging.images import ImageRows
from medvl_imaging.radiograph import SimulatedRadiograph
from medvl_imaging.radiograph.source import VERSION as RADIOGRAPH_VERSION
from medvl_imaging.readers import FileSource
from medvl_imaging.readers.source import VERSION as READERS_VERSION
from medvl_imaging.scale import ScaleReport

__all__ = ["PrepareStudy", "source_version", "write_tables"]

_COLUMNS = ("study", "subject", "scan", "split", "ct", "cxr", "findings", "impression")


@dataclass(frozen=True)
class PrepareStudy:
    """What preparation does with one study; a function for ``medvl_imaging.scale.map_studies``.

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

    def __call__(self, study: Study) -> dict[str, str]:
        """Make the study's files and store rows; its images by name, for the table.

        Raises:
            ValueError: If the study has no text, or an image cannot be used (``ImageError``).
        """
        if self.text is not None:
            self.text.texts([study], rng_for(0, "text"))
        row = {}
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

    def finish(self) -> None:
        """Merge the small files that one study at a time leaves in the stores; see `TensorStore.compact`."""
        for rows in self.images:
            if rows.store is not None:
                rows.store.compact()
        for embedding in self.embeddings:
            embedding.compact()

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
        return self.folder / kind / (safe_name(study.study_id) + suffix)


def source_version(study: Study) -> str:
    """Digest of what a study's images are made from, and of the radiograph's options.

    Of plain files size and time stand for the content; any other source gives its fingerprint, so that the cells of a
    table that it reads beside a file count too.
    """
    parts: list[Any] = []
    for modality, source in sorted(study.images.items()):
        parts.append(modality)
        if isinstance(source, SimulatedRadiograph):
            parts += [RADIOGRAPH_VERSION, {name: value for name, value in vars(source).items() if name != "source"}]
        parts.append(_state(_origin(source)))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _state(origin: ImageSource) -> Any:
    if isinstance(origin, FileSource):
        path = origin.path
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
        return [READERS_VERSION, origin.kind, *([str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files)]
    try:
        return origin.fingerprint()
    except (ValueError, OSError) as error:  # reading the study will say so, as its reason in the list of bad ones
        return str(error)


def write_tables(folder: Path, studies: Mapping[str, Sequence[Study]], report: ScaleReport) -> tuple[Path, Path]:
    """Write ``studies.csv``, which ``baseline/folder`` reads, and ``failed.csv``, with a reason per study.

    Labels, reports and ids are those of ``studies`` now, whenever the images were made.

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
                row = {**report.records[study.study_id], **_about(study), "split": split}
                values = (study.labels.get(name, math.nan) for name in labels)
                cells = ["" if math.isnan(value) else int(value) for value in values]
                rows.append([*(row.get(column, "") for column in _COLUMNS), *cells])
    table = write_csv(folder / "studies.csv", [*_COLUMNS, *labels], rows)
    return table, write_csv(folder / "failed.csv", ["study", "reason"], list(report.failed.items()))


def _about(study: Study) -> dict[str, str]:
    report = study.report or Report()
    ids = {"study": study.study_id, "subject": study.subject_id, "scan": study.scan_id}
    return {**ids, "findings": report.findings, "impression": report.impression}


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
    with atomic(path) as file:
        Picture.fromarray(grey).save(file, format="PNG")


def _write_nifti(path: Path, image: Image) -> None:
    import nibabel as nib

    limits = np.iinfo(np.int16)  # some metal lies above
    voxels = np.rint(image.array).clip(limits.min, limits.max).astype(np.int16)
    with (
        atomic(path) as file,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,  # no name, no time: the same bytes
    ):
        nib.Nifti1Image(voxels, image.affine).to_stream(packed)
