"""The cone beam against integrals known in closed form, against ITK's ray caster and against a slow loop."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from medvl_imaging.radiograph import WATER_PER_MM, simulate_radiograph
from tests.imaging import radiograph_phantom as phantom

SPACING = np.array([2.0, 2.0, 2.0])
SHAPE = (96, 80, 96)
SOURCE, DETECTOR = 500.0, 700.0
OPTIONS = {
    "mode": "cone_beam",
    "detector": "attenuation",
    "source_isocentre_mm": SOURCE,
    "source_detector_mm": DETECTOR,
}
TOWARDS = {"ap": (0, -1, 0), "pa": (0, 1, 0), "lateral": (-1, 0, 0)}
TO_THE_RIGHT = {"ap": (-1, 0, 0), "pa": (-1, 0, 0), "lateral": (0, -1, 0)}


def rays(view, shape, extent, rotation_deg=(0, 0, 0), shift_mm=(0, 0, 0)):
    """Source and pixel centres in RAS mm of the patient, who is turned and shifted in the room."""
    ray, right, down = np.array(TOWARDS[view]), np.array(TO_THE_RIGHT[view]), np.array([0, 0, -1])
    v, u = ((np.arange(n) + 0.5) / n - 0.5 for n in shape)
    size = np.array(extent) * DETECTOR / SOURCE
    pixels = (DETECTOR - SOURCE) * ray + (size[0] * v)[:, None, None] * down + (size[1] * u)[None, :, None] * right
    turn = Rotation.from_euler("xyz", rotation_deg, degrees=True)
    back = [turn.inv().apply((points - np.array(shift_mm)).reshape(-1, 3)) for points in (-SOURCE * ray, pixels)]
    return back[0][0], back[1].reshape(*shape, 3)


def relative_error(made, expected):
    patient = expected > 0.05 * expected.max()
    return np.sqrt(np.mean((made - expected)[patient] ** 2)) / expected[patient].mean()


@pytest.fixture(scope="module")
def volume():
    return phantom.voxels(SHAPE, SPACING)


@pytest.mark.parametrize("view", TOWARDS)
@pytest.mark.parametrize(
    "pose", [{}, {"shift_mm": (9, -4, 6)}, {"rotation_deg": (4, -6, 5), "shift_mm": (-3, 5, 2)}], ids=len
)
def test_line_integrals_of_ellipsoids_are_the_analytic_ones(volume, view, pose):
    extent = (192.0, 160.0 if view == "lateral" else 192.0)
    shape = (96, 80 if view == "lateral" else 96)
    expected = WATER_PER_MM * phantom.integrals(*rays(view, shape, extent, **pose))
    made = simulate_radiograph(volume, SPACING, view=view, size=shape, **pose, **OPTIONS)
    assert relative_error(made, expected) < 0.015  # half of it are the voxels, see ITK below


@pytest.fixture
def itk_integrals(monkeypatch):
    """Integral of density in mm of water for the view from the back, by ITK."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import itk
    from itk_rays import ray_caster

    def integrals(volume, shape, extent):
        density = np.ascontiguousarray((volume / 1000 + 1).T.astype(np.float32))
        pitch = np.array(extent) * DETECTOR / SOURCE / shape
        resample = ray_caster(density, np.asarray(SPACING), SOURCE, DETECTOR, shape, pitch)
        resample.Update()
        return itk.array_from_image(resample.GetOutput())[0]

    return integrals


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equals_the_ray_caster_of_itk_and_is_as_near_to_the_truth(volume, itk_integrals):
    shape, extent = (96, 96), (192.0, 192.0)
    itk = WATER_PER_MM * itk_integrals(volume, shape, extent)
    made = simulate_radiograph(volume, SPACING, view="pa", size=shape, **OPTIONS)
    assert np.corrcoef(made.ravel(), itk.ravel())[0, 1] > 0.9999
    assert relative_error(made, itk) < 1e-5
    truth = WATER_PER_MM * phantom.integrals(*rays("pa", shape, extent))
    assert relative_error(made, truth) < 1.02 * relative_error(itk, truth)


@pytest.mark.parametrize("view", TOWARDS)
def test_equals_a_slow_loop_over_slices(view):
    """Bilinear interpolation of each slice where each ray crosses it, in float64, border voxels going on."""
    shape, spacing = (22, 18, 26), np.array([3.0, 4.0, 2.5])
    volume = np.random.default_rng(0).normal(0, 300, shape).astype(np.float32)
    extent = (65.0, 72.0 if view == "lateral" else 66.0)
    size = (130, 144 if view == "lateral" else 132)
    source, pixels = rays(view, size, extent)
    along = int(np.argmax(np.abs(TOWARDS[view])))
    total = np.zeros(size)
    for k in range(shape[along]):
        depth = (k - (shape[along] - 1) / 2) * spacing[along]
        at = source + (pixels - source) * ((depth - source[along]) / (pixels[..., along] - source[along]))[..., None]
        index = at / spacing + (np.array(shape) - 1) / 2
        total += map_coordinates(volume.astype(float), np.moveaxis(index, -1, 0), order=1, mode="nearest")
    cosine = np.abs(pixels - source)[..., along] / np.linalg.norm(pixels - source, axis=-1)
    expected = WATER_PER_MM * (shape[along] + total / 1000) * spacing[along] / cosine
    made = simulate_radiograph(volume, spacing, view=view, size=size, **OPTIONS)
    np.testing.assert_allclose(made, expected, rtol=2e-5, atol=1e-5)


def test_what_is_near_the_source_is_larger():
    volume = np.full((64, 64, 64), -1000.0, np.float32)
    volume[24:40, 50:56, 24:40] = 100  # in front
    area = {view: (simulate_radiograph(volume, (4, 4, 4), view=view, **OPTIONS) > 0.3).sum() for view in ("ap", "pa")}
    ratio = ((SOURCE + 84) / (SOURCE - 84)) ** 2
    assert area["ap"] / area["pa"] == pytest.approx(ratio, rel=0.1)
