"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> str:
    """A table, without a line break at the end.

    Args:
        columns: The header.
        rows: As many cells each; a ``|`` in a cell or the header is escaped.
        title: Bold line above.

    Raises:
        ValueError: If a row has more or fewer cells than there are columns.
    """
    lines = [list(columns), ["---"] * len(columns)]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"row {list(row)} has {len(row)} cells; the table has {len(columns)} columns")
        lines.append(list(row))
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"**{title}**\n\n{table}" if title else table
