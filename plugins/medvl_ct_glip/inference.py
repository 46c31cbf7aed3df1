"""One CT, with or without organ masks: a table of organs and abnormalities, and figures."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from medvl_core.engine.files import read_text, write_csv
from medvl_core.engine.loading import Draw
from medvl_core.study import Study
from medvl_ct_glip.abnormalities import Abnormality, prompt_pair, question
from medvl_ct_glip.figures import heat_map, overlay
from medvl_ct_glip.mask_maker import MakeMasks, weights_folder
from medvl_ct_glip.masks import MaskError, with_regions
from medvl_ct_glip.region_sets import region_set
from medvl_ct_glip.regions.data import RegionPatches
from medvl_ct_glip.regions.texts import spoken
from medvl_ct_glip.regions.volumes import RegionVolumes
from medvl_ct_glip.regions.windows import ScanEmbedding
from medvl_evaluation.inference import predict_each, write_record
from medvl_imaging.readers import FileSource
from medvl_imaging.readers.listing import bare_name, image_files, scan_paths

__all__ = ["OrganPrediction", "read_thresholds", "scan_study"]

logger = logging.getLogger(__name__)


def scan_study(
    input: str | Path | None,
    regions: Sequence[str],
    folder: str | Path,
    masks: str | Path | None = None,
    mask_names: str | None = None,
    mask_weights: str | Path | None = None,
    mask_speed: Literal["full", "fast", "fastest"] = "fast",
    device: Literal["cpu", "gpu"] = "cpu",
    merge: Iterable[str] = (),
) -> Study:
    """A CT and its organ masks; masks that are not given are made by TotalSegmentator when its weights are here.

    Args:
        input: NIfTI or NRRD file, or a folder that holds one or the DICOM series, at any depth.
        regions: Structures the model knows.
        folder: Receives masks that are made.
        masks: A label map, or a folder with a file per organ, on the grid of the CT.
        mask_names: What the labels of ``masks`` mean: see `RegionMask`.
        mask_weights: Folder of TotalSegmentator's weights.
        mask_speed: Its speed.
        device: Where it runs.
        merge: Structures that count to a region, read beside ``regions``: see `RegionVolumes`.

    Raises:
        ValueError: If ``input`` is not given, or its folder holds several scans.
        FileNotFoundError: If there is no such CT or mask; ``WeightsMissingError`` names what to fetch when masks are
            not given and cannot be made.
    """
    if input is None:
        raise ValueError("input is not given; --input takes a CT: .nii.gz, .nrrd or the folder of a DICOM series")
    path = Path(input)
    for given in (path, *([Path(masks)] if masks is not None else [])):
        if not given.exists():
            raise FileNotFoundError(f"{given}: there is no such file or folder")
    path = _only_scan(path)
    name = bare_name(path)
    study = Study(study_id=name, subject_id=name, scan_id=name, images={"ct": FileSource(path, "volume")})
    if masks is None:
        found = weights_folder(mask_weights, mask_speed)
        row = MakeMasks(Path(folder), found, mask_speed, device)(study)
        masks, mask_names = Path(folder) / str(row["masks"]), "ts_v2_117"
    return with_regions(study, masks, region_set(list(regions)).plus(merge), mask_names)


def _only_scan(path: Path) -> Path:
    """The file or folder itself, or the one scan below it."""
    found = scan_paths(image_files(path)) if path.is_dir() else [path]
    if path in found or not found:  # nothing there: the reader says so
        return path
    if len(found) > 1:
        names = ", ".join([str(scan.relative_to(path)) for scan in found[:3]] + ["..."] * (len(found) > 3))
        raise ValueError(f"{path}: holds {len(found)} scans ({names}); give one as input")
    return found[0]


class OrganPrediction:
    r"""Probability of every abnormality in every visible organ: softmax over its text and the text of a normal organ.

    Args:
        scans: The trained model on whole scans.
        volumes: Standardises the scan.
        study: From `scan_study`.
        embed_text: Texts → unit rows.
        prompts: Abnormalities asked for, from `read_abnormalities`.
        folder: Receives ``organs.csv``, ``organs.json``, ``overlay.png`` and ``similarity.png``.
        abnormal: Templates with ``{abnormality}`` and perhaps ``{organ}``.
        normal: Template with ``{organ}``.
        logit_scale: Inverse temperature.
        min_voxels: Smaller organs are reported as not visible.
        thresholds: Of questions, from `read_thresholds`; where there is none, nothing is called.
        device: Where the model runs.
    """

    def __init__(
        self,
        scans: ScanEmbedding,
        volumes: RegionVolumes,
        study: Study,
        embed_text: Callable[[Sequence[str]], Tensor],
        prompts: Sequence[Abnormality],
        folder: str | Path,
        abnormal: Sequence[str] = ("{abnormality}", "{abnormality} in {organ}"),
        normal: str = "no evident abnormality in {organ}",
        logit_scale: float = 1 / 0.07,
        min_voxels: int = 50,
        thresholds: Mapping[str, float] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.thresholds = thresholds or {}
        self.scans, self.volumes, self.study, self.embed_text = scans, volumes, study, embed_text
        self.prompts, self.folder, self.device = list(prompts), Path(folder), device
        self.abnormal, self.normal, self.logit_scale = tuple(abnormal), normal, logit_scale
        self.min_voxels = min_voxels

    def run(self) -> list[dict[str, Any]]:
        """Predict and write.

        Returns:
            One row per region and abnormality: organ, region, abnormality, voxels, probability (``None`` where the
            region is not visible), threshold and whether it is reached (``None`` where there is no threshold).

        Raises:
            MaskError: If the masks are none of this CT, or no region is visible; the network has not run then.
        """
        self.scans.to(self.device).eval()
        return predict_each([self.study], self._embed, self._write)

    def _embed(self, study: Study) -> tuple[dict[str, Any], Tensor]:
        """The standardised scan, and ``R E``."""
        item = RegionPatches(self.volumes, min_voxels=self.min_voxels)(study, Draw())
        if not item["region_visible"].any():
            raise MaskError(
                f"{study.study_id}: none of the {len(self.volumes.names)} regions has {self.min_voxels} voxels of "
                f"{self.volumes.input.spacing_mm} mm; give masks of more of the body, or lower min_voxels"
            )
        output = self.scans({key: item[key][None].to(self.device) for key in ("ct", "regions", "region_visible")})
        return item, output.embeddings["ct_regions"][0].cpu()

    def _write(
        self, found: Mapping[str, tuple[dict[str, Any], Tensor]], refused: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        ((item, rows),) = found.values()
        voxels = np.bincount(item["regions"].numpy().reshape(-1), minlength=len(self.volumes.names) + 1)[1:]
        table = [row for prompt in self.prompts for row in self._judge(prompt, rows, voxels)]
        self._write_table(table)
        self._draw(item, rows, table)
        return table

    def _judge(self, prompt: Abnormality, rows: Tensor, voxels: np.ndarray) -> list[dict[str, Any]]:
        found = []
        for region in (name for name in prompt.regions if name in self.volumes.names):
            place = self.volumes.names.index(region)
            abnormal, normal = prompt_pair(prompt, region, self.embed_text, self.abnormal, self.normal)
            margin = float(rows[place] @ (abnormal - normal))
            visible = bool(rows[place].abs().sum() > 0)
            log_odds, least = (
                self.logit_scale * margin,
                self.thresholds.get(question(prompt, self.abnormal, self.normal)),
            )
            found.append(
                {"organ": prompt.organ, "region": region, "abnormality": prompt.name, "voxels": int(voxels[place]),
                 "probability": round(float(expit(log_odds)), 6) if visible else None,
                 "threshold": None if least is None else round(float(expit(least)), 6),
                 "reached": None if least is None or not visible else log_odds >= least}
            )  # fmt: skip
        return found

    def _write_table(self, table: Sequence[dict[str, Any]]) -> None:
        columns = list(table[0]) if table else ["organ"]
        write_csv(self.folder / "organs.csv", columns, [list(row.values()) for row in table])
        notes = ("probabilities are not calibrated", "thresholds: best F1 on validation scans")
        write_record(self.folder / "organs.json", {"study": self.study.study_id, "rows": list(table)}, *notes)
        seen = [row for row in table if row["probability"] is not None]
        for row in sorted(seen, key=lambda row: (not row["reached"], -row["probability"]))[:5]:
            least = "none" if row["threshold"] is None else f"{row['threshold']:.3f}"
            logger.info("%s: %s %.3f, threshold %s", row["region"], row["abnormality"], row["probability"], least)
        hidden = sorted({row["region"] for row in table if row["probability"] is None})
        logger.info(
            "%d rows → %s; not visible: %s", len(table), self.folder / "organs.csv", ", ".join(hidden) or "none"
        )

    def _draw(self, item: dict[str, Any], rows: Tensor, table: Sequence[dict[str, Any]]) -> None:
        top: dict[int, float] = {}
        for row in table:
            label = self.volumes.names.index(row["region"]) + 1
            if row["probability"] is not None:
                top[label] = max(top.get(label, 0.0), row["probability"])
        spacing = self.volumes.input.spacing_mm or (1.0, 1.0, 1.0)
        labels = {label: spoken(self.volumes.names[label - 1]) for label in top}
        title = f"{self.study.study_id}: highest probability of any abnormality asked for"
        overlay(
            self.folder / "overlay.png", item["ct"][0].numpy(), item["regions"].numpy(), spacing, top, labels, title
        )
        visible = rows.abs().sum(dim=1) > 0
        names = [spoken(name) for name in self.volumes.names]
        texts = self.embed_text([f"This is the {name} in the CT scans." for name in names])
        shown = [name for name, there in zip(names, visible.tolist(), strict=True) if there]
        if shown:
            values = (rows[visible] @ texts.T).numpy()
            title = f"{self.study.study_id}: organs and organ names"
            heat_map(self.folder / "similarity.png", values, shown, names, title, ("organ in the scan", "text"))


def read_thresholds(path: str | Path) -> dict[str, float]:
    """Question → log odds of the best F1 on the validation scans; those without a threshold are left out.

    Args:
        path: CSV that training on labelled data left; none when there is no such file.

    Raises:
        ValueError: If it is no such table. The message starts with the file.
    """
    path = Path(path)
    if not path.is_file():
        logger.info("%s: not there, so no probability is called high or low; training on labelled data makes it", path)
        return {}
    rows = csv.DictReader(io.StringIO(read_text(path)))
    try:
        found = {row["question"]: float(row["log_odds"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no table of question and log_odds ({error!r}); evaluate again") from error
    return {key: value for key, value in found.items() if not math.isnan(value)}
