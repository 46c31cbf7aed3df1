"""Files that a prediction is asked for, as studies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from medvl_core.study import ImageSource, Study
from medvl_imaging.radiograph import SimulatedRadiograph
from medvl_imaging.readers import FileSource

__all__ = ["ct_studies", "given_studies", "radiograph_studies"]

_RADIOGRAPHS = (".png", ".jpg", ".jpeg", ".dcm", ".nii", ".nii.gz")
_VOLUMES = (".nii", ".nii.gz", ".nrrd")


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
        path: PNG, JPEG, DICOM or NIfTI file, or a folder that is searched for such files.

    Raises:
        FileNotFoundError: If there is no such file, or none of these types in the folder.
    """
    path = Path(path)
    files = _files(path, _RADIOGRAPHS) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise FileNotFoundError(f"{path}: no radiograph here; give a file or a folder with {', '.join(_RADIOGRAPHS)}")
    return _studies(path, files, lambda file: FileSource(file, "radiograph"))


def ct_studies(path: str | Path, radiograph: Mapping[str, Any] | None = None) -> list[Study]:
    """One study per CT, with the radiograph simulated from it.

    Args:
        path: NIfTI or NRRD file, the folder of a DICOM series, or a folder that is searched for these.
        radiograph: Options of `medvl_imaging.radiograph.SimulatedRadiograph`.

    Raises:
        FileNotFoundError: If there is no CT.
        TypeError: If an option of the simulation is unknown.
    """
    path, options = Path(path), dict(radiograph or {})
    if path.is_dir():
        folders = [path, *(folder for folder in path.rglob("*") if folder.is_dir())]
        found = sorted([*_files(path, _VOLUMES), *(folder for folder in folders if _is_series(folder))])
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise FileNotFoundError(
            f"{path}: no CT here; give a file or a folder with {', '.join(_VOLUMES)} or DICOM series"
        )
    return _studies(path, found, lambda file: SimulatedRadiograph(FileSource(file, "volume"), **options))


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name.lower().endswith(suffixes))


def _is_series(folder: Path) -> bool:
    from medvl_imaging.readers.dicom import is_dicom  # pydicom takes a moment

    files = (file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in ("", ".dcm", ".ima"))
    return any(is_dicom(file) for file in files)


def _studies(path: Path, files: Iterable[Path], source: Callable[[Path], ImageSource]) -> list[Study]:
    names = {file: file.name if file == path else str(file.relative_to(path)) for file in files}
    return [
        Study(study_id=name, subject_id=str(file), scan_id=str(file), images={"cxr": source(file)})
        for file, name in names.items()
    ]
