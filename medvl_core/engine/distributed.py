"""Several processes as one: gathering with gradients, and gathering of plain objects."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["average_gradients", "gather_objects", "gather_rows", "rank", "speak_once", "world_size"]


def world_size() -> int:
    """Number of processes; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0 outside a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its mean over processes, 0 where a process has none; without any there stays none."""
    found = torch.tensor([one.grad is not None for one in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    for one, there in zip(parameters, found.tolist(), strict=True):
        if there:
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad
            dist.all_reduce(one.grad)
            one.grad /= world_size()


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of every process, in the order of ranks, with gradients to all of them.

    Under ``DistributedDataParallel``, which averages gradients, a loss over the gathered rows gives the gradients of
    one process on the global batch: the backward pass sums over processes what the average divides again. All processes
    must give equally many rows.

    Args:
        rows: ``P ...`` of this process.

    Returns:
        ``(world size * P) ...``; ``rows`` itself outside a process group.
    """
    if world_size() == 1:
        return rows
    if rows.requires_grad:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(list(all_gather(rows.contiguous())))
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_objects(value: Any) -> list[Any]:
    """The value of every process, in the order of ranks. Values may differ in size. Only between trusted processes."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def speak_once() -> None:
    """Process 0 logs for all: of the others, only warnings are shown, each with its process."""
    if rank() == 0:
        return
    logging.captureWarnings(True)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.WARNING)
        handler.setFormatter(logging.Formatter(f"%(asctime)s process {rank()}: %(message)s", "%H:%M:%S"))
