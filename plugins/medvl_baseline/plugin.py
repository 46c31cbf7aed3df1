"""What this plugin offers. Imports specs only: discovery loads neither torch nor monai."""

from __future__ import annotations

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


@hookimpl
def medvl_encoders() -> list[EncoderSpec]:
    """2D and 3D trunks of MONAI and transformers, and text encoders."""
    return [
        EncoderSpec(
            name="resnet18_2d",
            factory="medvl_baseline.encoders.image:build_resnet18_2d",
            summary="ResNet-18 of MONAI for radiographs and slices",
            source="arXiv:1512.03385",
            license=_APACHE,
            tiny={"size": (32, 32), "base_width": 4},
            modality="any",
            spatial_dims=2,
            input=RADIOGRAPH,
            embed_dim=512,
        ),
        EncoderSpec(
            name="resnet50_2d",
            factory="medvl_baseline.encoders.image:build_resnet50_2d",
            summary="ResNet-50 of MONAI for radiographs and slices",
            source="arXiv:1512.03385",
            license=_APACHE,
            tiny={"size": (32, 32), "base_width": 4},
            modality="any",
            spatial_dims=2,
            input=RADIOGRAPH,
            embed_dim=2048,
        ),
        EncoderSpec(
            name="efficientnet_lite",
            factory="medvl_baseline.encoders.efficientnet_lite:build_efficientnet_lite",
            summary="EfficientNet-Lite0 with ImageNet weights (the extra 'pretrained'); can be frozen",
            source="arXiv:1905.11946",
            license=_APACHE,
            tiny={"size": (32, 32), "weights": "random"},
            modality="any",
            spatial_dims=2,
            input=EFFICIENTNET_IMAGE,
            embed_dim=1280,
        ),
        EncoderSpec(
            name="swin_t_2d",
            factory="medvl_baseline.encoders.image:build_swin_t_2d",
            summary="Swin-T of transformers for radiographs and slices",
            source="arXiv:2103.14030",
            license=_APACHE,
            tiny={"size": (32, 32), "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4},
            modality="any",
            spatial_dims=2,
            input=RADIOGRAPH,
            embed_dim=768,
        ),
        EncoderSpec(
            name="resnet_3d",
            factory="medvl_baseline.encoders.image:build_resnet_3d",
            summary="3D ResNet of MONAI (depth 10, 18, 34 or 50) for volumes",
            source="arXiv:1512.03385",
            license=_APACHE,
            tiny={"size": (32, 32, 32), "depth": 10, "base_width": 4},
            modality="any",
            spatial_dims=3,
            input=CHEST_CT,
            embed_dim=512,
        ),
        EncoderSpec(
            name="vit_3d",
            factory="medvl_baseline.encoders.image:build_vit_3d",
            summary="3D vision transformer of MONAI for volumes",
            source="arXiv:2010.11929",
            license=_APACHE,
            tiny={"size": (32, 32, 32), "patch": (16, 16, 16), "hidden_size": 24, "layers": 1, "heads": 2},
            modality="any",
            spatial_dims=3,
            input=CHEST_CT,
            embed_dim=768,
        ),
        EncoderSpec(
            name="hf_text",
            factory="medvl_baseline.encoders.text:build_hf_text",
            summary="Any transformers text model, from a local folder or the local hub cache",
            source="arXiv:1910.03771",
            license=_APACHE,
            tiny={"path": None, "hidden_size": 16, "layers": 1, "heads": 2},
            modality="report",
            spatial_dims=0,
            input=TextInput(max_length=512),
            embed_dim=768,
        ),
        EncoderSpec(
            name="bert_small",
            factory="medvl_baseline.encoders.text:build_bert_small",
            summary="Small BERT from scratch, with a WordPiece vocabulary built from the training texts",
            source="arXiv:1810.04805",
            license=_APACHE,
            tiny={"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 32},
            modality="report",
            spatial_dims=0,
            input=TextInput(max_length=128),
            embed_dim=192,
        ),
        EncoderSpec(
            name="clip_image",
            factory="medvl_baseline.encoders.clip:build_clip_image",
            summary="CLIP's vision tower with its projection; loads CLIP, CheXzero and RadCLIP checkpoints",
            source="arXiv:2103.00020",
            license=_APACHE,
            tiny={"size": (32, 32), "patch": 16, "width": 16, "layers": 1, "heads": 2, "projection_dim": 8},
            modality="any",
            spatial_dims=2,
            input=CLIP_IMAGE,
            embed_dim=512,
        ),
        EncoderSpec(
            name="clip_text",
            factory="medvl_baseline.encoders.clip:build_clip_text",
            summary="CLIP's text tower with its projection and its byte-pair tokeniser",
            source="arXiv:2103.00020",
            license=_APACHE,
            tiny={"width": 16, "layers": 1, "heads": 2, "projection_dim": 8},
            modality="report",
            spatial_dims=0,
            input=TextInput(max_length=77),
            embed_dim=512,
        ),
        EncoderSpec(
            name="word_vectors",
            factory="medvl_baseline.encoders.word_vectors:WordVectors",
            summary="Fixed random word vectors with document-frequency weights: a text model without weights",
            source="medvl",
            license=_APACHE,
            tiny={"width": 16, "buckets": 256},
            modality="report",
            spatial_dims=0,
            input=TextInput(max_length=256),
            embed_dim=128,
        ),
    ]


@hookimpl
def medvl_poolings() -> list[PoolingSpec]:
    """Global poolings."""
    return [
        PoolingSpec(
            name="mean",
            factory="medvl_baseline.poolings:MeanPooling",
            summary="Mean over valid tokens",
            source="medvl",
            license=_APACHE,
            scope="global",
        ),
        PoolingSpec(
            name="cls",
            factory="medvl_baseline.poolings:ClsPooling",
            summary="The first token",
            source="arXiv:1810.04805",
            license=_APACHE,
            scope="global",
            order_sensitive=True,
        ),
        PoolingSpec(
            name="attention",
            factory="medvl_baseline.poolings:AttentionPooling",
            summary="Multi-head attention of one learned query over the tokens",
            source="arXiv:1810.00825",
            license=_APACHE,
            tiny={"embed_dim": 16, "heads": 2},
            scope="global",
        ),
    ]


@hookimpl
def medvl_losses() -> list[LossSpec]:
    """Contrastive losses between two modalities."""
    return [
        LossSpec(
            name="infonce",
            factory="medvl_baseline.losses.infonce:InfoNCE",
            summary="Symmetric or one-directional InfoNCE, with a streamed mode for large batches",
            source="arXiv:2103.00020",
            license=_APACHE,
            tiny={"pair": ("cxr", "report")},
        ),
        LossSpec(
            name="siglip",
            factory="medvl_baseline.losses.siglip:SigLIP",
            summary="Pairwise sigmoid loss",
            source="arXiv:2303.15343",
            license=_APACHE,
            tiny={"pair": ("cxr", "report")},
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
    return [
        EvaluatorSpec(
            name="retrieval",
            factory="medvl_evaluation.evaluators.retrieval:Retrieval",
            summary="Cross-modal recall at k and median rank, group-aware",
            source="medvl",
            license=_APACHE,
            tiny={"query": "cxr", "gallery": "report", "ks": (1, 5)},
            task="retrieval",
            metrics=(
                Metric(name="{query}_to_{gallery}/recall_at_{k}"),
                Metric(name="{query}_to_{gallery}/median_rank", unit="rank", higher_is_better=False),
            ),
        ),
        EvaluatorSpec(
            name="zero_shot",
            factory="medvl_evaluation.evaluators.zero_shot:ZeroShot",
            summary="Zero-shot multi-label classification from prompt pairs",
            source="arXiv:2403.17834",
            license=_APACHE,
            tiny={
                "classes": ("Atelectasis", "Cardiomegaly"),
                "image": "cxr",
                "class_groups": {"both": ("Atelectasis", "Cardiomegaly")},
            },
            task="zero_shot_multilabel",
            metrics=(
                Metric(name="auroc_macro"),
                Metric(name="auroc_macro_{group}"),
                Metric(name="auroc_weighted"),
                Metric(name="auroc_micro"),
                Metric(name="auprc_macro"),
                Metric(name="auprc_weighted"),
                Metric(name="auprc_micro"),
                Metric(name="classes_left_out", unit="classes", higher_is_better=False),
            ),
        ),
        EvaluatorSpec(
            name="prompt_sensitivity",
            factory="medvl_evaluation.evaluators.prompt_sensitivity:PromptSensitivity",
            summary="Zero-shot AUROC under several wordings, beside the headline's",
            source="medvl",
            license=_APACHE,
            tiny={"classes": ("Atelectasis", "Cardiomegaly"), "image": "cxr"},
            task="prompt_sensitivity",
            metrics=(
                Metric(name="{prefix}/auroc_macro_headline"),
                Metric(name="{prefix}/auroc_macro_worst"),
                Metric(name="{prefix}/auroc_macro_best"),
                Metric(name="{prefix}/auroc_macro_spread", higher_is_better=False),
            ),
        ),
        EvaluatorSpec(
            name="matching",
            factory="medvl_evaluation.evaluators.matching:Matching",
            summary="Image-text matching: one text per class, the nearest one is the answer",
            source="arXiv:2403.09948",
            license=_APACHE,
            tiny={"classes": ("Glioma", "Meningioma", "Pituitary tumor"), "image": "mri"},
            task="matching",
            metrics=(
                Metric(name="{prefix}/top_1"),
                Metric(name="{prefix}/recall_macro"),
                Metric(name="{prefix}/f1_macro"),
            ),
        ),
        EvaluatorSpec(
            name="linear_probe",
            factory="medvl_evaluation.evaluators.linear_probe:LinearProbe",
            summary="Linear probe and few-shot on embeddings: k-fold, or from a training split, with early stopping",
            source="arXiv:2503.02162",
            license=_APACHE,
            tiny={"classes": ("Atelectasis", "Cardiomegaly"), "image": "cxr", "fitting": {"learning_rate": 0.1}},
            task="linear_probe",
            metrics=(
                Metric(name="{prefix}_{percent}/auroc_macro"),
                Metric(name="{prefix}_{percent}/auroc_weighted"),
                Metric(name="{prefix}_{percent}/auroc_micro"),
                Metric(name="{prefix}_{percent}/auprc_macro"),
                Metric(name="{prefix}_{percent}/auprc_weighted"),
                Metric(name="{prefix}_{percent}/auprc_micro"),
                Metric(name="{prefix}_{percent}/accuracy"),
                Metric(name="{prefix}_{percent}/f1_macro"),
            ),
        ),
        EvaluatorSpec(
            name="external",
            factory="medvl_baseline.external:ExternalValidation",
            summary="Another evaluator on a data set with other labels, joined by a label map",
            source="medvl",
            license=_APACHE,
            task="external_validation",
            metrics=(
                Metric(name="{prefix}/classes_left_out", unit="classes", higher_is_better=False),
                Metric(name="{prefix}/{metric}"),
            ),
        ),
        EvaluatorSpec(
            name="subgroups",
            factory="medvl_evaluation.evaluators.subgroups:Subgroups",
            summary="AUROC per group of a metadata column, the worst group and the gap",
            source="medvl",
            license=_APACHE,
            task="subgroups",
            metrics=(
                Metric(name="{prefix}/auroc_macro_worst"),
                Metric(name="{prefix}/auroc_macro_gap", higher_is_better=False),
            ),
        ),
        EvaluatorSpec(
            name="segmentation",
            factory="medvl_evaluation.evaluators.segmentation:Segmentation",
            summary="Dice per class, and AUROC of the predicted volume for having it",
            source="arXiv:2404.15272",
            license=_APACHE,
            tiny={"classes": {"lung_tumor": 1, "liver_tumor": 2}},
            task="segmentation",
            metrics=(
                Metric(name="{prefix}/dice_macro"),
                Metric(name="{prefix}/detection_auroc_macro"),
                Metric(name="{prefix}/detection_auroc_micro"),
                Metric(name="{prefix}/classes_left_out", unit="classes", higher_is_better=False),
            ),
        ),
    ]


@hookimpl
def medvl_datasets() -> list[DatasetSpec]:
    """Data that anyone has: a generated cohort, and files named by a table."""
    return [
        DatasetSpec(
            name="phantom",
            factory="medvl_phantom:PhantomCohort",
            summary="Procedural chest-to-abdomen CTs with organ labels, findings, reports and simulated radiographs",
            source="medvl",
            license=_APACHE,
            tiny={"n_subjects": 8, "shape": (32, 32, 32)},
            modalities=("ct", "cxr"),
            has=("reports", "labels", "regions"),
            data_license="Apache-2.0",
            url="docs/explanation/phantom-cohort.md",
        ),
        DatasetSpec(
            name="folder",
            factory="medvl_baseline.datasets.folder:FolderDataset",
            summary="CT and radiograph files named by a CSV or parquet table",
            source="medvl",
            license=_APACHE,
            modalities=("ct", "cxr"),
            has=("reports", "labels"),
            data_license="the user's own",
            url="docs/how-to/use-your-own-data.md",
        ),
    ]
