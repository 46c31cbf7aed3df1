"""The CLAHE transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medvl_x2ct.transforms import RandClahe


def film(n=64):
    """A dark and a bright half with faint texture."""
    base = torch.full((1, n, n), 0.2)
    base[..., n // 2 :] = 0.8
    return base + 0.02 * torch.rand(1, n, n, generator=torch.Generator().manual_seed(0))


def test_local_contrast_rises_and_the_range_stays():
    before, after = film(), RandClahe(prob=1.0)(film())
    assert after.shape == before.shape
    assert after.dtype == torch.float32
    assert 0 <= float(after.min()) <= float(after.max()) <= 1
    left = np.s_[:, 16:-16, 8:24]
    assert after[left].std() > 1.5 * before[left].std()


def test_limit_counts_as_opencv_does():
    """At 1 every bin is clipped to the mean count: the histogram is flat and only the range is stretched."""
    stretched = (film(256) - film(256).min()) / (film(256).max() - film(256).min())

    def changed(limit):
        return float((RandClahe(prob=1.0, clip_limit=limit)(film(256)) - stretched).abs().max())

    assert changed(1.0) < 0.05
    assert 0.1 < changed(4.0) < changed(40.0)


def test_chance_and_seed_decide():
    assert torch.equal(RandClahe(prob=0.0)(film()), film())
    transform = RandClahe(prob=0.5)
    done = []
    for seed in range(40):
        transform.set_random_state(seed=seed)
        done.append(not torch.equal(transform(film()), film()))
    assert 10 <= sum(done) <= 30


def test_constant_image_stays():
    assert torch.equal(RandClahe(prob=1.0)(torch.full((1, 32, 32), 0.5)), torch.full((1, 32, 32), 0.5))


def test_wrong_options_and_images_are_refused():
    with pytest.raises(ValueError, match=r"RandClahe: prob is 2, clip_limit 4\.0, tiles 8; give a chance"):
        RandClahe(prob=2)
    with pytest.raises(ValueError, match=r"image of shape \(1, 8, 8\), values -1 to -1; give 1 H W in \[0, 1\]"):
        RandClahe(prob=1.0)(torch.full((1, 8, 8), -1.0))
    with pytest.raises(ValueError, match=r"image of shape \(3, 8, 8\)"):
        RandClahe(prob=1.0)(torch.rand(3, 8, 8))
