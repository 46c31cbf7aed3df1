"""What an evaluator can do, or lets the one that it wraps do."""

from __future__ import annotations

from typing import Any, TypeVar

from medvl_core.protocols import Wraps

__all__ = ["ability"]

Kind = TypeVar("Kind")


def ability(evaluator: Any, kind: type[Kind]) -> Kind | None:
    """The evaluator, or else the first one that it wraps, that has an ability; ``None`` if none has.

    Args:
        evaluator: An instance of `medvl_core.protocols.Evaluator`.
        kind: A protocol there, e.g. `Scores`. A wrapper needs not hand on what it leaves as it is.
    """
    while not isinstance(evaluator, kind):
        if not isinstance(evaluator, Wraps):
            return None
        evaluator = evaluator.evaluator
    return evaluator
