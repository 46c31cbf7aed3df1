"""What this plugin offers. Imports specs only: discovery loads neither torch nor monai."""

from __future__ import annotations

from functools import partial

from medvl_core.hookspecs import hookimpl
from medvl_core.specs import DatasetSpec, EncoderSpec, ImageInput, LossSpec, TextInput

MEDVL_API = "1.0"

CT_CLIP_INPUT = ImageInput(
    channels=1,
    size=(480, 480, 240),
    axcodes="LPS",  # the order of CT-RATE's files; CT-CLIP reads voxels in file order and never looks at the header
    spacing_mm=(0.75, 0.75, 1.5),
    window_hu=(-1000.0, 1000.0),
)
CT_CLIP_TEXT = TextInput(max_length=512)
IMAGENET_RADIOGRAPH = ImageInput(channels=1, size=(224, 224), output_range=(0.0, 1.0), pad_value=0.0)
SWIN_RADIOGRAPH = ImageInput(channels=1, size=(224, 224))  # [-1, 1] is its mean and standard deviation of 0.5
_APACHE = "Apache-2.0"
_CT_CLIP = "arXiv:2403.17834"
_PAPER = "arXiv:2503.02162"


@hookimpl
def medvl_encoders() -> list[EncoderSpec]:
    """The towers of CT-CLIP and of X2CT-CLIP. Each ends in the shared space: no pooling, no further projection."""
    ct_clip = partial(EncoderSpec, source=_CT_CLIP, license=_APACHE, embed_dim=512)
    radiographs = partial(ct_clip, source=_PAPER, modality="cxr", spatial_dims=2)
    return [
        ct_clip(
            name="ct_clip_vit",
            factory="medvl_x2ct.ct_clip_vit:build_ct_clip_vit",
            summary="CTViT and projection of CT-CLIP; reads CT-CLIP_v2.pt",
            tiny={
                "image_size": 16,
                "frames": 8,
                "patch_size": 8,
                "temporal_patch_size": 4,
                "dim": 12,
                "depth": 1,
                "heads": 2,
                "dim_head": 6,
                "codebook_size": 16,
                "latent": 12,
            },
            modality="ct",
            spatial_dims=3,
            input=CT_CLIP_INPUT,
        ),
        ct_clip(
            name="cxr_bert",
            factory="medvl_x2ct.cxr_bert:build_cxr_bert",
            summary="CXR-BERT and projection of CT-CLIP; reads CT-CLIP_v2.pt",
            tiny={"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 32, "latent": 12},
            modality="report",
            spatial_dims=0,
            input=CT_CLIP_TEXT,
        ),
        radiographs(
            name="resnet50",
            factory="medvl_x2ct.cxr_encoders:build_resnet50",
            summary="ResNet-50, global average and projection; starts from ImageNet, CXR-CLIP or at random",
            tiny={"size": (32, 32), "base_width": 4, "latent": 12, "initialisation": "random"},
            input=IMAGENET_RADIOGRAPH,
        ),
        radiographs(
            name="swin_t",
            factory="medvl_x2ct.cxr_encoders:build_swin_t",
            summary="Swin-T, mean over tokens and projection; starts from ImageNet, CXR-CLIP or at random",
            tiny={
                "size": (32, 32),
                "embed_dim": 8,
                "depths": (1, 1),
                "num_heads": (1, 2),
                "window_size": 4,
                "latent": 12,
                "initialisation": "random",
            },
            input=SWIN_RADIOGRAPH,
        ),
    ]


@hookimpl
def medvl_losses() -> list[LossSpec]:
    """The objective of X2CT-CLIP."""
    return [
        LossSpec(
            name="tri_modal",
            factory="medvl_x2ct.tri_modal:TriModal",
            summary="Weighted InfoNCE over report-CT, radiograph-report and radiograph-CT",
            source=_PAPER,
            license=_APACHE,
            modalities=("ct", "cxr", "report"),
        )
    ]


@hookimpl
def medvl_datasets() -> list[DatasetSpec]:
    """The data of X2CT-CLIP, each from its own folder layout."""
    dataset = partial(DatasetSpec, license=_APACHE)
    return [
        dataset(
            name="ct_rate",
            factory="medvl_x2ct.ct_rate:CtRateDataset",
            summary="CT-RATE, release v1 (raw values and csv) or v2 (_fixed, HU): chest CTs, reports, 18 labels",
            source=_CT_CLIP,
            modalities=("ct", "cxr"),
            has=("reports", "labels"),
            data_license="CC-BY-NC-SA-4.0",
            url="https://huggingface.co/datasets/ibrahimhamamci/CT-RATE",
        ),
        dataset(
            name="rad_chest_ct",
            factory="medvl_x2ct.rad_chest_ct:RadChestDataset",
            summary="RAD-ChestCT npz volumes with labels by abnormality and location; no reports",
            source="arXiv:2002.04752",
            modalities=("ct", "cxr"),
            has=("labels",),
            data_license="on request, see the record",
            url="https://zenodo.org/records/6406114",
        ),
        dataset(
            name="mimic_ct",
            factory="medvl_x2ct.mimic_ct:build_mimic_ct",
            summary="Radiographs of MIMIC-CXR paired with chest CT reports of the same admission in MIMIC-IV-Note",
            source=_PAPER,
            modalities=("cxr",),
            has=("reports", "labels"),
            data_license="PhysioNet Credentialed Health Data License 1.5.0",
            url="https://physionet.org/content/mimic-iv-note/2.2/",
        ),
    ]
