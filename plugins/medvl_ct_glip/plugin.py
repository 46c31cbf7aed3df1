"""What this plugin offers. Imports specs only: discovery loads neither torch nor monai."""

from __future__ import annotations

from medvl_core.hookspecs import hookimpl
from medvl_core.specs import EncoderSpec, ImageInput, LossSpec, PoolingSpec

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

    small_unet = {"size": (16, 16, 16), "features": (8, 16)}
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
