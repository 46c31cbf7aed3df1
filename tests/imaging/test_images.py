from __future__ import annotations

import pytest

from medvl_core.specs import ImageInput
from medvl_imaging.images import ImageRows


def test_a_study_without_the_image_is_named(studies):
    with pytest.raises(ValueError, match=r"study0: has no mri image, only \['ct', 'cxr'\]"):
        ImageRows("mri", ImageInput(channels=1, size=(8, 8)))(studies[0])


def test_without_a_store_the_image_is_made_each_time(studies):
    rows = ImageRows("cxr", ImageInput(channels=1, size=(8, 8)))
    assert rows(studies[0]).shape == (1, 8, 8)
    assert (rows(studies[0]) == rows.make(studies[0])).all()
