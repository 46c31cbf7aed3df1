"""How often wrong organ masks are refused: phantom CTs with the mask of the next patient, mirrored or shifted.

The affine is always that of the CT, so only anatomy and densities can tell. Right masks must all pass.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medvl_core.study import Image, Study
from medvl_ct_glip.mask_checks import check_regions
from medvl_ct_glip.masks import MaskError
from medvl_phantom import PhantomCohort

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger(__name__)
OUT = Path(__file__).parent / "results" / "mask_faults.csv"


@dataclass(frozen=True)
class Held:
    """An image in memory."""

    image: Image

    def load(self) -> Image:
        return self.image

    def fingerprint(self) -> str:
        return str(id(self.image))


def wrong_masks(labels: np.ndarray, other: np.ndarray, affine: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Fault → mask."""
    across = int(np.abs(affine[0, :3]).argmax())
    yield "right mask", labels
    yield "next patient", other
    yield "mirrored", np.flip(labels, across)
    for mm in (10, 20, 40):
        for name, axis in (("across", across), ("along", int(np.abs(affine[2, :3]).argmax()))):
            step = round(mm / float(np.linalg.norm(affine[:3, axis])))
            yield f"{mm} mm {name}", np.roll(labels, step, axis)


def refused(study: Study, mask: np.ndarray, affine: np.ndarray) -> bool:
    """Whether the check stops this mask."""
    try:
        check_regions(replace(study, regions=Held(Image(np.ascontiguousarray(mask), affine))))
    except MaskError:
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=40, help="phantom patients. Default: 40")
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis. Default: 96")
    options = parser.parse_args()
    cohort = PhantomCohort(
        options.subjects, (options.size,) * 3, shares=(1, 0, 0), follow_up=0, second_reconstruction=0
    )
    studies = cohort.studies("train")
    hits: dict[str, list[bool]] = {}
    following = studies[1:] + studies[:1]
    for study, after in zip(studies, following, strict=True):
        ct, labels = study.images["ct"].load(), study.regions.load().array
        held = replace(study, images={"ct": Held(ct)})
        for fault, mask in wrong_masks(labels, after.regions.load().array, ct.affine):
            hits.setdefault(fault, []).append(refused(held, mask, ct.affine))
    rows = [{"fault": fault, "scans": len(found), "refused": sum(found)} for fault, found in hits.items()]
    with OUT.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        logger.info("%-16s refused %d of %d", row["fault"], row["refused"], row["scans"])


if __name__ == "__main__":
    sys.exit(main())
