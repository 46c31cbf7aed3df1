from __future__ import annotations

import numpy as np
import pytest
import torch

from medvl_core.build import build_dataset, build_encoder
from medvl_imaging.images import ImageRows
from medvl_radclip.demo import PhantomSlices, PhantomVolumes
from medvl_radclip.volume_slices import VolumeSlice

SHAPE = (48, 48, 24)


@pytest.fixture(scope="module")
def slices():
    return PhantomSlices(16, SHAPE, seed=1)


def test_every_volume_has_one_condition_and_says_so():
    studies = PhantomVolumes(80, SHAPE).studies("train")
    assert {study.metadata["condition"] for study in studies} == {
        "normal",
        "lung nodule",
        "consolidation",
        "hiatal hernia",
    }
    for study in studies:
        assert [name for name, value in study.labels.items() if value == 1] == [study.metadata["condition"]]


def test_slices_belong_to_the_patients_of_the_volumes(slices):
    volumes = {study.study_id: study for study in PhantomVolumes(16, SHAPE, seed=1).studies("train")}
    found = slices.studies("train")
    for study in found:
        whole = volumes[study.study_id.rsplit("_slice", 1)[0]]
        assert study.subject_id == whole.subject_id
        assert study.metadata["condition"] in (whole.metadata["condition"], "normal")
    assert {study.subject_id for study in found} == {study.subject_id for study in volumes.values()}


def test_slice_shows_its_condition_and_normal_ones_do_not(slices):
    for study in slices.studies("train"):
        source = study.images["image"]
        with_it, without = source.volume.load().array, source.volume.showing().load().array
        changed = np.abs(with_it - without)[:, :, source.number] > 60
        assert (changed.sum() >= 4) == (study.metadata["condition"] != "normal"), study.study_id


def test_region_is_what_the_slice_shows(slices):
    for study in slices.studies("train"):
        if study.metadata["condition"] in ("lung nodule", "consolidation"):
            assert study.metadata["region"] == "Chest"
    assert {study.metadata["region"] for study in slices.studies("train")} == {"Chest", "Abdomen"}


def test_slice_is_the_one_the_volume_encoder_sees(slices):
    study = slices.studies("train")[0]
    source = study.images["image"]
    encoder = build_encoder(
        "radclip/slices", options={"size": (48, 48), "patch": 16, "width": 8, "layers": 1, "heads": 1}, max_slices=24
    )
    seen = ImageRows("volume", encoder.input).make(
        type(study)(**{**_fields(study), "images": {"volume": source.volume}})
    )
    flat = torch.from_numpy(source.load().array) / 255
    assert np.corrcoef(seen[0, :, :, source.number].T.flatten(), flat.flatten())[0, 1] > 0.98


def _fields(study):
    return {name: getattr(study, name) for name in ("study_id", "subject_id", "scan_id", "labels", "metadata")}


def test_fingerprint_names_volume_and_slice(slices):
    source = slices.studies("test")[0].images["image"]
    assert VolumeSlice(source.volume, source.number).fingerprint() == source.fingerprint()
    assert VolumeSlice(source.volume, source.number + 1).fingerprint() != source.fingerprint()


def test_more_slices_than_the_volume_has_is_refused():
    with pytest.raises(ValueError, match="per_volume is 30; give 1 to 24"):
        build_dataset("radclip/phantom_slices", n_subjects=16, shape=SHAPE, per_volume=30)
