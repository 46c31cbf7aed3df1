"""What a job needs before its stages: a name, a device, its processes, its batches."""

from __future__ import annotations

import atexit
import json
import logging
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from medvl_core.engine import distributed
from medvl_core.engine.files import write_text

__all__ = ["default_device", "prepare_batch", "set_seed", "start_job", "start_process_group"]

logger = logging.getLogger(__name__)


def start_job(folder: str | Path, resume: bool, name: str) -> str:
    """Name the job, once: a fresh start forgets earlier checkpoints and thresholds, a resume keeps job and name.

    Args:
        folder: The bundle's ``models/``.
        resume: Whether to continue the job recorded there.
        name: First part of the job's name, e.g. the bundle's.

    Returns:
        ``<name>-<date>-<time>-<process>``, the same on every process.
    """
    record = Path(folder) / "job.json"
    job = ""
    if distributed.rank() == 0:
        record.parent.mkdir(parents=True, exist_ok=True)
        if resume and record.is_file():
            job = json.loads(record.read_text())["job"]
        else:
            if resume:
                logger.info("%s: nothing to resume yet, starting from the beginning", folder)
            for pattern in ("*_last.pt", "*_last_previous.pt", "thresholds.csv"):  # the last is of other weights
                for stale in record.parent.glob(pattern):
                    stale.unlink()
            job = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            write_text(record, json.dumps({"job": job}))
    return str(distributed.gather_objects(job)[0])


def default_device() -> torch.device:
    """The process's own GPU, or the CPU."""
    own = ("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else ("cpu",)
    return torch.device(*own)


def prepare_batch(
    batch: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **to: Any
) -> tuple[dict[str, Any], None]:
    """Move the batch's tensors; the model reads the whole dictionary. The ``prepare_batch`` of MONAI's engines."""
    moved = {
        key: value.to(device=device, non_blocking=non_blocking, **to) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
    return moved, None


def set_seed(seed: int) -> None:
    """Seed weight initialisation. Everything after it is seeded per step and per sample, see ``ExactResume``."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def start_process_group() -> None:
    """Join the processes that torchrun started: NCCL where there are GPUs, gloo elsewhere. The first logs for all."""
    import ignite.distributed as idist

    if not dist.is_initialized():
        use_cuda = torch.cuda.is_available()
        if use_cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend="nccl" if use_cuda else "gloo")
        atexit.register(dist.destroy_process_group)
    distributed.speak_once()
    idist.sync()  # Ignite joins by a collective; done here on every rank, it cannot hang in a handler of rank 0
