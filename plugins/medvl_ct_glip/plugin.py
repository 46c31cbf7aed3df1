"""What this plugin offers. Imports specs only: discovery loads neither torch nor monai."""

from __future__ import annotations

from functools import partial

from medvl_core.hookspecs import hookimpl
from medvl_core.specs import (
    DatasetSpec,
    EncoderSpec,
    EvaluatorSpec,
    ImageInput,
    LossSpec,
    Metric,
    PoolingSpec,
    TextSourceSpec,
)

MEDVL_API = "1.0"

BODY_CT = ImageInput(
    channels=1,
    size=(192, 192, 48),
    axcodes="LPS",  # read from behind: depth, row, column of the arrays that nnU-Net and UniMiSS were trained on
    spacing_mm=(1.0, 1.0, 3.0),
    window_hu=(-1000.0, 1000.0),
    output_range=(-1.0, 1.0),
    pad_value=-1.0,
)
_APACHE = "Apache-2.0"
_PAPER = "arXiv:2404.15272"


@hookimpl
def medvl_encoders() -> list[EncoderSpec]:
    """Networks that give a high-resolution map and segmentation logits."""

    def spec(name: str, summary: str, source: str, embed_dim: int, tiny: dict[str, object]) -> EncoderSpec:
        return EncoderSpec(
            name=name,
            factory=f"medvl_ct_glip.volume_encoders:build_{name}",
            summary=summary,
            source=source,
            license=_APACHE,
            tiny={"num_classes": 5, **tiny},
            modality="ct",
            spatial_dims=3,
            input=BODY_CT,
            embed_dim=embed_dim,
        )

    small_unet: dict[str, object] = {"size": (16, 16, 16), "features": (8, 16)}
    return [
        spec("nnunet", "PlainConvUNet as nnU-Net configures it", "doi:10.1038/s41592-020-01008-z", 32, small_unet),
        spec("mit", "MiT of UniMiSS, small or tiny", "arXiv:2112.09356", 32, {"size": (64, 64, 16), "variant": "tiny"}),
        spec(
            "dynunet", "DynUNet of MONAI", "doi:10.1038/s41592-020-01008-z", 32, {**small_unet, "features": (8, 8, 16)}
        ),
        spec("swin_unetr", "SwinUNETR of MONAI", "arXiv:2201.01266", 24, {"size": (64, 32, 32), "feature_size": 12}),
    ]


@hookimpl
def medvl_poolings() -> list[PoolingSpec]:
    """One vector per organ."""
    return [
        PoolingSpec(
            name="organ_mean",
            factory="medvl_ct_glip.organ_mean:OrganMean",
            summary="Mean inside each organ mask, all organs in one pass",
            source=_PAPER,
            license=_APACHE,
            tiny={"n_regions": 4},
            scope="region",
        )
    ]


@hookimpl
def medvl_losses() -> list[LossSpec]:
    """Organ-level objectives."""
    return [
        LossSpec(
            name="organ_contrast",
            factory="medvl_ct_glip.organ_contrast:OrganContrast",
            summary="Organs against organ names or diagnoses of their scan, with an abnormality dictionary",
            source=_PAPER,
            license=_APACHE,
            tiny={"text": "anatomy"},
            modalities=("ct", "anatomy"),
            needs=("scan", "anatomy_group"),
        ),
        LossSpec(
            name="segmentation",
            factory="medvl_ct_glip.segmentation:SegmentationLoss",
            summary="Cross-entropy and Dice on organ masks, with deep supervision",
            source="doi:10.1038/s41592-020-01008-z",
            license=_APACHE,
            needs=("logits", "regions"),
        ),
    ]


@hookimpl
def medvl_evaluators() -> list[EvaluatorSpec]:
    """Organs and their abnormalities, zero-shot."""
    evaluator = partial(EvaluatorSpec, license=_APACHE, source=_PAPER)
    return [
        evaluator(
            name="organ_recognition",
            factory="medvl_ct_glip.organ_recognition:OrganRecognition",
            summary="Every organ of every scan against the names of all organs",
            tiny={"regions": ("spleen", "liver", "aorta")},
            task="organ_recognition",
            metrics=(Metric(name="{prefix}/top_1"), Metric(name="{prefix}/top_1_macro")),
        ),
        evaluator(
            name="organ_abnormality",
            factory="medvl_ct_glip.organ_abnormality:OrganAbnormality",
            summary="Zero-shot abnormalities per organ, pooled and one by one",
            tiny={
                "regions": ("spleen", "aorta", "liver"),
                "label_names": ("Splenomegaly", "Arteriosclerosis", "Fatty liver"),
            },
            task="organ_abnormality",
            metrics=(
                Metric(name="{prefix}/ppv"),
                Metric(name="{prefix}/sensitivity"),
                Metric(name="{prefix}/f1"),
                Metric(name="{prefix}/auroc_micro"),
                Metric(name="{prefix}/auroc_macro"),
                Metric(name="{prefix}/classes_left_out", unit="classes", higher_is_better=False),
            ),
        ),
    ]


@hookimpl
def medvl_text_sources() -> list[TextSourceSpec]:
    """Region texts."""
    text_source = partial(TextSourceSpec, license=_APACHE, produces="region_prompts")
    return [
        text_source(
            name="organ_labels",
            factory="medvl_ct_glip.abnormalities:OrganLabels",
            summary="Region texts from study labels, for data without reports",
            source="medvl",
        ),
        text_source(
            name="organ_findings",
            factory="medvl_ct_glip.organ_findings:OrganFindings",
            summary="Region texts from reports: lexicon, negation, sides and lobes",
            source=_PAPER,
        ),
    ]


@hookimpl
def medvl_datasets() -> list[DatasetSpec]:
    """Masks for the studies of another dataset."""
    return [
        DatasetSpec(
            name="masked",
            factory="medvl_ct_glip.masks:MaskedDataset",
            summary="Another dataset's CTs with ready-made organ masks from a folder",
            source="medvl",
            license=_APACHE,
            modalities=("ct",),
            has=("reports", "labels", "regions"),
            data_license="the user's own",
            url="docs/how-to/organ-masks-and-report-texts.md",
        )
    ]
