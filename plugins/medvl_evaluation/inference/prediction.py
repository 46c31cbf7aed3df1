"""Zero-shot findings of single radiographs, written as tables and figures."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medvl_core.engine.alignment import AlignmentModel
from medvl_core.engine.files import safe_name, write_csv, write_text
from medvl_core.study import Study
from medvl_evaluation.inference.figure import findings_figure
from medvl_evaluation.inference.nearest import NearestReports
from medvl_imaging.images import ImageRows

__all__ = ["FindingsPrediction"]

logger = logging.getLogger(__name__)


class FindingsPrediction:
    """Zero-shot probabilities for radiographs: ``findings.csv``, ``findings.json`` and a figure of each.

    Args:
        tower: The trained radiograph tower.
        classifier: A zero-shot evaluator with ``probabilities``.
        studies: From `given_studies`. A file that cannot be used is listed with its reason; the rest go on.
        folder: Receives the files.
        device: Where the tower runs.
        nearest: Looks up the nearest reports; ``None`` does not.
        figures: Draw ``figures/<study>.png``.
    """

    def __init__(
        self,
        tower: nn.Module,
        classifier: Any,
        studies: Sequence[Study],
        folder: str | Path,
        device: torch.device | str = "cpu",
        nearest: NearestReports | None = None,
        figures: bool = True,
    ) -> None:
        self.model = AlignmentModel({"cxr": tower})
        self.rows = ImageRows("cxr", tower.encoder.input)  # type: ignore[union-attr, arg-type]
        self.classifier = classifier
        self.studies = list(studies)
        self.folder = Path(folder)
        self.device = device
        self.nearest = nearest
        self.figures = figures

    def run(self) -> dict[str, dict[str, float]]:
        """Predict and write.

        Returns:
            Study id → finding → probability.

        Raises:
            ValueError: If no file could be used; the message gives each file's reason.
        """
        films, rows, refused = self._embed()
        if not rows:
            raise ValueError("; ".join(refused.values()))
        embedded = torch.cat(list(rows.values()))
        classes = self.classifier.classes
        self.classifier.reset()
        self.classifier.update(
            {
                "study_id": list(rows),
                "subject_id": list(rows),
                "labels": torch.full((len(rows), len(classes)), torch.nan),
                "embeddings": {"cxr": embedded},
            }
        )
        scores = self.classifier.probabilities()
        found = {
            study: dict(zip(classes, map(float, row), strict=True)) for study, row in zip(rows, scores, strict=True)
        }
        near = dict(zip(rows, self.nearest.find(embedded), strict=True)) if self.nearest is not None else {}
        self._write(found, near, refused)
        for study, film in films.items():
            path = self.folder / "figures" / f"{safe_name(study)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            findings_figure(path, film, found[study], study, near.get(study, ()))
        return found

    def _embed(self) -> tuple[dict[str, np.ndarray], dict[str, Tensor], dict[str, str]]:
        """Study id → film for its figure; study id → ``1 E``; study id → why it is left out. Each file is read once."""
        films, rows, refused = {}, {}, {}
        self.model.to(self.device).eval()
        for study in self.studies:
            try:
                image = self.rows.make(study)
            except (ValueError, OSError) as error:  # what readers raise for a bad file; a programming error goes on up
                refused[study.study_id] = str(error)
                logger.error("%s", error)
                continue
            with torch.no_grad():
                rows[study.study_id] = self.model({"cxr": image[None].to(self.device)}).embeddings["cxr"].cpu()
            if self.figures:
                grey = image.mean(0).numpy()
                films[study.study_id] = np.uint8(255 * (grey - grey.min()) / max(float(np.ptp(grey)), 1e-6))
        return films, rows, refused

    def _write(
        self,
        found: Mapping[str, Mapping[str, float]],
        near: Mapping[str, Sequence[Mapping[str, Any]]],
        refused: Mapping[str, str],
    ) -> None:
        lines = [[study, *(f"{p:.6f}" for p in row.values())] for study, row in found.items()]
        write_csv(self.folder / "findings.csv", ["study", *self.classifier.classes], lines)
        prompts = {
            side: dict(zip(self.classifier.classes, texts, strict=True))
            for side, texts in self.classifier.prompts.items()
        }
        content = {"probabilities": found, "nearest_reports": near, "refused": refused, "prompts": prompts}
        write_text(self.folder / "findings.json", json.dumps({**content, "note": "research use only"}, indent=1))
        for study, row in found.items():
            top = sorted(row.items(), key=lambda item: -item[1])[:5]
            logger.info("%s: %s", study, ", ".join(f"{name} {p:.2f}" for name, p in top))
        logger.info("%d radiograph(s) → %s; %d refused", len(found), self.folder / "findings.csv", len(refused))
