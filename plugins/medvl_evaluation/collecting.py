"""Outputs of a network for studies that are not judged now: what a probe learns from, what is tried before training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from medvl_core.engine import distributed
from medvl_core.engine.evaluating import plain_outputs
from medvl_core.engine.job import prepare_batch

__all__ = ["collect_outputs"]


def collect_outputs(
    network: torch.nn.Module, dataloader: Iterable[dict[str, Any]], device: torch.device | str = "cpu"
) -> list[dict[str, Any]]:
    """What evaluators are fed, from every process, for studies that they learn from rather than judge.

    Args:
        network: Put on ``device`` and in eval mode.
        dataloader: The studies, in order.
        device: Where it runs.
    """
    network.to(device).eval()
    own = []
    with torch.no_grad():
        for batch in dataloader:
            moved, _ = prepare_batch(batch, device)
            own.append(plain_outputs({"image": moved, "pred": network(moved)}))
    return [output for outputs in distributed.gather_objects(own) for output in outputs]
