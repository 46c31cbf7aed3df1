"""The voxels of the phantom cohort: determinism, geometry, organs, and what each finding changes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from nibabel.orientations import aff2axcodes
from scipy.ndimage import binary_dilation

from medvl_phantom import FINDINGS, ORGANS, PhantomCohort, PhantomImage, PhantomRegions
from medvl_phantom.canvas import Canvas, Grid, Placement, turn
from medvl_phantom.findings import LESIONS
from medvl_phantom.organs import ORGAN_ID
from medvl_phantom.render import Address, plan, render
from medvl_phantom.streams import stream

ADDRESS = Address(7, 3, 0, 0, (64, 64, 64))
VISIBLE_IN_PROJECTION = (
    "Medical material",
    "Cardiomegaly",
    "Hiatal hernia",
    "Emphysema",
    "Atelectasis",
    "Pleural effusion",
    "Consolidation",
    "Arteriosclerosis",
)


def _bytes(address: Address) -> str:
    hu, labels = render(address)
    return hashlib.sha256(hu.tobytes() + labels.tobytes()).hexdigest()


def _bare(address: Address) -> np.ndarray:
    return PhantomImage(address).showing().load().array


def test_same_bytes_in_another_process_and_in_any_order():
    small = replace(ADDRESS, shape=(32, 32, 32))
    first = _bytes(small)
    _bytes(replace(small, subject=4))
    assert _bytes(small) == first
    program = (
        "import hashlib; from medvl_phantom.render import Address, render;"
        f"hu, labels = render({small!r}); print(hashlib.sha256(hu.tobytes() + labels.tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == first


@pytest.mark.parametrize("field", ["seed", "subject", "scan", "reconstruction"])
def test_every_part_of_the_address_changes_the_voxels(field):
    other = replace(ADDRESS, **{field: getattr(ADDRESS, field) + 1}, shape=(32, 32, 32))
    assert _bytes(other) != _bytes(replace(ADDRESS, shape=(32, 32, 32)))


def test_image_is_float32_hu_in_ras_with_positive_spacing():
    image = PhantomImage(ADDRESS).load()
    assert image.array.dtype == np.float32
    assert image.array.shape == ADDRESS.shape
    assert aff2axcodes(image.affine) == ("R", "A", "S")
    assert -1024 <= image.array.min() < -950
    assert 300 < image.array.max() <= 3071
    np.testing.assert_array_equal(image.array, np.rint(image.array))


def test_loaded_arrays_may_be_changed_without_touching_the_next_load():
    first = PhantomImage(ADDRESS).load().array
    first[:] = 0
    assert PhantomImage(ADDRESS).load().array.any()


def test_organs_lie_where_they_should_in_the_patient():
    for subject in range(3):
        regions = PhantomRegions(replace(ADDRESS, subject=subject)).load()
        center = {
            name: (regions.affine @ [*np.argwhere(regions.array == ORGAN_ID[name]).mean(0), 1])[:3]
            for name in (
                "heart",
                "liver",
                "spleen",
                "stomach",
                "kidney_left",
                "kidney_right",
                "vertebrae_T8",
                "sternum",
            )
        }
        spine = center["vertebrae_T8"]
        for name in ("heart", "spleen", "stomach", "kidney_left"):  # +x is the patient's right
            assert center[name][0] < spine[0], name
        for name in ("liver", "kidney_right"):
            assert center[name][0] > spine[0], name
        assert center["sternum"][1] > center["heart"][1] > spine[1]
        assert center["heart"][2] > center["liver"][2] > center["kidney_right"][2]


def test_label_map_has_two_dozen_organs_under_totalsegmentator_ids():
    present = set(np.unique(PhantomRegions(ADDRESS).load().array)) - {0}
    assert len(present) >= 60
    assert present <= set(ORGANS)
    known = {
        1: "spleen",
        5: "liver",
        16: "trachea",
        32: "vertebrae_T12",
        43: "vertebrae_T1",
        52: "aorta",
        79: "spinal_cord",
    }
    known |= {92: "rib_left_1", 103: "rib_left_12", 115: "rib_right_12", 116: "sternum", 117: "costal_cartilages"}
    assert {number: ORGANS[number] for number in known} == known


def test_ids_are_those_of_totalsegmentator():
    official = pytest.importorskip(
        "totalsegmentator.map_to_binary", reason="totalsegmentator is not installed"
    ).class_map
    assert {number: official["total"][number] for number in ORGANS} == ORGANS


@pytest.mark.parametrize("name", [name for name in FINDINGS if name != "Medical material"])
def test_a_finding_changes_its_organ_more_than_the_rest(name):
    inside_change, outside_change = 0.0, 0.0
    for subject in range(3):
        shown = PhantomImage(replace(ADDRESS, subject=subject)).showing(name)
        with_it, labels = render(shown.address)
        without = shown.showing()
        organs = [ORGAN_ID[organ] for organ in FINDINGS[name].organs] + (
            [ORGAN_ID["kidney_cyst_left"], ORGAN_ID["kidney_cyst_right"]] if name == "Kidney cyst" else []
        )
        inside = np.isin(labels, organs)
        bare, labels = render(without.address)
        inside = binary_dilation(inside | np.isin(labels, organs), iterations=3)
        change = np.abs(with_it - bare)
        inside_change += float(change[inside].mean())
        outside_change += float(change[~inside].mean())
    assert inside_change / 3 > 0.1
    assert inside_change > 4 * outside_change


def test_medical_material_is_local_metal():
    for subject in range(8):
        image = PhantomImage(replace(ADDRESS, subject=subject))
        change = np.abs(image.showing("Medical material").load().array - _bare(image.address))
        assert change.max() > 400
        assert (change > 0).mean() < 0.04


def test_far_voxels_are_bit_identical_when_a_finding_is_switched_off():
    for name, organs in {
        "Kidney cyst": ("kidney_left", "kidney_right", "kidney_cyst_left", "kidney_cyst_right"),
        "Splenomegaly": ("spleen",),
        "Lung nodule": FINDINGS["Lung nodule"].organs,
    }.items():
        with_it, labels = render(PhantomImage(ADDRESS).showing(name).address)
        near = binary_dilation(np.isin(labels, [ORGAN_ID[organ] for organ in organs]), iterations=12)
        bare = _bare(ADDRESS)
        np.testing.assert_array_equal(with_it[~near], bare[~near])
        assert (with_it != bare).any()


def test_findings_apart_from_each_other_add_up():
    image, bare = PhantomImage(ADDRESS), _bare(ADDRESS)
    nodule = image.showing("Lung nodule").load().array - bare
    cyst = image.showing("Kidney cyst").load().array - bare
    both = image.showing("Kidney cyst", "Lung nodule").load().array - bare
    np.testing.assert_array_equal(both, nodule + cyst)


@pytest.mark.parametrize("name", VISIBLE_IN_PROJECTION)
def test_large_findings_are_visible_in_the_frontal_projection(name):
    peaks = []
    for subject in range(6):
        address = replace(ADDRESS, subject=subject, shape=(48, 48, 48))
        film = PhantomImage(address).showing(name).load().array.clip(-1000, 1000).mean(1)
        bare = _bare(address).clip(-1000, 1000).mean(1)
        peaks.append(np.abs(film - bare).max())
    assert np.median(peaks) > 40  # HU in the mean over the whole ray; quantum noise is below 8


def test_the_mean_of_the_volume_tells_no_finding():
    from sklearn.metrics import roc_auc_score

    studies = PhantomCohort(110, (32, 32, 32), 5, (1, 0, 0), follow_up=0, second_reconstruction=0).studies("train")
    means = [study.images["ct"].load().array.mean() for study in studies]
    for name in FINDINGS:
        y = [study.labels[name] for study in studies]
        if sum(y) >= 8:
            assert abs(roc_auc_score(y, means) - 0.5) < 0.35, name


def test_reconstructions_share_anatomy_but_neither_grid_nor_noise():
    first, second = (PhantomImage(replace(ADDRESS, reconstruction=r)).load() for r in (0, 1))
    assert not np.allclose(first.affine, second.affine)
    lungs = []
    for r in (0, 1):
        regions = PhantomRegions(replace(ADDRESS, reconstruction=r)).load()
        inside = (regions.array >= 10) & (regions.array <= 14)
        lungs.append(inside.sum() * abs(np.linalg.det(regions.affine[:3, :3])))
    assert lungs[0] == pytest.approx(lungs[1], rel=0.03)


def test_a_96_cube_takes_well_under_half_a_second_of_one_core():
    seconds = []
    for subject in range(3):
        start = time.process_time()
        render(Address(0, subject, 0, 0, (96, 96, 96)))
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.4


def test_fingerprint_follows_the_address():
    image = PhantomImage(ADDRESS)
    assert image.fingerprint() == PhantomImage(ADDRESS).fingerprint()
    others = [image.showing(), PhantomImage(replace(ADDRESS, seed=8)), PhantomRegions(ADDRESS)]
    assert len({image.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_unknown_finding_is_refused():
    with pytest.raises(ValueError, match=r"unknown findings \['Cardiomegali'\]; known are Medical material"):
        PhantomImage(ADDRESS).showing("Cardiomegali")
    with pytest.raises(ValueError, match=r"unknown findings \['Cardiomegali'\]"):
        plan(replace(ADDRESS, findings=("Cardiomegali",)))


def test_streams_depend_on_the_whole_path():
    draws = {stream(*path).random() for path in [(0, 1, "a"), (0, 1, "b"), (0, 2, "a"), (1, 1, "a"), (0, "1", "a")]}
    assert len(draws) == 5
    assert stream(0, 1, "a").random() == stream(0, 1, "a").random()


def test_placement_goes_there_and_back():
    placement = Placement((0.9, 1.1, 1.05), 0.2, (0.03, -0.02), (5.0, -7.0, 3.0), 6.0, -8.0)
    points = np.random.default_rng(0).uniform(-120, 120, (50, 3))
    back = placement.to_body(*placement.to_scanner(points).T)
    np.testing.assert_allclose(np.stack(back, 1), points, atol=1e-9)


def test_painted_shapes_have_their_volume():
    placement = Placement((0.95, 1.05, 1.0), 0.3, (0.05, 0.0), (4.0, 2.0, -3.0))
    canvas = Canvas(Grid((60, 60, 60), (2.0, 2.0, 2.0), (-59.0, -59.0, -59.0)), placement)
    voxel = 8.0 / np.prod(placement.scale)
    _, share = canvas.ellipsoid((3, -2, 5), (20, 12, 16), turn(about_x=20, about_z=30))
    assert share.sum() * voxel == pytest.approx(4 / 3 * np.pi * 20 * 12 * 16, rel=0.03)
    _, share = canvas.chain([(-20, 0, 0), (20, 0, 0)], 7)
    assert share.sum() * voxel == pytest.approx(np.pi * 49 * 40 + 4 / 3 * np.pi * 343, rel=0.04)
    share = canvas.splat(np.array([[1.3, 2.1, -4.7], [20.0, 0, 0]]), np.array([2.0, 3.0]))
    assert share.sum() * voxel == pytest.approx(5.0, rel=1e-5)


def test_rotation_matrix_is_a_rotation():
    matrix = turn(10, -20, 30)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)
    np.testing.assert_allclose(turn(about_z=90) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize("finding", ["Lung nodule", "Liver cyst", "Kidney cyst"])
def test_a_lesion_label_lies_where_the_finding_changed_the_scan(finding):
    address = replace(ADDRESS, findings=(finding,))
    label = LESIONS[finding][0]
    with_it, labels = render(replace(address, lesions=(finding,)))
    plain, organs = render(address)
    without = _bare(address)
    assert np.array_equal(with_it, plain)
    mask = labels == label
    assert mask.any()
    assert np.array_equal(labels[~mask], organs[~mask])
    change = np.abs(with_it - without)
    assert change[mask].mean() > 10 * change[~binary_dilation(mask, iterations=3)].mean() + 10
    assert not (render(replace(address, findings=(), lesions=(finding,)))[1] == label).any()
