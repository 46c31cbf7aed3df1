"""The rows of table 1: what is aligned, with either backbone, over several seeds.

All rows of a backbone and seed share patients and the segmentation stage, which the row "full" makes. Runs are done in
one process, one after the other; a seed draws patients, first weights and patches.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

BUNDLE = Path(__file__).resolve().parents[1]
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
    overrides = dict(setting(word) for word in options.set)
    for seed in options.seeds:
        for backbone in options.backbones:
            for row in dict.fromkeys([FIRST, *options.rows]):
                folder = options.out.resolve() / f"seed{seed}" / backbone / row
                if (folder / "eval" / "metrics.json").is_file():
                    continue
                sys.stderr.write(f"{folder}\n")
                made = {} if row == FIRST else _second(folder)
                files = ["train.json", *BACKBONES[backbone], *ROWS[row]]
                run(files, folder, options.out.resolve() / "cache", {"seed": seed, **made, **overrides})
    return 0


def _second(folder: Path) -> dict[str, object]:
    """The rows of a backbone and seed share the segmentation weights and the untrained network's numbers."""
    weights = folder.parent / FIRST / "models" / "segmentation.pt"
    return {"segmentation_weights": str(weights), "evaluate::networks": {"trained": "@scans"}}


def run(files: list[str], folder: Path, cache: Path, settings: dict[str, object]) -> None:
    """Train and evaluate one setting."""
    from monai.bundle import ConfigWorkflow

    places = {"ckpt_dir": folder / "models", "output_dir": folder / "eval", "cache_dir": cache}
    workflow = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / name) for name in files],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        bundle_root=str(BUNDLE),
        **{key: str(path) for key, path in places.items()},
        **{"track": False, **settings},
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def setting(word: str) -> tuple[str, object]:
    """``"epochs=2"`` → ``("epochs", 2)``."""
    key, equals, value = word.partition("=")
    if not equals:
        raise SystemExit(f"{word!r} is no setting; write key=value, e.g. epochs=20")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="gets a folder per seed, backbone and row")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    add("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES), help="default: both")
    add("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="default: all; full is always made")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the configs")
    return parser


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("ignite", "alembic", "mlflow", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    sys.exit(main())
