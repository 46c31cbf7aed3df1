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
    TextInput,
    TextSourceSpec,
)

MEDVL_API = "1.0"

RADIOGRAPH = ImageInput(channels=1, size=(224, 224))
CHEST_CT = ImageInput(
    channels=1, size=(96, 96, 96), axcodes="RAS", window_hu=(-1000.0, 1000.0), output_range=(-1.0, 1.0), pad_value=-1.0
)
CLIP_IMAGE = ImageInput(
    channels=3,
    size=(224, 224),
    window_hu=(0.0, 255.0),
    output_range=(0.0, 1.0),
    pad_value=0.0,
    interpolation="cubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
EFFICIENTNET_IMAGE = ImageInput(
    channels=3, size=(224, 224), window_hu=(0.0, 255.0), output_range=(-1.0, 1.0), interpolation="cubic"
)
_APACHE = "Apache-2.0"


def _shares(prefix: str, *names: str) -> tuple[Metric, ...]:
    """Metrics in [0, 1], the more the better."""
    return tuple(Metric(name=prefix + name) for name in names)


@hookimpl
def medvl_encoders() -> list[EncoderSpec]:
    """2D and 3D trunks of MONAI and transformers, and text encoders."""
    encoder = partial(EncoderSpec, license=_APACHE)
    pictures = partial(encoder, modality="any", spatial_dims=2, input=RADIOGRAPH)
    volumes = partial(encoder, modality="any", spatial_dims=3, input=CHEST_CT)
    text = partial(encoder, modality="report", spatial_dims=0)
    return [
        pictures(
            name="resnet18_2d",
            factory="medvl_baseline.encoders.image:build_resnet18_2d",
            summary="ResNet-18 of MONAI for radiographs and slices",
            source="arXiv:1512.03385",
            tiny={"size": (32, 32), "base_width": 4},
            embed_dim=512,
        ),
        pictures(
            name="resnet50_2d",
            factory="medvl_baseline.encoders.image:build_resnet50_2d",
            summary="ResNet-50 of MONAI for radiographs and slices",
            source="arXiv:1512.03385",
            tiny={"size": (32, 32), "base_width": 4},
            embed_dim=2048,
        ),
        pictures(
            name="efficientnet_lite",
            factory="medvl_baseline.encoders.efficientnet_lite:build_efficientnet_lite",
            summary="EfficientNet-Lite0 with ImageNet weights (the extra 'pretrained'); can be frozen",
            source="arXiv:1905.11946",
            tiny={"size": (32, 32), "weights": "random"},
            input=EFFICIENTNET_IMAGE,
            embed_dim=1280,
        ),
        pictures(
            name="swin_t_2d",
            factory="medvl_baseline.encoders.image:build_swin_t_2d",
            summary="Swin-T of transformers for radiographs and slices",
            source="arXiv:2103.14030",
            tiny={"size": (32, 32), "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4},
            embed_dim=768,
        ),
        volumes(
            name="resnet_3d",
            factory="medvl_baseline.encoders.image:build_resnet_3d",
            summary="3D ResNet of MONAI (depth 10, 18, 34 or 50) for volumes",
            source="arXiv:1512.03385",
            tiny={"size": (32, 32, 32), "depth": 10, "base_width": 4},
            embed_dim=512,
        ),
        volumes(
            name="vit_3d",
            factory="medvl_baseline.encoders.image:build_vit_3d",
            summary="3D vision transformer of MONAI for volumes",
            source="arXiv:2010.11929",
            tiny={"size": (32, 32, 32), "patch": (16, 16, 16), "hidden_size": 24, "layers": 1, "heads": 2},
            embed_dim=768,
        ),
        text(
            name="hf_text",
            factory="medvl_baseline.encoders.text:build_hf_text",
            summary="Any transformers text model, from a local folder or the local hub cache",
            source="arXiv:1910.03771",
            tiny={"path": None, "hidden_size": 16, "layers": 1, "heads": 2},
            input=TextInput(max_length=512),
            embed_dim=768,
        ),
        text(
            name="bert_small",
            factory="medvl_baseline.encoders.text:build_bert_small",
            summary="Small BERT from scratch, with a WordPiece vocabulary built from the training texts",
            source="arXiv:1810.04805",
            tiny={"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 32},
            input=TextInput(max_length=128),
            embed_dim=192,
        ),
        pictures(
            name="clip_image",
            factory="medvl_baseline.encoders.clip:build_clip_image",
            summary="CLIP's vision tower with its projection; loads CLIP, CheXzero and RadCLIP checkpoints",
            source="arXiv:2103.00020",
            tiny={"size": (32, 32), "patch": 16, "width": 16, "layers": 1, "heads": 2, "projection_dim": 8},
            input=CLIP_IMAGE,
            embed_dim=512,
        ),
        text(
            name="clip_text",
            factory="medvl_baseline.encoders.clip:build_clip_text",
            summary="CLIP's text tower with its projection and its byte-pair tokeniser",
            source="arXiv:2103.00020",
            tiny={"width": 16, "layers": 1, "heads": 2, "projection_dim": 8},
            input=TextInput(max_length=77),
            embed_dim=512,
        ),
        text(
            name="word_vectors",
            factory="medvl_baseline.encoders.word_vectors:WordVectors",
            summary="Fixed random word vectors with document-frequency weights: a text model without weights",
            source="medvl",
            tiny={"width": 16, "buckets": 256},
            input=TextInput(max_length=256),
            embed_dim=128,
        ),
    ]


@hookimpl
def medvl_poolings() -> list[PoolingSpec]:
    """Global poolings."""
    pooling = partial(PoolingSpec, license=_APACHE, scope="global")
    return [
        pooling(
            name="mean",
            factory="medvl_baseline.poolings:MeanPooling",
            summary="Mean over valid tokens",
            source="medvl",
        ),
        pooling(
            name="cls",
            factory="medvl_baseline.poolings:ClsPooling",
            summary="The first token",
            source="arXiv:1810.04805",
            order_sensitive=True,
        ),
        pooling(
            name="attention",
            factory="medvl_baseline.poolings:AttentionPooling",
            summary="Multi-head attention of one learned query over the tokens",
            source="arXiv:1810.00825",
            tiny={"embed_dim": 16, "heads": 2},
        ),
    ]


@hookimpl
def medvl_losses() -> list[LossSpec]:
    """Contrastive losses between two modalities."""
    loss = partial(LossSpec, license=_APACHE, tiny={"pair": ("cxr", "report")})
    return [
        loss(
            name="infonce",
            factory="medvl_baseline.losses.infonce:InfoNCE",
            summary="Symmetric or one-directional InfoNCE, with a streamed mode for large batches",
            source="arXiv:2103.00020",
        ),
        loss(
            name="siglip",
            factory="medvl_baseline.losses.siglip:SigLIP",
            summary="Pairwise sigmoid loss",
            source="arXiv:2303.15343",
        ),
    ]


@hookimpl
def medvl_text_sources() -> list[TextSourceSpec]:
    """Texts from reports."""
    return [
        TextSourceSpec(
            name="report",
            factory="medvl_baseline.texts.sources:ReportText",
            summary="Sections of the report, joined; optional dropout of sentences",
            source="medvl",
            license=_APACHE,
            produces="report",
        )
    ]


@hookimpl
def medvl_evaluators() -> list[EvaluatorSpec]:
    """Retrieval, zero-shot, probes, matching, segmentation, and evaluators around other evaluators."""
    evaluator = partial(EvaluatorSpec, license=_APACHE)
    return [
        evaluator(
            name="retrieval",
            factory="medvl_evaluation.evaluators.retrieval:Retrieval",
            summary="Cross-modal recall at k and median rank, group-aware",
            source="medvl",
            tiny={"query": "cxr", "gallery": "report", "ks": (1, 5)},
            task="retrieval",
            metrics=(
                Metric(name="{query}_to_{gallery}/recall_at_{k}"),
                Metric(name="{query}_to_{gallery}/median_rank", unit="rank", higher_is_better=False),
            ),
        ),
        evaluator(
            name="zero_shot",
            factory="medvl_evaluation.evaluators.zero_shot:ZeroShot",
            summary="Zero-shot multi-label classification from prompt pairs",
            source="arXiv:2403.17834",
            tiny={
                "classes": ("Atelectasis", "Cardiomegaly"),
                "image": "cxr",
                "class_groups": {"both": ("Atelectasis", "Cardiomegaly")},
            },
            task="zero_shot_multilabel",
            metrics=(
                *_shares(
                    "",
                    "auroc_macro",
                    "auroc_macro_{group}",
                    "auroc_weighted",
                    "auroc_micro",
                    "auprc_macro",
                    "auprc_weighted",
                    "auprc_micro",
                ),
                Metric(name="classes_left_out", unit="classes", higher_is_better=False),
            ),
        ),
        evaluator(
            name="prompt_sensitivity",
            factory="medvl_evaluation.evaluators.prompt_sensitivity:PromptSensitivity",
            summary="Zero-shot AUROC under several wordings, beside the headline's",
            source="medvl",
            tiny={"classes": ("Atelectasis", "Cardiomegaly"), "image": "cxr"},
            task="prompt_sensitivity",
            metrics=(
                *_shares("{prefix}/", "auroc_macro_headline", "auroc_macro_worst", "auroc_macro_best"),
                Metric(name="{prefix}/auroc_macro_spread", higher_is_better=False),
            ),
        ),
        evaluator(
            name="matching",
            factory="medvl_evaluation.evaluators.matching:Matching",
            summary="Image-text matching: one text per class, the nearest one is the answer",
            source="arXiv:2403.09948",
            tiny={"classes": ("Glioma", "Meningioma", "Pituitary tumor"), "image": "mri"},
            task="matching",
            metrics=_shares("{prefix}/", "top_1", "recall_macro", "f1_macro"),
        ),
        evaluator(
            name="linear_probe",
            factory="medvl_evaluation.evaluators.linear_probe:LinearProbe",
            summary="Linear probe and few-shot on embeddings: k-fold, or from a training split, with early stopping",
            source="arXiv:2503.02162",
            tiny={"classes": ("Atelectasis", "Cardiomegaly"), "image": "cxr", "fitting": {"learning_rate": 0.1}},
            task="linear_probe",
            metrics=_shares(
                "{prefix}_{percent}/",
                "auroc_macro",
                "auroc_weighted",
                "auroc_micro",
                "auprc_macro",
                "auprc_weighted",
                "auprc_micro",
                "accuracy",
                "f1_macro",
            ),
        ),
        evaluator(
            name="external",
            factory="medvl_baseline.external:ExternalValidation",
            summary="Another evaluator on a data set with other labels, joined by a label map",
            source="medvl",
            task="external_validation",
            metrics=(
                Metric(name="{prefix}/classes_left_out", unit="classes", higher_is_better=False),
                Metric(name="{prefix}/{metric}"),
            ),
        ),
        evaluator(
            name="subgroups",
            factory="medvl_evaluation.evaluators.subgroups:Subgroups",
            summary="AUROC per group of a metadata column, the worst group and the gap",
            source="medvl",
            task="subgroups",
            metrics=(
                Metric(name="{prefix}/auroc_macro_worst"),
                Metric(name="{prefix}/auroc_macro_gap", higher_is_better=False),
            ),
        ),
        evaluator(
            name="segmentation",
            factory="medvl_evaluation.evaluators.segmentation:Segmentation",
            summary="Dice per class, and AUROC of the predicted volume for having it",
            source="arXiv:2404.15272",
            tiny={"classes": {"lung_tumor": 1, "liver_tumor": 2}},
            task="segmentation",
            metrics=(
                *_shares("{prefix}/", "dice_macro", "detection_auroc_macro", "detection_auroc_micro"),
                Metric(name="{prefix}/classes_left_out", unit="classes", higher_is_better=False),
            ),
        ),
    ]


@hookimpl
def medvl_datasets() -> list[DatasetSpec]:
    """Data that anyone has: a generated cohort, and files named by a table."""
    dataset = partial(DatasetSpec, license=_APACHE, source="medvl", modalities=("ct", "cxr"))
    return [
        dataset(
            name="phantom",
            factory="medvl_phantom:PhantomCohort",
            summary="Procedural chest-to-abdomen CTs with organ labels, findings, reports and simulated radiographs",
            tiny={"n_subjects": 8, "shape": (32, 32, 32)},
            has=("reports", "labels", "regions"),
            data_license="Apache-2.0",
            url="docs/explanation/phantom-cohort.md",
        ),
        dataset(
            name="folder",
            factory="medvl_baseline.datasets.folder:FolderDataset",
            summary="CT and radiograph files named by a CSV or parquet table",
            has=("reports", "labels"),
            data_license="the user's own",
            url="docs/how-to/use-your-own-data.md",
        ),
    ]
