from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

import medvl_core
from medvl_core.build import build_component, component_options, load_factory
from medvl_core.errors import ComponentError, ComponentLookupError, OptionError
from medvl_core.manager import Component, PluginRecord, Registry, discover, using
from medvl_core.specs import KINDS, DatasetSpec, EncoderSpec, EvaluatorSpec, ImageInput, LossSpec

COMMON = {"summary": "s", "source": "medvl", "license": "MIT"}
INPUT = ImageInput(channels=1, size=(8, 8))


def make_encoder(width: int = 4, depth: int = 2):
    return SimpleNamespace(width=width, depth=depth)


def make_wide_encoder(width: int):
    return SimpleNamespace(embed_dim=width, input=ImageInput(channels=3, size=(4, 4)))


def make_anything(**options):
    return SimpleNamespace(options=options)


def make_error():
    raise ZeroDivisionError("the factory's own error")


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    """One plugin whose factories are the functions above."""
    module = ModuleType("a_factory_module")
    for function in (make_encoder, make_wide_encoder, make_anything, make_error):
        setattr(module, function.__name__, function)
    module.number = 3
    monkeypatch.setitem(sys.modules, "a_factory_module", module)
    encoders = [
        EncoderSpec(
            name=name,
            factory=f"a_factory_module:{factory}",
            modality="cxr",
            spatial_dims=2,
            input=INPUT,
            embed_dim=4,
            **COMMON,
        )
        for name, factory in (
            ("plain", "make_encoder"),
            ("wide", "make_wide_encoder"),
            ("failing", "make_error"),
            ("gone", "make_encodr"),
            ("number", "number"),
        )
    ]
    loss = LossSpec(name="any", factory="a_factory_module:make_anything", needs=("age",), **COMMON)
    lost = EvaluatorSpec(name="lost", factory="a_module_nobody_has:f", task="retrieval", metrics=(), **COMMON)
    record = PluginRecord(id="mine", distribution="medvl-mine", version="1.0", specs=(*encoders, loss, lost))
    with using(Registry([record])):
        yield


def component(kind: str, name: str) -> Component:
    return medvl_core.manager.registry().find(kind, name)


def test_every_kind_has_a_builder():
    for kind in KINDS:
        with pytest.raises(ComponentLookupError, match=f"no {kind} is called 'nope'"):
            getattr(medvl_core, f"build_{kind}")("nope")


def test_encoder_gets_what_the_factory_did_not_set():
    encoder = medvl_core.build_encoder("plain", width=7)
    assert encoder.width == 7
    assert (encoder.embed_dim, encoder.input, encoder.component) == (4, INPUT, "mine/plain")


def test_encoder_keeps_what_the_factory_set():
    encoder = medvl_core.build_encoder("mine/wide", width=9)
    assert encoder.embed_dim == 9
    assert encoder.input.channels == 3


def test_unknown_option_lists_the_options():
    with pytest.raises(OptionError, match=r"has no option 'widht'; did you mean 'width'\?\n  options: width=4"):
        medvl_core.build_encoder("plain", widht=3)


def test_missing_option_is_named():
    with pytest.raises(OptionError, match="mine/wide needs the option width"):
        medvl_core.build_encoder("wide")


def test_factory_that_takes_anything_gets_everything():
    loss = medvl_core.build_loss("any", a=1)
    assert (loss.options, loss.component, loss.needs) == ({"a": 1}, "mine/any", ("age",))


def test_options_for_apply_to_the_named_component_only():
    options = {"options_for": {"mine/plain": {"depth": 5, "width": 1}, "mine/wide": {"width": 6}}}
    plain = medvl_core.build_encoder("plain", width=3, **options)
    assert (plain.depth, plain.width) == (5, 3)
    assert medvl_core.build_encoder("mine/wide", **options).embed_dim == 6


def test_offers_reach_a_component_that_has_the_option_and_no_other():
    offers = {"width": 9, "depth": 7, "colour": "red"}
    made = medvl_core.build_encoder("plain", offers=offers, options_for={"mine/plain": {"depth": 3}}, width=5)
    assert made.built_with == {"width": 5, "depth": 3}
    assert medvl_core.build_encoder("wide", offers=offers).built_with == {"width": 9}
    with pytest.raises(OptionError, match="mine/plain has no option 'colour'"):
        medvl_core.build_encoder("plain", colour="red")


def test_a_pooling_is_offered_the_width_of_its_encoder():
    with using(discover()):
        made = medvl_core.build_pooling("baseline/attention", encoder=SimpleNamespace(embed_dim=16), heads=2)
        takes_any = medvl_core.build_pooling("baseline/mean", encoder=SimpleNamespace(embed_dim=16))
    assert made.built_with == {"embed_dim": 16, "heads": 2}
    assert takes_any.built_with == {}


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (lambda dataset_dir: {"dataset_dir": dataset_dir}, {"dataset_dir": "D"}),
        (lambda root: {"root": root}, {"root": "D"}),
        (lambda table, root=None: {"table": table, "root": root}, {"table": "T", "root": None}),
    ],
)
def test_the_folder_of_the_data_is_offered_under_the_datasets_own_name(factory, expected):
    sys.modules["a_factory_module"].make_dataset = factory
    spec = DatasetSpec(
        name="cohort",
        factory="a_factory_module:make_dataset",
        modalities=("ct",),
        has=(),
        data_license="MIT",
        url="u",
        **COMMON,
    )
    with using(Registry([PluginRecord(id="mine", distribution="medvl-mine", version="1.0", specs=(spec,))])):
        assert medvl_core.build_dataset("mine/cohort", offers={"folder": "D", "table": "T"}) == expected


def test_factory_error_is_passed_on_with_a_note():
    with pytest.raises(ZeroDivisionError, match="the factory's own error") as caught:
        medvl_core.build_encoder("failing")
    assert caught.value.__notes__ == ["while building encoder mine/failing (medvl-mine 1.0)"]


def test_missing_factory_suggests():
    with pytest.raises(ComponentError, match="is not a callable; did you mean 'make_encoder'"):
        load_factory(component("encoder", "gone"))
    with pytest.raises(ComponentError, match="'a_factory_module:number' is not a callable"):
        build_component(component("encoder", "number"), {})


def test_missing_module_is_passed_on_with_a_note():
    with pytest.raises(ModuleNotFoundError, match="a_module_nobody_has") as caught:
        medvl_core.build_evaluator("lost")
    assert "for evaluator mine/lost" in caught.value.__notes__[0]


def test_component_options_are_the_factorys():
    assert list(component_options(component("encoder", "plain"))) == ["width", "depth"]
