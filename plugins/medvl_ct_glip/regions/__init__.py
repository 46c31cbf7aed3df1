"""Regions of a scan: volumes, texts, batches, model."""

from medvl_ct_glip.region_sets import region_set
from medvl_ct_glip.regions.data import RegionPatches
from medvl_ct_glip.regions.model import RegionAlignmentModel, RegionTower
from medvl_ct_glip.regions.texts import RegionTexts, StoredTexts
from medvl_ct_glip.regions.volumes import RegionVolumes
from medvl_ct_glip.regions.windows import ScanEmbedding

__all__ = [
    "RegionAlignmentModel",
    "RegionPatches",
    "RegionTexts",
    "RegionTower",
    "RegionVolumes",
    "ScanEmbedding",
    "StoredTexts",
    "region_set",
]
