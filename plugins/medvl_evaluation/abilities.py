"""What an evaluator can do beyond the protocol, or lets the one that it wraps do.

`Classifies`, `Scores` and `Predicts`, which the contract kit checks, are in `medvl_core.protocols`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from medvl_core.protocols import Evaluator

__all__ = ["Learns", "ReadsTexts", "Wraps", "ability"]


@runtime_checkable
class Learns(Protocol):
    """Ability: it learns from other studies, those of the loader ``train``; ``None``: from none."""

    train: Any

    def learn(self, outputs: Sequence[Mapping[str, Any]]) -> None:
        """Their outputs, before each pass of a network; ``reset`` does not undo it."""


@runtime_checkable
class ReadsTexts(Protocol):
    """Ability: it embeds texts by ``embed_text``, settable. A network that has one lends it to evaluators."""

    embed_text: Any


@runtime_checkable
class Wraps(Protocol):
    """Ability: it feeds another ``evaluator``, which is asked for every ability that the wrapper lacks."""

    evaluator: Evaluator


def ability(evaluator: Any, kind: type) -> Any:
    """The evaluator, or else the first one that it wraps, that has an ability; ``None`` if none has.

    Args:
        evaluator: An instance of `medvl_core.protocols.Evaluator`.
        kind: One of the protocols.
    """
    while not isinstance(evaluator, kind):
        if not isinstance(evaluator, Wraps):
            return None
        evaluator = evaluator.evaluator
    return evaluator
