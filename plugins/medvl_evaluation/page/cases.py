"""What a report shows of single cases: embeddings and ranks of all of them, small pictures of the few it names."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medvl_core.engine.files import atomic
from medvl_core.errors import EXIT_DATA, MedvlError

if TYPE_CHECKING:
    from medvl_core.engine.loading import StudyDataset
    from medvl_core.specs import ImageInput

__all__ = [
    "CaseCollector",
    "Cases",
    "EvaluationFilesError",
    "picture_of",
    "read_cases",
    "read_pictures",
    "write_cases",
    "write_pictures",
]

SIDE = 112
"""Longer side of a picture, in pixels."""


class EvaluationFilesError(MedvlError):
    """A file of an evaluation folder is damaged, or lacks what was asked for."""

    exit_code = EXIT_DATA


@dataclass(frozen=True)
class Cases:
    """The evaluated studies.

    Args:
        study_id: N ids, each once.
        scan_id: N; reconstructions of one acquisition share it.
        n_findings: N, positive labels of each study.
        embeddings: Modality → ``N E``.
        reports: N texts, or ``None`` when report text was not asked for.
    """

    study_id: NDArray[np.str_]
    scan_id: NDArray[np.str_]
    n_findings: NDArray[np.int64]
    embeddings: Mapping[str, NDArray[np.float32]]
    reports: NDArray[np.str_] | None = None


class CaseCollector:
    """Collects ids, labels and embeddings of an evaluation pass; has the part of an evaluator that a pass calls."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything collected."""
        self._ids: dict[str, list[str]] = {"study_id": [], "scan_id": []}
        self._findings: list[int] = []
        self._embeddings: dict[str, list[NDArray[np.float32]]] = {}

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch. Embeddings that are not one row per study (of regions) are left out."""
        n = len(outputs["study_id"])
        for name, column in self._ids.items():
            column.extend(map(str, outputs[name]))
        labels = outputs.get("labels")
        self._findings += [0] * n if labels is None else (labels == 1).sum(1).tolist()
        for modality, rows in outputs["embeddings"].items():
            if len(rows) == n and rows.ndim == 2:
                self._embeddings.setdefault(modality, []).append(rows.numpy())

    def compute(self) -> dict[str, float]:
        """No numbers."""
        return {}

    def cases(self, reports: Mapping[str, str] | None = None) -> Cases:
        """Everything collected, with ``reports`` (study id → text) where given."""
        embeddings = {name: np.concatenate(rows) for name, rows in self._embeddings.items()}
        return Cases(
            study_id=np.array(self._ids["study_id"]),
            scan_id=np.array(self._ids["scan_id"]),
            n_findings=np.array(self._findings),
            embeddings={name: rows for name, rows in embeddings.items() if len(rows) == len(self._findings)},
            reports=None if reports is None else np.array([reports[study] for study in self._ids["study_id"]]),
        )


def write_cases(path: str | Path, cases: Cases) -> Path:
    """Write them as one ``.npz``, atomically."""
    columns = {"study_id": cases.study_id, "scan_id": cases.scan_id, "n_findings": cases.n_findings}
    if cases.reports is not None:
        columns["reports"] = cases.reports
    return _save(Path(path), {**columns, **{f"embedding/{name}": rows for name, rows in cases.embeddings.items()}})


def read_cases(path: str | Path) -> Cases:
    """Read what `write_cases` wrote.

    Raises:
        EvaluationFilesError: If the file is damaged, or its columns differ in length.
    """
    arrays = _load(Path(path))
    embeddings = {name.partition("/")[2]: rows for name, rows in arrays.items() if name.startswith("embedding/")}
    try:
        cases = Cases(arrays["study_id"], arrays["scan_id"], arrays["n_findings"], embeddings, arrays.get("reports"))
    except KeyError as error:
        raise EvaluationFilesError(f"{path}: has no column {error}; run the evaluation again") from error
    sizes = {name: len(rows) for name, rows in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise EvaluationFilesError(f"{path}: its columns differ in length, {sizes}; run the evaluation again")
    return cases


def write_pictures(path: str | Path, pictures: Mapping[str, NDArray[np.uint8]]) -> Path:
    """Write study id → ``H W`` as one ``.npz``, atomically."""
    ids = np.array(list(pictures), dtype=np.str_)  # ids may hold anything; names inside an archive may not
    return _save(Path(path), {"study_id": ids, **{str(i): image for i, image in enumerate(pictures.values())}})


def read_pictures(path: str | Path) -> dict[str, NDArray[np.uint8]]:
    """Read what `write_pictures` wrote; no file, no pictures.

    Raises:
        EvaluationFilesError: If the file is damaged.
    """
    if not Path(path).is_file():
        return {}
    arrays = _load(Path(path))
    try:
        return {str(study): arrays[str(i)] for i, study in enumerate(arrays["study_id"])}
    except KeyError as error:
        raise EvaluationFilesError(f"{path}: lacks picture {error}; run the evaluation again") from error


def picture_of(dataset: StudyDataset, studies: Iterable[str]) -> dict[str, NDArray[np.uint8]]:
    """Small grey pictures of some studies, as the model sees them: its radiograph, else the middle coronal slice.

    Args:
        dataset: Holds the studies and their standardised images.
        studies: Study ids.

    Returns:
        Study id → ``H W``, uint8, at most 112 pixels a side. Nothing for a dataset without images.
    """
    from medvl_imaging.images import ImageRows

    images = (field for field in dataset.fields.values() if isinstance(field, ImageRows))
    rows = min(images, key=lambda one: len(one.input.size), default=None)
    if rows is None:
        return {}
    wanted = set(studies)
    chosen = [study for study in dataset.studies if study.study_id in wanted]
    return {study.study_id: _small(rows(study).numpy(), rows.input) for study in chosen}


def _small(image: NDArray[np.float32], input: ImageInput) -> NDArray[np.uint8]:
    from PIL import Image

    if input.mean is not None and input.std is not None:
        image = image * _column(input.std, image) + _column(input.mean, image)
    flat = image.mean(axis=0)
    if input.axcodes is not None:
        flat = _middle_coronal(flat, input.axcodes)
    low, high = input.output_range
    grey = Image.fromarray((255 * ((flat - low) / (high - low)).clip(0, 1)).round().astype(np.uint8))
    grey.thumbnail((SIDE, SIDE))
    return np.asarray(grey)


def _column(values: tuple[float, ...], image: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32).reshape(-1, *[1] * (image.ndim - 1))


def _middle_coronal(volume: NDArray[np.float32], axcodes: str) -> NDArray[np.float32]:
    """Head up, the patient's right on the viewer's left."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform

    volume = apply_orientation(volume, ornt_transform(axcodes2ornt(tuple(axcodes)), axcodes2ornt(("L", "P", "I"))))
    return volume[:, volume.shape[1] // 2].T  # x then runs to the patient's left, z to the feet


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    with atomic(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EvaluationFilesError(f"{path}: damaged ({error}); run the evaluation again") from error
