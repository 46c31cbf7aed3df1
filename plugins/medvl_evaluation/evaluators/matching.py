"""Image-text matching as an evaluator: one text per class, the nearest one is the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from medvl_core.specs import Metric
from medvl_evaluation.evaluators.collected import Collected, check_classes, check_prefix
from medvl_evaluation.evaluators.decisions import DECISIONS, class_decisions, decision_statistic
from medvl_evaluation.evaluators.figures import confusion_matrix
from medvl_evaluation.evaluators.prompts import EmbedText, embed_texts, fill_templates, texts_from_file
from medvl_evaluation.metrics import bootstrap_ci
from medvl_evaluation.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Matching"]

_NAMES = ("top_1", *DECISIONS[1:])


class Matching:
    """Decides for the class whose text has the largest cosine with the image; each study has exactly one class.

    Args:
        classes: Names of the label columns, in order.
        image: Modality that is matched, e.g. ``"mri"``.
        embed_text: ``embed_text(texts, normalise=...) -> P E`` of the model's text tower; may be set later as an
            attribute. Not needed when the outputs carry ``"prompt_embeddings"``: ``"positive"`` → ``C E``.
        templates: Texts with one ``{}`` for the class; several are averaged as unit vectors.
        texts_file: JSON ``{class: text}`` or ``{class: [texts]}``, in place of the templates.
        prefix: Put before the names of metrics and tables.

    Raises:
        ValueError: If the classes are empty or repeat, or the texts are unusable.

    References:
        The protocol of RadCLIP's Table II, arXiv:2403.09948; its prompts are not published. No code copied.
    """

    exclusive = True
    """Every study has exactly one class."""

    def __init__(
        self,
        classes: Sequence[str],
        image: str,
        embed_text: EmbedText | None = None,
        templates: Sequence[str] = ("{}",),
        texts_file: str | Path | None = None,
        prefix: str = "matching",
    ) -> None:
        self.classes, self.image, self.embed_text = check_classes("Matching", classes), image, embed_text
        self.prefix = check_prefix("Matching", prefix)
        if len(self.classes) < 2:
            raise ValueError(f"Matching: classes is {classes!r}; one class alone is always right, give two or more")
        if texts_file is None:
            self.texts = fill_templates("matching", templates, self.classes)
        else:
            self.texts = texts_from_file(texts_file, self.classes)
        self.reset()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics by their full names."""
        return tuple(Metric(name=f"{self.prefix}/{name}") for name in _NAMES)

    def reset(self) -> None:
        """Forget everything collected."""
        ids = ("study_id", "subject_id")
        self._collected = Collected("Matching", (self.image,), ids, self.classes, exclusive=True)
        self._given: Tensor | None = None
        self._cached_scores: np.ndarray | None = None

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch: embeddings, ``study_id``, ``subject_id``, ``labels`` and perhaps ``prompt_embeddings``.

        Raises:
            ValueError: If an entry is missing, or a study has not exactly one class.
        """
        if (given := outputs.get("prompt_embeddings")) is not None:
            self._given = normalize(given["positive"].detach().to("cpu", torch.float32), dim=1)
            if len(self._given) != len(self.classes):
                raise ValueError(f"Matching: {len(self._given)} prompt embeddings for {len(self.classes)} classes")
        self._collected.add(outputs)
        self._cached_scores = None

    def compute(self) -> dict[str, float]:
        """Share of studies whose nearest text is that of their class; macro recall and F1."""
        values = self._statistic()(np.ones((len(self.scores()), 1)))[0]
        return {metric.name: float(value) for metric, value in zip(self.metrics, values, strict=True)}

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap interval of each metric: patients drawn whole."""
        low, high, _ = bootstrap_ci(self._statistic(), self._collected.ids("subject_id"), n_resamples, seed, level)
        bounds = zip(low.tolist(), high.tolist(), strict=True)
        return {metric.name: bound for metric, bound in zip(self.metrics, bounds, strict=True)}

    def chance(self) -> dict[str, float]:
        r"""A uniform guess among C classes: accuracy and recall $1/C$; F1 of class c with share p: $2p / (Cp + 1)$."""
        share, count = self._collected.labels().mean(axis=0), len(self.classes)
        f1 = float((2 * share / (count * share + 1))[share > 0].mean())
        return dict(zip((metric.name for metric in self.metrics), (1 / count, 1 / count, f1), strict=True))

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """``matching_per_class``, ``matching_confusion`` (class, decided, n) and ``matching_predictions``."""
        import pandas as pd

        labels, decided = self._collected.labels(), self._decided()
        counts = (labels.T @ decided).astype(int)
        confusion = pd.DataFrame(
            {
                "class": np.repeat(self.classes, len(self.classes)),
                "decided": np.tile(self.classes, len(self.classes)),
                "n": counts.ravel(),
            }
        )
        per_class = pd.DataFrame({"class": self.classes, **class_decisions(labels, decided)})
        return {
            f"{self.prefix}_per_class": per_class,
            f"{self.prefix}_confusion": confusion,
            f"{self.prefix}_predictions": self.predictions().table(),
        }

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """The confusion matrix."""
        counts = (self._collected.labels().T @ self._decided()).astype(int)
        path = Path(folder) / f"{self.prefix}_confusion.png"
        n, subjects = int(counts.sum()), len(set(self._collected.ids("subject_id")))
        confusion_matrix(
            path, self.classes, counts, f"Nearest text on {self.image}: {n} studies of {subjects} subjects"
        )
        return [path]

    def predictions(self) -> Predictions:
        """Cosine of every study with the text of every class."""
        studies, subjects = self._collected.ids("study_id"), self._collected.ids("subject_id")
        return Predictions(studies, subjects, self.classes, self._collected.labels(), self.scores())

    def scores(self) -> np.ndarray:
        """Cosines, ``N C`` float64.

        Raises:
            ValueError: If there are neither prompt embeddings nor a text tower to make them.
        """
        if self._cached_scores is None:
            image = normalize(self._collected.embeddings(self.image).double(), dim=1)
            self._cached_scores = (image @ self._class_rows().double().T).numpy()
        return self._cached_scores

    def _class_rows(self) -> Tensor:
        if self._given is not None:
            return self._given
        if self.embed_text is None:
            raise ValueError(
                "Matching has no text tower for its texts; set embed_text to that of the model, "
                "or give 'prompt_embeddings' in the outputs"
            )
        return embed_texts(self.texts, self.embed_text)

    def _decided(self) -> np.ndarray:
        """One 1 per study. Of equal cosines the first class wins: a collapsed model always names the same one."""
        return np.eye(len(self.classes))[self.scores().argmax(axis=1)]

    def _statistic(self) -> Any:
        return decision_statistic(self._collected.labels(), self._decided(), exclusive=True)
