"""Organ masks for CTs by TotalSegmentator: once per CT, resumable, on one machine or a Dask cluster.

Its weights must be on this machine (nothing is downloaded here) and it sends no usage statistics. Each CT is segmented
in a process of its own, so a crash or a scan that needs too much memory costs that scan only. Masks you already have,
of any tool, need no step like this: point training at them.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

EXAMPLES = """
examples, from the folder monai_bundles:
  # all CTs of a folder, on a GPU, at 1.5 mm
  python ct_glip/scripts/make_masks.py --out /data/masks /data/ct/*.nii.gz

  # on 8 processors without a GPU: 3 mm, two scans at a time, at most 16 GiB per process
  python ct_glip/scripts/make_masks.py --out /data/masks --speed fast --device cpu --workers 2 \\
      --memory-gib 16 /data/ct/*.nii.gz

  # the studies of a table with the columns subject, study, ct (baseline/folder), weights in a folder of their own
  python ct_glip/scripts/make_masks.py --out /data/masks --table studies.csv --weights /data/totalsegmentator

  # go on after a kill, or try failed scans again: the same command

what --out gets:
  masks/<study>.nii.gz   labels of TotalSegmentator 2 on the grid of the CT, their names in the file
  masks.csv              a row per mask: study, path, meaning of the labels (ts_v2_117), maker
  failed.csv             scans without a mask, each with its reason
  journal/               one file per scan that is done; removing it starts over
weights: full needs Dataset291 to 295, fast Dataset297, fastest Dataset298, in $TOTALSEG_WEIGHTS_PATH, in
~/.totalsegmentator/nnunet/results or where --weights says. Fetch them where there is a network:
totalseg_download_weights -t total (or total_fast, which has both others). Licence of these weights:
Apache-2.0.
exit code: 0 all made, 65 some failed, 75 stopped: run again
"""


def main() -> int:
    from medvl_core.bundle.startup import install_excepthook

    install_excepthook()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("distributed").setLevel(logging.WARNING)
    options = _arguments().parse_args()

    from medvl_ct_glip.mask_maker import MakeMasks, weights_folder, write_mask_table

    weights = weights_folder(options.weights, options.speed)  # before anything is read or torch is loaded

    from medvl_imaging.prepare import source_version
    from medvl_imaging.scale import Journal, map_studies

    out = options.out.resolve()
    make = MakeMasks(out, weights, options.speed, options.device, options.memory_gib, options.timeout)
    try:
        report = map_studies(
            make,
            _studies(options),
            Journal(out / "journal", make.task()),
            scheduler=options.scheduler,
            workers=options.workers,
            version=source_version,
            description="Segmenting",
        )
    except KeyboardInterrupt:
        sys.stderr.write("stopped; run the same command again to go on\n")
        return 75
    table, failed = write_mask_table(out, report)
    sys.stderr.write(f"{len(report.records)} masks: {table}\n{len(report.failed)} failed: {failed}\n")
    return 65 if report.failed else 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("ct", nargs="*", type=Path, help="CTs: NIfTI or NRRD files, or folders of one DICOM series each")
    add("--table", type=Path, metavar="FILE", help="in place of CTs: a table for baseline/folder")
    add("--out", type=Path, required=True, metavar="FOLDER", help="gets masks, table and journal")
    add("--weights", type=Path, metavar="FOLDER", help="holds Dataset29x_...; default: where TotalSegmentator looks")
    speeds = ["full", "fast", "fastest"]
    add("--speed", choices=speeds, default="full", help="1.5, 3 or 6 mm. Default: full; fastest only to try things out")
    add("--device", choices=["gpu", "cpu"], default="gpu", help="default: gpu")
    add("--workers", type=int, default=1, help="scans at a time; 0 works without Dask. Default: 1")
    add("--memory-gib", type=float, metavar="N", help="most memory that each process may allocate (Linux)")
    add(
        "--timeout", type=float, default=7200, metavar="S", help="seconds after which a scan is given up. Default: 7200"
    )
    add("--scheduler", metavar="tcp://HOST:PORT", help="a running Dask cluster instead of processes on this machine")
    return parser


def _studies(options: argparse.Namespace) -> list[Any]:
    from medvl_core.build import build_dataset
    from medvl_core.errors import OptionError
    from medvl_core.study import Study
    from medvl_imaging.readers import FileSource
    from medvl_imaging.readers.listing import bare_name

    if bool(options.ct) == bool(options.table):
        raise OptionError("give CTs or --table, one of the two; see --help")
    if options.table:
        dataset = build_dataset("baseline/folder", table=options.table, shares=(1.0, 0.0, 0.0))
        return [study for study in dataset.studies("train") if "ct" in study.images]
    names = {path: bare_name(path) for path in options.ct}
    return [
        Study(study_id=name, subject_id=name, scan_id=name, images={"ct": FileSource(path.resolve(), "volume")})
        for path, name in names.items()
    ]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
