"""What an evaluator can do beyond the protocol, or lets the one that it wraps do."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from medvl_core.protocols import Evaluator

__all__ = ["Wraps", "ability"]


@runtime_checkable
class Wraps(Protocol):
    """Ability: it feeds another ``evaluator``, which is asked for every ability that the wrapper lacks."""

    evaluator: Evaluator


def ability(evaluator: Any, kind: type) -> Any:
    """The evaluator, or else the first one that it wraps, that has an ability; ``None`` if none has.

    Args:
        evaluator: An instance of `medvl_core.protocols.Evaluator`.
        kind: `Classifies`, `Scores`, `Predicts`, `Learns` or `ReadsTexts` of `medvl_core.protocols`.
    """
    while not isinstance(evaluator, kind):
        if not isinstance(evaluator, Wraps):
            return None
        evaluator = evaluator.evaluator
    return evaluator
