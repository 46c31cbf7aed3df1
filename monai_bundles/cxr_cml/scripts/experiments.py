"""Cross-validate the settings of the metric loss beside CLIP on captions alone, one after the other.

A setting that is there already is kept, so the same command goes on after a kill. scripts/tables.py prints the results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medvl_core.bundle.startup import install_excepthook
from medvl_evaluation.experiments import arguments, run_setting

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SETTINGS: dict[str, dict[str, object]] = {
    "clip": {"metric_weight": 0},
    "nu2": {"nu": 2},
    "nu4": {},
    "nu6": {"nu": 6},
    "nu_inf": {"nu": "inf"},
    "from_start": {"metric_start": 0},
    "bank_256": {"bank_size": 256},
    "bank_2048": {"bank_size": 2048},
    "clusters_40": {"n_clusters": 40},
    "pca_32": {"losses::metric::pca_dim": 32},
    "tied": {"losses::metric::covariance": "tied"},
    "full_pca_16": {"losses::metric::covariance": "full", "losses::metric::pca_dim": 16},
    "semi_hard": {"losses::metric::mining": "semi_hard"},
    "batch_hard": {"losses::metric::mining": "batch_hard"},
    "weight_0.1": {"metric_weight": 0.1},
    "weight_3": {"metric_weight": 3},
    "regularisation_1e-4": {"losses::metric::regularisation": 1e-4},
    "regularisation_1e-2": {"losses::metric::regularisation": 1e-2},
}
"""Name → what differs from the configs: the first five are the paper's table, the others each change one thing."""
EXAMPLES = """
examples, from the folder monai_bundles:
  # the paper's five settings on the NIH radiographs, 5 folds of patients
  python cxr_cml/scripts/experiments.py --out runs/nih --configs nih.json --set dataset_dir=/data/nih \\
      --settings clip nu2 nu4 nu6 nu_inf

  # with and without the metric loss on phantoms, three seeds
  python cxr_cml/scripts/experiments.py --out runs/phantoms --settings clip nu4 --seeds 0 1 2
"""


def main() -> int:
    options = _arguments().parse_args()
    out, given = options.out.resolve(), dict(options.set)
    files = [CONFIGS / name for name in ("train.json", *options.configs, "cross_validate.json")]
    for seed in options.seeds:
        for name in options.settings:
            folder = out / f"seed{seed}" / name
            own = {"seed": seed, "output_dir": str(folder), "cache_dir": str(out / "cache")}
            run_setting(files, folder, own | given | SETTINGS[name], "cross_validation/metrics.json")
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = arguments(__doc__, EXAMPLES, "gets seed<s>/<setting>/cross_validation", seeds=(0,))
    add = parser.add_argument
    add("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="NAME", help="default: all")
    add("--configs", nargs="*", default=[], metavar="NAME", help="files of configs/ between train and cross_validate")
    return parser


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
