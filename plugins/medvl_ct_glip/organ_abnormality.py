"""Zero-shot abnormalities per organ: each abnormality's text against the text of a normal organ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit
from torch import Tensor

from medvl_core.engine.files import write_csv
from medvl_core.specs import Metric
from medvl_ct_glip.abnormalities import prompt_pair, question, read_abnormalities
from medvl_ct_glip.figures import heat_map, radar
from medvl_ct_glip.region_rows import RegionRows, visible_regions
from medvl_ct_glip.regions.texts import spoken
from medvl_evaluation.metrics import (
    areas_statistic,
    auprc,
    auroc,
    bootstrap_ci,
    chance_auprc,
    choose_thresholds,
    micro_auroc,
)
from medvl_evaluation.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OrganAbnormality"]

_NAMES = ("ppv", "sensitivity", "f1", "auroc_micro", "auroc_macro")
_TUNED = ("ppv_tuned", "sensitivity_tuned", "f1_tuned")


class OrganAbnormality:
    r"""Abnormal when an organ is nearer to the abnormality's text than to that of a normal organ.

    Score of a region: $s (\cos(z, t^+) - \cos(z, t^-))$, the log odds of a softmax over the pair; the largest over the
    sides or lobes of the organ. PPV, sensitivity and F1 at 0 and the AUC are pooled over all (study, abnormality)
    pairs, as in the paper: its printed F1 is the harmonic mean of its PPV and sensitivity. An organ that is not visible
    is not judged. A model that has learned how rare an abnormality is calls little at 0: with ``train``, the same three
    are also given at one threshold per abnormality, of the best F1 on those studies (``ppv_tuned``, ...).

    Args:
        regions: Region names R, in the order of the embeddings.
        label_names: Columns of ``labels``.
        embed_text: Texts → rows; may be set later. Not needed when outputs carry ``"prompt_embeddings"`` with
            ``"positive"`` and ``"negative"``, ``C E`` each.
        image: Modality that the regions lie on.
        abnormalities: Table, see `read_abnormalities`; those without a region or label here are left out.
        roles: Roles of the abnormalities judged.
        abnormal: Templates with ``{abnormality}`` and perhaps ``{organ}``; their unit vectors are averaged.
        normal: Template with ``{organ}``.
        logit_scale: s, the inverse of the temperature; changes probabilities, no ranking.
        min_positives: An abnormality with fewer positive studies is left out of the mean AUROC.
        train: Loader of other studies, e.g. of the validation split, on which thresholds are chosen (`learn`).
        thresholds_file: CSV that receives them with the tables, for inference.
        prefix: Put before metrics and tables.

    Raises:
        ValueError: If no abnormality of the table fits the regions and labels, or ``min_positives`` is below 1.

    References:
        Lin et al., CT-GLIP, arXiv:2404.15272, zero-shot abnormality detection; prompts and softmax are our choice, the
        paper prints none. No code copied.
    """

    def __init__(
        self,
        regions: Sequence[str],
        label_names: Sequence[str],
        embed_text: Callable[..., Tensor] | None = None,
        image: str = "ct",
        abnormalities: str | Path | None = None,
        roles: Sequence[str] = ("listed", "ours"),
        abnormal: Sequence[str] = ("{abnormality}", "{abnormality} in {organ}"),
        normal: str = "no evident abnormality in {organ}",
        logit_scale: float = 1 / 0.07,
        min_positives: int = 1,
        train: Any = None,
        thresholds_file: str | Path | None = None,
        prefix: str = "abnormality",
    ) -> None:
        if min_positives < 1:
            raise ValueError(f"OrganAbnormality: min_positives is {min_positives}; at least 1")
        self.regions, self.label_names = tuple(regions), tuple(label_names)
        table = read_abnormalities(abnormalities, roles)
        self.table = [row for row in table if row.label in self.label_names and set(row.regions) & set(self.regions)]
        if not self.table:
            raise ValueError(
                f"OrganAbnormality: none of {len(table)} abnormalities has a label among {list(label_names)[:5]} ... "
                f"and a region among {list(regions)[:5]} ..."
            )
        self.classes = tuple(row.name for row in self.table)
        self.embed_text, self.image, self.stem, self.prefix = embed_text, image, prefix, prefix
        self.abnormal, self.normal, self.logit_scale = tuple(abnormal), normal, float(logit_scale)
        self.min_positives, self.train, self.thresholds_file = min_positives, train, thresholds_file
        self.thresholds = np.full(len(self.table), np.nan)
        self._names = _NAMES if train is None else _NAMES + _TUNED
        self.reset()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Pooled PPV, sensitivity, F1 and AUROC, and the mean AUROC over abnormalities."""
        left_out = Metric(name=f"{self.prefix}/classes_left_out", unit="classes", higher_is_better=False)
        return (*(Metric(name=f"{self.prefix}/{name}") for name in self._names), left_out)

    @property
    def prompts(self) -> dict[str, list[list[str]]]:
        """``"positive"`` and ``"negative"`` → the texts of every abnormality."""
        told = [[one.format(abnormality=row.name, organ=row.organ) for one in self.abnormal] for row in self.table]
        organs = [[name for name in row.regions if name in self.regions] for row in self.table]
        return {
            "positive": told,
            "negative": [[self.normal.format(organ=spoken(n)) for n in names] for names in organs],
        }

    def reset(self) -> None:
        """Forget everything collected."""
        self._rows = RegionRows("OrganAbnormality", self.image, len(self.regions), len(self.label_names))
        self._prompts: tuple[Tensor, Tensor] | None = None
        self._found: tuple[np.ndarray, np.ndarray] | None = None

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch: embeddings ``"<image>_regions"`` ``B R E``, ``labels``, and ids."""
        self._rows.add(outputs)
        self._found = None
        if (given := outputs.get("prompt_embeddings")) is not None:
            self._prompts = (given["positive"], given["negative"])

    def learn(self, outputs: Sequence[Mapping[str, Any]]) -> None:
        """Choose a threshold per abnormality from the outputs for ``train``; NaN where these have no positive of it."""
        self.reset()
        for batch in outputs:
            self.update(batch)
        self.thresholds = choose_thresholds(*self._judged(), rule="f1")
        self.reset()

    def compute(self) -> dict[str, float]:
        """Pooled values; an abnormality with too few positives or no negatives is left out of the mean and counted."""
        labels, _ = self._judged()
        values = self._statistic()(np.ones((len(labels), 1), dtype=np.float32))[0]
        left = (~self._common()).sum()
        return {metric.name: float(value) for metric, value in zip(self.metrics, [*values, left], strict=True)}

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap over subjects."""
        found = bootstrap_ci(self._statistic(), self._rows.ids["subject_id"], n_resamples, seed, level)
        pairs = zip(found.low.tolist(), found.high.tolist(), strict=True)
        return {f"{self.prefix}/{name}": pair for name, pair in zip(self._names, pairs, strict=True)}

    def chance(self) -> dict[str, float]:
        """Of a coin: PPV is the share of positives p, sensitivity 1/2, F1 p / (p + 1/2), AUROC 1/2.

        With a threshold that may be tuned, of calling everything: sensitivity 1, F1 2 p / (p + 1).
        """
        labels, _ = self._judged()
        share = float((labels == 1).sum() / max((~np.isnan(labels)).sum(), 1))
        values = (share, 0.5, share / (share + 0.5), 0.5, 0.5, share, 1.0, 2 * share / (share + 1))
        return {f"{self.prefix}/{name}": value for name, value in zip(self._names, values, strict=False)}

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """``<prefix>_per_class`` and ``<prefix>_per_organ``, and the predictions."""
        import pandas as pd

        labels, scores = self._judged()
        if self.train is not None and self.thresholds_file is not None:
            asked = [question(row, self.abnormal, self.normal) for row in self.table]
            write_csv(self.thresholds_file, ["question", "log_odds"], zip(asked, self.thresholds, strict=True))
        columns = ["n_positive", "n_negative", "ppv", "sensitivity", "f1", "auroc"]
        organs = [(organ, *_pooled(labels[:, places], scores[:, places])) for organ, places in self._organs().items()]
        return {
            f"{self.prefix}_per_class": self._per_class(columns, n_resamples, seed, level),
            f"{self.prefix}_per_organ": pd.DataFrame(organs, columns=["organ", *columns]),
            f"{self.prefix}_predictions": self.predictions().table(),
        }

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """AUROC per organ as a radar, and the mean score of every abnormality where it is present."""
        labels, scores = self._judged()
        organs = self._organs()
        values = [micro_auroc(labels[:, places], scores[:, places]) for places in organs.values()]
        paths = [Path(folder) / f"{self.prefix}_{name}.png" for name in ("radar", "scores")]
        title = f"Zero-shot AUROC per organ, {len(labels)} scans"
        radar(paths[0], list(organs), values, 0.5, title)
        with np.errstate(invalid="ignore"):
            means = np.array(
                [[np.nansum(scores * (labels == side), axis=0)[c] / (labels[:, c] == side).sum() for side in (1, 0)]
                 for c in range(len(self.table))]
            )  # fmt: skip
        known = ~np.isnan(means).any(axis=1)
        rows = [name for name, there in zip(self.classes, known, strict=True) if there]
        if known.any():
            heat_map(
                paths[1], means[known], rows, ["present", "absent"], "Mean score", ("abnormality", "in scans where")
            )
        return paths[: 1 + int(known.any())]

    def predictions(self) -> Predictions:
        """Log odds and probability of every study and abnormality; an organ that is not visible has a blank label."""
        labels, scores = self._judged()
        ids = (self._rows.ids["study_id"], self._rows.ids["subject_id"])
        return Predictions(*ids, self.classes, labels, scores, expit(scores))

    def predict(self, embeddings: Mapping[str, Tensor]) -> np.ndarray:
        """Probability of every abnormality, ``N C``; NaN where no region of its organ is visible.

        Args:
            embeddings: With ``"<image>_regions"``, ``N R E``.
        """
        scores = self._scores_of(embeddings[f"{self.image}_regions"].detach().float().cpu())
        return np.where(np.isfinite(scores), expit(scores), np.nan)

    def _judged(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels and scores ``N C``; unknown where no region of the organ is visible."""
        if self._found is None:
            columns = [self.label_names.index(row.label) for row in self.table]
            labels, scores = self._rows.labels()[:, columns], self._scores_of(self._rows.embeddings())
            seen = np.isfinite(scores)
            self._found = np.where(seen, labels, np.nan), np.where(seen, scores, 0.0)
        return self._found

    def _scores_of(self, embeddings: Tensor) -> np.ndarray:
        """``N R E`` → ``N C``; minus infinity where no region of the organ is visible."""
        rows, visible = embeddings.double(), visible_regions(embeddings)
        scores = np.full((len(rows), len(self.table)), -np.inf)
        for place, row in enumerate(self.table):
            for region in (name for name in row.regions if name in self.regions):
                r = self.regions.index(region)
                abnormal, normal = self._prompts_of(place, region)
                margin = (rows[:, r] @ (abnormal - normal).double()).numpy() * self.logit_scale
                scores[:, place] = np.maximum(scores[:, place], np.where(visible[:, r], margin, -np.inf))
        return scores

    def _prompts_of(self, place: int, region: str) -> tuple[Tensor, Tensor]:
        if self._prompts is not None:
            return self._prompts[0][place], self._prompts[1][place]
        if self.embed_text is None:
            raise ValueError("OrganAbnormality has no text tower; set embed_text, or give prompt_embeddings")
        return prompt_pair(self.table[place], region, self.embed_text, self.abnormal, self.normal)

    def _per_class(self, columns: list[str], n_resamples: int, seed: int, level: float) -> pd.DataFrame:
        import pandas as pd

        labels, scores = self._judged()
        rows = [
            (row.name, row.organ, row.role, *_pooled(labels[:, [c]], scores[:, [c]]))
            for c, row in enumerate(self.table)
        ]
        table = pd.DataFrame(rows, columns=["class", "organ", "role", *columns])
        if self.train is not None:
            called = _counts(labels, self._called()).sum(axis=0)
            table["threshold"] = self.thresholds
            table["ppv_tuned"], table["sensitivity_tuned"], table["f1_tuned"] = _rates(*called.T)
        table["auprc"] = auprc(labels, scores)
        subjects = self._rows.ids["subject_id"]
        bounds = bootstrap_ci(areas_statistic(labels, scores), subjects, n_resamples, seed, level, "standard_error")
        for place, area in enumerate(("auroc", "auprc")):
            table[f"{area}_low"] = bounds.low[place, 3:].clip(0, 1)
            table[f"{area}_high"] = bounds.high[place, 3:].clip(0, 1)
        counts = zip(table["n_positive"], table["n_positive"] + table["n_negative"], strict=True)
        table["auprc_chance"] = [chance_auprc(int(m), int(n)) for m, n in counts]
        return table

    def _organs(self) -> dict[str, list[int]]:
        organs: dict[str, list[int]] = {}
        for place, row in enumerate(self.table):
            organs.setdefault(row.organ, []).append(place)
        return organs

    def _common(self) -> np.ndarray:
        """Abnormalities with enough positives, and a negative, ``C``."""
        labels, _ = self._judged()
        return ((labels == 1).sum(axis=0) >= self.min_positives) & (labels == 0).any(axis=0)

    def _called(self) -> np.ndarray:
        """Which scores reach their threshold, ``N C``; 0 where none could be chosen."""
        return self._judged()[1] >= np.nan_to_num(self.thresholds)

    def _statistic(self) -> Any:
        labels, scores = self._judged()
        common = self._common()
        pooled = areas_statistic(labels, scores)
        mean = areas_statistic(labels[:, common], scores[:, common]) if common.any() else None
        decisions = [scores > 0, self._called()][: 1 + (self.train is not None)]
        counts = [_counts(labels, called).sum(axis=1).astype(np.float64) for called in decisions]

        def statistic(weights: np.ndarray) -> np.ndarray:
            rates = [np.stack(_rates(*(count.T @ weights)), axis=1) for count in counts]
            micro = pooled(weights)[:, 0, 2:3]
            macro = np.full_like(micro, np.nan) if mean is None else mean(weights)[:, 0, :1]
            return np.concatenate([rates[0], micro, macro, *rates[1:]], axis=1)

        return statistic


def _counts(labels: np.ndarray, called: np.ndarray) -> np.ndarray:
    """True positives, false positives and misses, ``N C 3``."""
    return np.stack([called & (labels == 1), called & (labels == 0), ~called & (labels == 1)], axis=2)


def _rates(true: Any, false: Any, missed: Any) -> list[Any]:
    """PPV (0 when nothing is called), sensitivity and F1; without a positive NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        called, positive = true + false, true + missed
        ppv = np.where(positive > 0, true / np.maximum(called, 1), np.nan)
        return [
            ppv,
            np.where(positive > 0, true / positive, np.nan),
            np.where(positive > 0, 2 * true / (called + positive), np.nan),
        ]


def _pooled(labels: np.ndarray, scores: np.ndarray) -> tuple[float, ...]:
    true, false, missed = _counts(labels, scores > 0).sum(axis=(0, 1))
    rates = (float(value) for value in _rates(true, false, missed))
    area = float(auroc(labels, scores)[0]) if labels.shape[1] == 1 else micro_auroc(labels, scores)
    return int((labels == 1).sum()), int((labels == 0).sum()), *rates, area
