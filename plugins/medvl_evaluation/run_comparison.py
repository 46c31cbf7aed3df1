"""Two evaluation folders, case by case: paired tests of their AUROCs, refused unless the cases are the same."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medvl_core.errors import EXIT_DATA, MedvlError, did_you_mean
from medvl_evaluation.comparison import Context
from medvl_evaluation.metrics import DeLongTest, areas_statistic, bootstrap_ci, delong_test, difference_statistic
from medvl_evaluation.predictions import Predictions, read_predictions

__all__ = ["PairedRow", "PairedTest", "RunsDifferError", "compare_predictions", "compare_runs"]

_SUFFIX = "_predictions.csv"
_VALIDATION = "validation_"


class RunsDifferError(MedvlError):
    """Two runs cannot be compared: they were evaluated on other cases, labels or classes."""

    exit_code = EXIT_DATA


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRow:
    """AUROC of both runs for one class or average; NaN where there is none. ``difference`` is A - B.

    Args:
        name: Class, or ``"macro"`` or ``"micro"``.
        kind: What it is.
        n_positive: Known positives.
        n_negative: Known negatives.
        auroc_a: Of run A.
        auroc_b: Of run B.
        difference: A - B.
        low: Lower bound of the difference.
        high: Upper bound of the difference.
        z: DeLong's statistic.
        p: Two-tailed p-value.
        p_holm: After Holm's correction over the classes; of an average NaN.
    """

    name: str
    kind: Literal["class", "average"]
    n_positive: int
    n_negative: int
    auroc_a: float
    auroc_b: float
    difference: float
    low: float
    high: float
    z: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """The rows of one task, and what they rest on."""

    task: str
    context: Context
    rows: tuple[PairedRow, ...]

    def caption(self) -> str:
        """One line: cases, tests, correction."""
        on = self.context
        several = on.n_subjects < on.n_studies
        clusters = "several studies of a subject counted as dependent" if several else "one study per subject"
        return (
            f"{self.task}: {on.n_studies} studies of {on.n_subjects} subjects ({clusters}); differences A - B with "
            f"{100 * on.level:g} % intervals; two-tailed DeLong test, Holm over classes; macro by {on.n_resamples} "
            f"bootstrap resamples of subjects, seed {on.seed}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes ``None``."""
        names = ("n_studies", "n_subjects", "level", "n_resamples", "seed")
        context = {name: getattr(self.context, name) for name in names}
        rows = [{name: _finite(getattr(row, name)) for name in PairedRow.__dataclass_fields__} for row in self.rows]
        return {"task": self.task, **context, "caption": self.caption(), "rows": rows}


def compare_runs(
    run_a: str | Path,
    run_b: str | Path,
    task: str | None = None,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, PairedTest]:
    """Compare the predictions of two evaluation folders.

    Args:
        run_a: Folder that an evaluation wrote.
        run_b: The other one.
        task: One table of predictions, by its stem without ``_predictions``; ``None``: all that both runs have.
        level: Confidence level.
        n_resamples: Bootstrap resamples for the macro average.
        seed: Of the resamples.

    Returns:
        Task → paired test.

    Raises:
        FileNotFoundError: If a folder holds no evaluation.
        RunsDifferError: If the runs share no task, a file is damaged, or studies, subjects, classes or labels differ.
    """
    stems = [_tasks(Path(run)) for run in (run_a, run_b)]
    common = [name for name in stems[0] if name in stems[1]]
    if task is not None and task not in common:
        hint = did_you_mean(task, common)
        raise RunsDifferError(
            f"{run_a} and {run_b} share no predictions {task!r}, only {', '.join(common) or 'none'}{hint}"
        )
    if not common:
        raise RunsDifferError(
            f"{run_a} has predictions of {', '.join(stems[0]) or 'nothing'}, {run_b} of "
            f"{', '.join(stems[1]) or 'nothing'}; evaluate both with the same evaluators"
        )
    tests = {}
    for name in [task] if task is not None else common:
        paths = [Path(run) / f"{name}{_SUFFIX}" for run in (run_a, run_b)]
        try:
            first, second = map(read_predictions, paths)
        except ValueError as error:
            raise RunsDifferError(str(error)) from error
        tests[name] = compare_predictions(first, second, name, level, n_resamples, seed, names=tuple(map(str, paths)))
    return tests


def compare_predictions(
    first: Predictions,
    second: Predictions,
    task: str = "predictions",
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    names: Sequence[str] = ("run A", "run B"),
) -> PairedTest:
    """Paired DeLong test per class and for the micro average; the macro average by a paired bootstrap.

    Studies of one subject are not independent: where a subject has several, the clustered variance of DeLong's test is
    used, and the bootstrap draws subjects.

    Args:
        first: Predictions of run A.
        second: Of run B: the same studies, classes and labels, in any order.
        task: Name for the caption.
        level: Confidence level.
        n_resamples: Bootstrap resamples for the macro average.
        seed: Of the resamples.
        names: What errors call the two.

    Raises:
        RunsDifferError: If studies, subjects, classes or labels differ.
    """
    _same_names("class", "classes", first.classes, second.classes, names)
    _same_names("study", "studies", first.study_id, second.study_id, names)
    a, b = first.sorted(first.classes), second.sorted(first.classes)
    _same_cases(a, b, names)
    subjects = np.asarray(a.subject_id)
    n_subjects = len(set(a.subject_id))
    clusters = subjects if n_subjects < len(subjects) else None
    classes = delong_test(a.labels, a.scores, b.scores, level, clusters=clusters)
    micro = delong_test(a.labels, a.scores, b.scores, level, average="micro", clusters=clusters)
    positive, negative = (a.labels == 1).sum(axis=0), (a.labels == 0).sum(axis=0)
    rows = [_row(name, classes, c, int(positive[c]), int(negative[c])) for c, name in enumerate(a.classes)]
    sizes = int(positive.sum()), int(negative.sum())
    rows.append(_macro(a, b, sizes, level, n_resamples, seed))
    rows.append(_row("micro", micro, None, *sizes))
    context = Context(n_studies=len(subjects), n_subjects=n_subjects, n_resamples=n_resamples, seed=seed, level=level)
    return PairedTest(task=task, context=context, rows=tuple(rows))


def _tasks(run: Path) -> list[str]:
    path = run / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run}: holds no metrics.json; give the folder an evaluation wrote (a bundle's eval/)")
    try:
        tables = json.loads(path.read_text(encoding="utf-8")).get("tables", ())
        names = [name.removesuffix(_SUFFIX) for name in tables if name.endswith(_SUFFIX)]
    except (ValueError, AttributeError, TypeError) as error:
        raise RunsDifferError(f"{path}: damaged ({error}); run the evaluation again") from error
    return [name for name in names if not name.startswith(_VALIDATION)]


def _same_names(one: str, many: str, first: Sequence[str], second: Sequence[str], names: Sequence[str]) -> None:
    lacking = [
        [name for name in theirs if name not in set(ours)] for ours, theirs in ((second, first), (first, second))
    ]
    for run, other, lost in ((names[0], names[1], lacking[0]), (names[1], names[0], lacking[1])):
        if lost:
            raise RunsDifferError(
                f"{run} has {len(lost)} {many} that {other} lacks, {one} {lost[0]!r} among them; a paired test needs "
                "the same ones, evaluate both runs on the same data"
            )


def _same_cases(a: Predictions, b: Predictions, names: Sequence[str]) -> None:
    for study, ours, theirs in zip(a.study_id, a.subject_id, b.subject_id, strict=True):
        if ours != theirs:
            raise RunsDifferError(f"study {study!r} is of subject {ours!r} in {names[0]}, of {theirs!r} in {names[1]}")
    differ = (a.labels != b.labels) & ~(np.isnan(a.labels) & np.isnan(b.labels))
    if differ.any():
        row, column = np.argwhere(differ)[0]
        raise RunsDifferError(
            f"study {a.study_id[row]!r}: label {a.classes[column]!r} is {a.labels[row, column]:g} in {names[0]} but "
            f"{b.labels[row, column]:g} in {names[1]} ({int(differ.sum())} such); evaluate both on the same labels"
        )


def _row(name: str, test: DeLongTest, column: int | None, n_positive: int, n_negative: int) -> PairedRow:
    def value(entry: Any) -> float:
        return float(entry if column is None else entry[column])

    return PairedRow(
        name=name,
        kind="average" if column is None else "class",
        n_positive=n_positive,
        n_negative=n_negative,
        auroc_a=value(test.auc_a),
        auroc_b=value(test.auc_b),
        difference=value(test.difference),
        low=value(test.ci_difference[0]),
        high=value(test.ci_difference[1]),
        z=value(test.z),
        p=value(test.p_value),
        p_holm=math.nan if column is None else value(test.p_holm),
    )


def _macro(
    a: Predictions, b: Predictions, sizes: tuple[int, int], level: float, n_resamples: int, seed: int
) -> PairedRow:
    statistics = [areas_statistic(run.labels, run.scores) for run in (a, b)]
    first, second = (float(part(np.ones((len(a.labels), 1), np.float32))[0, 0, 0]) for part in statistics)
    difference = difference_statistic(*statistics)
    interval = bootstrap_ci(difference, a.subject_id, n_resamples, seed, level, method="standard_error")
    low, high = float(interval.low[0, 0]), float(interval.high[0, 0])
    counts = {"n_positive": sizes[0], "n_negative": sizes[1]}
    values: dict[str, Any] = {
        "auroc_a": first,
        "auroc_b": second,
        "difference": first - second,
        "low": low,
        "high": high,
    }
    return PairedRow(name="macro", kind="average", **counts, **values)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
