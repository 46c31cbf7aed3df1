import dataclasses
import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from medvl_baseline.plugin import CLIP_IMAGE
from medvl_core.specs import ImageInput
from medvl_core.study import Image
from medvl_imaging.transforms import Orient, Resample, Window, standardise, standardise_regions
from medvl_radclip.plugin import SLICES

FLIPS = ("RL", "AP", "SI")
ORIENTATIONS = ["".join(c) for p in itertools.permutations(range(3)) for c in itertools.product(*(FLIPS[d] for d in p))]
CT = ImageInput(channels=1, size=(20, 16, 12), axcodes="RAS", spacing_mm=(1.5, 1.5, 3.0), window_hu=(-1000.0, 1000.0))
FIT = ImageInput(channels=2, size=(10, 16, 12), axcodes="LPS", window_hu=(-500.0, 500.0), output_range=(0.0, 1.0))


def scan(shape=(24, 17, 9), spacing=(1.1, 1.4, 2.5)) -> Image:
    array = np.random.default_rng(0).normal(0, 400, shape).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-12.0, 30.0, -7.0)
    return Image(array, affine)


def stored_as(image: Image, axcodes: str) -> Image:
    """The same scan in other axes."""
    change = ornt_transform(nib.io_orientation(image.affine), axcodes2ornt(tuple(axcodes)))
    array = nib.apply_orientation(image.array, change)
    return Image(array, image.affine @ inv_ornt_aff(change, image.array.shape))


def test_all_48_orientations_are_listed():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("input", [CT, FIT], ids=["spacing", "fit"])
def test_same_scan_in_48_orientations_gives_the_same_tensor(input):
    image = scan()
    steps = standardise(input)
    expected = steps(image)
    assert expected.shape == (input.channels, *input.size)
    for axcodes in ORIENTATIONS:
        turned = stored_as(image, axcodes)
        assert "".join(nib.aff2axcodes(turned.affine)) == axcodes
        torch.testing.assert_close(steps(turned), expected, atol=1e-4, rtol=0)


def test_regions_follow_the_same_geometry_in_48_orientations():
    image = scan()
    labels = Image((image.array > 300).astype(np.uint8) * 7, image.affine)
    steps = standardise_regions(CT)
    expected = steps(labels)
    assert expected.dtype == torch.uint8
    assert expected.shape == (1, *CT.size)
    assert set(expected.unique().tolist()) == {0, 7}
    for axcodes in ORIENTATIONS:
        assert torch.equal(steps(stored_as(labels, axcodes)), expected)


def test_regions_lie_on_the_structure_of_the_image():
    array = np.full((30, 40, 20), -1000, np.float32)
    array[5:14, 20:33, 4:11] = 1000
    image = Image(array, np.diag([-1.0, 2.0, 1.5, 1.0]))
    labels = Image((array > 0).astype(np.uint8), image.affine)
    for input in (CT, FIT):
        bright = standardise(input)(image)[0] > sum(input.output_range) / 2
        inside = standardise_regions(input)(labels)[0] > 0
        apart = bright.nonzero().double().mean(0) - inside.nonzero().double().mean(0)
        assert apart.abs().max() <= 0.5  # voxels: two roundings of one border


def reference_ct_clip(array, spacing, target, size):
    """Clip, trilinear resize to floor(old * ratio), centre crop, pad with the extra voxel at the end; float64."""
    x = torch.from_numpy(array).double().clamp(-1000, 1000) / 1000
    new = [int(n * s / t) for n, s, t in zip(array.shape, spacing, target, strict=True)]
    x = torch.nn.functional.interpolate(x[None, None], size=new, mode="trilinear", align_corners=False)[0, 0]
    for dim, n in enumerate(size):
        start = max((x.shape[dim] - n) // 2, 0)
        x = x.narrow(dim, start, min(n, x.shape[dim] - start))
    pads = []
    for dim in (2, 1, 0):
        before = (size[dim] - x.shape[dim]) // 2
        pads += [before, size[dim] - x.shape[dim] - before]
    return torch.nn.functional.pad(x, pads, value=-1.0)


@pytest.mark.parametrize("size", [(20, 16, 12), (11, 10, 5), (11, 30, 6)])
def test_spacing_mode_equals_the_published_preprocessing(size):
    image = scan()
    input = ImageInput(channels=1, size=size, axcodes="RAS", spacing_mm=(1.5, 1.5, 3.0), window_hu=(-1000.0, 1000.0))
    expected = reference_ct_clip(image.array, (1.1, 1.4, 2.5), input.spacing_mm, size)
    torch.testing.assert_close(standardise(input)(image)[0].double(), expected, atol=1e-5, rtol=0)


def test_float32_spacing_does_not_lose_a_voxel():
    affine = np.diag([*np.float32([0.7, 0.7, 1.1]), 1]).astype(np.float64)
    image = Image(np.random.default_rng(0).normal(size=(15, 15, 30)).astype(np.float32), affine)
    assert Resample((10, 10, 22), (1.05, 1.05, 1.5), 0.0)._scaled(image) == [10, 10, 22]


def test_integer_volume_equals_its_float_copy():
    image = scan()
    whole = Image(np.rint(image.array).astype(np.int16), image.affine)
    steps = standardise(CT)
    torch.testing.assert_close(steps(whole), steps(Image(whole.array.astype(np.float32), whole.affine)))


def test_radiograph_scales_the_shorter_side_and_crops_the_longer():
    film = np.tile(np.arange(60, dtype=np.float32), (40, 1))
    out = standardise(ImageInput(channels=3, size=(20, 20)))(Image(film))
    assert out.shape == (3, 20, 20)
    assert torch.equal(out[0], out[2])
    kept = (film[0, 10:50].reshape(20, 2).mean(1) / 59 * 2 - 1).astype(np.float32)  # centre 40 columns, 2 to 1
    np.testing.assert_allclose(out[0, 5, 1:-1], kept[1:-1], atol=1e-5)


def test_radiograph_uses_its_own_range_whatever_its_units():
    film = np.random.default_rng(0).normal(size=(33, 47)).astype(np.float32)
    steps = standardise(ImageInput(channels=1, size=(16, 16), output_range=(0.0, 1.0)))
    torch.testing.assert_close(steps(Image(film)), steps(Image(film * 300 + 1000)), atol=1e-5, rtol=0)


def test_colour_radiograph_is_kept_for_three_channels_and_averaged_for_one():
    film = np.random.default_rng(0).uniform(size=(24, 24, 3)).astype(np.float32)
    three = standardise(ImageInput(channels=3, size=(12, 12)))(Image(film))
    one = standardise(ImageInput(channels=1, size=(12, 12)))(Image(film))
    assert three.shape == (3, 12, 12)
    assert not torch.equal(three[0], three[1])
    torch.testing.assert_close(one[0], three.mean(0))


def test_window_clips_and_maps():
    image = Image(np.array([[-2000.0, -1000.0], [0.0, 3000.0]], np.float32))
    assert Window((-1000.0, 1000.0), (0.0, 1.0))(image).array.tolist() == [[0.0, 0.0], [0.5, 1.0]]


def test_constant_image_becomes_the_lower_bound_not_nan():
    out = Window(None, (-1.0, 1.0))(Image(np.full((3, 3), 5.0, np.float32)))
    assert (out.array == -1).all()


def test_errors_say_what_is_missing():
    with pytest.raises(ValueError, match="no affine cannot be oriented"):
        Orient("RAS")(Image(np.zeros((4, 4, 4))))
    with pytest.raises(ValueError, match="has no spacing"):
        Resample((4, 4), (1.0, 1.0), 0.0)(Image(np.zeros((4, 4), np.float32)))
    two = Image(np.zeros((8, 8, 2), np.float32))
    with pytest.raises(RuntimeError, match="applying transform") as caught:
        standardise(ImageInput(channels=3, size=(4, 4)))(two)
    assert "2 channels, the encoder reads 3" in str(caught.value.__cause__)


def test_steps_are_a_monai_compose_and_survive_pickling():
    import pickle

    from monai.transforms import Compose

    steps = standardise(CT)
    assert isinstance(steps, Compose)
    torch.testing.assert_close(pickle.loads(pickle.dumps(steps))(scan()), steps(scan()))


def film(shape: tuple[int, int], sigma: float = 3.0) -> np.ndarray:
    """A smooth 8-bit picture."""
    from scipy.ndimage import gaussian_filter

    x = gaussian_filter(np.random.default_rng(0).normal(size=shape), sigma)
    return np.rint(255 * (x - x.min()) / np.ptp(x)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(300, 401), (701, 512), (100, 130), (224, 224)])
def test_cubic_cover_with_mean_and_std_equals_clips_own_preprocessing(shape):
    from PIL import Image as Picture
    from transformers import CLIPImageProcessorPil

    picture = film(shape)
    theirs = CLIPImageProcessorPil()(Picture.fromarray(picture).convert("RGB"), return_tensors="pt")["pixel_values"][0]
    ours = standardise(CLIP_IMAGE)(Image(picture.astype(np.float32)))
    grey = (ours - theirs).abs() * torch.tensor(CLIP_IMAGE.std)[:, None, None] * 255
    assert grey.max() < 1.5  # pillow rounds to whole grey values after each of the two passes
    assert grey.mean() < 0.5


def test_contain_scales_the_longer_side_and_pads_the_shorter_with_black():
    input = ImageInput(
        channels=1, size=(20, 20), output_range=(0.0, 1.0), pad_value=0.0, fit="contain", window_hu=(0.0, 255.0)
    )
    out = standardise(input)(Image(np.full((40, 21), 255.0, np.float32)))[0]
    expected = torch.zeros(20, 20)
    expected[:, 5:15] = 1
    torch.testing.assert_close(out, expected)
    turned = standardise(input)(Image(np.full((21, 40), 255.0, np.float32)))[0]
    torch.testing.assert_close(turned, expected.T)


@pytest.mark.parametrize(("shape", "grey_values"), [((640, 640), 0.5), ((620, 512), 3.0)])
def test_one_step_is_close_to_chexzeros_two(shape, grey_values):
    """Where there is padding, the two differ by a part of a pixel in where the image lies."""
    from PIL import Image as Picture

    picture = film(shape, sigma=4)
    ratio = 320 / shape[0]
    small = Picture.fromarray(picture).resize((int(shape[1] * ratio), 320), Picture.Resampling.LANCZOS)
    padded = Picture.new("L", (320, 320))
    padded.paste(small, ((320 - small.width) // 2, 0))
    stored = (torch.from_numpy(np.array(padded)).float() - 101.48761) / 83.43944
    theirs = torch.nn.functional.interpolate(stored[None, None], size=(224, 224), mode="bicubic", antialias=True)[0]
    grey = {"mean": (101.48761 / 255,) * 3, "std": (83.43944 / 255,) * 3}
    ours = standardise(dataclasses.replace(CLIP_IMAGE, fit="contain", **grey))(Image(picture.astype(np.float32)))
    assert ((ours - theirs).abs() * 83.43944).mean() < grey_values


def test_mean_and_std_are_per_channel():
    input = ImageInput(channels=2, size=(4, 4), output_range=(0.0, 1.0), mean=(0.5, 0.0), std=(0.5, 2.0))
    out = standardise(input)(Image(np.array([[0.0, 1.0], [1.0, 0.0]], np.float32).repeat(2, 0).repeat(2, 1)))
    assert torch.equal(out[0, 0], torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    assert torch.equal(out[1, 0], torch.tensor([0.0, 0.0, 0.5, 0.5]))


def test_sixteen_bits_in_a_window_of_eight_are_refused():
    with pytest.raises(ValueError, match=r"image of mean 3000 is mostly above the window \(0.0, 255.0\)"):
        Window((0.0, 255.0), (0.0, 1.0))(Image(np.full((4, 4), 3000.0, np.float32)))


# volumes as slices

SLICED = dataclasses.replace(SLICES, size=(16, 16, 6), interpolation="linear")


def test_slices_are_a_clipped_z_score_in_grey_values():
    array = np.random.default_rng(0).normal(40, 7, (16, 16, 4)).astype(np.float32)
    array[0, 0, 0] = 900
    out = standardise(SLICED)(Image(array, np.diag([-1.0, -1.0, 1.0, 1.0])))
    score = (array.astype(np.float64) - array.mean(dtype=np.float64)) / array.std(dtype=np.float64)
    np.testing.assert_allclose(out[0, :, :, :4], (np.clip(score, -3, 3) + 3) / 6, atol=1e-5)
    assert out.shape == (1, 16, 16, 6)
    assert out[..., 4:].abs().max() == 0


def test_at_most_so_many_slices_evenly_spread():
    array = np.broadcast_to(np.arange(30, dtype=np.float32), (16, 16, 30)).copy()
    plain = dataclasses.replace(SLICED, window_sd=None, window_hu=(0.0, 30.0), output_range=(0.0, 30.0))
    out = standardise(plain)(Image(array, np.diag([-1.0, -1.0, 1.0, 1.0])))
    assert out[0, 3, 3].tolist() == [2, 7, 12, 17, 22, 27]


def test_a_slice_keeps_its_shape_in_millimetres_between_black_borders():
    array = np.full((20, 10, 2), 5.0, np.float32)
    array[0, 0, 0] = 0  # not constant
    plain = dataclasses.replace(SLICED, window_sd=None, window_hu=(0.0, 5.0))
    out = standardise(plain)(Image(array, np.diag([-1.0, -4.0, 1.0, 1.0])))[0, :, :, 1]  # 20 x 40 mm
    filled = out > 0.5
    assert filled.any(1).nonzero().flatten().tolist() == list(range(4, 12))
    assert filled.any(0).all()


@pytest.mark.parametrize("code", ["LPS", "RAS", "SAL", "PIR"])
def test_slices_do_not_depend_on_the_stored_orientation(code):
    array = np.random.default_rng(0).normal(size=(12, 16, 5)).astype(np.float32)
    image = Image(array, np.diag([-1.0, -1.0, 2.0, 1.0]))
    turned = nib.Nifti1Image(array, image.affine).as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(tuple(code))
        )
    )
    stored = Image(np.asarray(turned.dataobj), turned.affine)
    expected = standardise(SLICED)(image)
    np.testing.assert_allclose(standardise(SLICED)(stored), expected, atol=2e-5)
