from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from medvl_core.protocols import Evaluator
from medvl_evaluation.evaluators.segmentation import Segmentation
from medvl_evaluation.metrics import voxel_counts

CLASSES = {"lung": 3, "liver": 7}
N = 24


def cases(seed: int = 0) -> dict:
    """Boxes of both tumours in some studies; predictions are shifted, or miss, or invent."""
    rng = np.random.default_rng(seed)
    true, predicted = np.zeros((2, N, 10, 9, 8), dtype=np.uint8)
    for i in range(N):
        for label in (3, 7):
            x, y = rng.integers(0, 5, 2)
            z = 4 * (label == 7)
            if rng.random() < 0.5:
                true[i, x : x + 4, y : y + 3, z : z + 3] = label
                if rng.random() < 0.9:
                    predicted[i, x + 1 : x + 4, y : y + 3, z : z + 3] = label
            elif rng.random() < 0.4:
                predicted[i, x : x + 2, y : y + 3, z] = label
    ids = {"study_id": [f"s{i}" for i in range(N)], "subject_id": [f"p{i // 2}" for i in range(N)]}
    counts = [voxel_counts(*pair) for pair in zip(predicted, true, strict=True)]
    return ids | {"masks": list(zip(predicted, true, strict=True)), "voxel_counts": counts}


def evaluator(batch=None, **options) -> Segmentation:
    made = Segmentation(CLASSES, **options)
    made.update(batch or cases())
    return made


def test_values_equal_a_loop_over_cases():
    batch, made = cases(), evaluator()
    overlaps, areas = [], []
    for label in CLASSES.values():
        volume, true = np.array([[(mask == label).sum() for mask in pair] for pair in batch["masks"]]).T
        overlaps.append(
            np.mean([f1_score(t.ravel() == label, p.ravel() == label) for p, t in batch["masks"] if (t == label).any()])
        )
        areas.append(roc_auc_score(true > 0, volume))
    values = made.compute()
    assert isinstance(made, Evaluator)
    assert values["segmentation/dice_macro"] == pytest.approx(np.mean(overlaps), abs=1e-12)
    assert values["segmentation/detection_auroc_macro"] == pytest.approx(np.mean(areas), abs=1e-12)
    assert values["segmentation/classes_left_out"] == 0
    assert 0 < values["segmentation/dice_macro"] < 1 > values["segmentation/detection_auroc_macro"] > 0.5
    table = made.tables(50)["segmentation_per_class"]
    np.testing.assert_allclose(table["dice"], overlaps, rtol=1e-6)
    assert table["dice"].between(table["dice_low"], table["dice_high"]).all()


def test_volume_is_in_millilitres_when_the_voxels_are_given():
    sizes = np.linspace(0.5, 2.0, N)
    made = evaluator(cases() | {"voxel_ml": sizes})
    table = made.tables(5)["segmentation_cases"]
    voxels = np.array([(true == 7).sum() for _, true in cases()["masks"]])
    np.testing.assert_allclose(table[table["class"] == "liver"]["true_volume"], voxels * sizes)
    assert made.compute()["segmentation/dice_macro"] == evaluator().compute()["segmentation/dice_macro"]
    scores = made.predictions().scores
    np.testing.assert_allclose(scores, evaluator().predictions().scores * sizes[:, None])


def test_class_in_no_study_is_nan_and_counted(tmp_path):
    made = Segmentation({**CLASSES, "colon": 9})
    made.update(cases())
    assert made.compute()["segmentation/classes_left_out"] == 1
    assert made.compute()["segmentation/dice_macro"] == evaluator().compute()["segmentation/dice_macro"]
    assert made.tables(5)["segmentation_per_class"]["dice"].isna().tolist() == [False, False, True]
    (path,) = made.figures(tmp_path, 5)
    assert path.is_file()


def test_intervals_chance_and_predictions():
    made = evaluator()
    for name, (low, high) in made.intervals(100).items():
        assert low < made.compute()[name] < high
    assert list(made.chance().values()) == [0.0, 0.5, 0.5]
    table = made.tables(5)["segmentation_predictions"]
    assert set(table["label"]) == {0.0, 1.0}
    assert table["probability"].isna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voxel_counts": None}, r"needs \['voxel_counts'\] in outputs"),
        ({"subject_id": ["p"]}, "24 studies, 24 masks"),
        ({"voxel_ml": [0.0] * N}, "^s0: voxel_ml must be a positive number"),
        ({"study_id": None}, r"needs \['study_id'\] in outputs"),
    ],
)
def test_outputs_that_do_not_fit(change, message):
    batch = {key: value for key, value in (cases() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        evaluator(batch)


def test_bad_options():
    for classes in ({"a": 0}, {"a": 256}, {"a": 1, "b": 1}):
        with pytest.raises(ValueError, match="give different ones from 1 to 255"):
            Segmentation(classes)
    with pytest.raises(ValueError, match="give a list of different names"):
        Segmentation({})
    with pytest.raises(ValueError, match="has collected no study"):
        Segmentation(CLASSES).compute()
