from __future__ import annotations

import numpy as np
import pytest

from medvl_core.protocols import Evaluator
from medvl_evaluation.evaluators.prompt_sensitivity import PromptSensitivity
from medvl_evaluation.evaluators.prompts import WORDINGS
from medvl_evaluation.evaluators.zero_shot import ZeroShot
from tests.evaluation.evaluator_data import outputs, part, tower

CLASSES = ("Nodule", "Hernia", "Effusion")


def batch():
    return {key: value for key, value in outputs().items() if key != "prompt_embeddings"}


def made(**options) -> PromptSensitivity:
    evaluator = PromptSensitivity(CLASSES, "cxr", tower, **options)
    evaluator.update(batch())
    return evaluator


def test_every_wording_gives_what_zero_shot_gives_with_it(tmp_path):
    evaluator = made(positive=("Signs of {}.",), negative=("Clear of {}.",))
    sides = {"headline": {"positive": ("Signs of {}.",), "negative": ("Clear of {}.",)}, **WORDINGS}
    found = {}
    for name, options in sides.items():
        alone = ZeroShot(CLASSES, "cxr", tower, **options)
        alone.update(batch())
        found[name] = alone.compute()["auroc_macro"]
    table = evaluator.tables(20)["prompts_wordings"]
    assert dict(zip(table["wording"], table["auroc_macro"], strict=True)) == pytest.approx(found)
    values = evaluator.compute()
    assert isinstance(evaluator, Evaluator)
    assert values == pytest.approx(
        {
            "prompts/auroc_macro_headline": found["headline"],
            "prompts/auroc_macro_worst": min(found.values()),
            "prompts/auroc_macro_best": max(found.values()),
            "prompts/auroc_macro_spread": max(found.values()) - min(found.values()),
        }
    )
    assert values["prompts/auroc_macro_spread"] > 0.05
    (path,) = evaluator.figures(tmp_path, 20)
    assert path.name == "prompts_wordings.png"


def test_intervals_and_split_updates():
    evaluator, parts = made(), PromptSensitivity(CLASSES, "cxr")
    parts.embed_text = tower
    for rows in (slice(0, 7), slice(7, 60)):
        parts.update(part(batch(), rows))
    assert parts.compute() == evaluator.compute()
    for name, (low, high) in evaluator.intervals(100).items():
        assert 0 <= low <= evaluator.compute()[name] <= high <= 1


def test_one_wording_has_no_spread():
    evaluator = made(wordings={"same": {"positive": ("{} is present.",), "negative": ("{} is not present.",)}})
    assert evaluator.compute()["prompts/auroc_macro_spread"] == 0
    assert evaluator.chance()["prompts/auroc_macro_spread"] == 0


def test_unusable_wordings_and_prompts():
    for wordings, message in (
        ({}, "name one or more, none 'headline'"),
        ({"headline": {}}, "name one or more, none 'headline'"),
        ({"a": {"positive": ("{}",)}}, r"wording 'a' has \['positive'\]; give positive and negative"),
        ({"a": {"positive": ("x",), "negative": ("{}",)}}, "positive templates are"),
    ):
        with pytest.raises(ValueError, match=message):
            PromptSensitivity(CLASSES, "cxr", wordings=wordings)
    with pytest.raises(ValueError, match=r"prompt_embeddings lack the wordings \['headline', "):
        made().update(outputs())
    evaluator = PromptSensitivity(CLASSES, "cxr")
    evaluator.update(batch())
    with pytest.raises(ValueError, match="no text tower for its prompts"):
        evaluator.compute()


def test_tables_name_the_templates():
    table = made(positive=("{} is present.", "There is {}.")).tables(5)["prompts_wordings"]
    assert table["positive"][0] == "{} is present. | There is {}."
    assert np.isfinite(table.filter(regex="auroc|auprc").to_numpy()).all()
