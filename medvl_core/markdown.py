"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> str:
    """A table, without a line break at the end.

    Args:
        columns: The header.
        rows: As many cells each; a ``|`` within a cell is escaped.
        title: Bold line above.

    Raises:
        ValueError: If a row has more or fewer cells than there are columns.
    """
    lines: list[Sequence[str]] = [columns, ["---"] * len(columns)]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"row {list(row)} has {len(row)} cells; the table has {len(columns)} columns")
        lines.append([cell.replace("|", "\\|") for cell in row])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"**{title}**\n\n{table}" if title else table
