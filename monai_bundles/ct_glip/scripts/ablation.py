"""The rows of table 1: what is aligned, with either backbone, over several seeds.

All rows of a backbone and seed share patients and the segmentation stage, which the row "full" makes. Runs are done in
one process, one after the other; a seed draws patients, first weights and patches.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medvl_core.bundle.startup import install_excepthook
from medvl_evaluation.experiments import arguments, run_setting

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FIRST = "full"
ROWS = {
    FIRST: (),
    "vanilla": ("vanilla.json",),
    "diagnosis_only": ("diagnosis_only.json",),
    "no_dictionary": ("no_dictionary.json",),
}
BACKBONES = {"nnunet": (), "mit": ("mit.json",)}
EXAMPLES = """
examples, from the folder monai_bundles:
  # everything on the phantom cohort: 3 seeds x 2 backbones x 4 rows
  python ct_glip/scripts/ablation.py --out runs/table1

  # one backbone, shorter
  python ct_glip/scripts/ablation.py --out runs/short --backbones nnunet --set epochs=2 n_subjects=60

what --out gets: seed0/nnunet/full/eval/metrics.json, ...; what is there is kept: the same command goes on after a kill.
`python ct_glip/scripts/tables.py 1 --runs runs/table1` prints the table.
"""


def main() -> int:
    options = _arguments().parse_args()
    out, given = options.out.resolve(), dict(options.set)
    for seed in options.seeds:
        for backbone in options.backbones:
            for row in dict.fromkeys([FIRST, *options.rows]):
                folder = out / f"seed{seed}" / backbone / row
                made = {} if row == FIRST else _second(folder)
                files = [CONFIGS / name for name in ("train.json", *BACKBONES[backbone], *ROWS[row])]
                run_setting(files, folder, {"seed": seed, "cache_dir": str(out / "cache"), **made, **given})
    return 0


def _second(folder: Path) -> dict[str, object]:
    """The rows of a backbone and seed share the segmentation weights and the untrained network's numbers."""
    weights = folder.parent / FIRST / "models" / "segmentation.pt"
    return {"stage1_weights": str(weights), "evaluate::networks": {"trained": "@scans"}}


def _arguments() -> argparse.ArgumentParser:
    parser = arguments(__doc__, EXAMPLES, "gets a folder per seed, backbone and row")
    add = parser.add_argument
    add("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES), help="default: both")
    add("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="default: all; full is always made")
    return parser


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
