"""Table III and the alternatives: every pooling on the encoder before and after stage 1, over several seeds.

All settings of a seed share data, stage 1 and slice tokens. Runs are done in one process, one after the other.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

BUNDLE = Path(__file__).resolve().parents[1]
ADAPTER = "radclip/slice_attention"
ALTERNATIVES = ("radclip/gated_attention", "radclip/slice_transformer", "radclip/slice_conv")
FIRST = "radclip_mean"
SETTINGS = {
    FIRST: ("average.json",),  # makes stage 1 for the others
    "radclip_slice_attention": ("adapter_only.json",),
    "clip_mean": ("without_stage1.json", "average.json"),
    "clip_slice_attention": ("without_stage1.json",),
    "radclip_slice_max": ("adapter_only.json", "average.json", "radclip/slice_max"),
    **{f"radclip_{name.split('/')[1]}": ("adapter_only.json", name) for name in ALTERNATIVES},
}
EXAMPLES = """
examples, from the folder monai_bundles:
  # the phantom cohort, three seeds
  python radclip/scripts/ablation.py --out runs/ablation

  # volumes of your own, on stage 1 of that run
  python radclip/scripts/ablation.py --out runs/covid --stage1 runs/ablation \\
      --set dataset::name=radclip/covid_ct_md dataset_dir=/data/COVID

what --out gets: seed0/clip_mean/eval/metrics.json, ...; what is there is kept: the same command goes on after a kill.
`python radclip/scripts/tables.py 3 --ablation runs/ablation` prints the table.
"""


def main() -> int:
    options = _arguments().parse_args()
    overrides = dict(_setting(word) for word in options.set)
    for seed in options.seeds:
        for name in options.settings:
            extra = SETTINGS[name]
            folder = options.out.resolve() / f"seed{seed}" / name
            if (folder / "eval" / "metrics.json").is_file():
                continue
            sys.stderr.write(f"{folder}\n")
            made = (options.stage1 or options.out).resolve() / folder.parent.name / FIRST / "models"
            if options.stage1 and name == FIRST:
                extra = ("adapter_only.json", *extra)
            run(folder, seed, extra, options.config_file, {"stage1_dir": str(made), **overrides})
    return 0


def run(folder: Path, seed: int, extra: tuple[str, ...], files: list[Path], overrides: dict[str, object]) -> None:
    """Train and evaluate one setting of one seed."""
    from monai.bundle import ConfigWorkflow

    overlays = [BUNDLE / "configs" / name for name in extra if name.endswith(".json")]
    settings: dict[str, object] = {
        "seed": seed,
        "bundle_root": str(BUNDLE),
        "ckpt_dir": str(folder / "models"),
        "output_dir": str(folder / "eval"),
        "cache_dir": str(folder.parents[1] / "cache"),
        "track": False,
        "slice_pooling::name": next((name for name in extra if "/" in name), ADAPTER),
    }
    if extra[-1] == "average.json":
        del settings["slice_pooling::name"]  # the overlay names it
    workflow = ConfigWorkflow(
        config_file=[str(file) for file in [*files, *overlays]],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        **{**settings, **overrides},
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def _setting(word: str) -> tuple[str, object]:
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
    add("--out", type=Path, required=True, metavar="FOLDER", help="gets a folder per seed and setting")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    add("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="NAME", help="default: all")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the configs")
    add("--stage1", type=Path, metavar="FOLDER", help="--out of an earlier call whose stage 1 is used")
    add("--config_file", type=Path, nargs="+", default=[BUNDLE / "configs" / "train.json"], metavar="FILE")
    return parser


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("ignite", "alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    sys.exit(main())
