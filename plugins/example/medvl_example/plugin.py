"""What this plugin offers. It imports specs only: torch is imported when the encoder is built."""

from __future__ import annotations

from medvl_core.hookspecs import hookimpl
from medvl_core.specs import EncoderSpec, ImageInput

MEDVL_API = "1.0"


@hookimpl
def medvl_encoders() -> list[EncoderSpec]:
    """One small vision transformer for radiographs."""
    return [
        EncoderSpec(
            name="tiny_vit",
            factory="medvl_example.encoders:build_tiny_vit",
            summary="Two-layer vision transformer for radiographs",
            source="arXiv:2010.11929",
            license="Apache-2.0",
            tiny={"size": (32, 32), "width": 16, "layers": 1, "heads": 2},
            modality="cxr",
            spatial_dims=2,
            input=ImageInput(channels=1, size=(128, 128)),
            embed_dim=64,
        )
    ]
