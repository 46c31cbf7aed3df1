"""What a bundle trains with: stages over MONAI's trainer and evaluator, handlers, functions; no loop of our own."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "alignment": "AlignmentLoss AlignmentModel Tower",
    "evaluating": "MeanLoss PluginMetric SaveBest",
    "guard": "GuardStep NonFiniteError",
    "job": "default_device prepare_batch set_seed start_job start_process_group",
    "loading": "Cohort StudyDataset Text modalities rng_for study_loader",
    "parts": "trained_part",
    "progress": "EpochLine Steps tell_written",
    "resume": "ExactResume",
    "stage": "Job Stage",
    "stop": "StopRequested handle_signals",
    "tracking": "TrackedRun",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Each from its module when first asked for: what needs only files or weights loads no MONAI."""
    if name not in _MODULES:
        raise AttributeError(f"module 'medvl_core.engine' has no attribute {name!r}")
    return getattr(import_module(f"medvl_core.engine.{_MODULES[name]}"), name)
