"""Before training, all that would fail later is tried with a few studies, and all problems come in one list."""

from __future__ import annotations

import copy
import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from medvl_core.bundle.startup import explain, running_parser
from medvl_core.engine.job import prepare_batch
from medvl_core.engine.loading import StudyDataset, collate
from medvl_core.errors import EXIT_DATA, MedvlError
from medvl_evaluation.collecting import collect_outputs
from medvl_evaluation.splits.leakage import refuse_leaks

__all__ = ["PreflightError", "refuse_leaks", "rehearse"]

_STUDIES, _ROWS = 4, 20
"""Studies of a dry step; rows listed per dataset."""
_NAMES = ("study_id", "subject_id", "scan_id", "metadata")


class PreflightError(MedvlError):
    """What would have failed later, one line per problem."""

    exit_code = EXIT_DATA


def rehearse(*parts: Any) -> None:
    """Try every row, encoder, pooling, loss and evaluator of stages and evaluations, and leave no trace.

    Each stage makes one step and one validation with up to four studies, each evaluation one pass, all with copies:
    weights, statistics, memories of losses, random states and stores stay. Evaluators see these outputs as if they were
    those of more studies. Rows that an earlier stage has yet to make
    are stood in for by the field's ``blank``. Evaluators that learn from studies of their own are built, not run.

    Args:
        parts: Stages and evaluations in their order, or their config ids, by which each is built here.

    Raises:
        PreflightError: One line per problem, those of building included.
    """
    problems: list[str] = []
    built = []
    for part in parts:
        with _listed(problems):
            built.append(running_parser().get_parsed_content(part) if isinstance(part, str) else part)  # type: ignore[union-attr]
    with _aside():
        for part in filter(None, built):
            (_try_stage if hasattr(part, "stage") else _try_evaluation)(part, problems)
    if lines := list(dict.fromkeys(" ".join(problem.split()) for problem in problems)):
        raise PreflightError("\n  ".join([f"{len(lines)} problem(s), nothing was trained:", *lines]))


def _try_stage(stage: Any, problems: list[str]) -> None:
    parts = stage.model, stage.evaluator.network, stage.loss.without_gathering(), list(stage.metrics.values())
    model, judged, loss, metrics = copy.deepcopy(parts)
    size, device, where = stage.data_loader.batch_sampler.batch_size, stage.job.device, f"{stage.stage}, training"
    if batch := _batch(stage.data_loader.dataset, size, problems, where, epoch=1):
        with _listed(problems, where):
            loss.train()(model.train()(prepare_batch(batch, device)[0])).backward()
    if validation := getattr(stage.evaluator.data_loader, "dataset", None):
        where = f"{stage.stage}, validation"
        batch = _batch(validation, stage.evaluator.data_loader.batch_sampler.batch_size, problems, where)
        _try_pass(judged, metrics, validation, batch, device, problems, where)
        if batch and stage.validates_loss:
            with _listed(problems, where):
                loss.eval()(judged.eval()(prepare_batch(batch, device)[0]))


def _try_evaluation(evaluation: Any, problems: list[str]) -> None:
    loaders = {id(one): getattr(_innermost(one), "train", None) for one in evaluation.evaluators}
    running = [one for one in evaluation.evaluators if loaders[id(one)] is None]
    networks, evaluators = copy.deepcopy((evaluation.networks, running))
    dataset, size = evaluation.dataloader.dataset, evaluation.dataloader.batch_sampler.batch_size
    batch = _batch(dataset, size, problems, "evaluation")
    for loader in filter(None, loaders.values()):
        _whole(loader.dataset, problems)
    for network in networks.values():
        for one in map(_innermost, evaluators):
            if hasattr(one, "embed_text") and getattr(network, "embed_text", None):
                one.embed_text = network.embed_text
        _try_pass(network, evaluators, dataset, batch, evaluation.device, problems, "evaluation", final=True)


def _try_pass(
    network: nn.Module,
    evaluators: Sequence[Any],
    dataset: StudyDataset,
    batch: Any,
    device: Any,
    problems: list[str],
    where: str,
    final: bool = False,
) -> None:
    outputs: list[dict[str, Any]] = []
    with _listed(problems, where):
        outputs = collect_outputs(network, [batch] if batch else [], device)[:1]
    for evaluator in evaluators if outputs else ():
        with _listed(problems, f"{where}, {type(evaluator).__name__}"):
            evaluator.reset()
            for output in _for_more(outputs[0], dataset):
                evaluator.update(output)
            evaluator.compute()
            if final:
                _ = evaluator.intervals(10, 0), evaluator.chance(), evaluator.tables(10, 0)


def _for_more(output: Mapping[str, Any], dataset: StudyDataset) -> Iterator[dict[str, Any]]:
    """Evaluators may need more patients: the outputs stirred, under the names and labels of up to 200 studies."""
    size, draw = len(output["study_id"]), torch.Generator().manual_seed(0)
    for first in range(0, min(len(dataset), 200), size):
        part = dataset.studies[first : first + size]
        if len(part) < size and any(len(rows) != size for rows in output["embeddings"].values()):
            return  # rows of regions: not cut
        own: dict[str, Any] = {name: [getattr(study, name) for study in part] for name in _NAMES}
        own["embeddings"] = {
            name: functional.normalize(rows + torch.randn(rows.shape, generator=draw), dim=-1)
            for name, rows in output["embeddings"].items()
        }
        labels = torch.tensor([[study.labels.get(name, np.nan) for name in dataset.label_names] for study in part])
        own |= {"labels": labels.float()} if labels.shape[1:] == output["labels"].shape[1:] else {}
        cut = {name: value[: len(part)] for name, value in output.items() if name not in own and len(value) == size}
        if len(part) < size:
            own["embeddings"] = {name: rows[: len(part)] for name, rows in own["embeddings"].items()}
        yield {**output, **cut, **own}


def _batch(dataset: StudyDataset, size: int, problems: list[str], where: str, epoch: int = 0) -> dict[str, Any] | None:
    """A few studies that have all they need; ``None`` if there is none, or one cannot be read."""
    chosen = _whole(dataset, problems)[: min(size, _STUDIES)]
    dry = copy.copy(dataset)
    dry.fields = {name: getattr(field, "blank", field) for name, field in dataset.fields.items()}
    with _listed(problems, where):
        return collate([dry[(epoch, i) if epoch else i] for i in chosen]) if chosen else None
    return None


def _whole(dataset: StudyDataset, problems: list[str]) -> list[int]:
    """Positions of the studies that every field's ``check`` finds complete; the others are listed."""
    checks = [field.check for field in dataset.fields.values() if hasattr(field, "check")]
    lines: list[list[str]] = []
    for study in dataset.studies:
        lines.append([])
        for check in checks:
            with _listed(lines[-1]):
                check(study)
    told = [line for found in lines for line in found]
    problems += told[:_ROWS]
    problems += [f"... and {len(told) - _ROWS} more rows like these"] if len(told) > _ROWS else []
    return [position for position, found in enumerate(lines) if not found]


def _innermost(evaluator: Any) -> Any:
    while hasattr(evaluator, "evaluator"):
        evaluator = evaluator.evaluator
    return evaluator


@contextmanager
def _listed(problems: list[str], where: str = "") -> Iterator[None]:
    """An error becomes a line, with the component in whose code it arose."""
    try:
        yield
    except Exception as error:  # of any plugin
        component, trace = "", error.__traceback__
        while trace is not None:
            owner = trace.tb_frame.f_locals.get("self")
            component = getattr(owner, "component", component) if isinstance(owner, nn.Module) else component
            trace = trace.tb_next
        told = explain(error).removeprefix("ValueError: ")
        problems.append(": ".join(filter(None, (where, component, told))))


@contextmanager
def _aside() -> Iterator[None]:
    """Random states are put back, and what is said of so few studies is nobody's concern."""
    states, silenced = (np.random.get_state(), random.getstate()), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(silenced)
        np.random.set_state(states[0])
        random.setstate(states[1])
