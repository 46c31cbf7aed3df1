from __future__ import annotations

import numpy as np
import pytest

from medvl_ct_glip.inference import scan_study
from tests.imaging.dicom_files import ct_slices, save_series


@pytest.fixture
def export(tmp_path):
    """A DICOM export: the series lies below, its files have no ending."""
    series = save_series(tmp_path / "export", []) / "series"
    save_series(series, ct_slices(np.random.default_rng(0).integers(-900, 900, (12, 10, 4)).astype(np.int16)))
    for number, file in enumerate(sorted(series.iterdir())):
        file.rename(series / f"1.2.840.99.{number}")
    (tmp_path / "masks.nii.gz").touch()
    return tmp_path / "export"


def _scan(path, masks):
    return scan_study(path, ["liver"], masks.parent, masks, "ts_v2_117")


@pytest.mark.parametrize("below", [".", "series"])
def test_the_one_scan_of_a_folder_is_found_whatever_its_files_are_called(export, below):
    study = _scan(export / below, export.parent / "masks.nii.gz")
    assert study.study_id == "series"
    assert study.images["ct"].load().array.shape == (12, 10, 4)


def test_of_several_scans_one_has_to_be_named(export):
    (export / "other.nii.gz").touch()
    with pytest.raises(ValueError, match=r"export: holds 2 scans \(other\.nii\.gz, series\); give one as input"):
        _scan(export, export.parent / "masks.nii.gz")
    assert _scan(export / "other.nii.gz", export.parent / "masks.nii.gz").study_id == "other"
