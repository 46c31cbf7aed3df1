"""What a bundle trains with: stages over MONAI's trainer and evaluator, handlers, functions; no loop of our own."""

from medvl_core.engine.alignment import AlignmentLoss, AlignmentModel, Tower
from medvl_core.engine.evaluating import MeanLoss, PluginMetric, SaveBest
from medvl_core.engine.guard import GuardStep, NonFiniteError
from medvl_core.engine.job import default_device, prepare_batch, set_seed, start_job, start_process_group
from medvl_core.engine.loading import Cohort, StudyDataset, Text, modalities, rng_for, study_loader
from medvl_core.engine.parts import trained_part
from medvl_core.engine.progress import EpochLine
from medvl_core.engine.resume import ExactResume
from medvl_core.engine.stage import Job, Stage
from medvl_core.engine.stop import StopRequested, handle_signals
from medvl_core.engine.tracking import TrackedRun, track_evaluation

__all__ = [
    "AlignmentLoss",
    "AlignmentModel",
    "Cohort",
    "EpochLine",
    "ExactResume",
    "GuardStep",
    "Job",
    "MeanLoss",
    "NonFiniteError",
    "PluginMetric",
    "SaveBest",
    "Stage",
    "StudyDataset",
    "Text",
    "Tower",
    "StopRequested",
    "TrackedRun",
    "default_device",
    "handle_signals",
    "modalities",
    "prepare_batch",
    "rng_for",
    "set_seed",
    "study_loader",
    "start_job",
    "start_process_group",
    "track_evaluation",
    "trained_part",
]
