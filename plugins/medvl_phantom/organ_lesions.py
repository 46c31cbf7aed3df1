"""Findings of heart, vessels, mediastinum and abdomen: how each changes the body or its voxels."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from medvl_phantom.abdomen import gallbladder_shape, kidney_shape, pancreas_course, spleen_shape
from medvl_phantom.body import Body
from medvl_phantom.chest import HEART_RADII, HEART_TILT, SIDES, aorta_course, heart_center
from medvl_phantom.findings import Detail
from medvl_phantom.lesions import in_ellipsoid, pellets
from medvl_phantom.lung_lesions import Change, Painter
from medvl_phantom.organs import ORGAN_ID
from medvl_phantom.torso import Scene

__all__ = ["ORGAN_CHANGES", "ORGAN_PAINTERS"]

CALCIUM_HU = 850.0
METAL_HU = 3000.0  # devices are drawn larger than life: metal blooms, and projections clip it to 1000 HU


def _scale_of(field: str, least: float, more: float) -> Change:
    """A change that multiplies one size of the body by ``least`` to ``least + more``."""

    def change(body: Body, detail: Detail) -> Body:
        return replace(body, **{field: getattr(body, field) * (least + more * detail.severity)})

    return change


def _arteriosclerosis_body(body: Body, detail: Detail) -> Body:
    s = detail.severity
    return replace(
        body, aorta_scale=body.aorta_scale * (1.12 + 0.28 * s), aorta_unfolding=body.aorta_unfolding + 7 + 14 * s
    )


def _fatty_liver_body(body: Body, detail: Detail) -> Body:
    return replace(body, liver_hu=body.liver_hu - 22 - 38 * detail.severity)


def _paint_pericardial_effusion(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    canvas, size = scene.canvas, scene.body.heart_scale
    gap = detail.size_mm * np.array([1.0, 0.8, 0.9])
    box, share = canvas.ellipsoid(heart_center(scene.body) - (0, 0, 3), np.array(HEART_RADII) * size + gap, HEART_TILT)
    canvas.paint(box, share * (canvas.hu[box] < -20), 12.0, ORGAN_ID["heart"])


def _paint_coronary_calcification(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    count = 8 + int(26 * detail.severity)
    t = rng.beta(1.2, 2.5, count)
    vessel = rng.choice(3, count, p=[0.5, 0.25, 0.25])
    start = np.radians(np.array([75, 100, 60])[vessel])
    around = start + t * np.radians(np.array([75, 150, -110])[vessel])
    height = np.array([30, 18, 12])[vessel] - 55 * t
    lift = np.radians(height)
    surface = np.stack([np.cos(lift) * np.cos(around), np.cos(lift) * np.sin(around), np.sin(lift)], 1)
    radii = 0.97 * np.array(HEART_RADII) * scene.body.heart_scale
    points = heart_center(scene.body) + (surface * radii) @ HEART_TILT.T
    pellets(scene, points, rng.uniform(1.4, 2.6 + detail.severity, count), CALCIUM_HU)


def _paint_aortic_calcification(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    body, count = scene.body, 12 + int(48 * detail.severity)
    course = aorta_course(body)
    at = (
        rng.choice([rng.uniform(2, 6), 5.0]) + rng.uniform(-2, 2, count)
        if rng.random() < 0.3
        else rng.uniform(2, 12, count)
    )
    k = np.clip(at.astype(int), 0, len(course) - 2)
    along = course[k + 1] - course[k]
    center = course[k] + (at - k)[:, None] * along
    side = np.cross(along, rng.standard_normal((count, 3)))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    radius = body.aorta_scale * np.interp(at, [0, 4, 9, 13], [16, 13.5, 11.5, 9])
    pellets(scene, center + side * (radius - 1)[:, None], rng.uniform(1.5, 3 + detail.severity, count), CALCIUM_HU)


def _paint_plaques(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    course = aorta_course(scene.body)
    for k in rng.integers(4, 12, 4 + int(6 * detail.severity)):
        offset = rng.normal(0, 1, 3) * (7, 7, 4) * scene.body.aorta_scale
        box, share = scene.canvas.ellipsoid(course[k] + offset, (6, 6, 13))
        scene.canvas.paint(box, share * (scene.canvas.labels[box] == ORGAN_ID["aorta"]), 18.0)


def _paint_hiatal_hernia(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    canvas, size = scene.canvas, 0.85 + 0.75 * detail.severity
    center = (
        np.array([-8.0, -24, -44 + 6 * size]) + rng.normal(0, 3, 3) + (0, 0, 0.5 * (scene.body.dome_mm["left"] + 46))
    )
    keep = (ORGAN_ID["aorta"], *range(29, 45), ORGAN_ID["spinal_cord"])
    for radii, density in (((29, 19, 25), scene.body.tissue("gut")), ((24, 15, 20), 0.0)):
        box, share = canvas.ellipsoid(center, np.array(radii) * size)
        gas = canvas.share(np.float32(center[1] + 1) - canvas.y[box]) if density == 0 else 0.0
        canvas.paint(box, share * ~np.isin(canvas.labels[box], keep), density - 900 * gas, ORGAN_ID["stomach"])


def _paint_lymph_nodes(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    stations = [(31, 4, 48), (-2, -22, 12), (44, -6, 14), (-44, -8, 14), (-34, 8, 48), (4, 38, 62), (34, 6, 68)]
    stations += [(-32, 16, 66)]
    keep = [ORGAN_ID[name] for name in ("aorta", "trachea", "heart", "superior_vena_cava", "brachiocephalic_trunk")]
    radii = detail.size_mm / 2 * np.r_[1.0, rng.uniform(0.6, 1.0, detail.count - 1)]
    for k, radius in zip(rng.permutation(len(stations))[: detail.count], radii, strict=True):
        box, share = scene.canvas.ellipsoid(stations[k] + rng.normal(0, 3, 3), radius * np.array([1.1, 0.9, 1.3]))
        scene.canvas.paint(box, share * ~np.isin(scene.canvas.labels[box], keep), 42.0)


def _wire(scene: Scene, points: list[tuple[float, float, float]], radius: float) -> None:
    """A metal thread of ``radius`` mm."""
    knots = np.array(points, float)
    step = np.concatenate([np.linspace(a, b, 40, endpoint=False) for a, b in pairwise(knots)])
    length = np.repeat(np.linalg.norm(np.diff(knots, axis=0), axis=1) / 40, 40)
    share = scene.canvas.splat(step, np.pi * radius**2 * length)
    scene.canvas.hu += share * (np.float32(METAL_HU) - scene.canvas.hu)


def _paint_material(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    canvas, heart = scene.canvas, heart_center(scene.body)
    jitter = rng.normal(0, 4, 3)
    if detail.kind == "port":
        pocket = np.array([82, 72, 72]) + jitter
        canvas.paint(*canvas.ellipsoid(pocket, (20, 13, 20)), METAL_HU)
        _wire(scene, [tuple(pocket), (60, 48, 112), (26, 20, 100), (27, 12, 40), (28, 14, 10)], 3.4)
    elif detail.kind == "pacemaker":
        box = np.array([-88, 74, 84]) + jitter
        canvas.paint(*canvas.ellipsoid(box, (29, 14, 27)), METAL_HU)
        path = [
            tuple(box),
            (-60, 44, 112),
            (8, 28, 96),
            (27, 14, 50),
            (26, 14, 8),
            tuple(heart + np.array([-30, 12, -26])),
        ]
        _wire(scene, path, 3.2)
    elif detail.kind == "sternotomy":
        for z in (-8, 14, 36, 58, 80):
            front = float(np.interp(z, [-20, 20, 60, 90], [92, 84, 72, 60]))
            _wire(
                scene,
                [(-13, front, z), (0, front + 7, z + 4), (13, front, z), (0, front - 3, z - 3), (-13, front, z)],
                4.0,
            )
        ring = heart + np.array([4, -6, 12])
        angle = np.linspace(0, 2 * np.pi, 13)
        _wire(scene, [tuple(ring + 13 * np.array([np.cos(a), 0.4 * np.sin(a), np.sin(a)])) for a in angle], 3.6)
    else:
        _wire(scene, [(-2, 8, 150), (-2, -10, 100), (-4, -26, 50), (-4, -30, 0), (-10, -14, -66), (-50, 10, -90)], 3.6)
        _wire(scene, [(0, 24, 150), (2, 10, 90), (2, 2, 58)], 4.5)


def _paint_splenic_calcification(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    center, radii, rotation = spleen_shape(scene.body)
    points = in_ellipsoid(rng, center, 0.7 * radii, rotation, detail.count)
    pellets(scene, points, rng.uniform(2, 3 + 1.5 * detail.severity, detail.count), CALCIUM_HU, (ORGAN_ID["spleen"],))


def _paint_acute_pancreatitis(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    canvas, s = scene.canvas, detail.severity
    points, radii = pancreas_course(scene.body)
    box, share = canvas.chain(points, radii + 9 + 11 * s)
    fat = (canvas.labels[box] == 0) & (canvas.hu[box] < -20) & (canvas.hu[box] > -200)
    strands = np.clip(0.55 + 0.35 * canvas.field(rng, 13.0, box), 0.1, 1.0)
    canvas.paint(box, share * fat * strands, 12.0)
    box, share = canvas.chain(points, radii * (1.18 + 0.3 * s))
    own = (canvas.labels[box] == 0) | (canvas.labels[box] == ORGAN_ID["pancreas"])
    canvas.paint(box, share * own, scene.body.tissue("pancreas") - 14 - 12 * s, ORGAN_ID["pancreas"])


def _paint_chronic_pancreatitis(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    canvas, s = scene.canvas, detail.severity
    points, radii = pancreas_course(scene.body)
    box, kept = canvas.chain(points, radii * (0.78 - 0.22 * s))
    rim = (1 - kept) * (canvas.labels[box] == ORGAN_ID["pancreas"])
    canvas.paint(box, rim, -75.0)
    canvas.labels[box][rim >= 0.5] = 0
    box, duct = canvas.chain(points, 2.4 + 1.6 * s)
    canvas.paint(box, duct, 8.0)
    where = points[rng.integers(0, len(points), 5)] + rng.normal(0, 4, (5, 3))
    pellets(scene, where, rng.uniform(1.2, 2.4, 5), CALCIUM_HU, (ORGAN_ID["pancreas"],))


def _paint_duct_stones(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    points, _ = pancreas_course(scene.body)
    box, duct = scene.canvas.chain(points[:3], 2.0 + 1.5 * detail.severity)
    scene.canvas.paint(box, duct, 8.0)
    at = rng.uniform(0.3, 2.0, detail.count)
    where = np.stack([np.interp(at, np.arange(5), points[:, d]) for d in range(3)], 1)
    pellets(scene, where, rng.uniform(2.2, 3.2 + 1.6 * detail.severity, detail.count), 1100.0)


def _paint_kidney_stone(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    for side in detail.sides:
        center, radii, rotation = kidney_shape(scene.body, side)
        points = in_ellipsoid(rng, center - (SIDES[side] * 6, 0, 0), 0.5 * radii, rotation, detail.count)
        sizes = detail.size_mm / 2 * np.r_[1.0, rng.uniform(0.5, 0.9, detail.count - 1)]
        pellets(scene, points, sizes, 950.0, label=ORGAN_ID[f"kidney_{side}"])


def _paint_kidney_cyst(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    for side in detail.sides:
        center, radii, _ = kidney_shape(scene.body, side)
        angle, radius = rng.uniform(-0.8, 0.8), detail.size_mm / 2
        out = np.array([SIDES[side] * np.cos(angle), -0.4 * np.sin(angle), np.sin(angle)])
        box, share = scene.canvas.ellipsoid(center + out * (radii * 0.8 + 0.3 * radius), [radius] * 3)
        share = np.minimum(share, scene.canvas.share(scene.cage[box] + 3))
        scene.canvas.paint(box, share, 6.0, ORGAN_ID[f"kidney_cyst_{side}"])


def _paint_liver_spots(hu: float) -> Painter:
    def paint(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
        points = in_ellipsoid(rng, np.array([62.0, 12, -88]), np.array([32.0, 40, 26]), np.eye(3), detail.count)
        sizes = detail.size_mm / 2 * np.r_[1.0, rng.uniform(0.5, 0.9, detail.count - 1)]
        pellets(scene, points, sizes, hu, (ORGAN_ID["liver"],))

    return paint


def _paint_gallstones(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    center, radii = gallbladder_shape(scene.body)
    points = in_ellipsoid(rng, center - (0, 0.35 * radii[1], 0.2 * radii[2]), 0.5 * radii, np.eye(3), detail.count)
    sizes = detail.size_mm / 2 * np.r_[1.0, rng.uniform(0.5, 0.9, detail.count - 1)]
    pellets(scene, points, sizes, float(rng.uniform(180, 600)), (ORGAN_ID["gallbladder"],))


def _paint_cholecystitis(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    canvas, s = scene.canvas, detail.severity
    center, radii = gallbladder_shape(scene.body)
    box, share = canvas.ellipsoid(center, radii + 9 + 8 * s)
    around = (canvas.labels[box] == 0) | (canvas.labels[box] == ORGAN_ID["liver"])
    canvas.paint(box, share * around * (canvas.hu[box] > -250) * (0.45 + 0.3 * s), 14.0)
    box, wall = canvas.ellipsoid(center, radii + 3 + 4 * s)
    canvas.paint(box, wall, scene.body.tissue("gut") + 10, ORGAN_ID["gallbladder"])
    canvas.paint(*canvas.ellipsoid(center, radii - 1), 20.0)


ORGAN_CHANGES: dict[str, Change] = {
    "Cardiomegaly": _scale_of("heart_scale", 1.14, 0.22),
    "Splenomegaly": _scale_of("spleen_scale", 1.2, 0.3),
    "Cholecystitis": _scale_of("gallbladder_scale", 1.15, 0.2),
    "Arteriosclerosis": _arteriosclerosis_body,
    "Fatty liver": _fatty_liver_body,
}
"""Finding → what it changes in the body before anything is painted."""

ORGAN_PAINTERS: dict[str, Painter] = {
    "Pericardial effusion": _paint_pericardial_effusion,
    "Arteriosclerosis": _paint_plaques,
    "Lymphadenopathy": _paint_lymph_nodes,
    "Hiatal hernia": _paint_hiatal_hernia,
    "Liver cyst": _paint_liver_spots(8.0),
    "Kidney cyst": _paint_kidney_cyst,
    "Cholecystitis": _paint_cholecystitis,
    "Acute pancreatitis": _paint_acute_pancreatitis,
    "Chronic pancreatitis": _paint_chronic_pancreatitis,
    "Pancreatic duct stones": _paint_duct_stones,
    "Splenic calcification": _paint_splenic_calcification,
    "Liver calcification": _paint_liver_spots(600.0),
    "Kidney stone": _paint_kidney_stone,
    "Gallstone": _paint_gallstones,
    "Arterial wall calcification": _paint_aortic_calcification,
    "Coronary artery wall calcification": _paint_coronary_calcification,
    "Medical material": _paint_material,
}
"""Finding → what it paints, in this order."""
