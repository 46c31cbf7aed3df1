import numpy as np
import pytest
import torch

from medvl_imaging.resample import apply_taps, cubic_taps, linear_taps, nearest_taps, resample_grid


@pytest.mark.parametrize(("n_in", "n_out"), [(7, 5), (5, 7), (10, 3), (3, 10), (1, 4), (4, 1), (6, 6)])
def test_linear_taps_equal_interpolate_without_corners(n_in, n_out):
    x = torch.randn(1, 1, n_in, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(x, size=n_out, mode="linear", align_corners=False)
    torch.testing.assert_close(apply_taps(x, 2, linear_taps(n_in, n_out)), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "size"), [((50, 31), (7, 12)), ((9, 16), (20, 5)), ((12, 12), (4, 6)), ((17, 8), (3, 2))]
)
def test_antialiased_taps_equal_torchs_antialiased_bilinear(shape, size):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(x[None, None], size=size, mode="bilinear", antialias=True)[0, 0]
    for dim in (0, 1):
        x = apply_taps(x, dim, linear_taps(shape[dim], size[dim], antialias=True))
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=1e-6)


def test_nearest_taps_equal_nearest_exact_and_keep_the_dtype():
    labels = torch.arange(10, dtype=torch.uint8)
    for n_out in (3, 10, 17):
        expected = torch.nn.functional.interpolate(labels[None, None], size=n_out, mode="nearest-exact")[0, 0]
        assert torch.equal(apply_taps(labels, 0, nearest_taps(10, n_out)), expected)


def test_mean_weights_give_the_mean_of_the_resampled_axis():
    x = torch.randn(23, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for n_out in (1, 9, 23, 40):
        taps = linear_taps(23, n_out)
        shares = taps.mean_weights(23)
        assert shares.sum() == pytest.approx(1, abs=1e-6)
        assert float(torch.from_numpy(shares).double() @ x) == pytest.approx(
            float(apply_taps(x, 0, taps).mean()), abs=1e-6
        )


def test_grid_equals_trilinear_interpolation_on_a_permuted_tensor():
    x = torch.randn(8, 9, 10, generator=torch.Generator().manual_seed(0)).permute(2, 0, 1)
    size = (6, 13, 4)
    out = torch.empty(size)
    resample_grid(x, tuple(linear_taps(n, m) for n, m in zip(x.shape, size, strict=True)), out)
    expected = torch.nn.functional.interpolate(x[None, None], size=size, mode="trilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("antialias", [False, True])
def test_each_slab_that_is_needed_is_prepared_once(antialias):
    array = np.random.default_rng(0).normal(size=(20, 9, 8)).astype(np.float32)
    array.setflags(write=False)
    seen = []

    def prepare(slab):
        seen.append(slab)
        return torch.from_numpy(np.clip(slab, -1, 1))

    taps = (linear_taps(20, 7, antialias=antialias)[1:6], linear_taps(9, 12)[2:9], linear_taps(8, 5))
    out = torch.empty(5, 7, 5)
    resample_grid(array, taps, out, prepare)
    expected = torch.empty(5, 7, 5)
    resample_grid(torch.from_numpy(array.clip(-1, 1)), taps, expected)
    assert torch.equal(out, expected)
    assert len(seen) == len(np.unique(taps[0].index))
    assert seen[0].shape[0] < 9  # rows that no output needs are not touched
    columns = torch.empty(7, 5, 5)  # the walk's axis is the fastest of the output: written in columns
    resample_grid(array, taps, columns.movedim(-1, 0), prepare)
    assert torch.equal(columns.movedim(-1, 0), expected)


def test_antialiasing_reads_every_voxel_and_plain_linear_does_not():
    impulse = torch.zeros(64)
    impulse[1] = 1.0
    assert apply_taps(impulse, 0, linear_taps(64, 8)).sum() == 0
    assert apply_taps(impulse, 0, linear_taps(64, 8, antialias=True)).sum() > 0.05
    assert np.allclose(linear_taps(64, 8, antialias=True).weight.sum(1), 1)


@pytest.mark.parametrize(
    ("shape", "size"), [((50, 31), (7, 12)), ((9, 16), (20, 5)), ((12, 12), (12, 6)), ((1, 3), (4, 2))]
)
def test_cubic_taps_equal_pillows_bicubic(shape, size):
    from PIL import Image as Picture

    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = np.asarray(Picture.fromarray(x).resize(size[::-1], Picture.Resampling.BICUBIC))
    out = torch.from_numpy(x).double()
    for dim in (0, 1):
        out = apply_taps(out, dim, cubic_taps(shape[dim], size[dim]))
    np.testing.assert_allclose(out, expected, atol=1e-5)
