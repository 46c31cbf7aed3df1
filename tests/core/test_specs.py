from __future__ import annotations

import dataclasses

import pytest

from medvl_core.specs import KINDS, ImageInput, LossSpec, TextInput

LOSS = {"name": "infonce", "factory": "package.module:Loss", "summary": "s", "source": "medvl", "license": "MIT"}
VOLUME = {"channels": 1, "size": (8, 8, 8), "axcodes": "RAS"}
FILM = {"size": (8, 8), "axcodes": None}


def test_kinds_are_the_specs_own():
    assert all(spec.kind == kind for kind, spec in KINDS.items())
    assert list(KINDS) == ["encoder", "pooling", "loss", "text_source", "evaluator", "dataset"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "InfoNCE"}, "component name 'InfoNCE' is not lower snake case"),
        ({"factory": "package.module.Loss"}, "infonce: factory .* is not of the form"),
        ({"summary": " "}, "infonce: summary must be one non-empty line"),
        ({"source": "a\nb"}, "infonce: source must be one non-empty line"),
        ({"license": None}, "infonce: license must be one non-empty line, got None"),
    ],
)
def test_component_spec_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        LossSpec(**{**LOSS, **change})


def test_specs_cannot_be_changed():
    tiny = {"pair": ("cxr", "report")}
    spec = LossSpec(**LOSS, tiny=tiny)
    tiny["pair"] = ()
    assert spec.tiny == {"pair": ("cxr", "report")}
    with pytest.raises(TypeError, match="does not support item assignment"):
        spec.tiny["pair"] = ()
    with pytest.raises(dataclasses.FrozenInstanceError, match="name"):
        spec.name = "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (8,)}, r"ImageInput.size is \(8,\)"),
        ({"size": (8, 0, 8)}, "each at least 1"),
        ({"axcodes": None}, "volumes need it"),
        ({"size": (8, 8)}, "2D images have none"),
        ({"spacing_mm": (1.0, 1.0)}, "differ in length"),
        ({"window_hu": (100.0, 100.0)}, "the lower bound must be below the upper"),
        ({**FILM, "fit": "stretch"}, "ImageInput.fit is 'stretch'"),
        ({**FILM, "interpolation": "cubical"}, "give cover, contain or slices, and linear or cubic"),
        ({"interpolation": "cubic"}, "are for 2D images"),
        ({"window_sd": 3.0, "window_hu": (0.0, 1.0)}, "window_sd is 3.0 and window_hu .*; give one of the two"),
        ({"window_hu": None, "window_sd": 0.0}, "deviations above 0"),
        ({**FILM, "fit": "slices"}, "which is for volumes without spacing_mm"),
        ({"fit": "slices", "spacing_mm": (1.0, 1.0, 1.0)}, "which is for volumes without spacing_mm"),
        ({"mean": (0.5,)}, "give both, one value per channel"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, r"do not fit 1 channel\(s\)"),
        ({"mean": (0.5,), "std": (0.0,)}, "std positive"),
    ],
)
def test_image_input_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        ImageInput(**{**VOLUME, **change})


def test_digest_changes_with_every_constant():
    changes = [
        {},
        {"channels": 3},
        {"size": (8, 8, 9)},
        {"axcodes": "LPS"},
        {"spacing_mm": (1.0, 1.0, 1.0)},
        {"window_hu": (-1000.0, 1000.0)},
        {"window_sd": 3.0},
        {"fit": "slices"},
        {"output_range": (0.0, 1.0)},
        {"pad_value": 0.0},
        {"mean": (0.5,), "std": (0.5,)},
        {"mean": (0.5,), "std": (0.6,)},
        FILM,
        {**FILM, "fit": "contain"},
        {**FILM, "interpolation": "cubic"},
    ]
    digests = [ImageInput(**{**VOLUME, **change}).digest() for change in changes]
    assert len(set(digests)) == len(changes)
    assert ImageInput(**VOLUME).digest() == digests[0]
    texts = (TextInput(max_length=8), TextInput(max_length=9), TextInput(max_length=8, lower_case=False))
    assert len({text.digest() for text in texts}) == 3
