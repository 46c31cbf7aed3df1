"""What this plugin offers. It imports specs only: torch is imported when a component is built."""

from __future__ import annotations

from medvl_core import specs
from medvl_core.hookspecs import hookimpl

MEDVL_API = "1.0"


@hookimpl
def medvl_encoders() -> list[specs.EncoderSpec]:
    """One small vision transformer for radiographs."""
    return [
        specs.EncoderSpec(
            name="tiny_vit",
            factory="medvl_example.encoders:build_tiny_vit",
            summary="Two-layer vision transformer for radiographs",
            source="arXiv:2010.11929",
            license="Apache-2.0",
            tiny={"size": (32, 32), "width": 16, "layers": 1, "heads": 2},
            modality="cxr",
            spatial_dims=2,
            input=specs.ImageInput(channels=1, size=(128, 128)),
            embed_dim=64,
        )
    ]


@hookimpl
def medvl_poolings() -> list[specs.PoolingSpec]:
    """A mean in which each token has a learned weight."""
    return [
        specs.PoolingSpec(
            name="weighted_mean",
            factory="medvl_example.poolings:WeightedMean",
            summary="Mean of the tokens under learned weights",
            source="arXiv:1802.04712",
            license="Apache-2.0",
            tiny={"embed_dim": 16},
            scope="global",
        )
    ]


@hookimpl
def medvl_losses() -> list[specs.LossSpec]:
    """A contrastive loss that needs an entry of its own: the patients' ages."""
    return [
        specs.LossSpec(
            name="age_aware",
            factory="medvl_example.losses:AgeAware",
            summary="InfoNCE in which patients of similar age are no negatives",
            source="arXiv:2106.08808",
            license="Apache-2.0",
            tiny={"pair": ("cxr", "report")},
            needs=("age",),
        )
    ]


@hookimpl
def medvl_text_sources() -> list[specs.TextSourceSpec]:
    """A few sentences of the report, others in each epoch."""
    return [
        specs.TextSourceSpec(
            name="random_sentences",
            factory="medvl_example.text_sources:RandomSentences",
            summary="A few sentences of the report, drawn anew in each epoch",
            source="medvl",
            license="Apache-2.0",
            produces="report",
        )
    ]


@hookimpl
def medvl_evaluators() -> list[specs.EvaluatorSpec]:
    """How close the two embeddings of a study are."""
    return [
        specs.EvaluatorSpec(
            name="pair_cosine",
            factory="medvl_example.evaluators:PairCosine",
            summary="Mean cosine between two embeddings of one study",
            source="arXiv:2005.10242",
            license="Apache-2.0",
            tiny={"query": "cxr", "gallery": "report"},
            task="alignment",
            metrics=(specs.Metric(name="{query}_to_{gallery}/cosine"),),
        )
    ]


@hookimpl
def medvl_datasets() -> list[specs.DatasetSpec]:
    """A generated cohort that also offers the age."""
    return [
        specs.DatasetSpec(
            name="balls",
            factory="medvl_example.datasets:Balls",
            summary="Generated patients: a ball of water, perhaps with a nodule, and their ages",
            source="medvl",
            license="Apache-2.0",
            tiny={"n_subjects": 10, "shape": (16, 16, 16)},
            modalities=("ct", "cxr"),
            has=("reports", "labels"),
            data_license="Apache-2.0",
            url="medvl",
        )
    ]
