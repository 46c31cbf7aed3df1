from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from medvl_core.specs import ImageInput
from medvl_core.study import Image
from medvl_ct_glip.regions.volumes import RegionError, RegionVolumes
from tests.papers.ct_glip.region_studies import NAMES, Given, study

INPUT = ImageInput(
    channels=1, size=(6, 6, 6), axcodes="LPS", spacing_mm=(2.0, 2.0, 2.0), window_hu=(-1000.0, 1000.0), pad_value=-1.0
)


def volumes(folder, names=NAMES, **changes):
    return RegionVolumes(dataclasses.replace(INPUT, **changes), names, folder)


def test_a_scan_keeps_its_own_size_and_values(tmp_path):
    one = study(0)
    image, labels = volumes(tmp_path)(one)
    assert image.shape == labels.shape == (14, 12, 10)
    assert isinstance(image, np.memmap)
    np.testing.assert_allclose(image, (one.images["ct"].load().array / 1000).clip(-1, 1), atol=1e-3)
    counts = np.bincount(labels.reshape(-1), minlength=4)[1:]
    assert counts.tolist() == [150, 64, 12]  # liver, spleen, kidney by name; the femur is background


def test_the_encoders_spacing_decides_the_size(tmp_path):
    image, labels = volumes(tmp_path, spacing_mm=(4.0, 2.0, 1.0))(study(0))
    assert image.shape == labels.shape == (7, 12, 20)


def test_volumes_are_made_once_and_again_when_damaged(tmp_path):
    made = volumes(tmp_path)
    studies = [study(0), study(1)]
    assert made.prepare(studies) == 2
    assert made.prepare(studies, num_workers=1) == 0
    path = next(iter(sorted(made.folder.glob("*-image.npy"))))
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    before = [np.array(made(one)[0]) for one in studies]
    assert path.read_bytes() == whole
    assert not np.array_equal(before[0], before[1])
    assert not list(made.folder.glob("*.tmp"))


def test_patch_size_shares_the_volumes_and_names_do_not(tmp_path):
    assert volumes(tmp_path).folder == volumes(tmp_path, size=(8, 8, 8)).folder
    assert volumes(tmp_path).folder != volumes(tmp_path, names=NAMES[::-1]).folder
    assert volumes(tmp_path, spacing_mm=None).folder != volumes(tmp_path, spacing_mm=None, size=(8, 8, 8)).folder


def test_without_a_spacing_every_scan_has_the_encoders_size(tmp_path):
    assert volumes(tmp_path, spacing_mm=None)(study(0, shape=(20, 20, 16)))[0].shape == (6, 6, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regions": None}, "s0: has images .* and no label map; regions need ct"),
        ({"names": {1: "skull"}}, r"s0: none of its structures \(skull"),
        (
            {"regions": Given("x", Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)))},
            r"s0: the image has shape \(14, 12, 10\) and the label map \(3, 3, 3\)",
        ),
        (
            {"regions": Given("x", Image(np.ones((14, 12, 10), np.uint8), np.eye(4)))},
            "s0: the image has shape .* or their affines differ",
        ),
        (
            {"regions": Given("x", Image(np.ones((14, 12, 10), np.float32), np.diag([-2.0, -2, 2, 1])))},
            "s0: the label map is float32; give uint8 labels",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        volumes(tmp_path).prepare([study(0, **changes)])


@pytest.mark.parametrize("workers", [0, 1])
def test_all_faulty_studies_are_named_and_the_others_made(tmp_path, workers):
    made = volumes(tmp_path)
    wrong = [study(number, regions=None) for number in range(30)]
    with pytest.raises(RegionError, match=r"^s0: has images") as caught:
        made.prepare([*wrong, study(99)], workers)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[:20]] == [f"s{number}" for number in range(20)]
    assert lines[20:] == ["and 10 further studies"]
    assert made.prepare([study(99)]) == 0


def test_names_and_input_are_checked(tmp_path):
    with pytest.raises(ValueError, match="2 region names, 1 of them different"):
        volumes(tmp_path, names=("liver", "liver"))
    with pytest.raises(ValueError, match="volumes of one channel; this encoder reads 3"):
        volumes(tmp_path, channels=3)


def test_a_merged_structure_counts_to_its_region(tmp_path):
    merged = RegionVolumes(INPUT, NAMES, tmp_path, merge={"femur_left": "kidney_left"})
    labels = merged(study(0))[1]
    assert np.bincount(labels.reshape(-1), minlength=4)[1:].tolist() == [150, 64, 12 + 8]
    assert merged.folder != volumes(tmp_path).folder
    with pytest.raises(ValueError, match="merge: femur_left into leg: no such region"):
        RegionVolumes(INPUT, NAMES, tmp_path, merge={"femur_left": "leg"})
