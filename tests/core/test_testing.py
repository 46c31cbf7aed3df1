"""The contract kit: right toys pass every check, and each check catches a toy with the fault it is there for."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch

from medvl_core.errors import PluginError
from medvl_core.manager import GROUP, Component, PluginRecord, Registry, discover
from medvl_core.specs import (
    DatasetSpec,
    EncoderSpec,
    EvaluatorSpec,
    LossSpec,
    Metric,
    PoolingSpec,
    TextInput,
    TextSourceSpec,
)
from medvl_core.testing import ContractViolation, Subject, contract_cases, registry_cases
from medvl_core.testing.cases import CHECKS
from medvl_core.testing.harness import require_close, rng_untouched
from tests.core import wrong_components

TOP_1 = (Metric(name="top_{k}"),)
SHARE = (Metric(name="share"), Metric(name="left_out", unit="classes", higher_is_better=False))
FIELDS = {
    "encoder": (EncoderSpec, {"modality": "cxr", "spatial_dims": 2, "input": wrong_components.IMAGE, "embed_dim": 6}),
    "pooling": (PoolingSpec, {"scope": "global"}),
    "loss": (LossSpec, {"modalities": ("cxr", "report")}),
    "text_source": (TextSourceSpec, {"produces": "report"}),
    "evaluator": (EvaluatorSpec, {"task": "retrieval", "metrics": TOP_1}),
    "dataset": (DatasetSpec, {"modalities": ("ct",), "has": ("reports", "labels"), "data_license": "MIT", "url": "-"}),
}
TEXT = {"modality": "report", "spatial_dims": 0, "input": TextInput(max_length=32)}
REGION = {"scope": "region"}
ZERO_SHOT = {"task": "zero_shot_multilabel", "metrics": SHARE}

RIGHT = [
    ("encoder", "Encoder", {}),
    ("encoder", "TextEncoder", TEXT),
    ("pooling", "Pooling", {}),
    ("pooling", "RegionPooling", REGION),
    ("pooling", "PoolingOfFirstToken", {"order_sensitive": True}),
    ("loss", "Loss", {}),
    ("text_source", "TextSource", {}),
    ("evaluator", "Evaluator", {}),
    ("evaluator", "ZeroShot", ZERO_SHOT),
    ("evaluator", "ZeroShotPredicting", ZERO_SHOT),
    ("dataset", "Dataset", {}),
]
WRONG = [
    ("encoder", "factory_signature", "Encoder", {"tiny": {"widht": 3}}, r"tiny names \['widht'\]"),
    ("encoder", "factory_signature", "encoder_called", {}, "an option 'name'"),
    ("encoder", "shapes", "EncoderOfOtherWidth", {}, "6 wide but embed_dim is 7"),
    ("encoder", "shapes", "Encoder", {"spatial_dims": 3}, "spatial_dims is 3 but its input has 2"),
    ("encoder", "rows_are_independent", "EncoderMixingRows", {}, "row 0 depends on the rest"),
    ("encoder", "padding_has_no_influence", "TextEncoderReadingPadding", TEXT, "padded tokens change the output"),
    ("encoder", "gradients", "EncoderWithIdleParameter", {}, "no gradient reaches the trainable parameter 'idle'"),
    ("encoder", "finite_in_bf16", "EncoderOverflowing", {}, "not finite under bfloat16"),
    ("encoder", "state_dict", "EncoderWithHiddenWeights", {}, "differ after load_state_dict"),
    ("encoder", "global_rng", "EncoderDrawing", {}, "changes the global random state of torch"),
    ("encoder", "global_rng", "seeding_encoder", {}, "building it seeds torch"),
    ("pooling", "factory_signature", "Pooling", {"tiny": {"heads": 3}}, r"tiny names \['heads'\]"),
    ("pooling", "factory_signature", "pooling_of_encoder", {}, "an option 'encoder'"),
    ("pooling", "shapes", "PoolingOfOtherShape", {}, r"shape \(3, 1, 16\), not \(3, 16\)"),
    ("pooling", "shapes", "RegionPoolingDividingByZero", REGION, "the output is not finite"),
    ("pooling", "rows_are_independent", "PoolingMixingRows", {}, "depends on the rest"),
    ("pooling", "padding_has_no_influence", "PoolingReadingPadding", {}, "masked tokens change the output"),
    ("pooling", "padding_has_no_influence", "RegionPoolingReadingBackground", REGION, "the background changes"),
    ("pooling", "order", "PoolingOfFirstToken", {}, "order_sensitive is False but permuted tokens say True"),
    ("pooling", "order", "Pooling", {"order_sensitive": True}, "order_sensitive is True but permuted tokens say False"),
    ("pooling", "gradients", "PoolingWithIdleParameter", {}, "parameter 'idle'"),
    ("pooling", "finite_in_bf16", "PoolingOverflowing", {}, "not finite under bfloat16"),
    ("pooling", "state_dict", "PoolingWithHiddenWeights", {}, "differ after load_state_dict"),
    ("pooling", "global_rng", "PoolingDrawing", {}, "random state of numpy"),
    ("loss", "factory_signature", "Loss", {"tiny": {"pair": 3}}, r"tiny names \['pair'\]"),
    ("loss", "output", "LossOfOtherShape", {}, r"total has shape \(1,\)"),
    ("loss", "reads_what_it_needs", "LossOfExtras", {}, r"reads the extras \['weight'\]"),
    ("loss", "finite_in_half_precision", "LossExponentiating", {}, "at temperature .* in float"),
    ("loss", "gradients", "LossWithoutGradient", {}, "no gradient reaches any embedding"),
    ("loss", "gradients", "LossOfOneSide", {}, "no gradient reaches 'cxr'"),
    ("loss", "order_of_pairs", "LossOfPairOrder", {}, "permuting the pairs changes the total"),
    ("loss", "float64", "LossRounding", {}, "float32 and float64 differ"),
    ("loss", "state_dict", "LossWithHiddenWeights", {}, "differ after load_state_dict"),
    ("loss", "global_rng", "LossDrawing", {}, "random state of torch"),
    ("loss", "output", "LossOfExtras", {"needs": ("weight",)}, "extras={'weight'"),
    ("text_source", "factory_signature", "TextSource", {"tiny": {"n": 3}}, r"tiny names \['n'\]"),
    ("text_source", "one_text_per_study", "TextSourceOfFindings", {}, "the text of study2 .* is ''"),
    ("text_source", "deterministic", "TextSourceCounting", {}, "a second call with the same seed"),
    ("text_source", "studies_untouched", "TextSourceWriting", {}, "texts changed a study"),
    ("text_source", "global_rng", "TextSourceDrawing", {}, "random state of numpy"),
    ("evaluator", "factory_signature", "Evaluator", {"tiny": {"n": 3}}, r"tiny names \['n'\]"),
    ("evaluator", "names", "EvaluatorOfMore", {"metrics": (Metric(name="top_1"),)}, "gives 'top_one'"),
    ("evaluator", "names", "Evaluator", {"metrics": (*TOP_1, Metric(name="rank"))}, r"does not give \['rank'\]"),
    ("evaluator", "names", "EvaluatorOfOtherNames", {}, r"its metrics are \['top_2'\] but compute gives \['top_1'\]"),
    ("evaluator", "reports", "EvaluatorOfStrayInterval", {}, r"intervals names \['top_9'\]"),
    ("evaluator", "reports", "EvaluatorOfEmptyInterval", {}, "the interval of top_1 is"),
    ("evaluator", "reports", "EvaluatorIgnoringSeed", {}, "intervals differ between two calls"),
    ("evaluator", "reports", "EvaluatorDrawingElsewhere", {}, "no file in the folder given"),
    ("evaluator", "protocol", "EvaluatorWithoutReports", {}, "lacks .*'chance'.* of protocols.Evaluator"),
    ("encoder", "protocol", "Encoder", TEXT, r"lacks \['tokenize'\] of protocols.TextEncoder"),
    ("text_source", "protocol", "Dataset", {}, r"lacks \['texts'\]"),
    ("dataset", "protocol", "TextSource", {}, r"lacks \['label_names', 'studies'\]"),
    ("evaluator", "perfect_is_one", "EvaluatorOfLess", {}, "top_1 is 0.5 for a perfect model"),
    ("evaluator", "split_updates", "EvaluatorOfLastBatch", {}, "split updates give"),
    ("evaluator", "reset_forgets", "EvaluatorRemembering", {}, "after reset it gives"),
    ("evaluator", "class_without_positives", "ZeroShotCountingEmptyAsZero", ZERO_SHOT, "left_out is 0.0"),
    (
        "evaluator",
        "class_without_positives",
        "ZeroShot",
        {**ZERO_SHOT, "metrics": (Metric(name=".*"),)},
        "unit 'classes'",
    ),
    ("evaluator", "abilities", "ZeroShotPredictingOther", ZERO_SHOT, "predict and predictions differ on the same"),
    ("evaluator", "abilities", "ZeroShotPredictingScores", ZERO_SHOT, "something else than probabilities"),
    ("evaluator", "abilities", "ZeroShotScoringOthers", ZERO_SHOT, "of other classes or studies"),
    ("evaluator", "abilities", "EvaluatorOfHalfAnAbility", {}, "one of train and learn"),
    ("evaluator", "global_rng", "EvaluatorDrawing", {}, "random state of torch"),
    ("dataset", "factory_signature", "Dataset", {"tiny": {"n": 3}}, r"tiny names \['n'\]"),
    ("dataset", "stable_order", "DatasetShuffling", {}, "a second call gives other studies"),
    ("dataset", "ids", "DatasetWithOneId", {}, r"more than once: \['same'\]"),
    ("dataset", "subjects_are_disjoint", "DatasetWithOneSubject", {}, "both train and validation"),
    ("dataset", "labels", "DatasetWithOtherLabels", {}, "study0: label 'a' is 2.0"),
    ("dataset", "labels", "DatasetWithUnknownLabels", {}, r"\['b'\] are not in label_names"),
    ("dataset", "keeps_its_promises", "DatasetWithoutReports", {}, "has 'reports' but no study does"),
    ("dataset", "images", "DatasetWithNaN", {}, "image 'ct' is not finite"),
    ("dataset", "fields", "DatasetNamingLabels", {}, "the field 'labels' is in every batch already"),
    ("dataset", "fields", "DatasetDrawing", {}, "the field 'age' gives 0, then 1 for the same draw"),
    ("dataset", "global_rng", "DatasetSeeding", {}, "random state of numpy"),
]


def component(kind, factory, changes):
    spec, fields = FIELDS[kind]
    common = {"name": "toy", "summary": "s", "source": "medvl", "license": "MIT"}
    spec = spec(factory=f"{wrong_components.__name__}:{factory}", **{**common, **fields, **changes})
    return Component(PluginRecord(id="toys", specs=(spec,)), spec)


def checks(kind):
    return {check.__name__: check for check in CHECKS[kind]}


@pytest.mark.parametrize(("kind", "factory", "changes"), RIGHT, ids=[case[1] for case in RIGHT])
def test_right_component_passes_every_check(kind, factory, changes):
    for check in CHECKS[kind]:
        check(Subject(component(kind, factory, changes)))


@pytest.mark.parametrize(
    ("kind", "check", "factory", "changes", "message"), WRONG, ids=[f"{case[0]}-{case[1]}-{case[2]}" for case in WRONG]
)
def test_wrong_component_is_caught(kind, check, factory, changes, message):
    with pytest.raises(ContractViolation, match=f"toys/toy: .*{message}"):
        checks(kind)[check](Subject(component(kind, factory, changes)))


def test_every_check_has_a_component_that_it_catches():
    caught = {(kind, check) for kind, check, *_ in WRONG}
    assert caught == {(kind, check) for kind in CHECKS for check in checks(kind)}


def test_every_check_states_its_rule():
    assert all(check.__doc__ for kind in CHECKS for check in CHECKS[kind])


def test_extras_reach_the_loss():
    subject = Subject(component("loss", "LossOfExtras", {"needs": ("weight",)}), extras={"weight": torch.ones})
    for check in CHECKS["loss"]:
        check(subject)


def test_options_replace_tiny():
    subject = Subject(component("text_source", "TextSource", {"tiny": {"nonsense": 1}}), options=lambda: {})
    checks("text_source")["one_text_per_study"](subject)


def cases_of(factory, **arguments):
    arguments = {"options": {}, "extras": {}, "known_failures": {}, **arguments}
    return registry_cases(Registry([component("encoder", factory, {}).plugin]), **arguments)


def test_cases_are_named_and_callable():
    cases = {case.id: case.values[0] for case in cases_of("EncoderOfOtherWidth")}
    assert list(cases) == [f"encoder/toy/{name}" for name in checks("encoder")]
    cases["encoder/toy/gradients"]()
    with pytest.raises(ContractViolation, match="embed_dim is 7"):
        cases["encoder/toy/shapes"]()


def test_known_failure_is_a_strict_xfail_with_its_reason():
    known = {"encoder/toy/shapes": "the published width is wrong"}
    (marked,) = (case for case in cases_of("EncoderOfOtherWidth", known_failures=known) if case.marks)
    assert marked.id == "encoder/toy/shapes"
    assert marked.marks[0].kwargs == {"reason": known[marked.id], "strict": True, "raises": ContractViolation}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"known_failures": {"encoder/toy/shape": "x"}}, "did you mean 'encoder/toy/shapes'"),
        ({"options": {"encoder/tyo": dict}}, "did you mean 'encoder/toy'"),
    ],
)
def test_names_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cases_of("Encoder", **arguments)


def test_contract_cases_of_a_module_that_is_not_installed(tmp_path, monkeypatch):
    source = """
from medvl_core.hookspecs import hookimpl
MEDVL_API = "1.0"
@hookimpl
def medvl_encoders():
    return []
"""
    (tmp_path / "light_plugin.py").write_text(source)
    (tmp_path / "heavy_plugin.py").write_text(f"import torch\n{source}")
    monkeypatch.syspath_prepend(tmp_path)
    (light,), (heavy,) = contract_cases("light_plugin"), contract_cases("heavy_plugin")
    assert light.id == "light_plugin/discovery_is_light"
    light.values[0]()
    with pytest.raises(ContractViolation, match="importing the plugin module loads torch"):
        heavy.values[0]()


def test_contract_cases_of_a_broken_module_fail_at_collection():
    with pytest.raises(PluginError, match="No module named 'a_module_nobody_has'"):
        contract_cases("a_module_nobody_has")


def test_building_for_a_check_leaves_the_global_random_states_alone():
    subject = Subject(component("encoder", "Encoder", {}))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, second, other = subject.build(seed=0), subject.build(seed=0), subject.build(seed=1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert torch.equal(first.layer.weight, second.layer.weight)
    assert not torch.equal(first.layer.weight, other.layer.weight)


def test_nan_is_never_close():
    subject = Subject(component("encoder", "Encoder", {}))
    nan, zero = torch.tensor([float("nan")]), torch.zeros(1)
    with pytest.raises(ContractViolation, match="differ"):
        require_close(nan, zero, subject, "differ")
    with pytest.raises(ContractViolation, match="shapes"):
        require_close(zero, torch.zeros(2), subject, "differ")


def test_rng_guard_names_the_library():
    subject = Subject(component("encoder", "Encoder", {}))
    message = "drawing changes the global random state of torch, numpy"
    with pytest.raises(ContractViolation, match=message), rng_untouched(subject, "drawing"):
        np.random.random(torch.rand(2).shape)


def test_the_toys_are_found_through_their_entry_point():
    point = EntryPoint(name="baseline", value="medvl_baseline.plugin", group=GROUP)
    kinds = {case.kind for case in discover([point]).components()}
    assert kinds == set(CHECKS)
