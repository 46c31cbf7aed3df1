"""CT-CLIP's preprocessing of a 512 x 512 x 300 .nii.gz, from the file to the tensor, against SimpleITK and plain torch.

Run: ``python benchmarks/bench_ct_preprocess.py [rounds] [--quick]``. SimpleITK gets as many threads as torch and checks
nothing; ours has checked and oriented the scan. SimpleITK interpolates before it clips, hence up to 24 HU of difference
at the edge of the scanner's circle (-1024 beside -1000). Results go to ``results/ct_preprocess.csv``.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from rounds import measure, write_results
from scipy.ndimage import gaussian_filter1d

from medvl_core.specs import ImageInput
from medvl_imaging.readers import read_volume
from medvl_imaging.transforms import standardise
from medvl_x2ct.plugin import CT_CLIP_INPUT

logger = logging.getLogger(__name__)
SPACING = (0.8, 0.8, 1.25)


def write_scan(path: Path, shape: tuple[int, int, int]) -> None:
    """A body with lungs and correlated noise, int16 in LPS: gzip packs it to about 40 %, as it does real scans."""
    x, y = np.mgrid[: shape[0], : shape[1]] / shape[0] * 512 - 255.5
    body, lung = (x / 220) ** 2 + (y / 150) ** 2 < 1, ((abs(x) - 95) / 70) ** 2 + (y / 100) ** 2 < 1
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    noise = gaussian_filter1d(gaussian_filter1d(noise, 0.8, axis=0), 0.8, axis=1)
    hu = np.where(lung, -850, np.where(body, 40, -1000))[..., None] + noise * (22 / noise.std())
    hu[x**2 + y**2 > 255**2] = -1024
    array = np.asfortranarray(np.clip(hu, -1024, 3071).round().astype(np.int16))
    nib.save(nib.Nifti1Image(array, np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])), path)


def plain_torch(path: Path, input: ImageInput) -> torch.Tensor:
    """The published order of steps in float32: whole-volume interpolation, then crop. Depth first."""
    x = torch.from_numpy(np.asarray(nib.load(path).dataobj).astype(np.float32).transpose(2, 1, 0))
    spacing = zip(SPACING, input.spacing_mm, x.shape[::-1], strict=True)
    size = [int(n * old / new) for old, new, n in spacing][::-1]
    x = torch.nn.functional.interpolate(x.clamp(-1000, 1000)[None, None] / 1000, size=size, mode="trilinear")[0, 0]
    for dim, n in enumerate(input.size[::-1]):
        x = x.narrow(dim, (x.shape[dim] - n) // 2, n)
    return x.contiguous()


def simple_itk(shape: tuple[int, int, int], input: ImageInput) -> Callable[[Path], torch.Tensor] | None:
    """Straight onto the output grid, or ``None`` where SimpleITK is not installed. Depth first."""
    try:
        import SimpleITK as sitk
    except ImportError:
        return None
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
    origin, spacing = [], []
    for n, old, new, out in zip(shape, SPACING, input.spacing_mm, input.size, strict=True):
        scaled = int(n * old / new)
        spacing.append(n * old / scaled)
        origin.append(((scaled - out) // 2 + 0.5) * spacing[-1] - 0.5 * old)
    unit = np.eye(3).ravel().tolist()

    def run(path: Path) -> torch.Tensor:
        image = sitk.ReadImage(str(path))
        image.SetDirection(unit)
        image.SetOrigin((0.0, 0.0, 0.0))
        image = sitk.Resample(
            image, input.size, sitk.Transform(), sitk.sitkLinear, origin, spacing, unit, -1000.0, sitk.sitkFloat32
        )
        return torch.from_numpy(np.clip(sitk.GetArrayFromImage(image), -1000, 1000) / np.float32(1000))

    return run


def main(rounds: int, quick: bool) -> None:
    """Table to the log, rows to ``results/``."""
    shape = (128, 128, 75) if quick else (512, 512, 300)
    input = replace(CT_CLIP_INPUT, size=(120, 120, 60)) if quick else CT_CLIP_INPUT
    steps, itk = standardise(input), simple_itk(shape, input)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ct.nii.gz"
        write_scan(path, shape)
        peers: dict[str, Callable[[], object]] = {
            "medvl": lambda: steps(read_volume(path)),
            "torch, whole volume": lambda: plain_torch(path, input),
        }
        if itk is not None:
            peers["SimpleITK"] = lambda: itk(path)
        ours = steps(read_volume(path))[0].permute(2, 1, 0)
        for name, other in {"torch": plain_torch(path, input), "SimpleITK": itk(path) if itk else ours}.items():
            logger.info("largest difference to %s: %.2g HU", name, 1000 * (ours - other).abs().max())
        rows = measure(f"CT preprocessing {shape}, {torch.get_num_threads()} threads", peers, rounds, "medvl")
    write_results("ct_preprocess", rows)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    main(numbers[0] if numbers else 5, "--quick" in sys.argv)
