from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from medvl_core.specs import ImageInput
from medvl_imaging.images import ImageRows, check_images


def test_a_study_without_the_image_is_named(studies):
    with pytest.raises(ValueError, match=r"study0: has no mri image, only \['ct', 'cxr'\]"):
        ImageRows("mri", ImageInput(channels=1, size=(8, 8)))(studies[0])


def test_without_a_store_the_image_is_made_each_time(studies):
    rows = ImageRows("cxr", ImageInput(channels=1, size=(8, 8)))
    assert rows(studies[0]).shape == (1, 8, 8)
    assert (rows(studies[0]) == rows.make(studies[0])).all()


def test_a_batch_of_another_shape_than_the_encoder_reads_is_refused():
    encoder = SimpleNamespace(input=ImageInput(channels=3, size=(8, 6)))
    check_images(torch.zeros(2, 3, 8, 6), encoder)
    with pytest.raises(ValueError, match=r"SimpleNamespace: .* \(2, 1, 8, 6\), it reads \('B', 3, 8, 6\); standardise"):
        check_images(torch.zeros(2, 1, 8, 6), encoder)
