"""What MONAI's trainer and evaluator need to run a medvl bundle: handlers and small functions, no loop of our own."""

from medvl_core.engine.evaluating import MeanLoss, PluginMetric, SaveBest
from medvl_core.engine.guard import GuardStep, NonFiniteError
from medvl_core.engine.job import prepare_batch, set_seed, start_job, start_process_group, train_or_load
from medvl_core.engine.progress import EpochLine
from medvl_core.engine.resume import ExactResume
from medvl_core.engine.stop import StopRequested, handle_signals
from medvl_core.engine.tracking import TrackedRun, track_evaluation

__all__ = [
    "EpochLine",
    "ExactResume",
    "GuardStep",
    "MeanLoss",
    "NonFiniteError",
    "PluginMetric",
    "SaveBest",
    "StopRequested",
    "TrackedRun",
    "handle_signals",
    "prepare_batch",
    "set_seed",
    "start_job",
    "start_process_group",
    "track_evaluation",
    "train_or_load",
]
