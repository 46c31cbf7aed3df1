"""Organ recognition on CTs with ready-made masks: chance, the untrained network, and each trained one.

An instance is a structure of the scan that the model knows and that is large enough. Every scan is embedded whole, and
again as crops at random places: a structure of which less than half lies in a crop does not count there. Intervals are
over the crops of one scan: they say how much recognition leans on the field of view, nothing about other patients.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medvl_core.bundle.manifest import read_manifest
from medvl_core.bundle.startup import install_excepthook
from medvl_evaluation.experiments import command_line
from medvl_evaluation.markdown import markdown_table

BUNDLE = Path(__file__).resolve().parent.parent
EXAMPLES = """
examples, from the folder monai_bundles:
  python ct_glip/scripts/recognise_scans.py --scan ct.nii.gz masks.nii.gz ts_v2_117 --models grounded=ct_glip/models

  # MiT, whose patches differ
  python ct_glip/scripts/recognise_scans.py --crop 32 32 32 --scan ct.nii.gz masks.nii.gz table \\
      --models global=runs/table1/seed0/mit/vanilla/models grounded=runs/table1/seed0/mit/full/models
"""


def main() -> int:
    options = _arguments().parse_args()
    networks = {"untrained": options.models[0][1], **dict(options.models)}
    chance = {1 / len(read_manifest(folder / "manifest.json")["regions"]) for folder in networks.values()}
    if len(chance) > 1:
        raise SystemExit("the models tell different numbers of regions apart; give them in calls of their own")
    rows = []
    for scan in options.scan:
        cells = [_cell(folder, scan, name == "untrained", options) for name, folder in networks.items()]
        rows.append([f"{Path(scan[0]).parent.name}/{Path(scan[0]).name}", f"{max(chance):.3f}", *cells])
        sys.stderr.write(" | ".join(rows[-1]) + "\n")
    sys.stdout.write(markdown_table(["scan", "chance", *networks], rows) + "\n")
    return 0


def _cell(models: Path, scan: Sequence[str], untrained: bool, options: argparse.Namespace) -> str:
    """``"22/25; 0.71 [0.65, 0.77]"``: the whole scan; crops with their interval."""
    whole = _evaluate(_parts(models, scan, untrained, options, None), [0])
    text = f"{whole[0]}/{whole[1]}"
    if not options.crops:
        return text
    parts = _parts(models, scan, untrained, options, options.crop)
    _, n, value, (low, high) = _evaluate(parts, [(epoch, 0) for epoch in range(options.crops)])
    return f"{text}; {value:.2f} [{low:.2f}, {high:.2f}]" if n else f"{text}; none visible"


def _parts(
    models: Path, scan: Sequence[str], untrained: bool, options: argparse.Namespace, patch: Sequence[int] | None
) -> dict[str, Any]:
    """What inference.json builds for one scan, with the weights in place."""
    from monai.bundle import ConfigParser

    from medvl_core.engine import set_seed
    from medvl_core.engine.parts import rebuild

    set_seed(0)
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    ct, masks, names = scan
    given = {"ckpt_dir": str(models), "cache_dir": str(options.cache), "input": ct, "masks": masks}
    given["mask_names"] = None if names == "table" else names
    for key, value in given.items():
        parser[key] = value
    if untrained:
        parser["network_def"] = rebuild(read_manifest(models / "manifest.json")["parts"]["image_tower"], models)
    encoder = parser.get_parsed_content("network_def").encoder
    if patch:
        encoder.input = dataclasses.replace(encoder.input, size=tuple(patch))
    keys = ("scans", "volumes", "study", "embed_text", "min_voxels")
    return {key: parser.get_parsed_content(key) for key in keys}


def _evaluate(parts: dict[str, Any], indices: Sequence[Any]) -> tuple[int, int, float, tuple[float, float]]:
    """Instances named right, instances, their share, and its interval over the views ``indices``."""
    from medvl_core.build import build_evaluator

    regions = parts["volumes"].names
    evaluator = build_evaluator("ct_glip/organ_recognition", regions=regions, embed_text=parts["embed_text"])
    n = 0
    for view, output in enumerate(_outputs(parts, indices)):
        evaluator.update({"embeddings": output, "study_id": [str(view)], "subject_id": [str(view)]})
        n += int((output["ct_regions"].abs().sum(dim=2) > 0).sum())
    if not n:
        return 0, 0, 0.0, (0.0, 0.0)
    value = evaluator.compute()["organ/top_1"]
    return round(value * n), n, value, evaluator.intervals()["organ/top_1"]


def _outputs(parts: dict[str, Any], indices: Sequence[Any]) -> Iterator[dict[str, Any]]:
    from medvl_core.engine import StudyDataset
    from medvl_ct_glip.regions import RegionPatches

    patches = RegionPatches(parts["volumes"], min_voxels=parts["min_voxels"])
    dataset = StudyDataset([parts["study"]], {"ct": patches})
    for index in indices:
        item = dataset[index]
        yield parts["scans"].eval()({key: item[key][None] for key in ("ct", "regions", "region_visible")}).embeddings


def _model(word: str) -> tuple[str, Path]:
    name, equals, folder = word.partition("=")
    if not equals or not Path(folder, "model.pt").is_file():
        raise argparse.ArgumentTypeError(f"{word!r} is no NAME=FOLDER with a model.pt in it, as in x=ct_glip/models")
    return name, Path(folder)


def _arguments() -> argparse.ArgumentParser:
    parser = command_line(__doc__, EXAMPLES)
    add = parser.add_argument
    help_ = "CT, masks, and what the masks' labels mean (ts_v1_104, ts_v2_117, a table, or 'table': in the file)"
    add("--scan", nargs=3, action="append", required=True, metavar=("CT", "MASKS", "NAMES"), help=help_)
    add("--models", type=_model, nargs="+", required=True, metavar="NAME=FOLDER", help="trained bundles' models/")
    add("--crops", type=int, default=30, help="per scan; 0 for whole scans alone. Default: 30")
    add("--crop", type=int, nargs=3, default=[32, 32, 24], help="voxels. Default: 32 32 24")
    add("--cache", type=Path, default=BUNDLE / "cache", help="standardised scans and text rows")
    return parser


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
