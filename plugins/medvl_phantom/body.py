"""The varied body: what one person and one scan look like, before any voxel is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from medvl_phantom.canvas import Grid, Placement

__all__ = [
    "BLOOD_HU",
    "ORGAN_HU",
    "Body",
    "Person",
    "Phase",
    "Reconstruction",
    "draw_body",
    "draw_person",
    "draw_reconstruction",
]

Phase = Literal["non-contrast", "arterial", "portal venous"]
PHASES: tuple[Phase, ...] = ("non-contrast", "arterial", "portal venous")

ORGAN_HU: dict[str, tuple[float, float, float]] = {
    "muscle": (52, 58, 62),
    "liver": (58, 72, 108),
    "spleen": (50, 128, 118),
    "kidney": (33, 150, 175),
    "pancreas": (40, 95, 88),
    "adrenal": (22, 60, 65),
    "thyroid": (95, 165, 150),
    "gut": (38, 62, 75),
    "myocardium": (44, 98, 105),
}
"""HU of tissues per contrast phase, in the order of ``PHASES``."""

BLOOD_HU: dict[str, tuple[float, float, float]] = {
    "aorta": (42, 320, 160),
    "heart": (41, 260, 150),
    "lung": (41, 250, 145),
    "cava_superior": (41, 360, 150),
    "cava_inferior": (40, 62, 140),
    "portal": (41, 78, 172),
}
"""HU of blood per contrast phase."""


@dataclass(frozen=True, slots=True)
class Person:
    """What stays the same between the scans of one patient."""

    age: int
    sex: Literal["F", "M"]
    scale: tuple[float, float, float]
    fat_mm: float
    muscle_mm: float
    scoliosis: float
    kyphosis: float
    heart_scale: float
    spleen_scale: float
    kidney_scale: float
    gallbladder_scale: float
    aorta_scale: float
    aorta_unfolding: float
    liver_drop: float
    bone_hu: float
    offsets: dict[str, tuple[float, float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Body:
    """One patient at one scan: the person, their pose, breath and contrast. Findings change copies of it."""

    person: Person
    placement: Placement
    phase: Phase
    dome_mm: dict[str, float]
    heart_scale: float
    spleen_scale: float
    aorta_scale: float
    aorta_unfolding: float
    gallbladder_scale: float
    lung_hu: float
    liver_hu: float
    vessel_scale: float = 1.0
    bronchus_wall_mm: float = 1.2
    dome_flat: float = 1.0

    def tissue(self, name: str) -> float:
        """HU of an organ in this scan's contrast phase."""
        return ORGAN_HU[name][PHASES.index(self.phase)]

    def blood(self, name: str) -> float:
        """HU of a vessel's blood in this scan's contrast phase."""
        return BLOOD_HU[name][PHASES.index(self.phase)]

    def near(self, organ: str, point: tuple[float, float, float]) -> np.ndarray:
        """A reference point moved by this person's offset of ``organ``."""
        return np.asarray(point, float) + self.person.offsets[organ]


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """One reconstruction of a scan: its voxels, kernel and noise."""

    grid: Grid
    kernel: Literal["soft", "sharp"]
    noise_hu: float
    fov_mm: float


_OFFSETS_MM = {
    "heart": 5.0,
    "liver": 5.0,
    "spleen": 6.0,
    "kidney_left": 6.0,
    "kidney_right": 6.0,
    "pancreas": 4.0,
    "stomach": 8.0,
    "gallbladder": 6.0,
    "colon": 8.0,
}


def draw_person(age: int, sex: Literal["F", "M"], adiposity: float, rng: np.random.Generator) -> Person:
    """Draw a person's build.

    Args:
        age: Years.
        sex: Taller and broader for ``"M"``.
        adiposity: Standard normal; thickens subcutaneous fat.
        rng: The person's own stream.

    Returns:
        The person.
    """
    size = rng.normal(1.0, 0.045) * (1.03 if sex == "M" else 0.95)
    aspect = rng.normal(0.0, 0.04, 3)
    scale = size * (1 + aspect * (1.0, 1.0, 0.6))
    return Person(
        age=age,
        sex=sex,
        scale=(float(scale[0]), float(scale[1]), float(scale[2])),
        fat_mm=float(np.clip(15 + 7 * adiposity + rng.normal(0, 3) + (3 if sex == "F" else 0), 4, 34)),
        muscle_mm=float(rng.normal(0, 2.0)),
        scoliosis=float(rng.normal(0, 4)),
        kyphosis=float(-2 - abs(rng.normal(0, 5)) * (1.5 if age > 65 else 1.0)),
        heart_scale=float(np.exp(rng.normal(0, 0.05))),
        spleen_scale=float(np.exp(rng.normal(0, 0.09))),
        kidney_scale=float(np.exp(rng.normal(0, 0.07))),
        gallbladder_scale=float(np.exp(rng.normal(0, 0.15))),
        aorta_scale=float(np.exp(rng.normal(0.002 * (age - 55), 0.06))),
        aorta_unfolding=float(max(rng.normal(0.12 * (age - 55), 3), -4)),
        liver_drop=float(rng.normal(0, 10)),
        bone_hu=float(rng.normal(300 - 2.0 * (age - 55), 40)),
        offsets={name: tuple(rng.normal(0, sd, 3).tolist()) for name, sd in _OFFSETS_MM.items()},
    )


def draw_body(person: Person, rng: np.random.Generator) -> Body:
    """Draw pose, breath and contrast of one scan of ``person``."""
    breath = rng.normal(0, 9)
    lean = rng.normal(0, 0.03, 2)
    return Body(
        person=person,
        placement=Placement(
            scale=person.scale,
            rotation=float(rng.normal(0, 0.05)),
            lean=(float(lean[0]), float(lean[1])),
            shift=tuple(rng.normal(0, (7, 7, 5)).tolist()),
            scoliosis=person.scoliosis,
            kyphosis=person.kyphosis,
        ),
        phase=PHASES[int(rng.choice(3, p=(0.5, 0.25, 0.25)))],
        dome_mm={"right": float(-36 + breath + rng.normal(0, 4)), "left": float(-46 + breath + rng.normal(0, 4))},
        heart_scale=person.heart_scale,
        spleen_scale=person.spleen_scale,
        aorta_scale=person.aorta_scale,
        aorta_unfolding=person.aorta_unfolding,
        gallbladder_scale=person.gallbladder_scale * float(np.exp(rng.normal(0, 0.12))),
        lung_hu=float(rng.normal(-845, 18) + 0.9 * breath),
        liver_hu=float(rng.normal(0, 5)),
    )


def draw_reconstruction(
    body: Body, shape: tuple[int, int, int], kernel: Literal["soft", "sharp"], rng: np.random.Generator
) -> Reconstruction:
    """Draw field of view, slice spacing and noise of one reconstruction."""
    width = 2 * (168 + body.person.fat_mm) * body.person.scale[0] + 12
    fov = width * float(rng.uniform(0.97, 1.12))
    top = float(rng.uniform(134, 148)) * body.person.scale[2]
    bottom = -float(rng.uniform(196, 212)) * body.person.scale[2]
    spacing = (round(fov / shape[0], 4), round(fov / shape[1], 4), round((top - bottom) / shape[2], 4))
    center = (rng.normal(0, 4) + body.placement.shift[0], rng.normal(-2, 4) + body.placement.shift[1])
    origin = (
        round(float(center[0] - spacing[0] * (shape[0] - 1) / 2), 3),
        round(float(center[1] - spacing[1] * (shape[1] - 1) / 2), 3),
        round(float(bottom + body.placement.shift[2]), 3),
    )
    noise = float(rng.uniform(14, 26) if kernel == "soft" else rng.uniform(28, 55))
    grid = Grid(shape, spacing, origin)
    return Reconstruction(grid, kernel, noise, round(fov, 1))
