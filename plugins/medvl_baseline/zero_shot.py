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

from medvl_baseline.collected import Collected
from medvl_baseline.figures import class_intervals, curve_panels
from medvl_baseline.prompts import SIDES, EmbedText, embed_prompts, prompts_from_file, prompts_from_templates
from medvl_core.metrics import (
    Interval,
    areas_statistic,
    auroc_auprc,
    average_metric,
    bootstrap_ci,
    chance_auprc,
    micro_auprc,
    micro_auroc,
)
from medvl_core.specs import Metric

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ZeroShot"]

_AVERAGES = ("macro", "weighted", "micro")
_AREAS = tuple(f"{area}_{average}" for area in ("auroc", "auprc") for average in _AVERAGES)


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
        prompt_average: Order of averaging and normalising several prompts, see `embed_prompts`.
        logit_scale: s, the inverse of the temperature.
        prompts_file: JSON with prompts per class, in place of the templates: see `prompts_from_file`.

    Raises:
        ValueError: If the classes are empty or repeat, a mode is unknown, or the prompts are unusable.

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
        prompt_average: Literal["after_normalisation", "before_normalisation"] = "after_normalisation",
        logit_scale: float = 1 / 0.07,
        prompts_file: str | Path | None = None,
    ) -> None:
        if isinstance(classes, str) or not classes or len(set(classes)) < len(classes):
            raise ValueError(f"ZeroShot: classes is {classes!r}; give a list of different names")
        if scoring not in ("softmax", "cosine"):
            raise ValueError(f"ZeroShot: scoring is {scoring!r}; choose 'softmax' or 'cosine'")
        if prompt_average not in ("after_normalisation", "before_normalisation"):
            choice = "'after_normalisation' or 'before_normalisation'"
            raise ValueError(f"ZeroShot: prompt_average is {prompt_average!r}; choose {choice}")
        self.classes, self.image, self.embed_text = tuple(classes), image, embed_text
        self.scoring, self.prompt_average, self.logit_scale = scoring, prompt_average, float(logit_scale)
        if prompts_file is None:
            self.prompts = prompts_from_templates(self.classes, positive, negative)
        else:
            self.prompts = prompts_from_file(prompts_file, self.classes)
        self.reset()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics with unit and direction."""
        return (*(Metric(name=name) for name in _AREAS), _LEFT_OUT)

    def reset(self) -> None:
        """Forget everything collected."""
        self._collected = Collected("ZeroShot", (self.image,), ("study_id", "subject_id"), labels=True)
        self._given_prompts: dict[str, Tensor] | None = None
        self._cached_scores: np.ndarray | None = None

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch: embeddings, ``study_id``, ``subject_id``, ``labels`` and perhaps ``prompt_embeddings``.

        Raises:
            ValueError: If an entry is missing, the labels do not fit the classes, or prompt embeddings change midway.
        """
        if (given := outputs.get("prompt_embeddings")) is not None:
            self._take_prompts(given)
        labels = outputs.get("labels")
        if labels is not None and tuple(labels.shape[1:]) != (len(self.classes),):
            raise ValueError(f"ZeroShot: labels have shape {tuple(labels.shape)} for {len(self.classes)} classes")
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
        out = {}
        for area, values in zip(("auroc", "auprc"), auroc_auprc(labels, scores), strict=True):
            out[f"{area}_macro"] = average_metric(values, labels, "macro").value
            out[f"{area}_weighted"], left_out = average_metric(values, labels, "weighted")
        out["auroc_micro"], out["auprc_micro"] = micro_auroc(labels, scores), micro_auprc(labels, scores)
        return {**{name: out[name] for name in _AREAS}, _LEFT_OUT.name: float(left_out)}

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap interval of each area in [0, 1]: patients drawn whole, by standard error (`bootstrap_ci`)."""
        low, high, _ = self._bootstrap(n_resamples, seed, level)
        return dict(
            zip(_AREAS, zip(low[:, :3].ravel().tolist(), high[:, :3].ravel().tolist(), strict=True), strict=True)
        )

    def chance(self) -> dict[str, float]:
        """Expectations under a random order: 0.5 for AUROC, `chance_auprc` for AUPRC (near the prevalence)."""
        labels = self._collected.labels()
        expected = self._chance_per_class(labels)
        auprc = (
            average_metric(expected, labels, "macro").value,
            average_metric(expected, labels, "weighted").value,
            chance_auprc(int((labels == 1).sum()), int((~np.isnan(labels)).sum())),
        )
        return dict(zip(_AREAS, (0.5, 0.5, 0.5, *auprc), strict=True))

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """``zero_shot_per_class`` (one row per class) and ``zero_shot_scores`` (probabilities or cosines per study)."""
        import pandas as pd

        values = self.scores() if self.scoring == "cosine" else expit(self.scores())
        scores = pd.DataFrame(values, columns=list(self.classes))
        for column in ("subject_id", "study_id"):
            scores.insert(0, column, self._collected.ids(column))
        return {"zero_shot_per_class": self._per_class(n_resamples, seed, level), "zero_shot_scores": scores}

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """ROC and precision-recall curves of every class, and the areas with their intervals."""
        table, labels, scores = self._per_class(n_resamples, seed, level), self._collected.labels(), self.scores()
        subjects = len(set(self._collected.ids("subject_id")))
        title = f"Zero-shot on {self.image}: {len(labels)} studies of {subjects} subjects, {100 * level:g} % intervals"
        paths = [Path(folder) / f"zero_shot_{name}.png" for name in ("roc", "precision_recall", "per_class")]
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
            prompts = {side: rows.double() for side, rows in self._prompt_embeddings().items()}
            image = normalize(self._collected.embeddings(self.image).double(), dim=1)
            positive = (image @ prompts["positive"].T).numpy()
            margin = positive - (image @ prompts["negative"].T).numpy()
            self._cached_scores = positive if self.scoring == "cosine" else self.logit_scale * margin
        return self._cached_scores

    def probabilities(self) -> np.ndarray:
        """Softmax over the positive and the negative prompt, ``N C`` in [0, 1]. Not calibrated.

        Raises:
            ValueError: With ``scoring="cosine"``, which compares with the positive prompt alone.
        """
        if self.scoring != "softmax":
            raise ValueError("ZeroShot: cosines are no probabilities; build it with scoring='softmax'")
        return expit(self.scores())

    def _prompt_embeddings(self) -> Mapping[str, Tensor]:
        if self._given_prompts is not None:
            return self._given_prompts
        if self.embed_text is None:
            raise ValueError(
                "ZeroShot has no text tower for its prompts; set embed_text to that of the model, "
                "or give 'prompt_embeddings' in the outputs"
            )
        return embed_prompts(self.prompts, self.embed_text, self.prompt_average)

    def _bootstrap(self, n_resamples: int, seed: int, level: float) -> Interval:
        statistic = areas_statistic(self._collected.labels(), self.scores())
        units = self._collected.ids("subject_id")
        interval = bootstrap_ci(statistic, units, n_resamples, seed, level, method="standard_error")
        return interval._replace(low=interval.low.clip(0, 1), high=interval.high.clip(0, 1))

    def _chance_per_class(self, labels: np.ndarray) -> np.ndarray:
        known = (~np.isnan(labels)).sum(axis=0)
        return np.array([chance_auprc(int(m), int(n)) for m, n in zip((labels == 1).sum(axis=0), known, strict=True)])

    def _per_class(self, n_resamples: int, seed: int, level: float) -> pd.DataFrame:
        import pandas as pd

        labels = self._collected.labels()
        low, high, left_out = self._bootstrap(n_resamples, seed, level)
        table = pd.DataFrame({"class": self.classes})
        table["n_positive"], table["n_negative"] = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
        table["n_unknown"] = np.isnan(labels).sum(axis=0)
        for row, (area, values) in enumerate(zip(("auroc", "auprc"), auroc_auprc(labels, self.scores()), strict=True)):
            table[area], table[f"{area}_low"], table[f"{area}_high"] = values, low[row, 3:], high[row, 3:]
        table["auprc_chance"] = self._chance_per_class(labels)
        table["resamples_left_out"] = left_out[0, 3:]
        return table


_LEFT_OUT = Metric(name="classes_left_out", unit="classes", higher_is_better=False)
