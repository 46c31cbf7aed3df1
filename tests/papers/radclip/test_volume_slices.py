from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from medvl_core.build import build_dataset
from medvl_radclip.volume_slices import VolumeSlices

SHAPE = (20, 14, 11)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """A CT and an MR of each of eight patients; slice k of a volume has a square of 10 + k voxels."""
    folder = tmp_path_factory.mktemp("volumes")
    for patient in range(8):
        (folder / f"P{patient}").mkdir()
        for name in ("CT", "MR"):
            array = np.zeros(SHAPE, np.float32)
            for k in range(SHAPE[2]):
                array.reshape(-1, SHAPE[2])[: 10 + k, k] = 500
            nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1, 3, 1])), folder / f"P{patient}" / f"{name}.nii.gz")
    return build_dataset(
        "radclip/class_volumes",
        folder=folder,
        label=r"(CT|MR)\.nii",
        subject=r"(P\d)",
        region="Leg",
        modality={"CT": "CT", "MR": "MRI"},
        condition="",
        n_folds=4,
        seed=3,
    )


def test_slices_have_patient_split_labels_and_caption_of_their_volume(volumes):
    slices = VolumeSlices(volumes, per_volume=4)
    assert slices.label_names == ("CT", "MR")
    for split in ("train", "validation", "test"):
        whole = {study.study_id: study for study in volumes.studies(split)}
        found = slices.studies(split)
        assert len(found) == 4 * len(whole)
        for study in found:
            volume = whole[study.study_id.rsplit("_slice", 1)[0]]
            assert (study.subject_id, study.scan_id) == (volume.subject_id, volume.scan_id)
            assert dict(study.labels) == dict(volume.labels)
            assert study.metadata == volume.metadata
            assert set(study.images) == {"image"}


def test_slices_are_evenly_spread_from_feet_to_head(volumes):
    sources = [study.images["image"] for study in VolumeSlices(volumes, per_volume=4).studies("train")[:4]]
    bright = [int((source.load().array > 250).sum()) for source in sources]
    assert bright == [10 + k for k in (1, 4, 6, 9)]  # the middles of four equal parts of eleven slices


def test_slice_is_padded_to_a_square_with_black_and_grey_is_the_volumes(volumes):
    study = volumes.studies("train")[0]
    array = study.images["volume"].load().array.astype(np.float64)
    low, high = array.mean() - 3 * array.std(), array.mean() + 3 * array.std()
    grey = VolumeSlices(volumes, per_volume=1).studies("train")[0].images["image"].load().array
    assert grey.shape == (20, 20)
    assert np.all(grey[:3] == 0)
    assert np.all(grey[17:] == 0)
    expected = np.rint(255 * np.clip((np.array([0, 500]) - low) / (high - low), 0, 1))
    assert set(np.unique(grey[3:17])) == set(expected)


def test_fingerprint_names_volume_and_place(volumes):
    first, second, *_ = VolumeSlices(volumes, per_volume=2).studies("train")
    assert first.images["image"].fingerprint() != second.images["image"].fingerprint()
    assert (
        first.images["image"].fingerprint()
        == VolumeSlices(volumes, 2).studies("train")[0].images["image"].fingerprint()
    )


def test_wrong_options_are_refused(volumes):
    with pytest.raises(ValueError, match="per_volume is 0; give at least 1"):
        VolumeSlices(volumes, per_volume=0)
    with pytest.raises(ValueError, match="are for a dataset given by name"):
        VolumeSlices(volumes, options={"seed": 1})
    pictures = build_dataset("radclip/phantom_slices", n_subjects=8, shape=(16, 16, 16))
    with pytest.raises(ValueError, match="has no volume image, only"):
        VolumeSlices(pictures).studies("train")
