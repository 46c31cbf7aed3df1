"""Small studies with region labels, for the tests of region data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medvl_core.study import Image, Study
from medvl_ct_glip.regions.texts import RegionText

NAMES = ("liver", "spleen", "kidney_left")
NUMBERS = {5: "liver", 1: "spleen", 3: "kidney_left", 9: "femur_left"}


@dataclass(frozen=True)
class Given:
    """An image in memory; its name stands for its content."""

    name: str
    image: Image

    def load(self):
        return self.image

    def fingerprint(self):
        return self.name


def study(number, shape=(14, 12, 10), spacing=(2.0, 2.0, 2.0), names=NUMBERS, **changes):
    """Random HU, and a block of each structure: liver 150 voxels, spleen 64, kidney 12, femur 8."""
    rng = np.random.default_rng(number)
    labels = np.zeros(shape, np.uint8)
    labels[1:6, 1:7, 1:6], labels[8:12, 1:5, 2:6] = 5, 1
    labels[8:10, 7:10, 2:4], labels[12:14, 10:12, 8:10] = 3, 9
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    hu = rng.normal(0, 300, shape).astype(np.float32)
    given = {
        "study_id": f"s{number}",
        "subject_id": f"p{number}",
        "scan_id": f"s{number}",
        "images": {"ct": Given(f"ct{number}", Image(hu, affine))},
        "regions": Given(f"labels{number}", Image(labels, affine)),
        "region_names": dict(names),
    }
    return Study(**(given | changes))


class Texts:
    """Study s0: fatty liver; s1: liver cyst and a large spleen; the others normal, with nothing said of the kidney."""

    def region_texts(self, study):
        normal = {name: RegionText(f"no evident abnormality in {name}", "normal") for name in NAMES[:2]}
        told = {
            "s0": {"liver": RegionText("fatty liver", "abnormal"), "femur_left": RegionText("fracture", "abnormal")},
            "s1": {
                "liver": RegionText("liver cyst", "abnormal"),
                "spleen": RegionText("large", "abnormal"),
                "kidney_left": RegionText("perhaps a stone", "uncertain"),
            },
            "s2": {"liver": RegionText("fatty liver", "abnormal")},
        }
        return normal | told.get(study.study_id, {})
