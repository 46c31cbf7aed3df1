"""The six hooks. A plugin implements any of them as a function without arguments that returns specs."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from medvl_core.specs import DatasetSpec, EncoderSpec, EvaluatorSpec, LossSpec, PoolingSpec, TextSourceSpec

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "medvl"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def medvl_encoders() -> Iterable[EncoderSpec]:  # type: ignore[empty-body]
    """Encoders of volumes, radiographs or text."""


@hookspec
def medvl_poolings() -> Iterable[PoolingSpec]:  # type: ignore[empty-body]
    """Poolings from tokens to one vector per study or per region."""


@hookspec
def medvl_losses() -> Iterable[LossSpec]:  # type: ignore[empty-body]
    """Losses over a batch of embeddings."""


@hookspec
def medvl_text_sources() -> Iterable[TextSourceSpec]:  # type: ignore[empty-body]
    """Sources of training texts and prompts."""


@hookspec
def medvl_evaluators() -> Iterable[EvaluatorSpec]:  # type: ignore[empty-body]
    """Evaluators: from collected outputs to metrics, tables and figures."""


@hookspec
def medvl_datasets() -> Iterable[DatasetSpec]:  # type: ignore[empty-body]
    """Datasets: from a folder on disk, or a generator, to studies."""
