"""Table III and the alternatives: every pooling on the encoder before and after stage 1, over several seeds.

All settings of a seed share data, stage 1 and slice tokens. Runs are done in one process, one after the other.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medvl_core.bundle.startup import install_excepthook
from medvl_evaluation.experiments import arguments, run_setting

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
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
    out = options.out.resolve()
    for seed in options.seeds:
        for name in options.settings:
            extra = SETTINGS[name]
            if options.stage1 and name == FIRST:
                extra = ("adapter_only.json", *extra)
            files = [*options.config_file, *(CONFIGS / word for word in extra if word.endswith(".json"))]
            stage1 = (options.stage1 or out).resolve() / f"seed{seed}" / FIRST / "models"
            own = {"seed": seed, "cache_dir": str(out / "cache"), "stage1_dir": str(stage1)}
            if extra[-1] != "average.json":  # which names its pooling itself
                own["slice_pooling::name"] = next((word for word in extra if "/" in word), ADAPTER)
            run_setting(files, out / f"seed{seed}" / name, own | dict(options.set))
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = arguments(__doc__, EXAMPLES, "gets a folder per seed and setting")
    add = parser.add_argument
    add("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="NAME", help="default: all")
    add("--stage1", type=Path, metavar="FOLDER", help="--out of an earlier call whose stage 1 is used")
    add("--config_file", type=Path, nargs="+", default=[CONFIGS / "train.json"], metavar="FILE")
    return parser


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
