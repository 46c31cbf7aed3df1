"""Folds of whole patients over any dataset, a run of the configuration per fold, and the results of all of them."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from medvl_core.bundle.startup import running_config
from medvl_core.engine.files import write_text
from medvl_core.study import Study
from medvl_evaluation.markdown import markdown_table
from medvl_evaluation.metrics import areas_statistic, auroc, average_groups, bootstrap_ci
from medvl_evaluation.predictions import Predictions
from medvl_evaluation.splits.shares import k_folds

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["InFolds", "cross_validate", "fold_studies", "fold_table", "pool_folds", "rank_share", "summary_table"]

logger = logging.getLogger(__name__)
_SPLITS = ("train", "validation", "test")
TOTAL = "total"
"""Name of the group of all classes."""


def fold_studies(
    dataset: Any, fold: int, n_folds: int = 5, validation: float = 0.1, seed: int = 0
) -> dict[str, list[Study]]:
    """The studies of a dataset, divided anew: fold ``fold`` is the test set, every study is tested once.

    Args:
        dataset: Any dataset; its own splits are put together first.
        fold: From 0.
        n_folds: Folds of whole patients, stratified over all labels.
        validation: Share of all studies held out of the training ones.
        seed: Of the folds.

    Returns:
        Split → studies, by study id.

    Raises:
        ValueError: If there is no such fold, or a study is in two of the dataset's splits.
    """
    if not 0 <= fold < n_folds:
        raise ValueError(f"fold is {fold} of {n_folds} folds; count them from 0")
    studies = sorted((study for split in _SPLITS for study in dataset.studies(split)), key=lambda one: one.study_id)
    for one, other in pairwise(studies):
        if one.study_id == other.study_id:
            raise ValueError(
                f"{one.study_id}: is in two splits of the dataset, so folds of whole patients cannot be made of them; "
                "use another split mode, or train each fold of this one by itself"
            )
    labels = np.array([[study.labels.get(name, np.nan) for name in dataset.label_names] for study in studies])
    parts = k_folds([study.subject_id for study in studies], n_folds, validation, labels, seed)[fold]
    names = {"val": "validation"}
    return {names.get(name, name): [studies[i] for i in rows] for name, rows in parts.items()}


class InFolds:
    """A dataset whose splits are those of one fold, by `fold_studies`."""

    def __init__(self, dataset: Any, fold: int, n_folds: int = 5) -> None:
        self.label_names, self.fields = dataset.label_names, getattr(dataset, "fields", {})
        self._parts = fold_studies(dataset, fold, n_folds)

    def studies(self, split: str) -> list[Study]:
        """Those of one split of the fold."""
        return self._parts[split]


def cross_validate(
    n_folds: int,
    steps: Sequence[str],
    result: str,
    ckpt_dir: str | Path,
    folder: str | Path,
    groups: Mapping[str, Sequence[str]] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Run the steps of the configuration that is running now once per fold, and put the folds' predictions together.

    Every fold gets a configuration of its own, with ``fold`` and ``ckpt_dir`` set: nothing is shared between folds but
    what lies on disk.

    Args:
        n_folds: Number of folds.
        steps: Config ids that are evaluated in order for each fold; a list's items one after the other.
        result: Config id of the fold's `Predictions`.
        ckpt_dir: Fold k keeps its weights in ``fold_<k>`` below it.
        folder: Receives ``folds.csv``, ``summary.csv``, ``summary.md``, the predictions of each fold, and pooled ones
            as ``zero_shot_predictions.csv``, which ``medvl compare`` reads.
        groups: Group → classes, beside all of them.
        n_resamples: Bootstrap resamples of subjects.
        seed: Of the resamples.

    Returns:
        `summary_table` of the folds.

    Raises:
        ValueError: If the configuration has no ``fold`` to set.
    """
    config = {key: value for key, value in running_config().items() if key != "_meta_"}
    if missing := [key for key in ("fold", "ckpt_dir", result, *steps) if key not in config]:
        raise ValueError(f"cross-validation needs the config keys {missing}; run it from a bundle that has them")
    folds = []
    for fold in range(n_folds):
        logger.info("fold %d of %d", fold + 1, n_folds)
        own = copy.deepcopy({**config, "fold": fold, "ckpt_dir": str(Path(ckpt_dir) / f"fold_{fold}")})
        folds.append(_run(own, steps, result))
        path = Path(folder) / f"fold_{fold}_predictions.csv"
        write_text(path, folds[-1].table().to_csv(index=False))
    return _write(Path(folder), folds, groups or {}, n_resamples, seed)


def _run(config: dict[str, Any], steps: Sequence[str], result: str) -> Predictions:
    from monai.bundle import ConfigParser

    parser = ConfigParser(config)
    for step in steps:
        for name in [f"{step}::{i}" for i in range(len(config[step]))] if isinstance(config[step], list) else [step]:
            parser.get_parsed_content(name)
    found: Predictions = parser.get_parsed_content(result)
    return found


def pool_folds(folds: Sequence[Predictions]) -> Predictions:
    """Out-of-fold predictions of every study, each score replaced by its rank among its fold and class, in (0, 1).

    The scores of different models have different offsets; ranks within a fold have not. What a ranking of one fold
    against another would say is lost, and was said by no model.

    Raises:
        ValueError: If folds share a study or have other classes.
    """
    first = folds[0]
    if other := [fold.classes for fold in folds if tuple(fold.classes) != tuple(first.classes)]:
        raise ValueError(f"folds have other classes: {tuple(first.classes)} and {tuple(other[0])}")
    return Predictions(
        tuple(name for fold in folds for name in fold.study_id),
        tuple(name for fold in folds for name in fold.subject_id),
        first.classes,
        np.concatenate([fold.labels for fold in folds]),
        np.concatenate([rank_share(fold.scores) for fold in folds]),
    )


def rank_share(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the scores ``N C`` of a class below each, half of those equal included: in (0, 1), from any model."""
    ranks: NDArray[np.float64] = (rankdata(scores, axis=0) - 0.5) / len(scores)
    return ranks


def fold_table(folds: Sequence[Predictions], groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """One row per fold and group: macro AUROC, and over how many of its classes: the others had no positives."""
    import pandas as pd

    rows = []
    for fold, found in enumerate(folds):
        everything = {TOTAL: tuple(found.classes), **groups}
        averages = average_groups(auroc(found.labels, found.scores), found.labels, found.classes, everything)
        for group, average in averages.items():
            size = len(everything[group])
            defined = {"classes": size, "classes_defined": size - average.left_out}
            rows.append(
                {"fold": fold, "n_studies": len(found.study_id), "group": group, "auroc": average.value} | defined
            )
    return pd.DataFrame(rows)


def summary_table(
    folds: Sequence[Predictions], groups: Mapping[str, Sequence[str]], n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """One row per group: mean and standard deviation over folds, and the pooled AUROC with its 95 % interval.

    Args:
        folds: Of each test fold.
        groups: Group → classes.
        n_resamples: Bootstrap resamples of subjects for the pooled interval (as ``areas`` of evaluators: by standard
            error).
        seed: Of the resamples.
    """
    import pandas as pd

    pooled, per_fold = pool_folds(folds), fold_table(folds, groups)
    rows = []
    for group, names in {TOTAL: tuple(pooled.classes), **groups}.items():
        own = per_fold[per_fold["group"] == group]
        part = pooled.sorted(names)
        statistic = areas_statistic(part.labels, part.scores)
        interval = bootstrap_ci(statistic, part.subject_id, n_resamples, seed, method="standard_error")
        value = statistic(np.ones((len(part.labels), 1), np.float32))[0, 0, 0]
        rows.append(
            {
                "group": group,
                "classes": len(names),
                "classes_defined_least": int(own["classes_defined"].min()),
                "auroc_mean": own["auroc"].mean(),
                "auroc_sd": own["auroc"].std(ddof=1),
                "auroc_pooled": value,
                "pooled_low": np.clip(interval.low[0, 0], 0, 1),  # NaN stays NaN
                "pooled_high": np.clip(interval.high[0, 0], 0, 1),
            }
        )
    return pd.DataFrame(rows)


def _write(
    folder: Path, folds: Sequence[Predictions], groups: Mapping[str, Sequence[str]], n_resamples: int, seed: int
) -> pd.DataFrame:
    summary = summary_table(folds, groups, n_resamples, seed)
    write_text(folder / "zero_shot_predictions.csv", pool_folds(folds).table().to_csv(index=False))
    write_text(folder / "folds.csv", fold_table(folds, groups).to_csv(index=False))
    write_text(folder / "summary.csv", summary.to_csv(index=False))
    text = _markdown(summary, sum(len(fold.study_id) for fold in folds), len(folds))
    write_text(folder / "summary.md", text)
    named = {group: list(names) for group, names in groups.items()}
    content = {"tables": ["zero_shot_predictions.csv"], "n_folds": len(folds), "groups": named}
    write_text(folder / "metrics.json", json.dumps(content, indent=2) + "\n")
    logger.info("cross-validation, written to %s\n%s", folder, text)
    return summary


def _markdown(summary: pd.DataFrame, n_studies: int, n_folds: int) -> str:
    rows = []
    for row in summary.itertuples():
        pooled = f"{row.auroc_pooled:.3f} [{row.pooled_low:.3f}, {row.pooled_high:.3f}]"
        rows.append([row.group, str(row.classes), f"{row.auroc_mean:.3f} ± {row.auroc_sd:.3f}", pooled])
    table = markdown_table(["AUROC", "classes", "mean ± sd over folds", "pooled [95 % interval]"], rows)
    fewest = ", ".join(f"{row.group} {row.classes_defined_least} of {row.classes}" for row in summary.itertuples())
    note = (
        f"{n_studies} studies in {n_folds} folds of whole patients. A class without positives in a fold is left out of "
        f"that fold's average; fewest classes with a value in a fold: {fewest}. Pooled: ranks within each fold."
    )
    return f"{table}\n\n{note}\n"
