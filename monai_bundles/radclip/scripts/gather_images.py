"""Gather pictures and slices of volumes into folders named by their caption: the layout that RadCLIP was trained on.

train_2d.json reads it with --image_captions_in_names True. Pictures are linked; slices become PNG files, grey as the
volume encoder sees them: mean ± 3 standard deviations of the volume.
"""

from __future__ import annotations

import argparse
import sys
from glob import glob
from pathlib import Path

import numpy as np
from PIL import Image

from medvl_core.study import Shared
from medvl_evaluation.experiments import command_line
from medvl_imaging.readers import FileSource
from medvl_radclip.captions import parse_name
from medvl_radclip.volume_slices import SliceAt

EXAMPLES = """
examples:
  # brain MR pictures and slices of chest CTs, 300 files of each caption at most
  python radclip/scripts/gather_images.py --out runs/gathered --most 300 \\
      --pictures "Brain MRI=/data/mr/*/*.jpg" --volumes "Chest CT=/data/ct/*.nii.gz"

names: what the pattern's wildcards stand for, so that a patient's files share a beginning: slice 3 of
/data/sts/STS_002/PET_image.nii.gz is "STS_002__PET_image_slice003.png". --image_subject tells the patient from it.
exit code: 65 if a pattern fits no file, or a caption does not start with region and modality
"""


def main() -> int:
    options = _arguments().parse_args()
    try:
        for caption, pattern in options.pictures:
            for path, name in _evenly(_named(pattern), options.most):
                _link(path, _folder(options.out, caption) / f"{name}{path.suffix}")
        for caption, pattern in options.volumes:
            for path, name in _named(pattern):
                _slices(path, _folder(options.out, caption), name, options.per_volume)
    except ValueError as problem:
        sys.stderr.write(f"{problem}\n")
        return 65
    return 0


def _folder(out: Path, caption: str) -> Path:
    parse_name(caption)
    folder = out / caption
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _named(pattern: str) -> list[tuple[Path, str]]:
    """Files of a pattern, each with the parts of its path from the first wildcard on."""
    paths = [Path(path) for path in sorted(glob(pattern))]
    if not paths:
        raise ValueError(f"{pattern}: fits no file; correct the pattern")
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if "*" in part or "?" in part), len(parts) - 1)
    return [(path, "__".join([*path.parts[fixed:-1], path.name.split(".")[0]])) for path in paths]


def _evenly(files: list[tuple[Path, str]], most: int | None) -> list[tuple[Path, str]]:
    if most is None or len(files) <= most:
        return files
    return [files[i] for i in np.linspace(0, len(files) - 1, most).round().astype(int)]


def _link(path: Path, target: Path) -> None:
    if not target.is_symlink():
        target.symlink_to(path.resolve())
    elif target.resolve() != path.resolve():
        raise ValueError(
            f"{path}: {target} is {target.resolve()} already; put a wildcard in place of the folder's name"
        )


def _slices(path: Path, folder: Path, name: str, count: int) -> None:
    volume = Shared(FileSource(path, "scan"))
    for k in range(count):
        target = folder / f"{name}_slice{k:03d}.png"
        if not target.is_file():
            Image.fromarray(SliceAt(volume, (k + 0.5) / count).load().array.astype(np.uint8)).save(target)


def _captioned(word: str) -> tuple[str, str]:
    caption, equals, pattern = word.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{word!r} is not CAPTION=PATTERN, such as 'Chest CT=/data/ct/*.nii.gz'")
    return caption, pattern


def _arguments() -> argparse.ArgumentParser:
    parser = command_line(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="gets a folder per caption")
    add("--pictures", nargs="+", type=_captioned, default=[], metavar="CAPTION=PATTERN", help="PNG, JPEG, DICOM files")
    add("--volumes", nargs="+", type=_captioned, default=[], metavar="CAPTION=PATTERN", help="volumes to slice")
    add("--per_volume", type=int, default=16, metavar="N", help="slices of each volume; default: 16")
    add("--most", type=int, metavar="N", help="pictures of each pattern, evenly spread; default: all")
    return parser


if __name__ == "__main__":
    sys.exit(main())
