"""What commands of any layer share: JSON instead of a table, and the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["AsJson", "terminal"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def terminal() -> Console:
    """Standard output."""
    from rich.console import Console

    # a pipe has no width: do not fold what a program may read
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)
