from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from medvl_core.protocols import Evaluator
from medvl_evaluation.evaluators.matching import Matching
from tests.evaluation.evaluator_data import outputs, tower

CLASSES = ("Glioma", "Meningioma", "Normal $x$")


def matching(batch=None, **options) -> Matching:
    made = Matching(CLASSES, "cxr", **options)
    made.update(batch or outputs(exclusive=True, signal=0.4))
    return made


def decided(batch) -> tuple[np.ndarray, np.ndarray]:
    cosines = batch["embeddings"]["cxr"] @ batch["prompt_embeddings"]["positive"].T
    return batch["labels"].numpy().argmax(1), cosines.numpy().argmax(1)


def test_metrics_equal_scikit_learn():
    made, (true, found) = matching(), decided(outputs(exclusive=True, signal=0.4))
    expected = (np.mean(true == found), balanced_accuracy_score(true, found), f1_score(true, found, average="macro"))
    assert isinstance(made, Evaluator)
    assert list(made.compute().values()) == pytest.approx(expected, abs=1e-12)
    assert 1 / 3 < expected[0] < 1


def test_interval_holds_the_value_and_chance_is_a_uniform_guess():
    made = matching()
    for name, (low, high) in made.intervals(200).items():
        assert low < made.compute()[name] < high
    labels = outputs(exclusive=True)["labels"].numpy()
    rng = np.random.default_rng(0)
    many = np.tile(labels.argmax(1), 3000)
    guess = rng.integers(3, size=len(many))
    simulated = (np.mean(many == guess), balanced_accuracy_score(many, guess), f1_score(many, guess, average="macro"))
    assert list(matching(outputs(exclusive=True)).chance().values()) == pytest.approx(simulated, abs=0.005)


def test_tables_agree(tmp_path):
    made, (true, found) = matching(), decided(outputs(exclusive=True, signal=0.4))
    tables = made.tables()
    assert set(tables) == {"matching_per_class", "matching_confusion", "matching_predictions"}
    confusion = tables["matching_confusion"].pivot(index="class", columns="decided", values="n")
    for i, one in enumerate(CLASSES):
        for j, other in enumerate(CLASSES):
            assert confusion.loc[one, other] == np.sum((true == i) & (found == j))
    assert tables["matching_per_class"]["recall"].mean() == pytest.approx(made.compute()["matching/recall_macro"])
    assert len(tables["matching_predictions"]) == 60 * 3
    (path,) = made.figures(tmp_path)
    assert path.name == "matching_confusion.png"


def test_texts_come_from_templates_or_a_file(tmp_path):
    batch = {key: value for key, value in outputs(exclusive=True).items() if key != "prompt_embeddings"}
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({name: f"Brain MRI, {name}" for name in CLASSES} | {"Other": ["x"]}))
    one = matching(batch, embed_text=tower, templates=("Brain MRI, {}",))
    other = matching(batch, embed_text=tower, texts_file=path)
    np.testing.assert_array_equal(one.scores(), other.scores())
    rows = tower([f"Brain MRI, {name}" for name in CLASSES], normalise=True).double()
    np.testing.assert_allclose(one.scores(), batch["embeddings"]["cxr"].double() @ rows.T, atol=1e-6)
    path.write_text(json.dumps({"Glioma": "a"}))
    with pytest.raises(ValueError, match=r"texts\.json: class 'Meningioma' has None as prompts"):
        matching(batch, texts_file=path)
    with pytest.raises(ValueError, match="no text tower for its texts; set embed_text"):
        matching(batch).compute()


@pytest.mark.parametrize("row", [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, torch.nan, 0.0]])
def test_study_without_exactly_one_class_is_named(row):
    batch = outputs(exclusive=True)
    batch["labels"][4] = torch.tensor(row)
    with pytest.raises(ValueError, match=r"^p004: labels .*Matching needs exactly one class per study"):
        matching(batch)


def test_bad_options():
    with pytest.raises(ValueError, match="one class alone is always right"):
        Matching(["Glioma"], "mri")
    with pytest.raises(ValueError, match="matching templates are"):
        Matching(CLASSES, "mri", templates=("a tumor",))
    with pytest.raises(ValueError, match="2 prompt embeddings for 3 classes"):
        matching(outputs(exclusive=True) | {"prompt_embeddings": {"positive": torch.eye(2, 12)}})
