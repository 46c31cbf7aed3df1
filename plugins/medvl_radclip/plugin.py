"""What this plugin offers. Imports specs only: discovery loads neither torch nor monai."""

from __future__ import annotations

from functools import partial

from medvl_core.hookspecs import hookimpl
from medvl_core.specs import DatasetSpec, EncoderSpec, ImageInput, PoolingSpec, TextSourceSpec

MEDVL_API = "1.0"
_APACHE = "Apache-2.0"
_RADCLIP = "arXiv:2403.09948"
_labelled = partial(DatasetSpec, license=_APACHE, has=("labels",))

SLICES = ImageInput(
    channels=1,
    size=(224, 224, 64),
    axcodes="LPS",
    window_sd=3.0,
    output_range=(0.0, 1.0),
    pad_value=0.0,
    fit="slices",
    interpolation="cubic",
)
"""Axial slices as a radiologist sees them: columns to the patient's left, rows to the back, slices towards the head."""


@hookimpl
def medvl_encoders() -> list[EncoderSpec]:
    """A volume as the tokens of its slices."""
    return [
        EncoderSpec(
            name="slices",
            factory="medvl_radclip.slices:build_slices",
            summary="One token per slice from any 2D encoder; planes, per-volume z-score, at most N slices with a mask",
            source=_RADCLIP,
            license=_APACHE,
            tiny={
                "encoder": "baseline/clip_image",
                "options": {
                    "size": (16, 16),
                    "patch": 8,
                    "width": 16,
                    "layers": 1,
                    "heads": 2,
                    "projection_dim": 16,
                },
                "max_slices": 6,
            },
            modality="any",
            spatial_dims=3,
            input=SLICES,
            embed_dim=512,
        )
    ]


@hookimpl
def medvl_poolings() -> list[PoolingSpec]:
    """From slice embeddings to one vector of a volume; ``baseline/mean`` fits the same slot."""
    pooling = partial(PoolingSpec, license=_APACHE, scope="global")
    of_positions = partial(pooling, order_sensitive=True, tiny={"embed_dim": 16, "heads": 2, "max_slices": 4})
    return [
        of_positions(
            name="slice_attention",
            factory="medvl_radclip.slice_attention:SliceAttention",
            summary="RadCLIP's adapter: self-attention over slices with learned positions, then their mean",
            source=_RADCLIP,
        ),
        pooling(
            name="slice_max",
            factory="medvl_radclip.slice_poolings:SliceMax",
            summary="Largest value of each feature over the slices",
            source="medvl",
        ),
        pooling(
            name="gated_attention",
            factory="medvl_radclip.slice_poolings:GatedAttention",
            summary="Weighted mean of slices, weights from gated attention (ABMIL)",
            source="arXiv:1802.04712",
            tiny={"embed_dim": 16, "hidden": 8},
        ),
        of_positions(
            name="slice_transformer",
            factory="medvl_radclip.slice_poolings:SliceTransformer",
            summary="Transformer over slices with learned positions; the result is a class token",
            source="arXiv:2010.11929",
        ),
        pooling(
            name="slice_conv",
            factory="medvl_radclip.slice_poolings:SliceConv",
            summary="Two convolutions along the slices, then their mean",
            source="medvl",
            tiny={"embed_dim": 16},
            order_sensitive=True,
        ),
    ]


@hookimpl
def medvl_text_sources() -> list[TextSourceSpec]:
    """RadCLIP's captions."""
    return [
        TextSourceSpec(
            name="region_modality_condition",
            factory="medvl_radclip.captions:RegionModalityCondition",
            summary="'Abdomen CT, prostate lesion' or 'Abdomen CT with prostate lesion', from metadata or labels",
            source=_RADCLIP,
            license=_APACHE,
            tiny={"region": "Chest", "modality": "CT"},
            produces="label_prompts",
        )
    ]


@hookimpl
def medvl_datasets() -> list[DatasetSpec]:
    """Public sets of images and volumes with a class each, and phantoms."""
    return [*_own_files(), *_images(), *_volumes(), *_phantoms()]


def _own_files() -> list[DatasetSpec]:
    files = partial(_labelled, source="medvl", data_license="the set's own", url="docs/how-to/radclip-data.md")
    return [
        files(
            name="class_folders",
            factory="medvl_radclip.folders:build_class_folders",
            summary="Images in a folder per class, as on Kaggle, or per caption, as RadCLIP was trained",
            modalities=("image",),
        ),
        files(
            name="class_volumes",
            factory="medvl_radclip.folders:build_class_volumes",
            summary="Volumes (NIfTI, NRRD, DICOM folders) whose class stands in the path",
            modalities=("volume",),
        ),
    ]


def _images() -> list[DatasetSpec]:
    images = partial(_labelled, modalities=("image",))
    return [
        images(
            name="crystal_clean",
            factory="medvl_radclip.folders:build_crystal_clean",
            summary="Crystal Clean brain MR: four classes; augmented copies stay with their original",
            source="medvl",
            data_license="CC0-1.0",
            url="https://www.kaggle.com/datasets/mohammadhossein77/brain-tumors-dataset",
        ),
        images(
            name="radimagenet",
            factory="medvl_radclip.image_sets:build_radimagenet",
            summary="RadImageNet: key images of CT and MR with a class each, its own three lists",
            source="doi:10.1148/ryai.210315",
            data_license="RadImageNet, on request",
            url="https://www.radimagenet.com",
        ),
        images(
            name="rsna_pneumonia",
            factory="medvl_radclip.image_sets:build_rsna_pneumonia",
            summary="RSNA Pneumonia Detection 2018: DICOM chest radiographs in three classes",
            source="doi:10.1148/ryai.2019180041",
            data_license="RSNA, competition rules",
            url="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
        ),
        images(
            name="medmnist",
            factory="medvl_radclip.medmnist:build_medmnist",
            summary="A MedMNIST file (npz), two- or three-dimensional, one or several labels an image",
            source="arXiv:2110.14795",
            data_license="CC-BY-4.0 (most files)",
            url="https://medmnist.com",
        ),
        images(
            name="volume_slices",
            factory="medvl_radclip.volume_slices:VolumeSlices",
            summary="Evenly spread slices of another set's volumes, with its classes and splits",
            source="medvl",
            tiny={
                "volumes": "radclip/phantom_volumes",
                "per_volume": 3,
                "options": {"n_subjects": 8, "shape": (32, 32, 16)},
            },
            data_license="that of the volumes",
            url="docs/how-to/radclip-data.md",
        ),
    ]


def _volumes() -> list[DatasetSpec]:
    volumes = partial(_labelled, modalities=("volume",))
    return [
        volumes(
            name="covid_ct_md",
            factory="medvl_radclip.volume_sets:build_covid_ct_md",
            summary="COVID-CT-MD: chest CT as DICOM folders; COVID-19, pneumonia, normal",
            source="arXiv:2009.14623",
            data_license="CC-BY-4.0",
            url="https://doi.org/10.6084/m9.figshare.12991592",
        ),
        volumes(
            name="ixi",
            factory="medvl_radclip.volume_sets:build_ixi",
            summary="IXI brain MR with sex and age from IXI.xls",
            source="medvl",
            data_license="CC-BY-SA-3.0",
            url="https://brain-development.org/ixi-dataset/",
        ),
        volumes(
            name="dicom_collection",
            factory="medvl_radclip.volume_sets:build_dicom_collection",
            summary="A collection of TCIA or IDC: one volume per folder of a DICOM series",
            source="doi:10.1007/s10278-013-9622-7",
            data_license="the collection's own",
            url="https://www.cancerimagingarchive.net",
        ),
    ]


def _phantoms() -> list[DatasetSpec]:
    phantoms = partial(
        _labelled,
        source="medvl",
        tiny={"n_subjects": 8, "shape": (32, 32, 16)},
        data_license=_APACHE,
        url="docs/explanation/phantom-cohort.md",
    )
    return [
        phantoms(
            name="phantom_volumes",
            factory="medvl_radclip.demo:PhantomVolumes",
            summary="CTs of phantom patients with one condition each, most of them in a few slices only",
            modalities=("volume",),
        ),
        phantoms(
            name="phantom_slices",
            factory="medvl_radclip.demo:PhantomSlices",
            summary="Axial slices of the same patients, each captioned with what it shows itself",
            modalities=("image",),
        ),
    ]
