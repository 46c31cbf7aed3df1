"""Simulate a frontal radiograph from each CT and write it as PNG, the way training sees it.

python x2ct/scripts/simulate_radiographs.py scan.nii.gz dicom_folder/ --out films/
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from medvl_imaging.radiograph import simulate_radiograph
from medvl_imaging.readers import read_volume


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path, help="NIfTI, NRRD or DICOM folder, in HU")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG files")
    parser.add_argument(
        "--mode", choices=["mean_hu", "beer_lambert", "cone_beam"], default="mean_hu", help="physics of a pixel"
    )
    parser.add_argument("--view", choices=["ap", "pa", "lateral"], default="ap")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels; default: 1 mm per pixel")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for scan in options.scans:
        try:
            volume = read_volume(scan)
        except (ValueError, OSError) as error:  # a bad file is named, the others go on
            print(error, file=sys.stderr)
            failed += 1
            continue
        size = tuple(options.size) if options.size else None
        film = simulate_radiograph(volume.array, volume.affine, size=size, mode=options.mode, view=options.view)
        low, high = float(film.min()), float(film.max())
        path = options.out / f"{scan.name.split('.')[0]}_{options.view}.png"
        Image.fromarray(np.uint8(255 * (film - low) / max(high - low, 1e-6))).save(path)
        print(f"{scan} → {path}")
    return 65 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
