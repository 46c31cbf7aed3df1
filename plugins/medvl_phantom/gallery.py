"""A picture of phantoms: ``python -m medvl_phantom.gallery --out FILE.png``."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from medvl_core.study import Study
from medvl_phantom.cohort import PhantomCohort
from medvl_phantom.organs import ORGAN_ID

__all__ = ["main", "save_gallery"]

_OUTLINED = ("liver", "spleen", "stomach", "pancreas", "kidney_left", "kidney_right", "aorta", "gallbladder", "colon")


def save_gallery(studies: list[Study], path: Path | str) -> None:
    """Draw one row per pair of studies: coronal slice, axial slice with organ outlines, radiograph, report.

    Args:
        studies: What to draw, with ``"ct"`` and ``"cxr"`` images, regions and reports.
        path: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    rows = -(-len(studies) // 2)
    figure, axes = plt.subplots(
        rows, 8, figsize=(15, 1.95 * rows), dpi=72, width_ratios=[1, 1, 1, 0.85] * 2, squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for i, study in enumerate(studies):
        _draw(axes[i // 2, 4 * (i % 2) : 4 * (i % 2) + 4], study)
    figure.subplots_adjust(0.003, 0.003, 0.997, 0.985, wspace=0.02, hspace=0.09)
    canvas: Any = figure.canvas  # Agg's, as __init__ chose
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(palette=_palette(), dither=Image.Dither.NONE).save(path, optimize=True)
    plt.close(figure)


def _palette() -> Any:
    """Sixty-four greys and the outline colours: noise hardly compresses, a palette keeps the file small."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    colours = [(v / 63,) * 3 for v in range(64)] + [to_rgb(f"C{k}") for k in range(len(_OUTLINED))]
    palette = Image.new("P", (1, 1))
    palette.putpalette([round(255 * channel) for colour in colours for channel in colour])
    return palette


def _draw(axes: Any, study: Study) -> None:
    assert study.regions is not None  # a phantom has all
    assert study.report is not None
    ct, labels = study.images["ct"].load(), study.regions.load().array
    assert ct.affine is not None
    spacing = np.abs(np.diag(ct.affine)[:3])
    heart = np.argwhere(labels == ORGAN_ID["heart"]).mean(0).astype(int)
    tall = spacing[2] / spacing[0]
    axes[0].imshow(ct.array[::-1, heart[1] - 3].T, origin="lower", cmap="gray", vmin=-1000, vmax=350, aspect=tall)
    organs = np.isin(labels, [ORGAN_ID[name] for name in _OUTLINED])
    level = int(np.argmax((labels == ORGAN_ID["pancreas"]).sum((0, 1)) + 0.001 * organs.sum((0, 1))))
    axes[1].imshow(ct.array[::-1, :, level].T, origin="lower", cmap="gray", vmin=-160, vmax=260)
    for k, name in enumerate(_OUTLINED):
        mask = (labels[::-1, :, level] == ORGAN_ID[name]).T
        if mask.any():
            axes[1].contour(mask, [0.5], colors=[f"C{k}"], linewidths=0.7)
    film = study.images["cxr"].load().array
    body = film[film > -800]
    axes[2].imshow(film, cmap="gray", vmin=np.percentile(body, 8), vmax=np.percentile(body, 99.7))
    present = [name for name, value in study.labels.items() if value == 1]
    lines = textwrap.wrap(", ".join(present) or "no finding", 27)[:7]
    report = textwrap.wrap(study.report.findings, 29)[: 15 - len(lines)]
    axes[3].text(0, 1, "\n".join(lines), va="top", fontsize=6, weight="bold", transform=axes[3].transAxes)
    axes[3].text(
        0, 0.97 - 0.062 * len(lines), "\n".join(report) + " ...", va="top", fontsize=6, transform=axes[3].transAxes
    )
    axes[0].set_title(study.study_id, fontsize=6, pad=2)


def main() -> None:
    """Read the arguments and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--size", type=int, default=96, help="voxels per axis")
    arguments = parser.parse_args()
    cohort = PhantomCohort(
        arguments.count, (arguments.size,) * 3, arguments.seed, (1, 0, 0), follow_up=0, second_reconstruction=0
    )
    save_gallery(cohort.studies("train"), arguments.out)


if __name__ == "__main__":
    main()
