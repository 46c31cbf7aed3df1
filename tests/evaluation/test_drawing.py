"""What the figures share: the areas that curves enclose, size and title of a file."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from medvl_evaluation.drawing import precision_steps, roc_points, save_png, sheet
from medvl_evaluation.metrics import operating_counts


def test_curves_enclose_the_areas_that_are_reported():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 60), rng.integers(0, 9, 60) / 9  # with ties
    counts = operating_counts(labels, scores)
    assert np.trapezoid(*roc_points(*counts)[::-1]) == pytest.approx(roc_auc_score(labels, scores))
    recall, precision = precision_steps(*counts)
    assert np.diff(recall) @ precision[1:] == pytest.approx(average_precision_score(labels, scores))


def test_a_long_title_is_broken_to_the_width_of_the_sheet(tmp_path):
    drawing = sheet(2, 1)
    assert save_png(drawing, tmp_path / "one.png", "some words " * 8) == tmp_path / "one.png"
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.size == (300, 150)
    assert max(map(len, drawing.get_suptitle().split("\n"))) <= 26
