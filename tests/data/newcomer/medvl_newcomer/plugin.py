"""Specs of the seven components."""

from __future__ import annotations

from medvl_core import specs
from medvl_core.hookspecs import hookimpl

MEDVL_API = "1.0"
_ABOUT = {"source": "medvl", "license": "Apache-2.0"}
_FACTORIES = "medvl_newcomer.components:"


@hookimpl
def medvl_encoders() -> list[specs.EncoderSpec]:
    """Radiographs and volumes of one size each, and text."""
    film = specs.ImageInput(channels=1, size=(40, 40))
    volume = specs.ImageInput(channels=1, size=(24, 24, 16), axcodes="RAS", window_hu=(-1000, 400))
    rows = [
        ("film", "cxr", 2, film, 12),
        ("volume", "ct", 3, volume, 10),
        ("words", "report", 0, specs.TextInput(max_length=32), 14),
    ]
    return [
        specs.EncoderSpec(
            name=name,
            factory=f"{_FACTORIES}{name.capitalize()}",
            summary=f"Patches of a {name}",
            modality=modality,
            spatial_dims=dims,
            input=reads,
            embed_dim=width,
            **_ABOUT,
        )
        for name, modality, dims, reads, width in rows
    ]


@hookimpl
def medvl_poolings() -> list[specs.PoolingSpec]:
    """A learned one, which needs the width."""
    return [
        specs.PoolingSpec(
            name="gate",
            factory=f"{_FACTORIES}Gate",
            summary="Gated mean",
            tiny={"embed_dim": 12},
            scope="global",
            **_ABOUT,
        )
    ]


@hookimpl
def medvl_losses() -> list[specs.LossSpec]:
    """One over any two modalities, and one that needs an entry that only its own data set has."""
    return [
        specs.LossSpec(name="pull", factory=f"{_FACTORIES}Pull", summary="Mean squared distance", **_ABOUT),
        specs.LossSpec(name="ages", factory=f"{_FACTORIES}Ages", summary="By age", needs=("age",), **_ABOUT),
    ]


@hookimpl
def medvl_text_sources() -> list[specs.TextSourceSpec]:
    """The report in capitals."""
    return [
        specs.TextSourceSpec(
            name="loud", factory=f"{_FACTORIES}Loud", summary="Reports in capitals", produces="report", **_ABOUT
        )
    ]


@hookimpl
def medvl_evaluators() -> list[specs.EvaluatorSpec]:
    """Agreement of the labels of neighbours."""
    return [
        specs.EvaluatorSpec(
            name="knn",
            factory=f"{_FACTORIES}Neighbours",
            summary="Labels of the nearest other patient",
            task="classification",
            metrics=(specs.Metric(name="knn/agreement"),),
            **_ABOUT,
        )
    ]


@hookimpl
def medvl_datasets() -> list[specs.DatasetSpec]:
    """A folder of arrays."""
    return [
        specs.DatasetSpec(
            name="cohort",
            factory=f"{_FACTORIES}Cohort",
            summary="Arrays in a folder",
            modalities=("ct", "cxr"),
            has=("reports", "labels"),
            data_license="Apache-2.0",
            url="medvl",
            **_ABOUT,
        )
    ]
