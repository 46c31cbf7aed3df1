from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from medvl_baseline.external import ExternalValidation
from medvl_core.protocols import Classifies, Predicts, Scores
from medvl_evaluation.abilities import Learns, ReadsTexts, Wraps, ability
from medvl_evaluation.evaluators.linear_probe import LinearProbe
from medvl_evaluation.evaluators.prompt_sensitivity import PromptSensitivity
from medvl_evaluation.evaluators.retrieval import Retrieval
from medvl_evaluation.evaluators.subgroups import Subgroups
from medvl_evaluation.evaluators.zero_shot import ZeroShot

CLASSES = ("a", "b")


@pytest.fixture
def external(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"a": ["x"], "b": ["y"]}))
    return lambda evaluator: ExternalValidation(evaluator, ("x", "y"), tmp_path / "map.json")


def test_a_wrapper_lends_what_it_wraps_through_every_layer(external):
    zero_shot = ZeroShot(CLASSES, "cxr")
    outer = Subgroups(external(zero_shot), "sex")
    for kind in (Scores, Predicts, ReadsTexts):
        assert ability(outer, kind) is zero_shot
    assert ability(outer, Learns) is None
    assert ability(Retrieval("cxr", "ct"), Scores) is None
    probe = LinearProbe(CLASSES, "cxr", scheme="train")
    assert ability(external(probe), Learns) is probe
    assert ability(external(probe), Predicts) is None  # every fold has a probe of its own


def test_a_wrapper_around_what_does_not_score_is_refused_when_it_is_built(external):
    """The wrapper has classes, but what it wraps has no predictions: it came to light after the pass."""
    with pytest.raises(ValueError, match=r"ExternalValidation has no predictions\(\)"):
        Subgroups(external(PromptSensitivity(CLASSES, "cxr")), "sex")


@pytest.mark.parametrize(
    "kind", [Classifies, Scores, Predicts, Learns, ReadsTexts, Wraps], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("page", ["hooks.md", "evaluation.md"])
def test_the_pages_list_every_ability_with_its_members(kind, page):
    lines = (Path(__file__).parents[2] / "docs" / "reference" / page).read_text().splitlines()
    (row,) = [line for line in lines if line.startswith(f"| `{kind.__name__}`")]
    members = {*vars(kind), *kind.__annotations__} - {"evaluator"} if kind is not Wraps else {"evaluator"}
    for name in members:
        assert name.startswith("_") or re.search(rf"`{name}\b", row), name


def test_ours_have_the_abilities_that_the_page_says():
    text = (Path(__file__).parents[2] / "docs" / "reference" / "evaluation.md").read_text()
    for kind in (Scores, Predicts, Learns, ReadsTexts):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{kind.__name__}`")]
        for name, made in (("zero_shot", ZeroShot(CLASSES, "cxr")), ("linear_probe", LinearProbe(CLASSES, "cxr"))):
            assert isinstance(made, kind) == (f"`{name}`" in row)
