"""Zero-shot multi-label classification as an evaluator: prompts against images, with patient-wise intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import normalize

from medvl_core.specs import Metric
from medvl_evaluation.evaluators.areas import (
    AREAS,
    area_interval,
    area_values,
    chance_areas,
    class_table,
    classes_left_out,
    group_intervals,
    group_values,
)
from medvl_evaluation.evaluators.collected import Collected, check_classes, check_prefix
from medvl_evaluation.evaluators.figures import class_intervals, curve_panels
from medvl_evaluation.evaluators.prompts import (
    PROMPT_AVERAGES,
    SIDES,
    EmbedText,
    PromptAverage,
    embed_prompts,
    prompts_from_file,
    prompts_from_templates,
)
from medvl_evaluation.metrics import Interval
from medvl_evaluation.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ZeroShot"]


class ZeroShot:
    r"""Scores each class by comparing the image with texts that say it is present or absent.

    ``scoring="softmax"``: the probability of the positive prompt, $\sigma(s (\cos(x, t^+) - \cos(x, t^-)))$. The scale
    changes probabilities, never a ranking, hence no area. ``scoring="cosine"``: $\cos(x, t^+)$ alone.

    Args:
        classes: Names of the label columns, in order.
        image: Modality that is classified, e.g. ``"cxr"``.
        embed_text: ``embed_text(texts, normalise=...) -> P E`` of the model's text tower; may be set later as an
            attribute. Not needed when the outputs carry ``"prompt_embeddings"``: side → ``C E``.
        positive: Templates with one ``{}`` for the class.
        negative: Likewise, for its absence.
        scoring: See above.
        prompt_average: How several prompts of a class become one: see `embed_prompts`.
        logit_scale: s, the inverse of the temperature.
        prompts_file: JSON with prompts per class, or with templates, in place of ``positive`` and ``negative``: see
            `prompts_from_file`.
        prefix: Put before the names of metrics and tables; needed where two evaluators of one evaluation are alike.
        class_groups: Group → its classes, e.g. ``"base"`` and ``"rare"``: adds the metric ``auroc_macro_<group>``.

    Raises:
        ValueError: If the classes are empty or repeat, a mode is unknown, the prompts are unusable, or a group is empty
            or names no class.

    References:
        Prompts and softmax: CT-CLIP, arXiv:2403.17834; no code copied.
    """

    def __init__(
        self,
        classes: Sequence[str],
        image: str,
        embed_text: EmbedText | None = None,
        positive: Sequence[str] = ("{} is present.",),
        negative: Sequence[str] = ("{} is not present.",),
        scoring: Literal["softmax", "cosine"] = "softmax",
        prompt_average: PromptAverage = "after_normalisation",
        logit_scale: float = 1 / 0.07,
        prompts_file: str | Path | None = None,
        prefix: str = "",
        class_groups: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        check_classes("ZeroShot", classes)
        if scoring not in ("softmax", "cosine"):
            raise ValueError(f"ZeroShot: scoring is {scoring!r}; choose 'softmax' or 'cosine'")
        if prompt_average not in PROMPT_AVERAGES:
            raise ValueError(f"ZeroShot: prompt_average is {prompt_average!r}; choose one of {PROMPT_AVERAGES}")
        self.prefix, self.stem = prefix, check_prefix("ZeroShot", prefix or "zero_shot")
        self.classes, self.image, self.embed_text = tuple(classes), image, embed_text
        self.class_groups = {check_prefix("ZeroShot", group): tuple(n) for group, n in (class_groups or {}).items()}
        group_values(np.zeros((1, len(classes))), np.zeros((1, len(classes))), self.classes, self.class_groups)
        self.scoring, self.prompt_average, self.logit_scale = scoring, prompt_average, float(logit_scale)
        if prompts_file is None:
            self.prompts = prompts_from_templates(self.classes, positive, negative)
        else:
            self.prompts = prompts_from_file(prompts_file, self.classes)
        self.reset()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics with unit and direction."""
        (left_out,) = self._named({"classes_left_out": None})
        groups = [f"auroc_macro_{group}" for group in self.class_groups]
        areas = (Metric(name=name) for name in self._named(dict.fromkeys([*AREAS, *groups])))
        return (*areas, Metric(name=left_out, unit="classes", higher_is_better=False))

    def reset(self) -> None:
        """Forget everything collected."""
        self._collected = Collected("ZeroShot", (self.image,), ("study_id", "subject_id"), self.classes)
        self._given_prompts: dict[str, Tensor] | None = None
        self._cached_scores: np.ndarray | None = None

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch: embeddings, ``study_id``, ``subject_id``, ``labels`` and perhaps ``prompt_embeddings``.

        Raises:
            ValueError: If an entry is missing, the labels do not fit the classes, or prompt embeddings change midway.
        """
        if (given := outputs.get("prompt_embeddings")) is not None:
            self._take_prompts(given)
        self._collected.add(outputs)
        self._cached_scores = None

    def _take_prompts(self, given: Mapping[str, Tensor]) -> None:
        prompts = {side: normalize(given[side].detach().to("cpu", torch.float32), dim=1) for side in SIDES}
        if any(len(rows) != len(self.classes) for rows in prompts.values()):
            sizes = {side: len(rows) for side, rows in prompts.items()}
            raise ValueError(f"ZeroShot: prompt_embeddings hold {sizes} rows for {len(self.classes)} classes")
        before = self._given_prompts
        if before is not None and not all(torch.equal(before[side], prompts[side]) for side in SIDES):
            raise ValueError("ZeroShot: prompt_embeddings changed between updates; call reset() before another model")
        self._given_prompts = prompts

    def compute(self) -> dict[str, float]:
        """Areas averaged over classes three ways; classes without positives or negatives are left out and counted."""
        labels, scores = self._collected.labels(), self.scores()
        groups = group_values(labels, scores, self.classes, self.class_groups)
        left_out = float(classes_left_out(labels))
        return self._named({**area_values(labels, scores), **groups, "classes_left_out": left_out})

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap interval of each area in [0, 1]: patients drawn whole, by standard error (`bootstrap_ci`)."""
        low, high, _ = self._bootstrap(n_resamples, seed, level)
        bounds = zip(low[:, :3].ravel().tolist(), high[:, :3].ravel().tolist(), strict=True)
        data = (self._collected.labels(), self.scores(), self.classes, self.class_groups)
        groups = group_intervals(*data, self._collected.ids("subject_id"), n_resamples, seed, level)
        return self._named({**dict(zip(AREAS, bounds, strict=True)), **groups})

    def chance(self) -> dict[str, float]:
        """Expectations under a random order: 0.5 for AUROC, `chance_auprc` for AUPRC (near the prevalence)."""
        groups = {f"auroc_macro_{group}": 0.5 for group in self.class_groups}
        return self._named({**chance_areas(self._collected.labels()), **groups})

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """``zero_shot_per_class``, one row per class, and ``zero_shot_predictions`` (`Predictions.table`)."""
        per_class = self._per_class(n_resamples, seed, level)
        return {f"{self.stem}_per_class": per_class, f"{self.stem}_predictions": self.predictions().table()}

    def predictions(self) -> Predictions:
        """Log odds and probability, or cosine, of every study and class."""
        studies, subjects = self._collected.ids("study_id"), self._collected.ids("subject_id")
        probabilities = self.probabilities() if self.scoring == "softmax" else None
        return Predictions(studies, subjects, self.classes, self._collected.labels(), self.scores(), probabilities)

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """ROC and precision-recall curves of every class, and the areas with their intervals."""
        table, labels, scores = self._per_class(n_resamples, seed, level), self._collected.labels(), self.scores()
        subjects = len(set(self._collected.ids("subject_id")))
        title = f"Zero-shot on {self.image}: {len(labels)} studies of {subjects} subjects, {100 * level:g} % intervals"
        paths = [Path(folder) / f"{self.stem}_{name}.png" for name in ("roc", "precision_recall", "per_class")]
        curve_panels(paths[0], table, labels, scores, "roc", title)
        curve_panels(paths[1], table, labels, scores, "precision_recall", title)
        class_intervals(paths[2], table, title)
        return paths

    def scores(self) -> np.ndarray:
        """Score of each study and class, ``N C`` float64: the log odds of the positive prompt, or its cosine.

        Areas are computed from log odds: at a large scale probabilities round to 1 and would tie.

        Raises:
            ValueError: If there are neither prompt embeddings nor a text tower to make them.
        """
        if self._cached_scores is None:
            self._cached_scores = self._scores_of(self._collected.embeddings(self.image))
        return self._cached_scores

    def probabilities(self) -> np.ndarray:
        """Softmax over the positive and the negative prompt, ``N C`` in [0, 1]. Not calibrated.

        Raises:
            ValueError: With ``scoring="cosine"``, which compares with the positive prompt alone.
        """
        self._need_softmax()
        return expit(self.scores())

    def predict(self, embeddings: Mapping[str, Tensor]) -> np.ndarray:
        """`probabilities` of studies whose labels nobody knows; what was collected stays.

        Args:
            embeddings: With that of the image, ``N E``.
        """
        self._need_softmax()
        return expit(self._scores_of(embeddings[self.image]))

    def _need_softmax(self) -> None:
        if self.scoring != "softmax":
            raise ValueError("ZeroShot: cosines are no probabilities; build it with scoring='softmax'")

    def _scores_of(self, rows: Tensor) -> np.ndarray:
        prompts = {side: texts.double() for side, texts in self._prompt_embeddings().items()}
        image = normalize(rows.detach().to("cpu", torch.float32).double(), dim=1)
        positive = (image @ prompts["positive"].T).numpy()
        margin = positive - (image @ prompts["negative"].T).numpy()
        return positive if self.scoring == "cosine" else self.logit_scale * margin

    def _prompt_embeddings(self) -> Mapping[str, Tensor]:
        if self._given_prompts is not None:
            return self._given_prompts
        if self.embed_text is None:
            raise ValueError(
                "ZeroShot has no text tower for its prompts; set embed_text to that of the model, "
                "or give 'prompt_embeddings' in the outputs"
            )
        return embed_prompts(self.prompts, self.embed_text, self.prompt_average)

    def _named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{self.prefix}/{name}" if self.prefix else name: value for name, value in values.items()}

    def _bootstrap(self, n_resamples: int, seed: int, level: float) -> Interval:
        subjects = self._collected.ids("subject_id")
        return area_interval(self._collected.labels(), self.scores(), subjects, n_resamples, seed, level)

    def _per_class(self, n_resamples: int, seed: int, level: float) -> pd.DataFrame:
        interval = self._bootstrap(n_resamples, seed, level)
        return class_table(self.classes, self._collected.labels(), self.scores(), interval)
