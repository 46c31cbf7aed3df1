"""Contract checks of evaluators.

One set of outputs serves every task: all modalities agree (retrieval); images point at the prompts of their classes,
``"prompt_embeddings"`` maps ``"positive"`` and ``"negative"`` to ``C E`` (zero-shot); ``"voxel_counts"`` are those of
masks that hold label k where the study has class k - 1 (segmentation); an instance with ``regions`` also gets
``"ct_regions"`` ``B R E`` and the prompts ``"regions"`` ``R E``, where region r has class r; metadata has a ``"sex"``.
What an instance says about itself changes them: ``classes`` their number; ``exclusive = True`` gives every study
exactly one class; ``wordings`` puts a level of names above the sides of ``"prompt_embeddings"``.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medvl_core.engine.masks import voxel_counts
from medvl_core.protocols import Classifies, Predicts, Scores
from medvl_core.specs import Metric
from medvl_core.testing.harness import Subject, require, require_close, rng_untouched

__all__ = ["CHECKS"]

_STUDIES, _WIDTH = 48, 64
_MODALITIES = ("ct", "cxr", "mri", "report")


def _classes(evaluator: Any) -> int:
    return len(evaluator.classes) if isinstance(evaluator, Classifies) else 2


def _labels(classes: int, exclusive: bool = False) -> Tensor:
    """Every class has positives and negatives, and no two classes are alike."""
    generator = torch.Generator().manual_seed(2)
    if exclusive:
        return torch.eye(classes)[torch.arange(_STUDIES) % classes]
    labels = torch.rand(_STUDIES, classes, generator=generator).round()
    labels[0], labels[1] = 1.0, 0.0
    return labels


def _outputs(evaluator: Any, *, perfect: bool, labels: Tensor | None = None) -> dict[str, Any]:
    """One pass over distinct subjects; ``perfect`` embeddings solve the task, the others are random."""
    generator = torch.Generator().manual_seed(3)
    count = _classes(evaluator)
    labels = _labels(count, getattr(evaluator, "exclusive", False)) if labels is None else labels
    axes = torch.eye(count, max(count, _WIDTH))
    signs = 2 * labels.nan_to_num(0) - 1
    rows = signs @ axes + 0.01 * torch.randn(_STUDIES, axes.shape[1], generator=generator)  # distinct, for retrieval
    embeddings = {
        name: F.normalize(rows if perfect else torch.randn(rows.shape, generator=generator), dim=1)
        for name in _MODALITIES
    }
    ids = [f"{index:02d}" for index in range(_STUDIES)]
    prompts: dict[str, Any] = {"positive": axes, "negative": -axes}
    if regions := getattr(evaluator, "regions", ()):
        embeddings["ct_regions"] = _region_rows(
            labels if isinstance(evaluator, Classifies) else None, len(regions), perfect
        )
        prompts["regions"] = torch.eye(len(regions), axes.shape[1])
    if wordings := getattr(evaluator, "wordings", ()):
        prompts = dict.fromkeys(wordings, prompts)
    true = _masks(labels)
    predicted = true if perfect else torch.randint(0, count + 1, true.shape, generator=generator)
    return {
        "embeddings": embeddings,
        "prompt_embeddings": prompts,
        "metadata": [{"sex": "FM"[index % 2]} for index in range(_STUDIES)],
        "voxel_counts": [voxel_counts(*pair) for pair in zip(predicted.numpy(), true.numpy(), strict=True)],
        "study_id": ids,
        "subject_id": ids,
        "scan_id": ids,
        "labels": labels,
    }


def _region_rows(labels: Tensor | None, regions: int, perfect: bool) -> Tensor:
    """``B R E``: region r points along axis r, away from it where the study lacks class r."""
    if not perfect:
        rows = torch.randn(_STUDIES, regions, _WIDTH, generator=torch.Generator().manual_seed(4))
        return F.normalize(rows, dim=2)
    signs = torch.ones(_STUDIES, regions) if labels is None else 2 * labels.nan_to_num(0) - 1
    return signs[..., None] * torch.eye(regions, _WIDTH)


def _masks(labels: Tensor) -> Tensor:
    """``B C + 1 2 2``: layer k is filled with label k where the study has class k - 1."""
    layers = torch.arange(labels.shape[1] + 1).view(1, -1, 1, 1)
    present = torch.cat([torch.zeros(len(labels), 1), labels.nan_to_num(0)], dim=1)[:, :, None, None]
    return (layers * present).long().expand(-1, -1, 2, 2)


def _compute(evaluator: Any, *batches: Mapping[str, Any]) -> dict[str, float]:
    evaluator.reset()
    for batch in batches:
        evaluator.update(batch)
    return evaluator.compute()  # type: ignore[no-any-return]


def _part(outputs: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    parts = {name: value[rows] for name, value in outputs.items() if name not in ("embeddings", "prompt_embeddings")}
    embeddings = {name: value[rows] for name, value in outputs["embeddings"].items()}
    return {**parts, "embeddings": embeddings, "prompt_embeddings": outputs["prompt_embeddings"]}


def _same(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    both_nan = {name for name in one if math.isnan(one[name]) and math.isnan(other.get(name, 0.0))}
    return set(one) == set(other) and all(
        name in both_nan or math.isclose(one[name], other[name], abs_tol=1e-6) for name in one
    )


def _declared(subject: Subject, name: str) -> Metric | None:
    """The spec's metric whose name fits; ``{slots}`` stand for anything."""
    for metric in subject.spec.metrics:
        pattern = re.sub(r"\\\{.*?\\\}", ".+", re.escape(metric.name))
        if re.fullmatch(pattern, name):
            return metric  # type: ignore[no-any-return]
    return None


def names(subject: Subject) -> None:
    """``compute`` gives a float for each metric of the spec and of the instance, and nothing else."""
    evaluator = subject.build()
    values = _compute(evaluator, _outputs(evaluator, perfect=False))
    for name, value in values.items():
        known = _declared(subject, name) is not None
        require(known, subject, f"compute gives {name!r}, which the spec does not declare")
        require(isinstance(value, float), subject, f"{name} is {type(value).__name__}, not float")
    given = {metric.name for name in values if (metric := _declared(subject, name)) is not None}
    missing = {metric.name for metric in subject.spec.metrics} - given
    require(not missing, subject, f"compute does not give {sorted(missing)}")
    own = sorted(metric.name for metric in evaluator.metrics)
    require(own == sorted(values), subject, f"its metrics are {own} but compute gives {sorted(values)}")


def reports(subject: Subject) -> None:
    """Intervals and chance are about metrics that exist and follow the seed; figures lie in the folder given."""
    evaluator = subject.build()
    values = _compute(evaluator, _outputs(evaluator, perfect=False))
    intervals, chance = evaluator.intervals(n_resamples=20, seed=1), evaluator.chance()
    for what, found in (("intervals", intervals), ("chance", chance)):
        require(set(found) <= set(values), subject, f"{what} names {sorted(set(found) - set(values))}, no metric")
    for name, (low, high) in intervals.items():
        require(not low > high, subject, f"the interval of {name} is ({low}, {high})")
    again = evaluator.intervals(n_resamples=20, seed=1)
    require(str(again) == str(intervals), subject, "intervals differ between two calls with one seed")
    require(all(isinstance(key, str) for key in evaluator.tables(n_resamples=20)), subject, "a table has no name")
    with tempfile.TemporaryDirectory() as folder:
        for path in evaluator.figures(folder, n_resamples=20):
            inside = path.is_file() and path.is_relative_to(folder)
            require(inside, subject, f"figures names {path}, which is no file in the folder given")


def perfect_is_one(subject: Subject) -> None:
    """Embeddings that solve the task give 1 for every share of which more is better, and less for random ones."""
    evaluator = subject.build()
    solved = _compute(evaluator, _outputs(evaluator, perfect=True))
    guessed = _compute(evaluator, _outputs(evaluator, perfect=False))
    for name, value in solved.items():
        metric = _declared(subject, name)
        if metric is not None and metric.unit == "1" and metric.higher_is_better:
            require(math.isclose(value, 1.0, abs_tol=1e-6), subject, f"{name} is {value} for a perfect model, not 1")
            require(guessed[name] < 1.0, subject, f"{name} is {guessed[name]} for random embeddings")


def split_updates(subject: Subject) -> None:
    """Three updates give what one update gives."""
    evaluator = subject.build()
    outputs = _outputs(evaluator, perfect=False)
    whole = _compute(evaluator, outputs)
    parts = _compute(evaluator, *(_part(outputs, rows) for rows in (slice(0, 5), slice(5, 6), slice(6, None))))
    require(_same(whole, parts), subject, f"split updates give {parts}, one update gives {whole}")


def reset_forgets(subject: Subject) -> None:
    """After ``reset`` nothing of an earlier pass is left."""
    evaluator = subject.build()
    expected = _compute(subject.build(), _outputs(evaluator, perfect=False))
    _compute(evaluator, _outputs(evaluator, perfect=True))
    actual = _compute(evaluator, _outputs(evaluator, perfect=False))
    require(_same(expected, actual), subject, f"after reset it gives {actual}, a new instance gives {expected}")


def class_without_positives(subject: Subject) -> None:
    """Zero-shot: such a class is NaN, left out of averages over the others, and counted: a metric in ``"classes"``."""
    if subject.spec.task != "zero_shot_multilabel":
        return
    evaluator = subject.build()
    labels = _labels(_classes(evaluator))
    labels[:, 0] = 0.0
    values = _compute(evaluator, _outputs(evaluator, perfect=True, labels=labels))
    counts = [name for name in values if (metric := _declared(subject, name)) is not None and metric.unit == "classes"]
    require(bool(counts), subject, "no metric has the unit 'classes'; count the classes that averages leave out")
    require(values[counts[0]] == 1, subject, f"{counts[0]} is {values[counts[0]]} with one class without positives")
    nothing = _compute(evaluator, _outputs(evaluator, perfect=True, labels=torch.zeros_like(labels)))
    for name, value in values.items():
        metric = _declared(subject, name)
        if metric is not None and metric.unit == "1" and metric.higher_is_better:
            require(math.isclose(value, 1.0, abs_tol=1e-6), subject, f"{name} is {value}: the empty class changed it")
            require(math.isnan(nothing[name]), subject, f"{name} is {nothing[name]} without any positive, not NaN")


def abilities(subject: Subject) -> None:
    """Scores are those of the studies given; what predicts says the same of embeddings alone; what learns has both
    ``train`` and ``learn``."""
    evaluator = subject.build()
    both = hasattr(evaluator, "train") == hasattr(evaluator, "learn")
    require(both, subject, "it has one of train and learn; an evaluator that learns from other studies needs both")
    if not isinstance(evaluator, Scores):
        return
    outputs = _outputs(evaluator, perfect=True)
    _compute(evaluator, outputs)
    scored = evaluator.predictions()
    same = tuple(scored.classes) == tuple(evaluator.classes) and set(scored.study_id) <= set(outputs["study_id"])
    require(same, subject, "predictions() is of other classes or studies than it was given")
    if isinstance(evaluator, Predicts):
        told = torch.as_tensor(evaluator.predict(outputs["embeddings"]))
        require(bool(((told >= 0) & (told <= 1)).all()), subject, "predict gives something else than probabilities")
        expected = torch.as_tensor(scored.probabilities)
        require_close(told, expected, subject, "predict and predictions differ on the same embeddings")


def global_rng(subject: Subject) -> None:
    """The global random states stay as they are."""
    with rng_untouched(subject, "building and running it"):
        evaluator = subject.build()
        _compute(evaluator, _outputs(evaluator, perfect=False))
        evaluator.intervals(n_resamples=20, seed=1)


CHECKS = (names, reports, perfect_is_one, split_updates, reset_forgets, class_without_positives, abilities, global_rng)
