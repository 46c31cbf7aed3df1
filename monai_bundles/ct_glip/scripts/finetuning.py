"""Table 2: segmentation and detection of tumours, fine-tuned from the encoders and decoders that ablation.py made.

Patients of the phantom cohort that pretraining has not seen; few of them for training, and all. Lung nodules, liver
cysts and kidney cysts stand for tumours.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ablation import BACKBONES, CONFIGS  # beside this file

from medvl_core.bundle.startup import install_excepthook
from medvl_evaluation.experiments import arguments, run_setting

STARTS = {
    "scratch": None,
    "segmentation": "full/models/segmentation.pt",
    "vanilla": "vanilla/models/model.pt",
    "full": "full/models/model.pt",
}
OVERLAYS = {"nnunet": ("finetune.json",), "mit": ("finetune.json", "finetune_mit.json")}
EXAMPLES = """
examples, from the folder monai_bundles:
  # after ablation.py --out runs/table1: four starts, 10 % and all of the training patients, 3 seeds
  python ct_glip/scripts/finetuning.py --pretrained runs/table1 --out runs/table2

what --out gets: seed0/nnunet/share0.1/full/eval/metrics.json, ...; what is there is kept.
`python ct_glip/scripts/tables.py 2 --runs runs/table2` prints the table.
"""


def main() -> int:
    options = _arguments().parse_args()
    out, pretrained, given = options.out.resolve(), options.pretrained.resolve(), dict(options.set)
    for seed in options.seeds:
        for backbone in options.backbones:
            files = [CONFIGS / name for name in ("train.json", *BACKBONES[backbone], *OVERLAYS[backbone])]
            for share in options.shares:
                for start in options.starts:
                    weights = STARTS[start] and str(pretrained / f"seed{seed}" / backbone / STARTS[start])
                    own = {"seed": seed, "train_share": share, "initial_weights": weights}
                    folder = out / f"seed{seed}" / backbone / f"share{share:g}" / start
                    run_setting(files, folder, {**own, "cache_dir": str(out / "cache"), **given})
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = arguments(__doc__, EXAMPLES, "gets a folder per seed, backbone, share and start")
    add = parser.add_argument
    add("--pretrained", type=Path, required=True, metavar="FOLDER", help="--out of ablation.py")
    add("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES), help="default: both")
    add("--starts", nargs="+", choices=list(STARTS), default=list(STARTS), help="default: all")
    add("--shares", type=float, nargs="+", default=[0.1, 1.0], help="of the training patients; default: 0.1 1")
    return parser


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
