"""Train with the radiograph-report loss only (beta), the radiograph-CT loss only (gamma) and both, over several seeds.

Each seed has data, weights and order of its own; its three students share them, and the teacher, which is trained once.
Then prints table 5: the three losses, each number with the interval of every seed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from medvl_core.bundle.startup import install_excepthook
from medvl_evaluation.experiments import arguments, run_setting

SCRIPTS = Path(__file__).resolve().parent
CONFIGS = [SCRIPTS.parent / "configs" / name for name in ("train.json", "protocol.json")]
LOSSES = {"both": (1.0, 1.0), "beta": (1.0, 0.0), "gamma": (0.0, 1.0)}
EXAMPLES = """
examples, from the folder monai_bundles:
  # the phantom cohort
  python x2ct/scripts/ablation.py --out runs/ablation

  # smaller and faster
  python x2ct/scripts/ablation.py --out runs/ablation --set dataset#options_for#baseline/phantom#n_subjects=300 epochs=8

  # the published setting, on CT-RATE
  python x2ct/scripts/ablation.py --out runs/ablation --seeds 1024 --config_file x2ct/configs/train.json \\
      x2ct/configs/paper.json x2ct/configs/protocol.json --set dataset_dir=/data/CT-RATE

what --out gets: seed0/both/models, seed0/both/eval, ...; a run that is there is kept, so the same command goes on after
a kill. Standardised images and embeddings of all runs are kept in the bundle's cache/, where other runs find them too.
"""


def main() -> int:
    options = _arguments().parse_args()
    for seed in options.seeds:
        for loss, (beta, gamma) in LOSSES.items():
            folder = options.out.resolve() / f"seed{seed}" / loss
            own: dict[str, object] = {"seed": seed, "beta": beta, "gamma": gamma}
            teacher = folder.parent / "both" / "models" / "teacher.pt"
            if loss != "both" and teacher.is_file():  # absent where the teacher is given, not trained
                own["stage1_weights"] = str(teacher)
            run_setting(options.config_file, folder, own | dict(options.set))
    table = [sys.executable, str(SCRIPTS / "tables.py"), "5", "--ablation", str(options.out)]
    return subprocess.run(table).returncode


def _arguments() -> argparse.ArgumentParser:
    parser = arguments(__doc__, EXAMPLES, "gets a folder per seed and loss")
    add = parser.add_argument
    text = "default: train.json and protocol.json; protocol.json has the linear probe and the depths of the table"
    add("--config_file", type=Path, nargs="+", default=CONFIGS, metavar="FILE", help=text)
    return parser


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    install_excepthook()
    sys.exit(main())
