"""The catalogue of findings, how often and with which others each occurs, and the details of one occurrence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

__all__ = [
    "CT_GLIP_NAMES",
    "CT_RATE_NAMES",
    "FACTORS",
    "FINDINGS",
    "LESIONS",
    "LOBES",
    "Detail",
    "Finding",
    "draw_detail",
    "draw_present",
]

FACTORS = ("age", "atheroma", "smoking", "heart", "infection", "tumour", "metabolic", "biliary", "granuloma")
"""Latent causes, independent standard normal per patient, that make findings occur together."""

LOBES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], str]] = {
    "right upper lobe": ((66, 5, 62), (14, 22, 18), "lung_upper_lobe_right"),
    "right middle lobe": ((70, 48, -12), (12, 8, 8), "lung_middle_lobe_right"),
    "right lower lobe": ((74, -46, -18), (12, 14, 16), "lung_lower_lobe_right"),
    "left upper lobe": ((-64, 10, 58), (14, 22, 18), "lung_upper_lobe_left"),
    "left lower lobe": ((-76, -46, -16), (12, 14, 16), "lung_lower_lobe_left"),
}
"""Lobe → a centre well inside it, the spread of lesions around it (mm) and its organ name."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of finding.

    Args:
        name: Label name.
        organs: Organs whose voxels it changes.
        prevalence: Share of scans.
        loadings: Weight of each latent factor; the rest of the variance is the finding's own.
        sites: Where it can lie: ``"lobe"``, ``"side"`` or ``"none"``.
        kinds: Variants with their shares.
        count: Smallest and largest number of lesions.
        size_mm: Diameter at severity 0 and 1, or ``None`` where a diameter says nothing.
    """

    name: str
    organs: tuple[str, ...]
    prevalence: float
    loadings: Mapping[str, float]
    sites: str = "none"
    kinds: Mapping[str, float] | None = None
    count: tuple[int, int] = (1, 1)
    size_mm: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Detail:
    """One occurrence: what both the voxels and the report follow.

    Args:
        severity: 0 (just visible) to 1.
        sides: ``"left"``, ``"right"`` or both.
        lobes: Names from ``LOBES``.
        kind: One of the finding's kinds, or ``""``.
        count: Number of lesions.
        size_mm: Diameter of the largest, or 0.
    """

    severity: float
    sides: tuple[str, ...] = ()
    lobes: tuple[str, ...] = ()
    kind: str = ""
    count: int = 1
    size_mm: float = 0.0


_LUNGS = tuple(organ for _, _, organ in LOBES.values())
_PLEURA = _LUNGS
_GREAT = ("aorta",)

FINDINGS: dict[str, Finding] = {
    f.name: f
    for f in (
        # The 18 labels of CT-RATE, in its order; prevalences near those of its training set.
        Finding("Medical material", ("heart", "superior_vena_cava", *_LUNGS, "esophagus", "trachea"), 0.10,
                {"heart": 0.35, "atheroma": 0.25, "tumour": 0.3},
                kinds={"port": 0.3, "pacemaker": 0.35, "sternotomy": 0.2, "tube": 0.15}),
        Finding("Arterial wall calcification", _GREAT, 0.28, {"age": 0.5, "atheroma": 0.65}),
        Finding("Cardiomegaly", ("heart",), 0.13, {"age": 0.2, "heart": 0.65, "atheroma": 0.15}),
        Finding("Pericardial effusion", ("heart",), 0.06, {"heart": 0.5, "tumour": 0.3}, size_mm=(7, 20)),
        Finding("Coronary artery wall calcification", ("heart",), 0.24, {"age": 0.45, "atheroma": 0.7}),
        Finding("Hiatal hernia", ("esophagus", "stomach", "heart", "lung_lower_lobe_left", "lung_lower_lobe_right"),
                0.14, {"age": 0.4, "metabolic": 0.3}),
        Finding("Lymphadenopathy", ("superior_vena_cava", "trachea", "aorta", "pulmonary_vein", "esophagus"), 0.22,
                {"tumour": 0.55, "infection": 0.3}, count=(3, 8), size_mm=(14, 32)),
        Finding("Emphysema", _LUNGS, 0.19, {"smoking": 0.75, "age": 0.2},
                kinds={"centrilobular": 0.7, "paraseptal": 0.3}),
        Finding("Atelectasis", _LUNGS, 0.22, {"heart": 0.3, "infection": 0.2, "tumour": 0.2}, "side",
                {"linear": 0.4, "basal": 0.6}),
        Finding("Lung nodule", _LUNGS, 0.38, {"tumour": 0.45, "granuloma": 0.25, "smoking": 0.2}, "lobe", count=(1, 4),
                size_mm=(7, 26)),
        Finding("Lung opacity", _LUNGS, 0.32, {"infection": 0.65, "heart": 0.15}, "lobe", count=(3, 7)),
        Finding("Pulmonary fibrotic sequela", _LUNGS, 0.22, {"granuloma": 0.45, "smoking": 0.25, "age": 0.25}, "side"),
        Finding("Pleural effusion", _PLEURA, 0.13, {"heart": 0.55, "tumour": 0.25, "infection": 0.3}, "side"),
        Finding("Mosaic attenuation pattern", _LUNGS, 0.08, {"smoking": 0.45, "infection": 0.1}),
        Finding("Peribronchial thickening", _LUNGS, 0.10, {"smoking": 0.5, "infection": 0.3}),
        Finding("Consolidation", _LUNGS, 0.15, {"infection": 0.75}, "lobe", count=(1, 2), size_mm=(50, 95)),
        Finding("Bronchiectasis", _LUNGS, 0.09, {"smoking": 0.35, "granuloma": 0.35}, "lobe", count=(8, 15)),
        Finding("Interlobular septal thickening", _LUNGS, 0.08, {"heart": 0.6, "infection": 0.25}),
        # The abnormalities that CT-GLIP lists.
        Finding("Splenomegaly", ("spleen",), 0.07, {"tumour": 0.3, "metabolic": 0.3}),
        Finding("Splenic calcification", ("spleen",), 0.04, {"granuloma": 0.6}, count=(2, 8)),
        Finding("Acute pancreatitis", ("pancreas",), 0.025, {"biliary": 0.65}),
        Finding("Chronic pancreatitis", ("pancreas",), 0.035, {"biliary": 0.6, "smoking": 0.25}),
        Finding("Pancreatic duct stones", ("pancreas",), 0.02, {"biliary": 0.75}, count=(2, 5)),
        Finding("Arteriosclerosis", _GREAT, 0.17, {"age": 0.55, "atheroma": 0.6}),
        Finding("Kidney stone", ("kidney_left", "kidney_right"), 0.09, {"metabolic": 0.35, "biliary": 0.15}, "side",
                count=(1, 3), size_mm=(5, 13)),
        Finding("Kidney cyst", ("kidney_left", "kidney_right"), 0.16, {"age": 0.5}, "side", size_mm=(17, 52)),
        Finding("Fatty liver", ("liver",), 0.22, {"metabolic": 0.75}),
        Finding("Liver cyst", ("liver",), 0.12, {"age": 0.3}, count=(1, 4), size_mm=(14, 44)),
        Finding("Liver calcification", ("liver",), 0.05, {"granuloma": 0.6}, count=(1, 4), size_mm=(5, 13)),
        # Ours: CT-GLIP's list stops at eleven of its sixteen, and its gallbladder rows are among the missing.
        Finding("Gallstone", ("gallbladder",), 0.11, {"biliary": 0.5, "metabolic": 0.35, "age": 0.2}, count=(1, 5),
                size_mm=(6, 17)),
        Finding("Cholecystitis", ("gallbladder", "liver"), 0.03, {"biliary": 0.7, "infection": 0.15}),
    )
}  # fmt: skip
"""Name → finding; the order is that of the labels."""

LESIONS: dict[str, tuple[int, str]] = {
    name: (201 + place, name.lower().replace(" ", "_")) for place, name in enumerate(FINDINGS)
}
"""Finding → label id and structure name of its own voxels, where they are asked for."""

CT_RATE_NAMES = tuple(FINDINGS)[:18]
CT_GLIP_NAMES = tuple(FINDINGS)[18:29]


def draw_present(
    factors: np.ndarray, own: np.ndarray, prevalence: Mapping[str, float] | None = None
) -> tuple[str, ...]:
    """Which findings are there: a Gaussian factor model cut at each prevalence.

    Args:
        factors: Standard normal value of each of ``FACTORS``.
        own: Standard normal value of each finding.
        prevalence: Finding → share of scans, in place of the catalogue's.

    Returns:
        Names, in the order of ``FINDINGS``.
    """
    value, given = dict(zip(FACTORS, factors, strict=True)), prevalence or {}
    present = []
    for finding, noise in zip(FINDINGS.values(), own, strict=True):
        shared = sum(weight * value[name] for name, weight in finding.loadings.items())
        left = 1 - sum(weight**2 for weight in finding.loadings.values())
        if shared + np.sqrt(left) * noise > -ndtri(given.get(finding.name, finding.prevalence)):
            present.append(finding.name)
    return tuple(present)


def draw_detail(finding: Finding, rng: np.random.Generator) -> Detail:
    """Draw one occurrence of ``finding``; the same draws whether or not it is present."""
    severity, both, first = rng.random(3)
    sides: tuple[str, ...] = ()
    lobes: tuple[str, ...] = ()
    if finding.sites == "side":
        sides = ("right", "left") if both < 0.35 else (("right", "left")[int(first > 0.5)],)
    if finding.sites == "lobe":
        extra = 1 + int(both < 0.35) + int(both < 0.12)
        lobes = tuple(np.array(list(LOBES))[np.sort(rng.permutation(len(LOBES))[:extra])].tolist())
    kind = ""
    if finding.kinds:
        kind = str(rng.choice(list(finding.kinds), p=list(finding.kinds.values())))
    count = max(int(rng.integers(finding.count[0], finding.count[1] + 1)), len(lobes))
    size = 0.0
    if finding.size_mm:
        size = float(np.round(finding.size_mm[0] + severity * (finding.size_mm[1] - finding.size_mm[0])))
    return Detail(float(severity), sides, lobes, kind, count, size)
