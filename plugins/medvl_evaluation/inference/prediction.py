"""Zero-shot findings of single radiographs, written as tables and figures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from medvl_core.engine.alignment import AlignmentModel
from medvl_core.engine.files import write_csv
from medvl_core.errors import OptionError
from medvl_core.protocols import Predicts
from medvl_core.study import Study
from medvl_evaluation.inference.each import figure_path, predict_each, write_record
from medvl_evaluation.inference.figure import findings_figure
from medvl_evaluation.inference.nearest import NearestReports
from medvl_imaging.images import ImageRows

__all__ = ["FindingsPrediction"]

logger = logging.getLogger(__name__)


class FindingsPrediction:
    """Zero-shot probabilities for radiographs: ``findings.csv``, ``findings.json`` and a figure of each.

    Args:
        tower: The trained radiograph tower.
        classifier: An evaluator that predicts without labels, such as `ZeroShot`.
        studies: From `given_studies`. A file that cannot be used is listed with its reason; the rest go on.
        folder: Receives the files.
        device: Where the tower runs.
        nearest: Looks up the nearest reports; ``None`` does not.
        figures: Draw ``figures/<study>.png``.

    Raises:
        OptionError: If the classifier does not predict.
    """

    def __init__(
        self,
        tower: nn.Module,
        classifier: Predicts,
        studies: Sequence[Study],
        folder: str | Path,
        device: torch.device | str = "cpu",
        nearest: NearestReports | None = None,
        figures: bool = True,
    ) -> None:
        if not isinstance(classifier, Predicts):
            raise OptionError(
                f"FindingsPrediction: {type(classifier).__name__} does not predict without labels; give an evaluator "
                "with the members of medvl_core.protocols.Predicts, such as baseline/zero_shot"
            )
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
            RefusedInputs: If a file could not be used; the others are written. The message gives the reasons.
        """
        self.model.to(self.device).eval()
        return predict_each(self.studies, self._embed, self._write)

    @torch.no_grad()
    def _embed(self, study: Study) -> tuple[Tensor, np.ndarray | None]:
        """``1 E``, and the film for its figure. Each file is read once."""
        image = self.rows.make(study)
        row = self.model({"cxr": image[None].to(self.device)}).embeddings["cxr"].cpu()
        if not torch.isfinite(row).all():
            raise ValueError(f"{study.study_id}: its cxr embedding is not finite; check the weights and the image")
        if not self.figures:
            return row, None
        grey = image.mean(0).numpy()
        return row, np.uint8(255 * (grey - grey.min()) / max(float(np.ptp(grey)), 1e-6))  # type: ignore[return-value]

    def _write(
        self, embedded: Mapping[str, tuple[Tensor, np.ndarray | None]], refused: Mapping[str, str]
    ) -> dict[str, dict[str, float]]:
        classes = self.classifier.classes
        rows = torch.cat([row for row, _ in embedded.values()])
        scores = self.classifier.predict({"cxr": rows})
        found = {
            study: dict(zip(classes, map(float, row), strict=True)) for study, row in zip(embedded, scores, strict=True)
        }
        near = dict(zip(embedded, self.nearest.find(rows), strict=True)) if self.nearest is not None else {}
        lines = [[study, *(f"{p:.6f}" for p in row.values())] for study, row in found.items()]
        write_csv(self.folder / "findings.csv", ["study", *classes], lines)
        prompts = {side: dict(zip(classes, texts, strict=True)) for side, texts in self.classifier.prompts.items()}
        content = {"probabilities": found, "nearest_reports": near, "refused": refused, "prompts": prompts}
        write_record(self.folder / "findings.json", content)
        for study, (_, film) in embedded.items():
            top = sorted(found[study].items(), key=lambda item: -item[1])[:5]
            logger.info("%s: %s", study, ", ".join(f"{name} {p:.2f}" for name, p in top))
            if film is not None:
                path = figure_path(self.folder / "figures", study)
                findings_figure(path, film, found[study], study, near.get(study, ()))
        logger.info("%d radiograph(s) → %s; %d refused", len(found), self.folder / "findings.csv", len(refused))
        return found
