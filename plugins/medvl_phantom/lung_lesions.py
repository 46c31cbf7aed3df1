"""Findings of lungs and pleura: how each changes the body or its voxels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from medvl_phantom.body import Body
from medvl_phantom.canvas import turn
from medvl_phantom.chest import SIDES, lung_mask, tree
from medvl_phantom.findings import Detail
from medvl_phantom.lesions import cloud, lobe_points, pellets
from medvl_phantom.organs import LUNG_LOBES
from medvl_phantom.torso import Scene

__all__ = ["LUNG_CHANGES", "LUNG_PAINTERS"]

Painter = Callable[[Scene, Detail, np.random.Generator], None]
Change = Callable[[Body, Detail], Body]


def _emphysema_body(body: Body, detail: Detail) -> Body:
    s = detail.severity
    return replace(
        body,
        lung_hu=body.lung_hu - 18 - 45 * s,
        vessel_scale=body.vessel_scale * (0.9 - 0.2 * s),
        dome_mm={side: dome - 7 - 15 * s for side, dome in body.dome_mm.items()},
        dome_flat=body.dome_flat * (0.9 - 0.35 * s),
    )


def _atelectasis_body(body: Body, detail: Detail) -> Body:
    rise = 5 + (14 if detail.kind == "basal" else 6) * detail.severity
    return replace(body, dome_mm={side: dome + rise * (side in detail.sides) for side, dome in body.dome_mm.items()})


def _thick_bronchi_body(body: Body, detail: Detail) -> Body:
    return replace(body, bronchus_wall_mm=body.bronchus_wall_mm + 1.2 + 2 * detail.severity)


def _paint_emphysema(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    count = 8 + int(22 * detail.severity)
    sides = rng.choice([-1, 1], count)
    if detail.kind == "paraseptal":
        points = np.stack(
            [sides * rng.uniform(55, 88, count), rng.normal(0, 35, count), rng.uniform(30, 100, count)], 1
        )
    else:
        points = np.stack([sides * rng.normal(58, 14, count), rng.normal(-5, 28, count), rng.normal(62, 24, count)], 1)
    pellets(scene, points, rng.uniform(4, 10 + 10 * detail.severity, count), -985.0, LUNG_LOBES)


def _paint_atelectasis(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    canvas, s = scene.canvas, detail.severity
    for side in detail.sides:
        sign, base = SIDES[side], scene.body.dome_mm[side]
        for _ in range(2 + int(3 * s)):
            center = np.array([sign * 72, 0, base - 4]) + rng.normal(0, (9, 22, 9))
            plate = turn(about_y=sign * rng.normal(12, 12), about_x=rng.normal(0, 15))
            box, share = canvas.ellipsoid(center, (26 + 16 * s, 22, 2.6 + 1.4 * s), plate)
            canvas.paint(box, share * lung_mask(scene, box), 10.0)
        if detail.kind == "basal":
            size = 0.75 + 0.75 * s
            box, share = cloud(scene, (sign * 66, -52, base - 26 + 8 * s), np.array([38, 30, 24]) * size, rng, 0.2)
            canvas.paint(box, share * lung_mask(scene, box), 32.0)


def _paint_nodule(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    points = lobe_points(rng, detail.lobes, detail.count)
    radii = detail.size_mm / 2 * np.r_[1.0, rng.uniform(0.45, 0.9, detail.count - 1)]
    pellets(scene, points, radii, float(rng.choice([30.0, 40.0, 250.0], p=[0.5, 0.35, 0.15])), LUNG_LOBES)


def _paint_opacity(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    for center in lobe_points(rng, detail.lobes, detail.count):
        radii = rng.uniform(22, 34, 3) * (0.8 + 0.6 * detail.severity)
        box, share = cloud(scene, center, radii, rng, 0.6)
        scene.canvas.paint(box, share * lung_mask(scene, box) * (0.55 + 0.3 * detail.severity), -330.0)


def _paint_consolidation(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    for i, center in enumerate(lobe_points(rng, detail.lobes, detail.count)):
        radii = detail.size_mm / 2 * rng.uniform(0.8, 1.15, 3) * (1.0 if i == 0 else 0.75)
        box, share = cloud(scene, center, radii, rng, 0.3)
        bronchograms = np.clip(scene.canvas.field(rng, 13.0, box) - 1.1, 0, 1)
        scene.canvas.paint(box, share * lung_mask(scene, box), 28 - 700 * bronchograms)


def _paint_fibrosis(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    canvas, s = scene.canvas, detail.severity
    for side in detail.sides:
        sign = SIDES[side]
        box, share = cloud(scene, (sign * 50, -14, 108), np.array([28, 26, 15]) * (0.8 + 0.5 * s), rng, 0.5)
        canvas.paint(box, share * lung_mask(scene, box) * (0.55 + 0.3 * s), -120.0)
        for _ in range(5 + int(7 * s)):
            tip = np.array([sign * 56, -15, 96]) + rng.normal(0, (14, 22, 14))
            end = tip + rng.normal(0, 1, 3) * (16, 18, 10) - (sign * 10, 0, 22)
            box, share = canvas.chain([tip, end], [3.2 + 1.2 * s, 1.6])
            canvas.paint(box, share * lung_mask(scene, box), -30.0)


def _paint_effusion(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    """Fluid at the back and the base with a meniscus along the chest wall, and compressed lung above it."""
    canvas = scene.canvas
    for side in detail.sides:
        sign, base = SIDES[side], scene.body.dome_mm[side]
        level = np.float32((14 + 58 * detail.severity) * rng.uniform(0.85, 1.15))
        box = canvas.box((3 if sign > 0 else -130, -104, -150), (130 if sign > 0 else -3, 90, 60))
        _, y, z = canvas.at(box)
        meniscus = 22 * np.exp(np.minimum(scene.cage[box] + 4, 0) / 9)
        height = 0.85 * (z - base + 32) + 0.36 * (y + 92) - meniscus
        inside = lung_mask(scene, box)
        canvas.paint(box, np.clip((level + 18 - height) / 24, 0, 1) * 0.35 * inside, 20.0)
        canvas.paint(box, canvas.share(height - level) * inside, 10.0)


def _paint_mosaic(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    patches = np.clip(scene.canvas.field(rng, 30.0) * 2.2, -1, 1)
    scene.canvas.hu += lung_mask(scene) * patches * np.float32(45 + 55 * detail.severity)


def _paint_septa(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    canvas = scene.canvas
    walls = np.clip(1 - np.abs(canvas.field(rng, 15.0)) / np.float32(0.22), 0, 1)
    where = lung_mask(scene) * np.clip((scene.cage + 60) / 40, 0.25, 1) * np.clip((90 - canvas.z) / 90, 0.2, 1)
    canvas.hu += where * (walls * np.float32(190 + 260 * detail.severity) + np.float32(15 + 45 * detail.severity))


def _paint_sleeves(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    """Thick walls along the first two generations of each bronchial tree."""
    canvas, wall = scene.canvas, 1.3 + 1.9 * detail.severity
    points, volumes = [], []
    for side in SIDES:
        where, r, length, _ = tree(rng, side, levels=2)
        points.append(where)
        volumes.append(np.pi * (np.square(r + wall) - np.square(r)) * length)
    share = canvas.splat(np.concatenate(points), np.concatenate(volumes)) * lung_mask(scene)
    canvas.hu += share * np.maximum(np.float32(0) - canvas.hu, 0)


def _paint_bronchiectasis(scene: Scene, detail: Detail, rng: np.random.Generator) -> None:
    canvas, s = scene.canvas, detail.severity
    for center in lobe_points(rng, detail.lobes, detail.count):
        course = center + np.array([-0.5, 0.5])[:, None] * (rng.normal(0, 1, 3) * (6, 10, 12) + (0, 0, 16))
        radius = rng.uniform(3.2, 4.6 + 3.2 * s)
        box, outer = canvas.chain(course, radius + 2.4)
        inside = lung_mask(scene, box)
        canvas.paint(box, outer * inside, 0.0)
        box, lumen = canvas.chain(course, radius)
        canvas.paint(box, lumen * lung_mask(scene, box), -960.0)


LUNG_CHANGES: dict[str, Change] = {
    "Emphysema": _emphysema_body,
    "Atelectasis": _atelectasis_body,
    "Peribronchial thickening": _thick_bronchi_body,
}
"""Finding → what it changes in the body before anything is painted."""

LUNG_PAINTERS: dict[str, Painter] = {
    "Emphysema": _paint_emphysema,
    "Mosaic attenuation pattern": _paint_mosaic,
    "Interlobular septal thickening": _paint_septa,
    "Peribronchial thickening": _paint_sleeves,
    "Bronchiectasis": _paint_bronchiectasis,
    "Lung opacity": _paint_opacity,
    "Pulmonary fibrotic sequela": _paint_fibrosis,
    "Lung nodule": _paint_nodule,
    "Consolidation": _paint_consolidation,
    "Atelectasis": _paint_atelectasis,
    "Pleural effusion": _paint_effusion,
}
"""Finding → what it paints, in this order."""
