"""Files that a prediction is asked for, as studies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from medvl_core.study import ImageSource, Study
from medvl_imaging.radiograph import SimulatedRadiograph
from medvl_imaging.readers import FileSource
from medvl_imaging.readers.listing import Format, image_files, scan_paths, slice_folders

__all__ = ["ct_studies", "found_files", "given_studies", "radiograph_studies"]

logger = logging.getLogger(__name__)


def given_studies(
    radiographs: str | Path | None, cts: str | Path | None, radiograph: Mapping[str, Any] | None = None
) -> list[Study]:
    """One study per radiograph, or per CT: exactly one of the two is given.

    Args:
        radiographs: See `radiograph_studies`.
        cts: See `ct_studies`.
        radiograph: Options of the simulation, e.g. ``{"mode": "cone_beam"}``; for CTs.

    Raises:
        ValueError: If none or both are given.
        FileNotFoundError: If there is no such file.
    """
    if (radiographs is None) == (cts is None):
        raise ValueError(
            f"input is {radiographs!r} and ct {cts!r}; give one: --input FILE (a radiograph, or a folder of them), "
            "or --ct FILE (a CT to simulate one from, or a folder of them)"
        )
    return ct_studies(cts, radiograph) if cts is not None else radiograph_studies(radiographs)  # type: ignore[arg-type]


def radiograph_studies(path: str | Path) -> list[Study]:
    """One study per radiograph file.

    Args:
        path: PNG, JPEG, DICOM or NIfTI file, or a folder that is searched for such files. Slices of a CT, MR or PET
            beside them are passed over and counted in the log.

    Raises:
        FileNotFoundError: If there is no such file, or none of these kinds in the folder.
    """
    files = found_files(path, _films)
    if not files:
        raise FileNotFoundError(
            f"{path}: no radiograph here; give a file or a folder with .png, .jpg, .nii, .nii.gz or DICOM files"
        )
    return _studies(files, lambda file: FileSource(file, "radiograph"))


def ct_studies(path: str | Path, radiograph: Mapping[str, Any] | None = None) -> list[Study]:
    """One study per CT, with the radiograph simulated from it.

    Args:
        path: NIfTI or NRRD file, the folder of a DICOM series, or a folder that is searched for these. Radiographs
            beside them are passed over and counted in the log.
        radiograph: Options of `medvl_imaging.radiograph.SimulatedRadiograph`.

    Raises:
        FileNotFoundError: If there is no CT.
        TypeError: If an option of the simulation is unknown.
    """
    options = dict(radiograph or {})
    files = found_files(path, scan_paths)
    if not files:
        raise FileNotFoundError(
            f"{path}: no CT here; give a file or a folder with .nii, .nii.gz, .nrrd or DICOM series"
        )
    return _studies(files, lambda file: SimulatedRadiograph(FileSource(file, "volume"), **options))


def found_files(path: str | Path, choose: Callable[[Mapping[Path, Format]], Iterable[Path]]) -> dict[Path, str]:
    """File or folder of a series → the study's id, its place below ``path``; a file is its own, whatever it is.

    Args:
        path: A file, or a folder that is searched by `medvl_imaging.readers.listing.image_files`.
        choose: Which of the files found, or their folders.

    Returns:
        Sorted; empty if there is nothing.
    """
    path = Path(path)
    if not path.is_dir():
        return {path: path.name} if path.is_file() else {}
    return {file: path.name if file == path else str(file.relative_to(path)) for file in choose(image_files(path))}


def _films(files: Mapping[Path, Format]) -> list[Path]:
    slices = {file for folder in slice_folders(files).values() for file in folder}
    if slices:
        logger.info("%d slices of CT, MR or PET are no radiographs and are passed over; --ct takes a CT", len(slices))
    return [file for file, kind in files.items() if kind != "nrrd" and file not in slices]


def _studies(files: Mapping[Path, str], source: Callable[[Path], ImageSource]) -> list[Study]:
    return [
        Study(study_id=name, subject_id=str(file), scan_id=str(file), images={"cxr": source(file)})
        for file, name in files.items()
    ]
