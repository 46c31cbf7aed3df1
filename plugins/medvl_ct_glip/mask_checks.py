"""Whether the regions of a study can be what they say: found before training, with the study and the reason."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from medvl_core.engine.files import write_csv
from medvl_core.errors import EXIT_DATA, MedvlError
from medvl_core.study import Image, Study
from medvl_imaging.scale import Journal, map_studies

__all__ = ["CHECKS_VERSION", "MaskError", "RegionCheck", "check_mask", "check_regions", "write_checks"]

logger = logging.getLogger(__name__)

CHECKS_VERSION = 2
"""Of what `check_mask` refuses. A new number makes stored volumes be checked, and made, again."""

Problem = Literal["", "empty", "small", "truncated"]

_AIR_HU = -200.0  # below: neither soft tissue nor bone, whatever the disease or the noise
_DENSE_HU = -150.0  # above: no air
_MOST = {"soft": 0.01, "bone": 0.02, "air": 0.5}
"""Most voxels of the wrong density, of those inside an organ: at its surface, organ and air share a voxel."""
_LEAST_ML = {"soft": 5.0, "bone": 5.0, "air": 200.0}
"""A tissue is judged from this volume of inner voxels on: the base of a lung may well be solid."""
_WRONG = {"soft": f"below {_AIR_HU:g} HU", "bone": f"below {_AIR_HU:g} HU", "air": f"above {_DENSE_HU:g} HU"}
_ORGANS = {"soft": "soft organs", "bone": "bones", "air": "lungs and trachea"}


class MaskError(MedvlError, ValueError):
    """A mask that does not belong to its CT, or whose labels are not understood. The message starts with the file."""

    exit_code = EXIT_DATA


@dataclass(frozen=True, slots=True)
class RegionCheck:
    """One region of a scan.

    Args:
        voxels: Its voxels.
        volume_ml: Their volume.
        problem: ``"truncated"``: it reaches the border of the scan, so a text about it may describe what is not seen.
            ``"small"``: whole, but below what an adult's organ has. ``"empty"``: no voxel. Else blank.
    """

    voxels: int
    volume_ml: float
    problem: Problem


def check_mask(where: str, ct: Image, labels: NDArray[np.uint8], names: Mapping[int, str]) -> NDArray[np.int64]:
    """Refuse a mask that cannot be one of this CT. What is cut by the border of the scan passes.

    Sides are told by pairs (kidneys, lungs, ribs ...): most right ones must lie to the right of their left ones.
    Whether the mask belongs to this patient is told by densities: soft organs and bones hold no air, lungs are not
    solid. A mask of organs must hold one of them; one of lesions alone may be empty.

    Args:
        where: What the message starts with.
        ct: The CT, in HU.
        labels: The mask.
        names: Label → name.

    Returns:
        Voxels of each label, 256 entries.

    Raises:
        MaskError: If it has another shape, labels without a name, left and right exchanged, the densities of another
            patient, or nothing in it; or the CT has no affine.
    """
    if labels.shape != ct.array.shape:
        raise MaskError(f"{where}: mask of {labels.shape} voxels, CT of {ct.array.shape}; resample the mask to its CT")
    if ct.affine is None:
        raise MaskError(
            f"{where}: its CT has no affine, so no mask can be matched to it; give a NIfTI, NRRD or DICOM CT"
        )
    order = _memory_order(labels)  # slabs are then contiguous
    across = int(np.abs(ct.affine[0, :3]).argmax())  # the axis from left to right
    turned = labels.transpose(order), ct.array.transpose(order)
    counts, inner, wrong, places = _densities(*turned, order.index(across), names)
    if unnamed := sorted(set(np.flatnonzero(counts).tolist()) - {0, *names}):
        raise MaskError(f"{where}: labels {unnamed} have no name; the mask is of another region set")
    if not counts[1:].any() and any(name in _facts() for name in names.values()):
        some = ", ".join(list(names.values())[:3])
        raise MaskError(
            f"{where}: the mask is empty: no voxel of the {len(names)} structures asked for ({some} ...); "
            "make it again or drop the study"
        )
    _check_sides(where, places * np.sign(ct.affine[0, across]), names)
    voxel_ml = abs(float(np.linalg.det(ct.affine[:3, :3]))) / 1000
    _check_densities(where, inner, wrong, names, voxel_ml)
    return counts


def check_regions(study: Study, required: Sequence[str] = ()) -> dict[str, RegionCheck]:
    """Look at every region of a study.

    Args:
        study: With regions.
        required: Regions that must be there, whole or not.

    Returns:
        Region → what was found, in the order of ``study.region_names``.

    Raises:
        MaskError: As `check_mask`; or if a required region is empty or implausibly small.
        ValueError: If the CT or the mask cannot be read.
    """
    if study.regions is None or "ct" not in study.images:
        raise MaskError(f"{study.study_id}: has no regions or no CT; give it masks")
    where = f"{study.study_id}: {path}" if (path := getattr(study.regions, "path", "")) else study.study_id
    regions, ct = study.regions.load(), study.images["ct"].load()
    counts = check_mask(where, ct, regions.array, study.region_names)
    voxel_ml = abs(float(np.linalg.det(ct.affine[:3, :3]))) / 1000  # type: ignore[index]
    labels = regions.array.transpose(_memory_order(regions.array))
    checks = _organs(labels, counts, study.region_names, voxel_ml)
    for name in required:
        check = checks.get(name)
        if check is None or check.problem in ("empty", "small"):
            found = f"{check.volume_ml:.2g} ml" if check else "not among the regions"
            raise MaskError(f"{where}: {name} is required but is {found}; make the mask again or drop the study")
    return checks


def write_checks(
    studies: Mapping[str, Sequence[Study]], folder: str | Path, required: Sequence[str] = (), workers: int = 2
) -> Path:
    """Check the masks of all studies and write ``masks.csv``: split, study, region, voxels, volume in ml, problem.

    A study that `check_regions` refuses has one row, without a region. Its folder ``mask_checks`` keeps what is done:
    the next run looks at new and changed masks only.

    Args:
        studies: Split → studies with regions.
        folder: Receives both.
        required: Regions that must be there.
        workers: Processes; 0 works in this one.

    Raises:
        MaskError: If a study was refused: after the table is written. The message starts with the first.
    """
    split_of = {study.study_id: split for split, part in studies.items() for study in part}
    journal = Journal(Path(folder) / "mask_checks", f"check regions {CHECKS_VERSION} {tuple(required)}")
    report = map_studies(
        partial(_record, required=tuple(required)),
        [study for part in studies.values() for study in part],
        journal,
        workers=workers,
        version=_masks_of,
        description="Checking masks",
    )
    found = [(s, name, *check.values()) for s, checks in report.records.items() for name, check in checks.items()]
    lines = [*found, *((study, "", "", "", reason) for study, reason in report.failed.items())]
    columns = ("split", "study", "region", "voxels", "volume_ml", "problem")
    table = write_csv(Path(folder) / "masks.csv", columns, [(split_of[line[0]], *line) for line in lines])
    noted = sum(bool(line[-1]) for line in found)
    logger.info("%d studies, %d regions with a problem → %s", len(report.records), noted, table)
    if report.failed:
        study, reason = next(iter(report.failed.items()))
        raise MaskError(f"{study}: {reason.removeprefix(f'{study}: ')} ({len(report.failed)} refused, all in {table})")
    return table


def _record(study: Study, required: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return {name: asdict(check) for name, check in check_regions(study, required).items()}


def _masks_of(study: Study) -> str:
    try:
        return study.regions.fingerprint() if study.regions is not None else ""
    except (ValueError, OSError) as error:  # the check will say so
        return str(error)


def _memory_order(array: NDArray[Any]) -> list[int]:
    """Axes, the one of the longest step first."""
    return sorted(range(array.ndim), key=lambda axis: -array.strides[axis])


def _densities(
    labels: NDArray[np.uint8], hu: NDArray[np.floating[Any]], across: int, names: Mapping[int, str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Per label (256 entries each): voxels, inner ones, those of the wrong density, mean index along ``across``."""
    dense = np.array([_facts().get(names.get(label, ""), {}).get("tissue") == "air" for label in range(256)])
    counts, inner, wrong, sums = (np.zeros(256, kind) for kind in (np.int64, np.int64, np.int64, float))
    index = np.arange(labels.shape[across]).reshape([-1 if axis == across else 1 for axis in range(3)])
    for slab in range(len(labels)):
        inside = np.flatnonzero(labels[slab])
        label, value = labels[slab].ravel()[inside], hu[slab].ravel()[inside]
        place = np.broadcast_to(index[slab] if across == 0 else index[0], labels.shape[1:]).ravel()[inside]
        counts += np.bincount(label, minlength=256)
        sums += np.bincount(label, place, minlength=256)
        deep = _interior(labels, slab).ravel()[inside]
        inner += np.bincount(label[deep], minlength=256)
        odd = np.where(dense[label], value > _DENSE_HU, value < _AIR_HU)
        wrong += np.bincount(label[odd & deep], minlength=256)
    return counts, inner, wrong, np.divide(sums, counts, out=np.full(256, np.nan), where=counts > 0)


def _interior(labels: NDArray[np.uint8], slab: int) -> NDArray[np.bool_]:
    """Where in a slab all six neighbours have the voxel's own label; outside the scan everything has."""
    own = labels[slab]
    same = (own == labels[max(slab - 1, 0)]) & (own == labels[min(slab + 1, len(labels) - 1)])
    for equal, here in ((own[1:] == own[:-1], same), ((own[:, 1:] == own[:, :-1]).T, same.T)):
        here[1:] &= equal
        here[:-1] &= equal
    return same


def _check_sides(where: str, places: NDArray[np.float64], names: Mapping[int, str]) -> None:
    """Refuse a mask most of whose pairs have their right organ on the left; ``places`` grow to the right."""
    place = {name: places[number] for number, name in names.items() if not np.isnan(places[number])}
    pairs = [(name, name.replace("right", "left")) for name in place if "right" in name]
    pairs = [(right, left) for right, left in pairs if left in place]
    if not pairs and {"liver", "spleen"} <= set(place):
        pairs = [("liver", "spleen")]
    flipped = [right for right, left in pairs if place[right] < place[left]]
    if len(flipped) > len(pairs) / 2:
        raise MaskError(
            f"{where}: {', '.join(flipped[:4])} lie on the left of their counterparts ({len(flipped)} of {len(pairs)} "
            "pairs); the mask or the CT is flipped, write it again with the right affine"
        )


def _check_densities(
    where: str, inner: NDArray[np.int64], wrong: NDArray[np.int64], names: Mapping[int, str], voxel_ml: float
) -> None:
    for tissue, most in _MOST.items():
        own = [label for label, name in names.items() if _facts().get(name, {}).get("tissue") == tissue]
        voxels, bad = int(inner[own].sum()), int(wrong[own].sum())
        if voxels * voxel_ml >= _LEAST_ML[tissue] and bad / voxels > most:
            raise MaskError(
                f"{where}: {bad / voxels:.1%} of the voxels inside {_ORGANS[tissue]} are {_WRONG[tissue]}, "
                f"at most {most:.0%} may be; the mask is of another patient or scan, or the CT is not in HU"
            )


def _organs(
    labels: NDArray[np.uint8], counts: NDArray[np.int64], names: Mapping[int, str], voxel_ml: float
) -> dict[str, RegionCheck]:
    boxes = dict(enumerate(find_objects(labels, max_label=255), 1))
    checks = {}
    for label, name in names.items():
        volume, problem, box = float(counts[label] * voxel_ml), "", boxes.get(label)
        if box is None:
            problem = "empty"
        elif any(part.start == 0 or part.stop == size for part, size in zip(box, labels.shape, strict=True)):
            problem = "truncated"
        elif volume < float(_facts().get(name, {}).get("min_ml") or 0):
            problem = "small"
        checks[name] = RegionCheck(int(counts[label]), round(volume, 3), problem)  # type: ignore[arg-type]
    return checks


@lru_cache
def _facts() -> dict[str, dict[str, str]]:
    """Region → its tissue and the least volume of a whole one in an adult, ml."""
    with (Path(__file__).parent / "region_sets" / "organ_facts.csv").open(encoding="utf-8", newline="") as file:
        return {row["region"]: row for row in csv.DictReader(file)}
