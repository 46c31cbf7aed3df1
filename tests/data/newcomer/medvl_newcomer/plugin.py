"""Specs of the seven components."""

from __future__ import annotations

from medvl_core import specs
from medvl_core.hookspecs import hookimpl

MEDVL_API = "1.0"


def _of(name: str, factory: str, summary: str) -> dict[str, str]:
    """What all of them state."""
    place = f"medvl_newcomer.components:{factory}"
    return {"name": name, "factory": place, "summary": summary, "source": "medvl", "license": "Apache-2.0"}


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
            **_of(name, name.capitalize(), f"Patches of a {name}"),
            modality=modality,
            spatial_dims=dims,
            input=reads,
            embed_dim=width,
        )
        for name, modality, dims, reads, width in rows
    ]


@hookimpl
def medvl_poolings() -> list[specs.PoolingSpec]:
    """A learned one, which needs the width."""
    return [specs.PoolingSpec(**_of("gate", "Gate", "Gated mean"), tiny={"embed_dim": 12}, scope="global")]


@hookimpl
def medvl_losses() -> list[specs.LossSpec]:
    """One over any two modalities, and one that needs an entry that only its own data set has."""
    return [
        specs.LossSpec(**_of("pull", "Pull", "Mean squared distance")),
        specs.LossSpec(**_of("ages", "Ages", "By age"), needs=("age",)),
    ]


@hookimpl
def medvl_text_sources() -> list[specs.TextSourceSpec]:
    """The report in capitals."""
    return [specs.TextSourceSpec(**_of("loud", "Loud", "Reports in capitals"), produces="report")]


@hookimpl
def medvl_evaluators() -> list[specs.EvaluatorSpec]:
    """Agreement of the labels of neighbours."""
    return [
        specs.EvaluatorSpec(
            **_of("knn", "Neighbours", "Labels of the nearest other patient"),
            task="classification",
            metrics=(specs.Metric(name="knn/agreement"),),
        )
    ]


@hookimpl
def medvl_datasets() -> list[specs.DatasetSpec]:
    """A folder of arrays."""
    return [
        specs.DatasetSpec(
            **_of("cohort", "Cohort", "Arrays in a folder"),
            modalities=("ct", "cxr"),
            has=("reports", "labels"),
            data_license="Apache-2.0",
            url="medvl",
        )
    ]
