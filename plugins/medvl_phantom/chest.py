"""Lungs with their vessels and bronchi, heart, great vessels, trachea and oesophagus."""

from __future__ import annotations

import numpy as np

from medvl_phantom.body import Body
from medvl_phantom.canvas import Box, turn
from medvl_phantom.organs import ORGAN_ID
from medvl_phantom.torso import Scene, spine_y

__all__ = [
    "HEART_RADII",
    "HEART_TILT",
    "SIDES",
    "aorta_course",
    "diaphragm",
    "heart_center",
    "lung_mask",
    "paint_chest",
    "tree",
]

SIDES = {"left": -1, "right": 1}
HEART_TILT = turn(about_z=-26, about_y=-28)
"""Turns the heart's long axis to the front, the left and down."""
HEART_RADII = (64.0, 42.0, 45.0)
_HILUM = np.array([34.0, -8.0, 8.0])


def diaphragm(body: Body, side: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height (body z, mm) of a hemidiaphragm over body ``x``, ``y``."""
    sign = SIDES[side]
    across = np.square((sign * x - 58) / 70)
    along = np.square((y - 18) / 72)
    return np.float32(body.dome_mm[side]) - np.float32(body.dome_flat) * (38 * across + 42 * along)


def heart_center(body: Body) -> np.ndarray:
    """Centre of the heart, mm; it follows the diaphragm and grows downwards and to the left."""
    drop = 0.35 * (float(np.mean(list(body.dome_mm.values()))) + 41)
    return body.near("heart", (-19 - 16 * (body.heart_scale - 1), 24, -16 + drop))


def aorta_course(body: Body) -> np.ndarray:
    """Points along the aorta, root to bifurcation, ``N 3``; unfolding widens and lifts the arch."""
    u = body.aorta_unfolding
    arch = [(2, 20, 4), (17 + 0.3 * u, 30, 28), (17 + 0.6 * u, 28, 52 + 0.3 * u), (5, 14, 74 + 0.6 * u)]
    arch += [(-13 - 0.3 * u, -8, 77 + 0.6 * u), (-25 - 0.7 * u, -30, 62 + 0.4 * u), (-27 - 0.8 * u, -40, 40)]
    down = [(-24 - 0.5 * u, spine_y(0) + 16, 0), (-21 - 0.6 * u, spine_y(-40) + 16, -40), (-14, spine_y(-80) + 20, -80)]
    down += [(-8, spine_y(z) + 26, z) for z in (-115, -150, -190, -220)]
    return np.array(arch + down, float)


def lung_mask(scene: Scene, box: Box | None = None) -> np.ndarray:
    """Voxels labelled as lung (left lobes 10 and 11, right lobes 12 to 14), boolean."""
    labels = scene.canvas.labels if box is None else scene.canvas.labels[box]
    return (labels - np.uint8(10)) < 5


def paint_chest(scene: Scene, tissue: np.ndarray, rng: np.random.Generator) -> None:
    """Paint the organs of the chest.

    Args:
        scene: Torso without organs.
        tissue: Smooth noise ``X Y Z``.
        rng: Stream of the vessel tree.
    """
    canvas = scene.canvas
    z = np.array([-60.0, 0, 40, 90, 118, 150])
    box, share = canvas.column(z, np.zeros(6), [-30, -14, 0, 8, 16, 22], [20, 30, 32, 30, 30, 60], flat=0.85)
    canvas.paint(box, share, np.float32(24) - 45 * np.clip(tissue[box], -0.5, 1.2))
    for side in SIDES:
        _paint_lung(scene, side, tissue)
    _paint_vessel_tree(scene, rng)
    _paint_airways(scene)
    _paint_heart(scene)
    _paint_great_vessels(scene)


def _paint_lung(scene: Scene, side: str, tissue: np.ndarray) -> None:
    canvas, body, sign = scene.canvas, scene.body, SIDES[side]
    box = canvas.box((2 if sign > 0 else -130, -102, -150), (130 if sign > 0 else -2, 90, 136))
    x, y, z = canvas.at(box)
    x = sign * x
    middle = np.interp(z, [-140, -60, 0, 60, 95, 115, 130], [24, 24, 26, 27, 25, 24, 22]).astype(np.float32)
    retrosternal = np.clip((y - 30) / 26, 0, 1)
    behind = np.clip((-24 - y) / 30, 0, 1) * (1 if sign > 0 else 0.25)
    distance = np.maximum(scene.cage[box] + 4.5, middle * (1 - 0.8 * retrosternal - 0.32 * behind) - x)
    distance = np.maximum(distance, 0.85 * (diaphragm(body, side, sign * x, y) - z))
    distance = np.maximum(distance, 0.8 * (z - 126 + np.square((x - 42) / 26) * 8))
    hu = np.float32(body.lung_hu) + 0.30 * (-10 - y) + 24 * tissue[box]
    share = canvas.share(distance)
    canvas.paint(box, share, hu)
    oblique = z + 1.36 * (y + 70) - 72 > 0
    if side == "left":
        lobe = np.where(oblique, ORGAN_ID["lung_upper_lobe_left"], ORGAN_ID["lung_lower_lobe_left"])
    else:
        front = np.where(z > 6, ORGAN_ID["lung_upper_lobe_right"], ORGAN_ID["lung_middle_lobe_right"])
        lobe = np.where(oblique, front, ORGAN_ID["lung_lower_lobe_right"])
    inside = share >= 0.5
    canvas.labels[box][inside] = np.broadcast_to(lobe, share.shape)[inside].astype(np.uint8)


def tree(rng: np.random.Generator, side: str, levels: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A branching tree from a lung's hilum to its pleura.

    Args:
        rng: Its stream.
        side: ``"left"`` or ``"right"``.
        levels: Generations; each branch has three children.

    Returns:
        Points ``N 3`` (mm), radius (mm), length that each point stands for (mm) and generation (0 first).
    """
    sign = np.array([SIDES[side], 1, 1])
    starts = np.repeat(_HILUM[None], 10, 0)
    tips = np.array([(70, 20, 95), (62, -40, 85), (88, -10, 60), (80, 50, 40), (105, -20, 15), (80, 60, -5),
                     (90, 15, -35), (85, -45, -40), (65, -75, -60), (50, -40, -50)], float)  # fmt: skip
    parts, radius = [], 3.6
    t = np.linspace(0, 1, 26)[:, None, None]
    for level in range(levels):
        tips = tips + rng.normal(0, 7, tips.shape)
        ends = starts + (tips - starts) * (0.55 if level == 0 else 0.7)
        bow = (starts + ends) / 2 + rng.normal(0, 5, tips.shape)
        curve = (1 - t) ** 2 * starts + 2 * t * (1 - t) * bow + t**2 * ends
        length = np.linalg.norm(ends - starts, axis=1) / len(t)
        r = radius * (1 - 0.42 * t[..., 0]) * np.ones(len(ends))
        parts.append((curve.reshape(-1, 3), r.ravel(), np.tile(length, len(t)), np.full(r.size, level)))
        starts = np.repeat(ends, 3, 0)
        tips = np.repeat(tips, 3, 0) + rng.normal(0, 24, (3 * len(ends), 3))
        radius *= 0.55
    points, r, length, generation = (np.concatenate(p) for p in zip(*parts, strict=True))
    return points * sign, r, length, generation


def _paint_vessel_tree(scene: Scene, rng: np.random.Generator) -> None:
    canvas, body = scene.canvas, scene.body
    trees = [tree(rng, side) for side in SIDES]
    points = np.concatenate([t[0] for t in trees])
    volume = np.concatenate([np.pi * np.square(body.vessel_scale * t[1]) * t[2] for t in trees])
    share = canvas.splat(points, volume) * lung_mask(scene)
    canvas.hu += share * (np.float32(body.blood("lung")) - canvas.hu)


def _paint_airways(scene: Scene) -> None:
    canvas = scene.canvas
    wall = scene.body.bronchus_wall_mm
    trachea = ([30, 75, 150], [2, 2, 0], [-8, 4, 22])
    box, share = canvas.column(*trachea, [11.5] * 3)
    canvas.paint(box, share, 35.0)
    mains = {side: np.array([(1, -8, 33), (sign * 18, -10, 20), (sign * 36, -11, 6)]) for side, sign in SIDES.items()}
    lobar = [((36, -11, 6), (56, -2, 38)), ((36, -11, 6), (60, 28, -14)), ((36, -11, 6), (58, -36, -28))]
    for side, sign in SIDES.items():
        canvas.paint(*canvas.chain(mains[side], [8 + wall, 8 + wall, 6 + wall]), 35.0)
        for start, end in lobar:
            branch = np.array([start, end]) * (sign, 1, 1)
            canvas.paint(*canvas.chain(branch, [4.5 + wall, 2.5 + wall]), 25.0)
            canvas.paint(*canvas.chain(branch, [4.5, 2.5]), -930.0)
        canvas.paint(*canvas.chain(mains[side], [8, 8, 6]), -985.0)
    box, share = canvas.column(*trachea, [9.5] * 3)
    canvas.paint(box, share, -990.0, ORGAN_ID["trachea"])


def _paint_heart(scene: Scene) -> None:
    """One ellipsoid of muscle and fat, four blood pools inside."""
    canvas, body = scene.canvas, scene.body
    center, size = heart_center(body), body.heart_scale
    canvas.paint(*canvas.ellipsoid(center + np.array([0, 2, -1]), np.array([68, 46, 49]) * size, HEART_TILT), -75.0)
    box, share = canvas.ellipsoid(center, np.array(HEART_RADII) * size, HEART_TILT)
    canvas.paint(box, share, body.tissue("myocardium"), ORGAN_ID["heart"])
    blood = body.blood("heart")
    pools = [
        ((-22, 4, -12), (31, 17, 23)),
        ((4, 23, -10), (34, 13, 24)),
        ((36, 2, 6), (17, 20, 26)),
        ((10, -23, 16), (28, 14, 18)),
    ]
    for offset, radii in pools:
        pool = canvas.ellipsoid(center + np.array(offset) * size, np.array(radii) * size, HEART_TILT)
        canvas.paint(*pool, blood, ORGAN_ID["heart"])


def _paint_great_vessels(scene: Scene) -> None:
    canvas, body = scene.canvas, scene.body
    lung_blood, size = body.blood("lung"), body.aorta_scale
    heart = heart_center(body) - np.array([-19, 24, -16])
    for sign in SIDES.values():
        canvas.paint(
            *canvas.chain(
                heart + np.array([(-12, 34, 12), (-8, 22, 30), (sign * 22, -2, 20), (sign * 44, -12, 8)]),
                [14, 13, 10, 7],
            ),
            lung_blood,
        )
        vein = canvas.chain(heart + np.array([(-6, -10, 0), (sign * 26, -14, -4), (sign * 46, -18, -8)]), [9, 7, 5])
        canvas.paint(*vein, lung_blood, ORGAN_ID["pulmonary_vein"])
    cava = canvas.column([2, 40, 92], [26, 27, 22], [14, 12, 18], [9, 9, 9])
    canvas.paint(*cava, body.blood("cava_superior"), ORGAN_ID["superior_vena_cava"])
    canvas.paint(*canvas.chain([(22, 18, 90), (-10, 34, 92), (-30, 30, 108)], 6), body.blood("cava_superior"))
    z = np.array([-215.0, -130, -80, -30])
    cava = canvas.column(z, [17, 18, 20, 24], spine_y(z) + np.array([26, 30, 42, 58]), [11, 11, 12, 12])
    canvas.paint(*cava, body.blood("cava_inferior"), ORGAN_ID["inferior_vena_cava"])
    course = aorta_course(body)
    aorta = canvas.chain(course, size * np.interp(np.arange(len(course)), [0, 4, 9, 13], [16, 13.5, 11.5, 9]))
    canvas.paint(*aorta, body.blood("aorta"), ORGAN_ID["aorta"])
    u = 0.6 * body.aorta_unfolding
    arteries: dict[str, list[tuple[float, float, float]]] = {
        "brachiocephalic_trunk": [(8, 16, 76 + u), (16, 22, 96), (22, 22, 112)],
        "common_carotid_artery_right": [(22, 22, 112), (22, 16, 150)],
        "common_carotid_artery_left": [(-4, 8, 78 + u), (-16, 16, 110), (-20, 14, 150)],
    }
    for name, points in arteries.items():
        canvas.paint(*canvas.chain(points, 5.5 if "trunk" in name else 4.0), body.blood("aorta"), ORGAN_ID[name])
    z = np.array([-72.0, -40, 0, 60, 100, 150])
    oesophagus = ([-12, -6, -4, -4, -2, -2], [-12, -26, -34, -26, -10, 8])
    canvas.paint(*canvas.column(z, *oesophagus, [8.5] * 6), body.tissue("gut"), ORGAN_ID["esophagus"])
    canvas.paint(*canvas.column(z, *oesophagus, [1.5, 1, 2, 2, 2, 1]), -300.0)
    for sign in SIDES.values():
        thyroid = canvas.ellipsoid((sign * 17, 22, 126), (8, 8, 16))
        canvas.paint(*thyroid, body.tissue("thyroid"), ORGAN_ID["thyroid_gland"])
