"""Liver, spleen, kidneys, pancreas, stomach, bowel and the other organs below the diaphragm."""

from __future__ import annotations

import numpy as np

from medvl_phantom.body import Body
from medvl_phantom.canvas import Canvas, turn
from medvl_phantom.chest import SIDES, diaphragm
from medvl_phantom.organs import ORGAN_ID
from medvl_phantom.torso import Scene

__all__ = ["gallbladder_shape", "kidney_shape", "paint_abdomen", "pancreas_course", "spleen_shape"]


def spleen_shape(body: Body) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, radii (mm) and rotation of the spleen; it grows downwards and to the middle."""
    size = body.spleen_scale
    breath = 0.5 * (body.dome_mm["left"] + 46)
    grown = np.array([22.0, 12, -26]) * (size - 1)
    center = body.near("spleen", (-86, -28, -92 + breath)) + grown
    return center, np.array([24.0, 38, 42]) * size, turn(about_x=-20, about_z=-18)


def kidney_shape(body: Body, side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, radii (mm) and rotation of a kidney."""
    center = body.near(f"kidney_{side}", (SIDES[side] * 66, -26, -153 if side == "right" else -147))
    return center, np.array([26.0, 24, 43]) * body.person.kidney_scale, turn(about_y=SIDES[side] * 12)


def gallbladder_shape(body: Body) -> tuple[np.ndarray, np.ndarray]:
    """Centre and radii (mm) of the gallbladder."""
    return body.near("gallbladder", (52, 52, -132)), np.array([14.0, 20, 24]) * body.gallbladder_scale


def pancreas_course(body: Body) -> tuple[np.ndarray, np.ndarray]:
    """Points ``N 3`` and radii (mm) from the head of the pancreas to its tail."""
    points = [(27, 28, -158), (20, 34, -142), (-5, 42, -134), (-32, 32, -126), (-60, 8, -112)]
    return np.array([body.near("pancreas", p) for p in points]), np.array([15.0, 13, 10, 10, 9])


def paint_abdomen(scene: Scene, tissue: np.ndarray) -> None:
    """Paint the abdominal organs; ``tissue`` is smooth noise ``X Y Z`` that ripples their surfaces."""
    canvas, body = scene.canvas, scene.body
    _paint_bowel(scene)
    _paint_stomach(scene)
    _paint_liver(scene, tissue)
    center, radii, rotation = spleen_shape(body)
    box, share = canvas.ellipsoid(center, radii, rotation)
    share = np.minimum(share, canvas.share(scene.cage[box] + 6))
    share = np.minimum(
        share, canvas.share(0.8 * (canvas.z[:, :, box[2]] + 4 - diaphragm(body, "left", *canvas.at(box)[:2])))
    )
    canvas.paint(box, share, body.tissue("spleen"), ORGAN_ID["spleen"])
    for side in SIDES:
        _paint_kidney(scene, side)
    points, radii = pancreas_course(body)
    box, share = canvas.chain(points, radii)
    canvas.paint(
        box, share, np.float32(body.tissue("pancreas")) - 30 * np.clip(tissue[box], 0, 2), ORGAN_ID["pancreas"]
    )
    portal = body.blood("portal"), ORGAN_ID["portal_vein_and_splenic_vein"]
    canvas.paint(*canvas.chain([(48, 30, -92), (24, 28, -108), (8, 30, -130)], 7), *portal)
    canvas.paint(*canvas.chain(points[2:] - (0, 12, -2), 4.5), *portal)
    center, radii = gallbladder_shape(body)
    canvas.paint(*canvas.ellipsoid(center, radii + 2), body.tissue("gut"), ORGAN_ID["gallbladder"])
    canvas.paint(*canvas.ellipsoid(center, radii), 9.0, ORGAN_ID["gallbladder"])


def _paint_liver(scene: Scene, tissue: np.ndarray) -> None:
    canvas, body = scene.canvas, scene.body
    dx, dy, dz = body.person.offsets["liver"]
    box = canvas.box((-95, -80, -195), (126, 104, 0))
    x, y, z = canvas.at(box)
    roof = np.where(x > 0, diaphragm(body, "right", x, y), diaphragm(body, "left", x, y))
    distance = np.maximum(scene.cage[box] + 6, 0.85 * (z + 4 - roof))
    floor = -92 - 0.70 * (x - dx) - 0.15 * y - body.person.liver_drop + dz
    distance = np.maximum(distance, 0.8 * (floor - z))
    distance = np.maximum(distance, 0.67 * (-14 - 1.15 * (y - dy + 10) - x))
    distance = np.maximum(distance, -78 - x) + 3 * tissue[box]
    share = canvas.share(distance)
    canvas.paint(box, share, np.float32(body.tissue("liver") + body.liver_hu) + 5 * tissue[box], ORGAN_ID["liver"])


def _paint_kidney(scene: Scene, side: str) -> None:
    canvas, body, sign = scene.canvas, scene.body, SIDES[side]
    center, radii, rotation = kidney_shape(body, side)
    box, share = canvas.ellipsoid(center, radii * 1.3, rotation)
    canvas.paint(box, share * (canvas.labels[box] == 0), -100.0)
    cortex = body.tissue("kidney")
    canvas.paint(*canvas.ellipsoid(center, radii, rotation), cortex, ORGAN_ID[f"kidney_{side}"])
    canvas.paint(*canvas.ellipsoid(center, radii * 0.68, rotation), 0.75 * cortex + 8, ORGAN_ID[f"kidney_{side}"])
    canvas.paint(*canvas.ellipsoid(center - (sign * 13, -4, 0), (10, 8, 19), rotation), -60.0, 0)
    adrenal = body.tissue("adrenal"), ORGAN_ID[f"adrenal_gland_{side}"]
    top = center + np.array([-sign * 24, 8, 46])
    canvas.paint(*canvas.ellipsoid(top, (4, 10, 11), turn(about_z=sign * 25)), *adrenal)
    canvas.paint(
        *canvas.ellipsoid(top + np.array([sign * 6, -5, -3]), (3.5, 10, 9), turn(about_z=-sign * 35)), *adrenal
    )


def _paint_stomach(scene: Scene) -> None:
    canvas, body = scene.canvas, scene.body
    breath = 0.5 * (body.dome_mm["left"] + 46)
    knots = [(-54, 6, -84 + breath), (-58, 30, -106 + breath), (-42, 54, -134), (-8, 60, -150), (24, 50, -142)]
    points = np.array([body.near("stomach", p) for p in knots])
    radii = np.array([30.0, 30, 26, 19, 12])
    label = ORGAN_ID["stomach"]
    box, share = canvas.chain(points, radii)
    share = np.minimum(share, canvas.share(scene.cage[box] + 6))
    canvas.paint(box, share, body.tissue("gut"), label)
    box, share = canvas.chain(points, radii - 4)
    level = np.float32(points[1, 1] + 6)
    gas = canvas.share(level - canvas.y[box])
    canvas.paint(box, np.minimum(share, canvas.share(scene.cage[box] + 10)), 22 - 960 * gas, label)


def _paint_bowel(scene: Scene) -> None:
    canvas, body = scene.canvas, scene.body
    offset = np.array(body.person.offsets["colon"])
    colon = [
        (92, 0, -215),
        (94, 14, -178),
        (70, 62, -168),
        (0, 76, -178),
        (-66, 64, -158),
        (-98, 8, -128),
        (-99, -8, -215),
    ]
    points = np.array(colon, float) + offset
    box, share = canvas.chain(points, 20.0)
    canvas.paint(box, share, body.tissue("gut"), ORGAN_ID["colon"])
    box, share = canvas.chain(points, 16.5)
    x, _, z = canvas.at(box)
    folds = np.sin((x + z + offset[0] * 5) / 9.0)
    canvas.paint(box, share, -340 + 380 * folds, ORGAN_ID["colon"])
    _loops(canvas, body, [(-30, 40, -190), (-55, 25, -178), (5, 52, -196), (-20, 15, -200), (30, 40, -205)])
    duodenum = [(28, 48, -144), (44, 30, -152), (42, 22, -182), (5, 20, -190)]
    canvas.paint(*canvas.chain(duodenum, 11.5), body.tissue("gut"), ORGAN_ID["duodenum"])
    canvas.paint(*canvas.chain(duodenum, 6), 15.0, ORGAN_ID["duodenum"])


def _loops(canvas: Canvas, body: Body, centers: list[tuple[float, float, float]]) -> None:
    for i, center in enumerate(centers):
        where = np.array([center[0] + 0.5 * body.person.offsets["colon"][0], *center[1:]])
        rotation = turn(about_z=40 * i, about_y=25 * i)
        canvas.paint(*canvas.ellipsoid(where, (27, 15, 15), rotation), body.tissue("gut"), ORGAN_ID["small_bowel"])
        canvas.paint(
            *canvas.ellipsoid(where, (22, 10, 10), rotation), (18.0, -250.0, 30.0)[i % 3], ORGAN_ID["small_bowel"]
        )
