"""Skin, fat, muscle and bones, and the rib cage that holds everything else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medvl_phantom.body import Body
from medvl_phantom.canvas import Canvas, turn
from medvl_phantom.organs import ORGAN_ID

__all__ = ["Scene", "paint_bones", "paint_torso", "spine_y"]

FAT_HU = -98.0
_LEVELS = (-215, -150, -110, -60, -20, 20, 60, 90, 110, 128, 148)
_CAGE_HALF_WIDTH = (118, 123, 127, 127, 124, 118, 104, 86, 67, 44, 26)
_CAGE_FRONT = (96, 99, 98, 93, 86, 78, 66, 54, 44, 34, 27)
_CAGE_BACK = (-72, -80, -91, -98, -99, -96, -88, -74, -58, -40, -26)
_SKIN_HALF_WIDTH = (132, 138, 143, 144, 146, 150, 155, 157, 156, 146, 118)
_SKIN_FRONT = (110, 112, 111, 107, 103, 98, 91, 83, 72, 60, 50)
_SKIN_BACK = (-100, -108, -116, -123, -126, -126, -122, -114, -106, -98, -90)

_VERTEBRAE_Z = (-178, -156, -128, -101, -75, -52, -29, -6, 17, 40, 60, 79, 96, 112, 127, 141)
_SPINE_Z = (-220, -175, -128, -75, -29, 17, 61, 98, 130, 150)
_SPINE_Y = (6, -2, -25, -47, -58, -61, -52, -32, -8, 6)


@dataclass(slots=True)
class Scene:
    """A canvas, the body on it, and the signed distance (mm) to the inner rib cage, ``X Y Z``."""

    canvas: Canvas
    body: Body
    cage: np.ndarray


def spine_y(z: np.ndarray | float) -> np.ndarray:
    """Body y of the centre of the vertebral bodies at height ``z``, mm."""
    return np.interp(z, _SPINE_Z, _SPINE_Y)  # type: ignore[return-value]


def _profile(
    canvas: Canvas, half_width: tuple[int, ...], front: tuple[int, ...], back: tuple[int, ...], square: float
) -> np.ndarray:
    """Radial distance to a torso cross-section that varies along z; ``square`` is 1 for an ellipse and 0 for n = 4."""
    rx, yf, yb = (np.interp(canvas.z, _LEVELS, knots).astype(np.float32) for knots in (half_width, front, back))
    x2, y = np.square(canvas.x), canvas.y - (yf + yb) / 2
    radius = np.sqrt(x2 + np.square(y))
    a = x2 / np.square(rx)
    b = np.square(y) / np.square((yf - yb) / 2)
    rho = np.sqrt(np.sqrt(np.square(a) + np.square(b) + np.float32(2 * square) * a * b))
    return radius - radius / np.maximum(rho, np.float32(0.05))


def paint_torso(canvas: Canvas, body: Body, tissue: np.ndarray) -> Scene:
    """Paint skin to rib cage, filled with mediastinal and abdominal fat.

    Args:
        canvas: An empty canvas.
        body: The body.
        tissue: Smooth noise ``X Y Z``: marbles fat into muscle.

    Returns:
        The scene the organs are painted into.
    """
    everything = canvas.box((-400, -400, -400), (400, 400, 400))
    fat = body.person.fat_mm
    skin = _profile(canvas, _SKIN_HALF_WIDTH, _SKIN_FRONT, _SKIN_BACK, 0.8) - np.float32(body.person.muscle_mm)
    canvas.paint(everything, canvas.share(skin - np.float32(fat)), FAT_HU)
    if body.person.sex == "F":
        for side in (-1, 1):
            _paint_breast(canvas, side, fat)
    cage = _profile(canvas, _CAGE_HALF_WIDTH, _CAGE_FRONT, _CAGE_BACK, 0.62)
    muscle = np.float32(body.tissue("muscle")) - 75 * np.clip(tissue - 0.9, 0, 1.6)
    canvas.paint(everything, canvas.share(skin), muscle)
    canvas.paint(everything, canvas.share(cage), FAT_HU)
    return Scene(canvas, body, cage)


def _paint_breast(canvas: Canvas, side: int, fat: float) -> None:
    size = 0.75 + fat / 45
    center, radii = np.array([side * 64.0, 86.0, 6.0]), np.array([52.0, 44.0, 55.0]) * size
    box, share = canvas.ellipsoid(center, radii)
    outside = canvas.hu[box] < -500
    canvas.paint(box, share * outside, FAT_HU)
    box, share = canvas.ellipsoid(center + np.array([0, 10, 0]), radii * 0.55)
    canvas.paint(box, share * 0.45, 20.0)


def paint_bones(scene: Scene) -> None:
    """Paint ribs and cartilages, spine with cord and back muscles, sternum, scapulae and clavicles."""
    _paint_ribs(scene)
    _paint_spine(scene)
    canvas, bone = scene.canvas, scene.body.person.bone_hu
    z = np.array([-42.0, -20, 20, 60, 90, 104])
    front = np.interp(z, _LEVELS, _CAGE_FRONT) + 5
    box, share = canvas.column(z, np.zeros(6), front, [7, 14, 15, 15, 20, 22], flat=0.35)
    canvas.paint(box, share, 0.55 * bone + 20, ORGAN_ID["sternum"])
    for side, name in ((-1, "left"), (1, "right")):
        box, share = canvas.ellipsoid((side * 98, -72, 70), (7, 40, 66), turn(about_z=side * 55, about_y=side * 8))
        canvas.paint(box, share, 0.8 * bone, ORGAN_ID[f"scapula_{name}"])
        box, share = canvas.chain(
            [(side * 22, 58, 104), (side * 60, 46, 118), (side * 105, 2, 128), (side * 140, -30, 134)], 6.5
        )
        canvas.paint(box, share, bone + 60, ORGAN_ID[f"clavicula_{name}"])


def _paint_ribs(scene: Scene) -> None:
    """Twelve bands per side in the shell around the cage, falling from the spine to the front."""
    canvas = scene.canvas
    shell = np.abs(scene.cage - 4) < 4 + canvas.edge
    index = np.nonzero(shell)
    x, y, z = canvas.x[index], canvas.y[index], canvas.z[0, 0, index[2]]
    heads = np.array(_VERTEBRAE_Z[3:15][::-1], np.float32) + 6  # T1 to T12
    fall = np.interp(y, [-100, -60, 40, 100], [0, 16, 88, 112]).astype(np.float32)
    height = z + fall - np.float32(fall.min() if len(fall) else 0)
    k = np.clip(np.searchsorted(-(heads[:-1] + heads[1:]) / 2, -height), 0, 11)
    across = np.abs(height - heads[k]) * np.float32(0.82)
    inside = canvas.share(np.maximum(across - 6.2, np.abs(scene.cage[index] - 4) - 3.6)) * (np.abs(x) > 14)
    inside *= (z < 122) & ((k < 10) | (y < np.where(k == 10, 0, -45)))
    end = np.array([42, 55, 58, 60, 60, 58, 55, 50, 42, 34, 20, -30], np.float32)[k]
    cartilage = y > end
    rim = np.float32(scene.body.person.bone_hu) * np.where(across > 3.5, np.float32(1.9), np.float32(1.3)) + 80
    view = canvas.hu[index]
    canvas.hu[index] = view + inside * (np.where(cartilage, np.float32(105), rim) - view)
    labels = np.where(cartilage, ORGAN_ID["costal_cartilages"], np.where(x > 0, 104, 92) + k).astype(np.uint8)
    canvas.labels[index] = np.where(inside >= 0.5, labels, canvas.labels[index])


def _paint_spine(scene: Scene) -> None:
    canvas, body = scene.canvas, scene.body
    z = np.array(_SPINE_Z, float)
    y = spine_y(z)
    for side, name in ((-1, "left"), (1, "right")):
        box, share = canvas.column(z, np.full(len(z), side * 25.0), y - 44, np.full(len(z), 21.0), flat=0.8)
        canvas.paint(box, share * (canvas.hu[box] > -400), body.tissue("muscle") - 12, ORGAN_ID[f"autochthon_{name}"])
    box, share = canvas.column(z, 0 * z, y - 6, np.interp(z, [-200, 130], [25, 17]), flat=0.85)
    canvas.paint(box, share, 0.0)  # discs and ligaments: the bones follow
    bx, by, bz = canvas.at(canvas.box((-45, -140, -220), (45, 45, 150)))
    box = canvas.box((-45, -140, -220), (45, 45, 150))
    levels = np.array(_VERTEBRAE_Z, np.float32)
    k = np.clip(np.searchsorted((levels[:-1] + levels[1:]) / 2, bz), 0, len(levels) - 1)
    half = np.interp(bz, _VERTEBRAE_Z, np.gradient(levels) / 2 - 2.2).astype(np.float32)
    wide = np.interp(bz, [-200, 130], [22, 14]).astype(np.float32)
    dy = by - spine_y(bz).astype(np.float32)
    disc = np.abs(bz - levels[k]) - half
    trunk = np.sqrt(np.square(bx / wide) + np.square(dy / (wide * np.float32(0.74)))) - 1
    distance = np.maximum(trunk * wide, disc)
    arch = np.maximum(np.abs(bx) - (4 + 10 * (dy > -38)), np.maximum(dy + 20, -62 - dy))
    arch = np.maximum(arch, np.abs(bz - levels[k] + 6 - 0.25 * (dy + 20)) - half * np.float32(0.6))
    process = np.maximum(np.maximum(np.abs(bx) - 34, np.abs(dy + 26) - 6), np.abs(bz - levels[k]) - 6)
    share = canvas.share(np.minimum(np.minimum(distance, arch), process))
    shell = np.where(np.maximum(trunk * wide, disc) > -3.5, np.float32(1.25), np.float32(0.65))
    canvas.paint(box, share, np.float32(body.person.bone_hu) * shell)
    first = ORGAN_ID["vertebrae_L3"]
    names = np.broadcast_to(np.minimum(k, 14) + first, share.shape)
    marked = (share >= 0.5) & np.broadcast_to(k < 15, share.shape)
    canvas.labels[box][marked] = names[marked].astype(np.uint8)
    box, share = canvas.column(z, 0 * z, y - 24, np.full(len(z), 7.5))
    canvas.paint(box, share, 32.0, ORGAN_ID["spinal_cord"])
