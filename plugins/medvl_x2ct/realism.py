"""A panel of simulated films beside real ones: ``python -m medvl_x2ct.realism --out FILE.png``.

Without ``--ct`` it shows two phantoms. Whether a panel of real scans may be passed on is a matter of their licences.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvl_core.study import Image
from medvl_imaging.radiograph import simulate_radiograph
from medvl_imaging.readers import read_radiograph, read_volume

__all__ = ["main", "save_panel"]

COLUMNS: list[tuple[str, str, dict[str, Any]]] = [
    (mode, view, {"mode": mode, "view": "pa" if view == "frontal" else view})
    for view in ("frontal", "lateral")
    for mode in ("mean_hu", "beer_lambert", "cone_beam")
]


def save_panel(volumes: Sequence[Image], films: Sequence[Image], path: Path | str, pixels: int = 320) -> None:
    """Draw one row per volume, in three modes from the front and from the side, and the real films below.

    Args:
        volumes: CTs in HU.
        films: Real radiographs, ``H W``.
        path: PNG to write.
        pixels: Width and height of one picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = len(volumes) + -(-len(films) // len(COLUMNS))
    figure, axes = plt.subplots(rows, len(COLUMNS), figsize=(2.2 * len(COLUMNS), 2.3 * rows), dpi=100, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, volume in zip(axes, volumes, strict=False):
        assert volume.affine is not None  # CTs have one
        for axis, (mode, view, options) in zip(row, COLUMNS, strict=True):
            made = simulate_radiograph(volume.array, volume.affine, size=(pixels, pixels), **options)
            _show(axis, made, f"{mode}, {view}", None if mode == "mean_hu" else (0.0, 1.0))
    for axis, film in zip(axes[len(volumes) :].flat, films, strict=False):
        _show(axis, film.array, "real film", None)
    figure.subplots_adjust(0.004, 0.004, 0.996, 1 - 0.08 / rows, wspace=0.02, hspace=0.09)
    figure.savefig(path)
    plt.close(figure)


def _show(axis: Any, picture: np.ndarray, title: str, window: tuple[float, float] | None) -> None:
    low, high = window or (float(picture.min()), float(picture.max()))
    axis.imshow(picture, cmap="gray", vmin=low, vmax=high)
    axis.set_title(title, fontsize=8, pad=2)


def phantoms(size: int) -> list[Image]:
    """Two patients of the phantom cohort."""
    from medvl_core import build_dataset

    cohort = build_dataset("baseline/phantom", n_subjects=2, shape=(size,) * 3, shares=(1, 0, 0), follow_up=0)
    return [study.images["ct"].load() for study in cohort.studies("train")[:2]]


def main() -> None:
    """Read the arguments and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--ct", type=Path, nargs="*", default=[], help="NIfTI, NRRD or DICOM folder, in HU")
    parser.add_argument("--film", type=Path, nargs="*", default=[], help="real radiographs to compare with")
    parser.add_argument("--size", type=int, default=192, help="voxels per axis of a phantom")
    given = parser.parse_args()
    volumes = [read_volume(path) for path in given.ct] or phantoms(given.size)
    save_panel(volumes, [read_radiograph(path) for path in given.film], given.out)


if __name__ == "__main__":
    main()
