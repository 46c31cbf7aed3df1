"""What the contract checks share: the subject under test, its tiny instance, tolerances and guards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medvl_core.build import build_component
from medvl_core.manager import Component

__all__ = ["ContractViolation", "Subject", "as_module", "require", "require_close", "rng_untouched"]

ROWS = 3
"""Batch size of the checks: the smallest in which first, middle and last row differ."""


class ContractViolation(AssertionError):
    """A component breaks its contract. The message starts with its full name."""


@dataclass(frozen=True)
class Subject:
    """One component under test.

    Args:
        component: What is checked.
        options: Gives its options; by default the spec's ``tiny``.
        extras: Makers of the extra batch entries that a loss needs: name → function of the number of pairs.
    """

    component: Component
    options: Callable[[], Mapping[str, Any]] | None = None
    extras: Mapping[str, Callable[[int], Any]] = field(default_factory=dict)

    @property
    def spec(self) -> Any:
        """The component's spec."""
        return self.component.spec

    def build(self, seed: int = 0) -> Any:
        """A tiny instance with weights drawn from ``seed``; the process's own random state is put back."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_component(self.component, self.spec.tiny if self.options is None else self.options())


def require(condition: bool, subject: Subject, message: str) -> None:
    """Raises ``ContractViolation`` unless the condition holds."""
    if not condition:
        raise ContractViolation(f"{subject.component.full_name}: {message}")


def require_close(actual: Tensor, expected: Tensor, subject: Subject, message: str, *, tolerance: float = 1e-4) -> None:
    """Requires equal shapes and a largest difference below ``tolerance`` times the largest expected value (or 1)."""
    require(actual.shape == expected.shape, subject, f"{message}: shapes {actual.shape} and {expected.shape}")
    difference = (actual.double() - expected.double()).abs().max().item() if actual.numel() else 0.0
    scale = max(1.0, expected.double().abs().max().item()) if expected.numel() else 1.0
    # NaN compares as false, so it fails here
    require(difference <= tolerance * scale, subject, f"{message} (largest difference {difference:.3g})")


def as_module(instance: Any, subject: Subject) -> nn.Module:
    """The instance, which must be an ``nn.Module``."""
    require(isinstance(instance, nn.Module), subject, f"the factory gave {type(instance).__name__}, not an nn.Module")
    return instance  # type: ignore[no-any-return]


def _state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state(legacy=False)),
        "random": random.getstate(),
    }


@contextmanager
def rng_untouched(subject: Subject, what: str) -> Iterator[None]:
    """Requires that the block leaves the global random states of torch, numpy and random as they were."""
    before = _state()
    yield
    after = _state()
    changed = [name for name in before if before[name] != after[name]]
    require(not changed, subject, f"{what} changes the global random state of {', '.join(changed)}; take a generator")


def require_no_seeding(subject: Subject) -> None:
    """Building may draw weights from torch's global generator, but must not seed any generator or draw from others."""
    draws = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            numpy_and_random = {name: state for name, state in _state().items() if name != "torch"}
            build_component(subject.component, subject.spec.tiny if subject.options is None else subject.options())
            draws.append(torch.rand(4))
            after = _state()
            changed = [name for name, state in numpy_and_random.items() if state != after[name]]
            require(not changed, subject, f"building it changes the global random state of {', '.join(changed)}")
    require(not torch.equal(*draws), subject, "building it seeds torch's global generator")
