"""From one radiograph, or a folder of them, to a probability per finding."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medvl_core.alignment import AlignmentModel
from medvl_core.data import ImageRows, StudyDataset, study_loader
from medvl_core.files import write_text
from medvl_core.readers import FileSource
from medvl_core.study import Study

__all__ = ["FindingsPrediction", "radiograph_studies"]

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".nii", ".nii.gz")


def radiograph_studies(path: str | Path) -> list[Study]:
    """One study per radiograph file.

    Args:
        path: PNG, JPEG, DICOM or NIfTI file, or a folder that is searched for such files.

    Raises:
        FileNotFoundError: If there is no such file, or none of these types in the folder.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.lower().endswith(SUFFIXES))
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise FileNotFoundError(f"{path}: no radiograph here; give a file or a folder with {', '.join(SUFFIXES)}")
    return [
        Study(
            study_id=str(file.relative_to(path)) if path.is_dir() else file.name,
            subject_id=str(file),
            scan_id=str(file),
            images={"cxr": FileSource(file, "radiograph")},
        )
        for file in files
    ]


class FindingsPrediction:
    """Zero-shot probabilities for radiographs, as ``findings.csv`` and ``findings.json``.

    Args:
        tower: The trained radiograph tower.
        classifier: A zero-shot evaluator with ``probabilities``.
        studies: From :func:`radiograph_studies`. A file that cannot be used is listed with its reason; the rest go on.
        folder: Receives the files.
        device: Where the tower runs.
        batch_size: Radiographs per step.
    """

    def __init__(
        self,
        tower: nn.Module,
        classifier: Any,
        studies: Sequence[Study],
        folder: str | Path,
        device: torch.device | str = "cpu",
        batch_size: int = 8,
    ) -> None:
        self.model = AlignmentModel({"cxr": tower})
        self.rows = ImageRows("cxr", tower.encoder.input)  # type: ignore[union-attr, arg-type]
        self.classifier = classifier
        self.studies = list(studies)
        self.folder = Path(folder)
        self.device = device
        self.batch_size = batch_size

    def run(self) -> dict[str, dict[str, float]]:
        """Predict and write.

        Returns:
            Study id → finding → probability.

        Raises:
            ValueError: If no file could be used; the message gives each file's reason.
        """
        usable, refused = self._screen()
        if not usable:
            raise ValueError("; ".join(refused.values()))
        self.model.to(self.device).eval()
        self.classifier.reset()
        dataset = StudyDataset(usable, images={"cxr": self.rows}, label_names=self.classifier.classes)
        with torch.no_grad():
            for batch in study_loader(dataset, self.batch_size):
                rows = self.model({"cxr": batch["cxr"].to(self.device)}).embeddings["cxr"].cpu()
                self.classifier.update({**batch, "embeddings": {"cxr": rows}})
        scores = self.classifier.probabilities()
        found = {
            study.study_id: dict(zip(self.classifier.classes, map(float, row), strict=True))
            for study, row in zip(usable, scores, strict=True)
        }
        self._write(found, refused)
        return found

    def _screen(self) -> tuple[list[Study], dict[str, str]]:
        usable, refused = [], {}
        for study in self.studies:
            try:
                self.rows.make(study)
                usable.append(study)
            except (ValueError, OSError) as error:  # what readers raise for a bad file; a programming error goes on up
                refused[study.study_id] = str(error)
                logger.error("%s", error)
        return usable, refused

    def _write(self, found: Mapping[str, Mapping[str, float]], refused: Mapping[str, str]) -> None:
        header = ["study", *self.classifier.classes]
        lines = [header, *([study, *(f"{p:.6f}" for p in row.values())] for study, row in found.items())]
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(lines)
        write_text(self.folder / "findings.csv", table.getvalue())
        prompts = {
            side: dict(zip(self.classifier.classes, texts, strict=True))
            for side, texts in self.classifier.prompts.items()
        }
        content = {"probabilities": found, "refused": refused, "prompts": prompts, "note": "research use only"}
        write_text(self.folder / "findings.json", json.dumps(content, indent=1))
        for study, row in found.items():
            top = sorted(row.items(), key=lambda item: -item[1])[:5]
            logger.info("%s: %s", study, ", ".join(f"{name} {p:.2f}" for name, p in top))
        logger.info("%d radiograph(s) → %s; %d refused", len(found), self.folder / "findings.csv", len(refused))
