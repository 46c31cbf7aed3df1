"""Organ recognition on CTs with ready-made masks: chance, the untrained network, and each trained one.

Every scan is embedded whole; an instance is a structure of the scan that the model knows and that is large enough.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

BUNDLE = Path(__file__).resolve().parent.parent
EXAMPLES = """
example, from the folder monai_bundles:
  python ct_glip/scripts/recognise_scans.py --scan ct.nii.gz masks.nii.gz ts_v2_117 --models grounded=ct_glip/models
"""


def main() -> int:
    options = _arguments().parse_args()
    models = {name: Path(folder) for name, _, folder in (pair.partition("=") for pair in options.models)}
    first = next(iter(models.values()))
    columns: dict[str, list[tuple[int, int]]] = {}
    for name, folder in {"untrained": first, **models}.items():
        columns[name] = [_accuracy(folder, scan, name == "untrained", options.cache) for scan in options.scan]
    from medvl_core.manifest import read_manifest

    regions = read_manifest(first / "manifest.json")["regions"]
    lines = ["| scan | chance | " + " | ".join(columns) + " |", "| --- " * (2 + len(columns)) + "|"]
    for row, (ct, _, _) in enumerate(options.scan):
        values = " | ".join(f"{values[row][0]}/{values[row][1]}" for values in columns.values())
        lines.append(f"| {Path(ct).parent.name}/{Path(ct).name} | {1 / len(regions):.3f} | {values} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _accuracy(models: Path, scan: tuple[str, str, str], untrained: bool, cache: Path) -> tuple[int, int]:
    """Organs named right, and organs visible."""
    from monai.bundle import ConfigParser

    from medvl_core.build import build_evaluator
    from medvl_core.engine import set_seed
    from medvl_core.region_data import RegionDataset
    from medvl_core.weights import load_weights

    set_seed(0)
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    ct, masks, names = scan
    for key, value in {"ckpt_dir": str(models), "cache_dir": str(cache), "input": ct, "masks": masks}.items():
        parser[key] = value
    parser["mask_names"] = None if names == "table" else names
    parts = {key: parser.get_parsed_content(key) for key in ("scans", "volumes", "study", "embed_text", "min_voxels")}
    if not untrained:
        load_weights(parser.get_parsed_content("network_def"), models / "model.pt")
    item = RegionDataset([parts["study"]], parts["volumes"], min_voxels=parts["min_voxels"])[0]
    keys = ("ct", "regions", "region_visible")
    output = parts["scans"].eval()({key: item[key][None] for key in keys})
    regions = parts["volumes"].names
    evaluator = build_evaluator("ct_glip/organ_recognition", regions=regions, embed_text=parts["embed_text"])
    evaluator.update({"embeddings": output.embeddings, "study_id": [item["study_id"]], "subject_id": ["one"]})
    n = int((output.embeddings["ct_regions"].abs().sum(dim=2) > 0).sum())
    return (round(evaluator.compute()["organ/top_1"] * n) if n else 0), n


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    help_ = "CT, masks, and what the masks' labels mean (ts_v1_104, ts_v2_117, a table, or 'table': in the file)"
    parser.add_argument("--scan", nargs=3, action="append", required=True, metavar=("CT", "MASKS", "NAMES"), help=help_)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER", help="trained bundles' models/")
    parser.add_argument("--cache", type=Path, default=BUNDLE / "cache", help="standardised scans and text rows")
    return parser


if __name__ == "__main__":
    sys.exit(main())
