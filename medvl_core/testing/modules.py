"""Checks that every ``nn.Module`` component shares, given a way to run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medvl_core.testing.harness import Subject, as_module, require, require_close, require_no_seeding, rng_untouched

__all__ = ["bf16_is_finite", "global_rng", "gradients", "state_dict_round_trip"]

Run = Callable[[Any], list[Tensor]]
"""Runs an instance on the check's fixed input; gives its float outputs."""


def gradients(subject: Subject, run: Run) -> None:
    """A gradient reaches every trainable parameter."""
    module = as_module(subject.build(), subject).train()
    generator = torch.Generator().manual_seed(1)
    # random weights: the plain sum of a normalised output is constant and would hide nothing but zeros
    total = sum(((out * torch.randn(out.shape, generator=generator)).sum() for out in run(module)), torch.zeros(()))
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return
    total.backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            require(parameter.grad is not None, subject, f"no gradient reaches the trainable parameter {name!r}")
            finite = parameter.grad is not None and bool(parameter.grad.isfinite().all())
            require(finite, subject, f"the gradient of {name!r} is not finite")


def bf16_is_finite(subject: Subject, run: Run) -> None:
    """Outputs are finite under bfloat16 autocast."""
    module = as_module(subject.build(), subject).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for out in run(module):
            require(bool(out.isfinite().all()), subject, "an output is not finite under bfloat16 autocast")


def state_dict_round_trip(subject: Subject, run: Run) -> None:
    """A second instance with other weights gives the same outputs once it has loaded the first one's state dict."""
    first = as_module(subject.build(seed=0), subject).eval()
    second = as_module(subject.build(seed=1), subject).eval()
    second.load_state_dict(first.state_dict(), strict=True)
    with torch.no_grad():
        for expected, actual in zip(run(first), run(second), strict=True):
            require_close(actual, expected, subject, "outputs differ after load_state_dict", tolerance=1e-6)


def global_rng(subject: Subject, run: Run) -> None:
    """Building never seeds, running in eval mode never draws from the global random states."""
    require_no_seeding(subject)
    module = as_module(subject.build(), subject).eval()
    with torch.no_grad(), rng_untouched(subject, "running it in eval mode"):
        run(module)
