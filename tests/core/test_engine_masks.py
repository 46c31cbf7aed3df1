from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from medvl_core.engine.masks import voxel_counts


def test_counts_give_the_dice_of_the_masks():
    rng = np.random.default_rng(0)
    predicted, true = rng.integers(0, 4, (2, 9, 8, 7), dtype=np.uint8)
    true[predicted == 2] = 2
    counts = voxel_counts(predicted, true).astype(float)
    expected = [f1_score(true.ravel() == label, predicted.ravel() == label) for label in (1, 2, 3)]
    np.testing.assert_allclose(2 * counts[2, 1:4] / (counts[0] + counts[1])[1:4], expected, rtol=1e-12)
    assert counts.shape == (3, 256)
    assert counts[0].sum() == counts[1].sum() == predicted.size


def test_booleans_are_label_1():
    counts = voxel_counts(np.array([True, False]), np.array([True, True]))
    assert counts[:, 1].tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (np.zeros((2, 2), int), "masks differ in shape"),
        (np.zeros(3), "predicted mask holds float64 values that are no label ids"),
        (np.array([0, 1, 256]), "predicted mask holds int64"),
        (np.array([0, -1, 2]), "predicted mask holds int64"),
    ],
)
def test_unusable_masks(predicted, message):
    with pytest.raises(ValueError, match=message):
        voxel_counts(predicted, np.zeros(3, np.uint8))
