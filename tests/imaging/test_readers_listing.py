from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import UID

from medvl_imaging.readers import ImageError, read_radiograph, read_volume
from medvl_imaging.readers.listing import (
    bare_name,
    format_of,
    image_files,
    named_format,
    series_folders,
    slice_folders,
    volume_paths,
)
from tests.imaging.dicom_files import ct_slices, dataset, save_series


def hu(shape=(12, 10, 4)):
    return np.random.default_rng(0).integers(-900, 900, shape).astype(np.int16)


def medium_index(path: Path) -> None:
    """The index of a DICOM medium: class Media Storage Directory, no pixels."""
    ds = dataset(np.zeros((2, 2), np.uint16), "1.2.9", "CT")
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = UID("1.2.840.10008.1.3.10")
    del ds.PixelData, ds.Modality
    ds.save_as(path, enforce_file_format=True)


@pytest.fixture
def mixed(tmp_path):
    """One of each kind under names that say nothing, beside what is no image."""
    folder = tmp_path / "mixed"
    series = save_series(folder, []) / "series"
    save_series(series, ct_slices(hu()))
    for number, file in enumerate(sorted(series.iterdir())):
        file.rename(series / f"1.2.840.99.{number}")
    medium_index(series / "DIRFILE")
    medium_index(folder / "DICOMDIR")
    dataset(np.eye(9, dtype=np.uint16), "1.2", "DX").save_as(folder / "IM0001", enforce_file_format=True)
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(folder / "film", format="PNG")
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(folder / "photo.old", format="JPEG")
    scan = nib.Nifti1Image(hu(), np.diag([-2.0, -2.0, 2.0, 1.0])).to_bytes()
    (folder / "scan").write_bytes(gzip.compress(scan))
    (folder / "broken.nii.gz").write_bytes(b"cut")
    (folder / "table.csv").write_text("study,report\n")
    (folder / "archive.gz").write_bytes(gzip.compress(b"no image" * 99))
    (folder / "cut.gz").write_bytes(b"\x1f\x8bxx")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "a.png").write_bytes(b"x")
    (folder / "empty").mkdir()
    return folder


def test_images_are_found_by_their_content_whatever_their_names(mixed, caplog):
    with caplog.at_level("INFO"):
        found = image_files(mixed)
    names = {path.relative_to(mixed).as_posix(): kind for path, kind in found.items()}
    slices = {f"series/1.2.840.99.{number}": "dicom" for number in range(4)}
    others = {"IM0001": "dicom", "film": "picture", "photo.old": "picture", "scan": "nifti", "broken.nii.gz": "nifti"}
    assert names == slices | others
    assert list(found) == sorted(found)
    said = caplog.text
    for what in ("hidden files and folders: 2", "indexes of a DICOM medium: 2", "empty folders: 1"):
        assert what in said
    assert volume_paths(found) == [mixed, *(mixed / name for name in ("broken.nii.gz", "scan", "series"))]
    assert {folder.name: len(files) for folder, files in series_folders(found).items()} == {"mixed": 1, "series": 4}
    assert [folder.name for folder in slice_folders(found)] == ["series"]


def test_what_the_search_finds_the_readers_take(mixed):
    for path, kind in image_files(mixed).items():
        if path.name == "broken.nii.gz":
            with pytest.raises(ImageError, match="hold no NIfTI header"):
                read_volume(path)
        elif kind == "nifti":
            assert read_volume(path).array.shape == (12, 10, 4)
        else:
            read_radiograph(path, any_modality=True)
    assert read_volume(mixed / "series").array.shape == (12, 10, 4)  # its DIRFILE has no pixels and is passed over
    with pytest.raises(ImageError, match="DIRFILE: is the index of a DICOM medium"):
        read_radiograph(mixed / "series" / "DIRFILE")


def test_content_is_believed_before_a_name(tmp_path):
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / "film.dcm", format="PNG")
    assert (named_format("film.dcm"), format_of(tmp_path / "film.dcm")) == ("dicom", "picture")
    assert read_radiograph(tmp_path / "film.dcm").array.shape == (9, 9)


@pytest.mark.parametrize(
    ("name", "bare"),
    [("ct.nii.gz", "ct"), ("CT.NII.GZ", "CT"), ("a.b.nrrd", "a.b"), ("1.2.840.99.10", "1.2.840.99.10"), ("x", "x")],
)
def test_a_name_loses_the_ending_of_an_image_only(name, bare):
    assert bare_name(Path("folder") / name) == bare


def test_a_missing_folder_is_named_and_a_pipe_is_not_waited_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        image_files(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    assert image_files(tmp_path) == {}
