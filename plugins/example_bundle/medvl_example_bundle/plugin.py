"""What the method adds to medvl: one loss."""

from __future__ import annotations

from medvl_core import specs
from medvl_core.hookspecs import hookimpl

MEDVL_API = "1.0"


@hookimpl
def medvl_losses() -> list[specs.LossSpec]:
    """InfoNCE with smoothed targets."""
    return [
        specs.LossSpec(
            name="smooth",
            factory="medvl_example_bundle.losses:SmoothInfoNCE",
            summary="InfoNCE whose targets are smoothed over the batch",
            source="arXiv:1512.00567",
            license="Apache-2.0",
            tiny={"pair": ("cxr", "report")},
        )
    ]
