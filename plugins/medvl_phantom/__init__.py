"""A cohort of procedural patients: CTs, organ labels, findings, reports and radiographs from a seed."""

from medvl_phantom.cohort import PhantomCohort, PhantomImage, PhantomRegions
from medvl_phantom.ct_rate import write_ct_rate_layout
from medvl_phantom.findings import CT_GLIP_NAMES, CT_RATE_NAMES, FINDINGS
from medvl_phantom.organs import ORGANS

__all__ = [
    "CT_GLIP_NAMES",
    "CT_RATE_NAMES",
    "FINDINGS",
    "ORGANS",
    "PhantomCohort",
    "PhantomImage",
    "PhantomRegions",
    "write_ct_rate_layout",
]
