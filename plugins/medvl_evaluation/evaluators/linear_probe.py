"""Linear probe and few-shot as an evaluator: what a linear layer reads from the embeddings, patients kept whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import expit, softmax
from torch.nn.functional import normalize

from medvl_core.specs import Metric
from medvl_evaluation.evaluators.areas import AREAS, area_values, chance_areas
from medvl_evaluation.evaluators.collected import Collected, check_classes, check_prefix
from medvl_evaluation.evaluators.decisions import DECISIONS, decision_statistic, mean_defined
from medvl_evaluation.evaluators.figures import probe_curves
from medvl_evaluation.evaluators.probe import Fitting
from medvl_evaluation.evaluators.probe_folds import Fold, Plan, Scheme, fit_folds
from medvl_evaluation.metrics import areas_statistic, bootstrap_ci
from medvl_evaluation.predictions import Predictions
from medvl_evaluation.splits.cross_validation import rank_share

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LinearProbe"]

_NAMES = (*AREAS, "accuracy", "f1_macro")
_DECIDED = [DECISIONS.index(name) for name in _NAMES[-2:]]


class LinearProbe:
    """Fits a linear layer to the embeddings, with early stopping, and reports the mean over folds.

    ``scheme="k_fold"``: the evaluated studies are divided into ``folds`` parts; each is tested once, by a probe fitted
    to the others (70/10/20 with five folds). ``"rest"``: a fraction is drawn ``folds`` times, the rest is the test.
    ``"train"``: a fraction of *other* studies is drawn ``folds`` times and every evaluated study is the test: few-shot
    from a training split, or external validation. These come from ``train``, a loader that `Evaluation` runs through
    the same network, or from `learn`. Patients are never divided, fractions are stratified by label, and validation
    studies are part of the fraction.

    Args:
        classes: Names of the label columns, in order.
        image: Modality whose embeddings are probed, e.g. ``"cxr"``.
        exclusive: Whether each study has exactly one class.
        scheme: See above.
        fractions: Shares of the labels that may be used for fitting, each in (0, 1].
        folds: Folds, or draws.
        validation: Share of the drawn studies that decides when to stop; an eighth makes 70/10/20.
        train: Loader of the studies to learn from, for ``scheme="train"``.
        seed: Of folds, draws and batches.
        prefix: Put before the names of metrics and tables.
        fitting: Fields of `Fitting`, e.g. ``{"learning_rate": 0.005}``.

    Raises:
        ValueError: If an option breaks its rule.

    References:
        Few-shot and external validation: X2CT-CLIP, arXiv:2503.02162. Five folds: RadCLIP, arXiv:2403.09948. No code
        copied.
    """

    def __init__(
        self,
        classes: Sequence[str],
        image: str,
        exclusive: bool = False,
        scheme: Scheme = "k_fold",
        fractions: Sequence[float] = (1.0,),
        folds: int = 5,
        validation: float = 0.125,
        train: Iterable[dict[str, Any]] | None = None,
        seed: int = 0,
        prefix: str = "linear_probe",
        fitting: Mapping[str, Any] | None = None,
    ) -> None:
        self.classes, self.image, self.exclusive = check_classes("LinearProbe", classes), image, exclusive
        self.prefix = check_prefix("LinearProbe", prefix)
        if exclusive and len(self.classes) < 2:
            raise ValueError(f"LinearProbe: classes is {self.classes}; one class alone is always right, give two")
        if train is not None and scheme != "train":
            raise ValueError(f"LinearProbe: train is given but scheme is {scheme!r}; set scheme to 'train'")
        self.plan = Plan(scheme, tuple(sorted(set(map(float, fractions)))), folds, validation, seed)
        self.scheme, self.fractions, self.train = scheme, self.plan.fractions, train
        self.fitting = Fitting(exclusive=exclusive, **(fitting or {}))
        self._learned: Collected | None = None
        self.reset()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics by their full names: per fraction, averaged over folds."""
        return tuple(Metric(name=self._name(f, name)) for f in self.fractions for name in _NAMES)

    def reset(self) -> None:
        """Forget the studies collected; those to learn from stay until `learn` replaces them."""
        self._collected = self._collector()
        self._cached: dict[float, list[Fold]] | None = None

    def learn(self, outputs: Iterable[Mapping[str, Any]]) -> None:
        """Take the studies to learn from, in place of any before.

        Args:
            outputs: Batches as `update` takes them, e.g. one with rows of an embedding store.

        Raises:
            ValueError: If the scheme learns from the evaluated studies themselves, or an entry is missing.
        """
        if self.scheme != "train":
            raise ValueError(f"LinearProbe: scheme is {self.scheme!r}, which learns from the evaluated studies alone")
        self._learned, self._cached = self._collector(), None
        for batch in outputs:
            self._learned.add(batch)

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch: embeddings, ``study_id``, ``subject_id`` and ``labels``."""
        self._collected.add(outputs)
        self._cached = None

    def compute(self) -> dict[str, float]:
        """Mean over folds of areas, accuracy and macro F1, for every fraction; a fold without a value is left out."""
        values = {f: mean_defined(self._fold_values(f)) for f in self.fractions}
        return {self._name(f, name): float(v) for f in values for name, v in zip(_NAMES, values[f], strict=True)}

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap interval of each mean: tested patients drawn whole, the probes as they are.

        How much other training studies would change it is not in it; the spread over folds in the tables is.
        """
        bounds = {}
        for fraction in self.fractions:
            low, high = self._bounds(fraction, n_resamples, seed, level)
            for name, lo, hi in zip(_NAMES, low, high, strict=True):
                bounds[self._name(fraction, name)] = (float(lo), float(hi))
        return bounds

    def chance(self) -> dict[str, float]:
        """Areas of a random order, in the folds tested; decisions that never look: always the more frequent answer for
        accuracy, and for F1 always yes (of several labels) or the most frequent class (of one)."""
        labels = self._collected.labels()
        out: dict[str, float] = {}
        for fraction, folds in self._folds().items():
            rows = [self._chance_of(labels[fold.rows]) for fold in folds]
            means = mean_defined(np.array(rows))
            out |= {self._name(fraction, name): float(mean) for name, mean in zip(_NAMES, means, strict=True)}
        return out

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """``linear_probe_folds``, ``linear_probe_summary``, and ``linear_probe_<percent>_predictions``."""
        tables = {f"{self.prefix}_folds": self._fold_table()}
        tables[f"{self.prefix}_summary"] = self._summary(n_resamples, seed, level)
        for fraction in self.fractions:
            tables[f"{self._stem(fraction)}_predictions"] = self.predictions(fraction).table()
        return tables

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """Areas over the share of training labels."""
        path = Path(folder) / f"{self.prefix}.png"
        n, subjects = len(self._collected.ids("subject_id")), len(set(self._collected.ids("subject_id")))
        title = (
            f"Linear probe on {self.image}: {n} studies of {subjects} subjects, {self.plan.folds} folds ({self.scheme})"
        )
        probe_curves(path, self._fold_table(), title)
        return [path]

    def predictions(self, fraction: float | None = None) -> Predictions:
        """Mean score of each tested study over the probes that it was held out from, and its probability by mean logit.

        With scheme ``"train"`` every probe tests every study: the score is the logit. Otherwise studies meet different
        probes, whose logits have different offsets: it is the rank within the fold and class, in (0, 1), as in
        `medvl_evaluation.splits.cross_validation.pool_folds`. Which of exclusive classes a probe decides on,
        probabilities tell.

        Args:
            fraction: One of ``fractions``; the largest by default.
        """
        folds, labels = self._folds()[self.fractions[-1] if fraction is None else fraction], self._collected.labels()
        total, ranks, times = np.zeros(labels.shape), np.zeros(labels.shape), np.zeros((len(labels), 1))
        for fold in folds:
            total[fold.rows] += fold.scores
            ranks[fold.rows] += rank_share(fold.scores)
            times[fold.rows] += 1
        kept = np.flatnonzero(times)
        logits = total[kept] / times[kept]
        scores = logits if self.scheme == "train" else ranks[kept] / times[kept]
        probabilities = softmax(logits, axis=1) if self.exclusive else expit(logits)
        studies, subjects = (np.array(self._collected.ids(name))[kept].tolist() for name in ("study_id", "subject_id"))
        return Predictions(studies, subjects, self.classes, labels[kept], scores, probabilities)

    def _collector(self) -> Collected:
        ids = ("study_id", "subject_id")
        return Collected("LinearProbe", (self.image,), ids, self.classes, exclusive=self.exclusive)

    def _folds(self) -> dict[float, list[Fold]]:
        if self._cached is None:
            source = self._source()
            x = normalize(source.embeddings(self.image), dim=1)
            y = torch.from_numpy(source.labels()).float()
            target = normalize(self._collected.embeddings(self.image), dim=1)
            subjects = np.array(source.ids("subject_id"))
            self._cached = {
                fraction: fit_folds(self.plan, fraction, self.fitting, (x, y), subjects, target)
                for fraction in self.fractions
            }
        return self._cached

    def _source(self) -> Collected:
        """The studies that probes are fitted to."""
        if self.scheme != "train":
            return self._collected
        if self._learned is None:
            raise ValueError(
                "LinearProbe: scheme 'train' has nothing to learn from; set train to a loader of the training studies, "
                "or call learn() with their embeddings"
            )
        for name in ("subject_id", "study_id"):
            shared = sorted(set(self._learned.ids(name)) & set(self._collected.ids(name)))
            if shared:
                raise ValueError(
                    f"LinearProbe: {name} {shared[0]!r} ({len(shared)} such) is among the studies to learn from and "
                    "among those to test; keep a patient on one side"
                )
        return self._learned

    def _fold_values(self, fraction: float) -> np.ndarray:
        """Every metric of every fold, ``folds M``."""
        labels, out = self._collected.labels(), []
        for fold in self._folds()[fraction]:
            known = labels[fold.rows]
            decisions = decision_statistic(known, fold.decided, self.exclusive)(np.ones((len(known), 1)))[0]
            out.append([*area_values(known, fold.scores).values(), *decisions[_DECIDED]])
        return np.array(out)

    def _bounds(self, fraction: float, n_resamples: int, seed: int, level: float) -> tuple[np.ndarray, np.ndarray]:
        labels, folds = self._collected.labels(), self._folds()[fraction]
        areas = [areas_statistic(labels[fold.rows], fold.scores) for fold in folds]
        decisions = [decision_statistic(labels[fold.rows], fold.decided, self.exclusive) for fold in folds]

        def statistic(weights: np.ndarray) -> np.ndarray:
            parts = []
            for fold, area, decision in zip(folds, areas, decisions, strict=True):
                own = weights[fold.rows]
                parts.append(
                    np.concatenate([area(own)[:, :, :3].reshape(len(own.T), -1), decision(own)[:, _DECIDED]], axis=1)
                )
            return mean_defined(np.stack(parts))

        subjects = self._collected.ids("subject_id")
        interval = bootstrap_ci(statistic, subjects, n_resamples, seed, level, method="standard_error")
        return interval.low.clip(0, 1), interval.high.clip(0, 1)

    def _chance_of(self, labels: np.ndarray) -> list[float]:
        share = mean_defined(labels)
        positive = share[share > 0]
        if self.exclusive:
            largest = share.max()
            decisions = [largest, 2 * largest / (1 + largest) / len(positive)]
        else:
            decisions = [mean_defined(np.maximum(share, 1 - share)), mean_defined(2 * positive / (1 + positive))]
        return [*chance_areas(labels).values(), *map(float, decisions)]

    def _fold_table(self) -> pd.DataFrame:
        import pandas as pd

        rows = []
        for fraction, folds in self._folds().items():
            for number, (fold, values) in enumerate(zip(folds, self._fold_values(fraction), strict=True)):
                sizes = {"n_train": fold.n_train, "n_validation": fold.n_validation, "n_test": len(fold.rows)}
                row = {"fraction": fraction, "fold": number, **sizes, "epochs": fold.epochs}
                rows.append(row | dict(zip(_NAMES, values, strict=True)))
        return pd.DataFrame(rows)

    def _summary(self, n_resamples: int, seed: int, level: float) -> pd.DataFrame:
        import pandas as pd

        parts, chance = [], self.chance()
        for fraction in self.fractions:
            values = self._fold_values(fraction)
            low, high = self._bounds(fraction, n_resamples, seed, level)
            part = pd.DataFrame({"fraction": fraction, "metric": _NAMES, "mean": mean_defined(values)})
            known = [column[~np.isnan(column)] for column in values.T]
            part["sd"] = [np.std(column, ddof=1) if len(column) > 1 else np.nan for column in known]
            part["low"], part["high"] = low, high
            part["chance"] = [chance[self._name(fraction, name)] for name in _NAMES]
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def _stem(self, fraction: float) -> str:
        return f"{self.prefix}_{100 * fraction:g}".replace(".", "p")

    def _name(self, fraction: float, name: str) -> str:
        return f"{self._stem(fraction)}/{name}"
