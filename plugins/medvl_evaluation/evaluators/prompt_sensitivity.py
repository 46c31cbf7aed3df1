"""Prompt sensitivity as an evaluator: the same images under several wordings, beside the headline's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medvl_core.specs import Metric
from medvl_evaluation.evaluators.areas import area_interval, area_values
from medvl_evaluation.evaluators.collected import check_prefix
from medvl_evaluation.evaluators.figures import row_intervals
from medvl_evaluation.evaluators.prompts import WORDINGS, EmbedText, PromptAverage
from medvl_evaluation.evaluators.zero_shot import ZeroShot
from medvl_evaluation.metrics import areas_statistic, bootstrap_ci
from medvl_evaluation.metrics.bootstrap import Statistic

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HEADLINE", "PromptSensitivity"]

HEADLINE = "headline"
_NAMES = ("headline", "worst", "best", "spread")


class PromptSensitivity:
    """Macro AUROC of zero-shot classification under every wording: the headline's, the worst, the best, their spread.

    The best wording of the test set is no result, as it was chosen on it: it shows how far a wording can move a number.

    Args:
        classes: Names of the label columns, in order.
        image: Modality that is classified.
        embed_text: As for `ZeroShot`. Not needed when the outputs carry ``"prompt_embeddings"``: wording → side →
            ``C E``.
        positive: Templates of the headline, with one ``{}`` for the class.
        negative: Likewise, for its absence.
        wordings: Wording → ``"positive"`` and ``"negative"`` → templates; several are averaged. Default: `WORDINGS`.
        scoring: As for `ZeroShot`.
        prompt_average: As for `ZeroShot`.
        prefix: Put before the names of metrics and tables.

    Raises:
        ValueError: If there is no wording, one is called ``"headline"``, or its templates are unusable.
    """

    def __init__(
        self,
        classes: Sequence[str],
        image: str,
        embed_text: EmbedText | None = None,
        positive: Sequence[str] = ("{} is present.",),
        negative: Sequence[str] = ("{} is not present.",),
        wordings: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
        scoring: Literal["softmax", "cosine"] = "softmax",
        prompt_average: PromptAverage = "after_normalisation",
        prefix: str = "prompts",
    ) -> None:
        self.prefix = check_prefix("PromptSensitivity", prefix)
        chosen = dict(WORDINGS if wordings is None else wordings)
        if not chosen or HEADLINE in chosen:
            raise ValueError(f"PromptSensitivity: wordings are {sorted(chosen)}; name one or more, none {HEADLINE!r}")
        self._all = {HEADLINE: {"positive": positive, "negative": negative}, **chosen}
        self._scorers = {}
        for name, sides in self._all.items():
            if set(sides) != {"positive", "negative"}:
                raise ValueError(f"PromptSensitivity: wording {name!r} has {sorted(sides)}; give positive and negative")
            options = {"scoring": scoring, "prompt_average": prompt_average}
            self._scorers[name] = ZeroShot(classes, image, embed_text, **sides, **options)  # type: ignore[arg-type]
        self.classes = self._scorers[HEADLINE].classes
        self.wordings = tuple(self._scorers)
        self.embed_text = embed_text

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics by their full names; a smaller spread is better."""
        return tuple(Metric(name=self._name(name), higher_is_better=name != "spread") for name in _NAMES)

    def reset(self) -> None:
        """Forget everything collected."""
        for scorer in self._scorers.values():
            scorer.reset()

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch, as `ZeroShot.update`.

        Raises:
            ValueError: If an entry is missing, or prompt embeddings lack a wording.
        """
        given = outputs.get("prompt_embeddings")
        if given is not None and (lost := [name for name in self.wordings if name not in given]):
            raise ValueError(
                f"PromptSensitivity: prompt_embeddings lack the wordings {lost}; they have {sorted(given)}"
            )
        for name, scorer in self._scorers.items():
            own = {} if given is None else {"prompt_embeddings": given[name]}
            scorer.update({**{key: value for key, value in outputs.items() if key != "prompt_embeddings"}, **own})

    def compute(self) -> dict[str, float]:
        """Macro AUROC of the headline, the worst and the best wording, and best minus worst."""
        values = self._statistic()(np.ones((len(self._labels()), 1), dtype=np.float32))[0]
        return {self._name(name): float(value) for name, value in zip(_NAMES, values, strict=True)}

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap interval of each; worst and best are sought anew in every resample."""
        subjects = self._subjects()
        low, high, _ = bootstrap_ci(self._statistic(), subjects, n_resamples, seed, level, method="standard_error")
        bounds = zip(_NAMES, low.clip(0, 1), high.clip(0, 1), strict=True)
        return {self._name(name): (float(lo), float(hi)) for name, lo, hi in bounds}

    def chance(self) -> dict[str, float]:
        """A guess that reads neither image nor text: 0.5 under every wording."""
        return dict(zip((metric.name for metric in self.metrics), (0.5, 0.5, 0.5, 0.0), strict=True))

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """``prompts_wordings``: one row per wording, the headline first."""
        return {f"{self.prefix}_wordings": self._table(n_resamples, seed, level)}

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """Macro AUROC of every wording with its interval."""
        path = Path(folder) / f"{self.prefix}_wordings.png"
        n, subjects = len(self._labels()), len(set(self._subjects()))
        title = f"Zero-shot under {len(self.wordings)} wordings: {n} studies of {subjects} subjects, {100 * level:g} %"
        table = self._table(n_resamples, seed, level)
        row_intervals(path, self.wordings, table, "auroc_macro", "AUROC, macro", f"{title} intervals")
        return [path]

    def _table(self, n_resamples: int, seed: int, level: float) -> pd.DataFrame:
        import pandas as pd

        rows = []
        for name, scorer in self._scorers_with_tower():
            values = area_values(self._labels(), scorer.scores())
            interval = area_interval(self._labels(), scorer.scores(), self._subjects(), n_resamples, seed, level)
            row: dict[str, Any] = {"wording": name}
            for side in ("positive", "negative"):
                row[side] = " | ".join(self._all[name][side])
            for place, area in enumerate(("auroc", "auprc")):
                row[f"{area}_macro"] = values[f"{area}_macro"]
                row[f"{area}_macro_low"], row[f"{area}_macro_high"] = interval.low[place, 0], interval.high[place, 0]
            rows.append(row)
        return pd.DataFrame(rows)

    def _statistic(self) -> Statistic:
        areas = [areas_statistic(self._labels(), scorer.scores()) for _, scorer in self._scorers_with_tower()]

        def statistic(weights: np.ndarray) -> np.ndarray:
            macro = np.stack([area(weights)[:, 0, 0] for area in areas], axis=1)
            worst, best = macro.min(axis=1), macro.max(axis=1)
            return np.stack([macro[:, 0], worst, best, best - worst], axis=1)

        return statistic

    def _scorers_with_tower(self) -> list[tuple[str, ZeroShot]]:
        for scorer in self._scorers.values():
            scorer.embed_text = self.embed_text  # may be set after building
        return list(self._scorers.items())

    def _labels(self) -> np.ndarray:
        return dict(self._scorers_with_tower())[HEADLINE].predictions().labels

    def _subjects(self) -> Sequence[str]:
        return dict(self._scorers_with_tower())[HEADLINE].predictions().subject_id

    def _name(self, name: str) -> str:
        return f"{self.prefix}/auroc_macro_{name}"
