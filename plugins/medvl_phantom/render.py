"""From an address (seed, subject, scan, reconstruction) to voxels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.ndimage import correlate1d
from scipy.special import ndtr

from medvl_phantom.abdomen import paint_abdomen
from medvl_phantom.body import Body, Reconstruction, draw_body, draw_person, draw_reconstruction
from medvl_phantom.canvas import Canvas
from medvl_phantom.chest import paint_chest
from medvl_phantom.findings import FACTORS, FINDINGS, LESIONS, Detail, draw_detail, draw_present
from medvl_phantom.lung_lesions import LUNG_CHANGES, LUNG_PAINTERS
from medvl_phantom.organ_lesions import ORGAN_CHANGES, ORGAN_PAINTERS
from medvl_phantom.streams import stream
from medvl_phantom.torso import paint_bones, paint_torso

__all__ = ["PAINTED", "Address", "Scan", "plan", "reconstruction", "render"]

_CHANGES = LUNG_CHANGES | ORGAN_CHANGES
_PAINTERS = ORGAN_PAINTERS | LUNG_PAINTERS  # lungs last: fluid and collapse cover what lies in them
PAINTED = tuple(_PAINTERS)
"""Findings with voxels of their own."""
_PITCH_MM = 22.0
_VISIBLE_HU = 10.0


@dataclass(frozen=True, slots=True)
class Address:
    """Which image: everything random is a function of it.

    Args:
        seed: Seed of the cohort.
        subject: Number of the patient.
        scan: 0, or 1 for a follow-up.
        reconstruction: 0, or 1 for a second kernel and field of view.
        shape: Voxels ``(X, Y, Z)``.
        findings: Findings to show instead of those drawn (``None``); details, body, pose and noise stay.
        prevalence: Findings and their share of scans, in place of the catalogue's.
        lesions: Findings whose voxels get labels of their own (`LESIONS`) over those of the organs.
    """

    seed: int
    subject: int
    scan: int
    reconstruction: int
    shape: tuple[int, int, int]
    findings: tuple[str, ...] | None = None
    prevalence: tuple[tuple[str, float], ...] = ()
    lesions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan holds: the body before any finding, and the present findings."""

    body: Body
    details: dict[str, Detail]


def plan(address: Address) -> Scan:
    """Draw the patient, the scan and its findings, without voxels.

    Raises:
        ValueError: If the address asks for an unknown finding.
    """
    seed, subject, scan = address.seed, address.subject, address.scan
    rng = stream(seed, subject, "patient")
    factors, own = rng.standard_normal(len(FACTORS)), rng.standard_normal(len(FINDINGS))
    if scan:
        own = 0.8 * own + 0.6 * stream(seed, subject, scan, "course").standard_normal(len(FINDINGS))
    value = dict(zip(FACTORS, factors, strict=True))
    age = round(18 + 74 * float(ndtr(0.8 * value["age"] + 0.3)))
    person = draw_person(age, "M" if rng.random() < 0.56 else "F", value["metabolic"], rng)
    names = draw_present(factors, own, dict(address.prevalence)) if address.findings is None else address.findings
    unknown = [name for name in names if name not in FINDINGS]
    if unknown:
        raise ValueError(f"unknown findings {unknown}; known are {', '.join(FINDINGS)}")
    details = {name: draw_detail(FINDINGS[name], stream(seed, subject, scan, "detail", name)) for name in names}
    return Scan(draw_body(person, stream(seed, subject, scan, "body")), details)


def reconstruction(address: Address, scan: Scan) -> Reconstruction:
    """Draw the voxels and the noise of one reconstruction."""
    first = stream(address.seed, address.subject, address.scan, "kernel").random() < 0.6
    kernel: Literal["soft", "sharp"] = "soft" if first == (address.reconstruction == 0) else "sharp"
    rng = stream(address.seed, address.subject, address.scan, "reconstruction", address.reconstruction)
    return draw_reconstruction(scan.body, address.shape, kernel, rng)


@lru_cache(maxsize=1)  # the CT, its radiograph and its organ labels are usually asked for in turn
def render(address: Address) -> tuple[np.ndarray, np.ndarray]:
    """Make the voxels.

    Args:
        address: Which image.

    Returns:
        HU ``X Y Z`` (float32, whole numbers) and organ ids ``X Y Z`` (uint8). Both are read-only.
    """
    scan = plan(address)
    made = reconstruction(address, scan)
    base = address.seed, address.subject, address.scan
    body = scan.body
    for name, detail in scan.details.items():
        body = _CHANGES[name](body, detail) if name in _CHANGES else body
    canvas = Canvas(made.grid, body.placement)
    tissue = canvas.field(stream(*base, "tissue"), _PITCH_MM)
    scene = paint_torso(canvas, body, tissue)
    paint_chest(scene, tissue, stream(*base, "vessels"))
    paint_abdomen(scene, tissue)
    paint_bones(scene)
    marked = []
    for name, paint in _PAINTERS.items():
        if name in scan.details:
            before = canvas.hu.copy() if name in address.lesions else canvas.hu
            paint(scene, scan.details[name], stream(*base, "voxels", name))
            if name in address.lesions:
                marked.append((_changed(before, canvas.hu), LESIONS[name][0]))
    for where, label in marked:  # last: painters read the organs' labels
        canvas.labels[where] = label
    hu = _expose(canvas.hu, made, stream(*base, "noise", address.reconstruction))
    canvas.labels.setflags(write=False)
    hu.setflags(write=False)
    return hu, canvas.labels


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Voxels at least half of which is lesion: those that changed by half of the largest change."""
    change = np.abs(after - before)
    return change >= max(change.max() / 2, _VISIBLE_HU)


def _expose(hu: np.ndarray, made: Reconstruction, rng: np.random.Generator) -> np.ndarray:
    """Blur and noise of the kernel, whole HU, the range of a 12-bit scanner."""
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    noise *= np.float32(made.noise_hu)
    if made.kernel == "soft":
        for axis in range(3):
            hu = correlate1d(hu, [0.13, 0.74, 0.13], axis=axis, mode="nearest")
            noise = correlate1d(noise, [0.25, 0.75, 0.25], axis=axis, mode="nearest")
    hu = hu + noise
    return np.clip(np.rint(hu, out=hu), -1024, 3071, out=hu)
