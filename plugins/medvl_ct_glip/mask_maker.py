"""Organ masks by TotalSegmentator: each study in a child process, for ``medvl_imaging.scale.map_studies``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from medvl_core.engine.files import safe_name, write_csv
from medvl_core.errors import EXIT_DATA, MedvlError
from medvl_core.study import Study
from medvl_imaging.scale import ScaleReport

__all__ = ["MakeMasks", "MaskMakerError", "WeightsMissingError", "weights_folder", "write_mask_table"]

Speed = Literal["full", "fast", "fastest"]

_MODELS: Mapping[Speed, tuple[str, ...]] = {
    "full": (
        "Dataset291_TotalSegmentator_part1_organs_1559subj",
        "Dataset292_TotalSegmentator_part2_vertebrae_1532subj",
        "Dataset293_TotalSegmentator_part3_cardiac_1559subj",
        "Dataset294_TotalSegmentator_part4_muscles_1559subj",
        "Dataset295_TotalSegmentator_part5_ribs_1559subj",
    ),
    "fast": ("Dataset297_TotalSegmentator_total_3mm_1559subj",),
    "fastest": ("Dataset298_TotalSegmentator_total_6mm_1559subj",),
}
"""Speed → folders of its networks: 1.5 mm in five parts, 3 mm, 6 mm."""

_GET = {"full": "total", "fast": "total_fast", "fastest": "total_fast"}
_CONFIG = {
    "totalseg_id": "medvl",
    "send_usage_stats": False,
    "prediction_counter": 0,
    "statistics_disclaimer_shown": True,
}


class WeightsMissingError(MedvlError, FileNotFoundError):
    """TotalSegmentator's weights are not on this machine."""


class MaskMakerError(MedvlError):
    """TotalSegmentator ended without a mask. The message starts with the study."""

    exit_code = EXIT_DATA


def weights_folder(folder: str | Path | None, speed: Speed) -> Path:
    """The folder of TotalSegmentator's networks, with all that ``speed`` needs.

    Args:
        folder: Holds ``Dataset29x_...``. ``None``: where TotalSegmentator looks, ``$TOTALSEG_WEIGHTS_PATH``,
            ``$TOTALSEG_HOME_DIR/nnunet/results`` or ``~/.totalsegmentator/nnunet/results``.
        speed: ``"full"``, ``"fast"`` or ``"fastest"``.

    Raises:
        ValueError: If ``speed`` is none of these.
        WeightsMissingError: If a network has no checkpoint there. Says what to fetch.
    """
    if speed not in _MODELS:
        raise ValueError(f"speed is {speed!r}; one of {', '.join(_MODELS)}")
    home = Path(os.environ.get("TOTALSEG_HOME_DIR", Path.home() / ".totalsegmentator"))
    usual = os.environ.get("TOTALSEG_WEIGHTS_PATH", home / "nnunet" / "results")
    found = Path(usual if folder is None else folder).expanduser().resolve()
    missing = [name for name in _MODELS[speed] if not any(found.glob(f"{name}/*/fold_*/checkpoint_final.pth"))]
    if missing:
        raise WeightsMissingError(
            f"{found}: no weights of TotalSegmentator in {', '.join(missing)}; fetch them where there is a network "
            f"(totalseg_download_weights -t {_GET[speed]}), copy the folder here, or bring masks of your own"
        )
    return found


@dataclass(frozen=True)
class MakeMasks:
    """What mask making does with one study; a function for ``medvl_imaging.scale.map_studies``.

    The CT is read by medvl, so HU and grid are those that training sees, and handed to ``totalsegmentator`` in a
    process of its own, which sends no usage statistics. ``<study>.nii.gz`` appears whole or not at all.

    Args:
        folder: Gets ``masks/<study>.nii.gz``: labels of ``ts_v2_117``, with their names in the file.
        weights: As given by `weights_folder`.
        speed: ``"full"`` 1.5 mm, ``"fast"`` 3 mm, ``"fastest"`` 6 mm.
        device: ``"cpu"`` or ``"gpu"``.
        memory_gib: Most memory each of its processes may allocate; ``None`` sets no limit. Linux only.
        timeout_s: A study that takes longer is given up.
    """

    folder: Path
    weights: Path
    speed: Speed = "full"
    device: Literal["cpu", "gpu"] = "gpu"
    memory_gib: float | None = None
    timeout_s: float = 7200

    def __call__(self, study: Study) -> dict[str, Any]:
        """The study's row of the mask table.

        Raises:
            MaskMakerError: If TotalSegmentator fails, with its last line.
            ValueError: If the CT cannot be read.
        """
        if "ct" not in study.images:
            raise MaskMakerError(f"{study.study_id}: has no CT to segment")
        target = self.folder / "masks" / f"{safe_name(study.study_id)}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch:
            made = self._segment(study, Path(scratch))
            made.replace(target)
        return {
            "study": study.study_id,
            "masks": str(target.relative_to(self.folder)),
            "names": "ts_v2_117",
            "made_by": f"totalsegmentator {version('totalsegmentator')} {self.speed}",
        }

    def task(self) -> str:
        """What the masks depend on besides the study."""
        return json.dumps([str(self.weights), self.speed, version("totalsegmentator")])

    def _segment(self, study: Study, scratch: Path) -> Path:
        image = study.images["ct"].load()
        if image.affine is None:
            raise MaskMakerError(f"{study.study_id}: its CT has no affine; give a NIfTI, NRRD or DICOM CT")
        ct = nib.Nifti1Image(np.round(image.array).clip(-32768, 32767).astype(np.int16), image.affine)
        nib.save(ct, scratch / "ct.nii.gz")
        made = scratch / "mask.nii.gz"
        (scratch / "config.json").write_text(json.dumps(_CONFIG), encoding="utf-8")
        limit = "" if self.memory_gib is None else str(int(self.memory_gib * 2**30))
        command = [
            sys.executable,
            "-m",
            __name__,
            str(scratch / "ct.nii.gz"),
            str(made),
            self.speed,
            self.device,
            limit,
        ]
        # a home of its own: TotalSegmentator keeps a settings file there that parallel runs would overwrite
        environment = os.environ | {"TOTALSEG_HOME_DIR": str(scratch), "TOTALSEG_WEIGHTS_PATH": str(self.weights)}
        try:
            child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=self.timeout_s)
        except subprocess.TimeoutExpired as error:
            raise MaskMakerError(
                f"{study.study_id}: no mask after {self.timeout_s:g} s; give it up or more time"
            ) from error
        if child.returncode or not made.is_file():
            lines = child.stderr.strip().splitlines() or [f"ended with code {child.returncode}"]
            memory = any("emory" in line for line in lines)
            hint = (
                f"; memory_gib is {self.memory_gib:g}, give more or a faster model"
                if memory and self.memory_gib
                else ""
            )
            raise MaskMakerError(f"{study.study_id}: TotalSegmentator failed: {lines[-1].strip()}{hint}")
        return made


def write_mask_table(folder: Path, report: ScaleReport) -> tuple[Path, Path]:
    """``masks.csv``, a row per mask (study, path, meaning of the labels, maker), and ``failed.csv`` with reasons."""
    columns = ("study", "masks", "names", "made_by")
    rows = [[record[column] for column in columns] for record in report.records.values()]
    table = write_csv(folder / "masks.csv", columns, rows)
    return table, write_csv(folder / "failed.csv", ("study", "reason"), list(report.failed.items()))


def _child(ct: str, mask: str, speed: str, device: str, limit: str) -> None:
    """In the child process: the limit first, then the import that takes seconds."""
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    from totalsegmentator.python_api import totalsegmentator

    options = {"fast": speed == "fast", "fastest": speed == "fastest", "device": device}
    totalsegmentator(ct, mask, ml=True, quiet=True, nr_thr_saving=1, **options)


if __name__ == "__main__":
    _child(*sys.argv[1:])
