"""Make CT, radiograph and report ready for training: once per study, resumable, on one machine or a Dask cluster.

For every study of the dataset: reads and checks the CT, simulates its radiograph (16-bit PNG), and keeps what training
would otherwise make on its own: standardised images, and embeddings of the frozen CT and report towers. Training with
the same settings finds them by content. Bad studies are skipped and listed.

Settings are those of training: name the same config files and the same overrides, and the dataset is the same too.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

BUNDLE = Path(__file__).resolve().parents[1]
EXAMPLES = """
examples, from the folder monai_bundles (a backslash only breaks the line):
  # CT-RATE, 8 processes: radiographs and standardised images
  python x2ct/scripts/prepare_triplets.py --out /data/prepared --workers 8 \\
      --dataset#name x2ct/ct_rate --dataset_dir /data/CT-RATE

  # ... with the embeddings of a trained teacher, on a running cluster whose workers see the same folders
  python x2ct/scripts/prepare_triplets.py --out /data/prepared --scheduler tcp://head:8786 --make images embeddings \\
      --stage1_weights teacher.pt --dataset#name x2ct/ct_rate --dataset_dir /data/CT-RATE

  # go on after a kill, or after repairing bad cases: the same command again

  # train: the same overrides; bad cases left out
  python -m monai.bundle run --config_file x2ct/configs/train.json \\
      --dataset#name x2ct/ct_rate --dataset_dir /data/CT-RATE --exclude /data/prepared/failed.csv

what --out gets:
  cxr/<study>.png   radiographs that were simulated       studies.csv   one row per good study, for baseline/folder
  ct/<study>.nii.gz with --make ct                        failed.csv    bad studies, each with its reason
  journal/          one file per study that is done; removing it starts over
exit code: 0 all good, 65 some studies are bad, 75 stopped: run again
"""


def main() -> int:
    from medvl_core.bundle.startup import OverrideError, install_excepthook, unknown_override_keys

    install_excepthook()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("distributed").setLevel(logging.WARNING)
    options, rest = _arguments().parse_known_args()
    overrides = _overrides(rest)
    unknown = unknown_override_keys(options.config_file, overrides)
    if unknown:
        raise OverrideError("; ".join(unknown))

    from medvl_imaging.prepare import source_version, write_tables
    from medvl_imaging.scale import Journal, map_studies

    settings = _settings(options.config_file, overrides)
    studies = {split: settings.get_parsed_content("studies")[split] for split in options.splits}
    function = _function(options, settings)
    try:
        report = map_studies(
            function,
            [study for part in studies.values() for study in part],
            Journal(options.out / "journal", function.task()),
            scheduler=options.scheduler,
            workers=options.workers,
            memory_limit=options.memory_limit,
            version=source_version,
        )
    except KeyboardInterrupt:
        sys.stderr.write("stopped; run the same command again to go on\n")
        return 75
    function.finish()
    table, failed = write_tables(options.out, studies, report)
    sys.stderr.write(
        f"{len(report.records)} studies are ready ({report.computed} tried now): {table}\n"
        f"{len(report.failed)} are bad and left out: {failed}\n"
    )
    return 65 if report.failed else 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --out FOLDER [options] [--KEY VALUE ...]",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="gets radiographs, tables and the journal")
    add(
        "--make",
        nargs="*",
        choices=["ct", "images", "embeddings"],
        default=["images"],
        help="ct: CTs as HU NIfTI where the originals are no plain HU file; images: standardised CT and radiograph; "
        "embeddings: of the frozen CT and report towers, whose weights must be given. Default: images; may be empty",
    )
    splits = ["train", "validation", "test"]
    add("--splits", nargs="+", choices=splits, default=splits, help="default: all three")
    add(
        "--config_file",
        nargs="+",
        type=Path,
        default=[BUNDLE / "configs" / "train.json"],
        metavar="FILE",
        help="default: train.json",
    )
    add("--workers", type=int, default=2, help="processes on this machine; 0 works without Dask. Default: 2")
    add("--memory-limit", metavar="SIZE", help="per process, such as 8GiB: one that exceeds it is restarted")
    add("--scheduler", metavar="tcp://HOST:PORT", help="a running Dask cluster instead of processes on this machine")
    return parser


def _overrides(words: list[str]) -> dict[str, Any]:
    """``--key value`` pairs as ``monai.bundle run`` takes them."""
    from fire.parser import DefaultParseValue

    from medvl_core.bundle.startup import OverrideError

    keys, values = words[::2], words[1::2]
    wrong = [key for key in keys if not key.startswith("--")]
    if wrong or len(keys) != len(values):
        raise OverrideError(f"{' '.join(words)!r} is no list of --KEY VALUE; see --help")
    return {key[2:]: DefaultParseValue(value) for key, value in zip(keys, values, strict=True)}


def _settings(files: list[Path], overrides: dict[str, Any]) -> Any:
    """MONAI's parser of the configs with the overrides."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    parser["bundle_root"] = str(files[0].resolve().parents[1])  # stores lie where training looks for them
    for key, value in overrides.items():
        parser[key.replace("#", "::")] = value
    return parser


def _function(options: argparse.Namespace, settings: Any) -> Any:
    from medvl_core.engine import set_seed
    from medvl_core.engine.weights import load_weights
    from medvl_core.errors import OptionError
    from medvl_imaging.prepare import PrepareStudy

    get, images, embeddings = settings.get_parsed_content, [], []
    if "images" in options.make:
        images = [get("ct_images"), get("cxr_images")]
    if "embeddings" in options.make:
        weights = settings["stage1_weights"]
        if not weights and "weights" not in repr([settings["ct_encoder"], settings["text_encoder"]]):
            raise OptionError("embeddings need a trained teacher; pass --stage1_weights FILE")
        set_seed(get("seed"))
        if weights:
            for part in ("ct", "text"):
                modality = "report" if part == "text" else part
                load_weights(get(f"{part}_tower"), weights, prefix=f"towers.{modality}.")
        embeddings = list(get("embeddings").values())
    return PrepareStudy(options.out.resolve(), "ct" in options.make, images, embeddings, get("captions"))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
