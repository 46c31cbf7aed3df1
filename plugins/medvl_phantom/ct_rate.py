"""The cohort on disk, in the folder layout, file names and columns of CT-RATE."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medvl_core.study import Image, Study
from medvl_phantom.cohort import PhantomCohort
from medvl_phantom.findings import CT_RATE_NAMES
from medvl_phantom.streams import stream

__all__ = ["write_ct_rate_layout"]

_SPLITS: dict[str, tuple[str, tuple[Literal["train", "validation", "test"], ...]]] = {
    "train": ("train", ("train",)),
    "valid": ("validation", ("validation", "test")),
}
"""Folder prefix → prefix of the report and metadata tables, and the cohort's splits."""


def write_ct_rate_layout(cohort: PhantomCohort, folder: Path | str, version: Literal["v1", "v2"] = "v2") -> Path:
    """Write volumes, reports, labels and metadata as CT-RATE has them.

    ``"v2"``: ``dataset/{train,valid}_fixed``, int16 HU with a right header. ``"v1"``: ``dataset/{train,valid}``, raw
    stored values (the table's slope and intercept turn them into HU) under a header with unit spacing and no
    orientation. The tables are equal in both, as in CT-RATE: applying slope and intercept to v2 files is wrong. The
    cohort's validation and test patients are CT-RATE's "valid". Voxels run to the patient's left, back and head, as
    DICOM rows and columns do.

    Args:
        cohort: What to write.
        folder: Where ``dataset/`` is made.
        version: Which release to mimic.

    Returns:
        The ``dataset`` folder.

    Raises:
        ValueError: If ``version`` is unknown.
        FileExistsError: If ``folder`` already holds a ``dataset``.
    """
    from rich.console import Console
    from rich.progress import track

    if version not in ("v1", "v2"):
        raise ValueError(f"version is {version!r}; 'v1' or 'v2'")
    root = Path(folder) / "dataset"
    if root.exists():
        raise FileExistsError(f"{root}: exists; give an empty folder, nothing is overwritten")
    for prefix, (table, splits) in _SPLITS.items():
        studies = [study for split in splits for study in cohort.studies(split)]
        rows: dict[str, list[dict[str, Any]]] = {"reports": [], "labels": [], "metadata": []}
        named = zip(_names(studies, prefix), studies, strict=True)
        for name, study in track(
            named, f"CT-RATE {prefix}", len(studies), console=Console(stderr=True), transient=True
        ):
            where = (
                root
                / (f"{prefix}_fixed" if version == "v2" else prefix)
                / name.rsplit("_", 2)[0]
                / name.rsplit("_", 1)[0]
            )
            where.mkdir(parents=True, exist_ok=True)
            image = study.images["ct"].load()
            slope, intercept = 1, _intercept(study)
            _save(image, where / f"{name}.nii.gz", (slope, intercept) if version == "v1" else None)
            volume = {"VolumeName": f"{name}.nii.gz"}
            rows["reports"].append(volume | _report_row(study))
            rows["labels"].append(volume | {label: int(study.labels[label]) for label in CT_RATE_NAMES})
            rows["metadata"].append(volume | _metadata_row(study, image, slope, intercept))
        _write_tables(root, prefix, table, rows)
    return root


def _write_tables(root: Path, prefix: str, table: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    import pandas as pd

    for kind, path in {
        "reports": f"radiology_text_reports/{table}_reports.csv",
        "labels": f"multi_abnormality_labels/{prefix}_predicted_labels.csv",
        "metadata": f"metadata/{table}_metadata.csv",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows[kind]).to_csv(root / path, index=False)


def _names(studies: list[Study], prefix: str) -> Iterator[str]:
    """``train_1_a_1``: patient, scan letter, reconstruction number."""
    numbers = {subject: i + 1 for i, subject in enumerate(dict.fromkeys(study.subject_id for study in studies))}
    for study in studies:
        _, letter, reconstruction = study.study_id.rsplit("_", 2)
        yield f"{prefix}_{numbers[study.subject_id]}_{letter}_{reconstruction}"


def _intercept(study: Study) -> int:
    """Usually -1024; now and then -8192, which CT-RATE has too."""
    return -8192 if stream(0, study.study_id, "intercept").random() < 0.05 else -1024


def _save(image: Image, path: Path, stored: tuple[int, int] | None) -> None:
    """Write the voxels left, back, head: HU with their affine, or stored values under the identity."""
    import nibabel as nib

    voxels = image.array[::-1, ::-1]
    if stored is not None:
        slope, intercept = stored
        nib.save(nib.Nifti1Image(np.rint((voxels - intercept) / slope).astype(np.int16), np.eye(4)), path)
        return
    last = [image.array.shape[0] - 1, image.array.shape[1] - 1, 0]
    assert image.affine is not None  # a phantom has one
    affine = image.affine @ np.diag([-1, -1, 1, 1])
    affine[:3, 3] = (image.affine @ [*last, 1])[:3]
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), affine), path)


def _report_row(study: Study) -> dict[str, str]:
    assert study.report is not None
    contrast = (
        "after intravenous contrast" if study.metadata["contrast_phase"] != "non-contrast" else "without contrast"
    )
    return {
        "ClinicalInformation_EN": str(study.metadata["clinical_information"]),
        "Technique_EN": f"Axial sections {contrast}, reconstructed with a {study.metadata['kernel']} kernel.",
        "Findings_EN": study.report.findings,
        "Impressions_EN": study.report.impression,
    }


def _metadata_row(study: Study, image: Image, slope: int, intercept: int) -> dict[str, Any]:
    assert image.affine is not None
    spacing = np.abs(np.diag(image.affine)[:3])
    corner = image.affine @ [image.array.shape[0] - 1, image.array.shape[1] - 1, 0, 1]
    return {
        "Manufacturer": "Phantom",
        "PatientSex": study.metadata["sex"],
        "PatientAge": f"{int(study.metadata['age']):03d}Y",
        "ConvolutionKernel": {"soft": "B30f", "sharp": "B70f"}[str(study.metadata["kernel"])],
        "RescaleSlope": slope,
        "RescaleIntercept": intercept,
        "XYSpacing": str([round(float(s), 4) for s in spacing[:2]]),
        "ZSpacing": round(float(spacing[2]), 4),
        "ImagePositionPatient": str([round(float(v), 4) for v in (-corner[0], -corner[1], corner[2])]),
        "ImageOrientationPatient": str([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
        "Rows": image.array.shape[1],
        "Columns": image.array.shape[0],
        "NumberofSlices": image.array.shape[2],
    }
