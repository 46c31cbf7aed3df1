"""Tables that name studies: every cell as text, rows numbered as a spreadsheet shows them, labels read strictly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["need_columns", "number_or_text", "read_label", "read_table", "refuse"]

_SHOWN = 20
"""Problems listed in full."""
_UNKNOWN = ("", "nan", "na", "none", "null")


def read_table(path: str | Path, encoding: str = "utf-8", *, only: Callable[[str], bool] | None = None) -> DataFrame:
    """All cells as stripped text, blank where empty; the index counts rows as a spreadsheet does (the header is 1).

    Args:
        path: CSV, also gzipped (``.csv.gz``), parquet, or the first sheet of an Excel file (the extra ``xls``).
        encoding: Of a CSV.
        only: Whether a column is kept, for tables with thousands of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no table: bytes of another encoding, an open quote, a row of another length, a column
            twice; or the reader of Excel files is not installed. The message starts with the path and names the row.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table; give a CSV or parquet file")
    if path.suffix.lower() in (".parquet", ".pq"):
        try:
            rows = pd.read_parquet(path)
            rows = rows.loc[:, [only is None or only(str(name)) for name in rows.columns]]
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: unreadable parquet file ({error}); write it again") from error
        rows = rows.map(lambda cell: "" if pd.isna(cell) else str(cell)).set_axis(range(2, len(rows) + 2))
    elif path.suffix.lower() in (".xls", ".xlsx"):
        rows = _read_excel(path)
        rows = rows.loc[:, [only is None or only(str(name)) for name in rows.columns]]
    else:
        rows = _read_csv(path, encoding, only)
    rows.columns = [str(name).strip() for name in rows.columns]
    repeated = sorted({name for name in rows.columns if list(rows.columns).count(name) > 1})
    if repeated:
        raise ValueError(f"{path}: column {', '.join(repeated)} appears twice; rename one")
    return rows.map(str.strip)


def need_columns(path: str | Path, rows: DataFrame, needed: Sequence[str]) -> None:
    """Refuse a table without one of these columns.

    Raises:
        ValueError: With the missing ones and those there are.
    """
    missing = [name for name in needed if name not in rows]
    if missing:
        hint = "; is it separated by semicolons?" if len(rows.columns) == 1 and ";" in rows.columns[0] else ""
        raise ValueError(f"{path}: no column {', '.join(missing)} among {', '.join(map(str, rows.columns))}{hint}")


def refuse(problems: Sequence[OSError | ValueError]) -> None:
    """Raise all problems of a table at once: one as it is, several as a list, of their own type if they share one."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        kinds = {type(problem) for problem in problems}
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        lines = [f"{len(problems)} problems", *map(str, problems[:_SHOWN]), *more]
        raise (kinds.pop() if len(kinds) == 1 else ValueError)("\n  ".join(lines))


def read_label(where: str, name: str, cell: str) -> float:
    """1, 0, or NaN for a blank cell.

    Args:
        where: File and row, for the message.
        name: The label.
        cell: Its text.

    Raises:
        ValueError: If it is anything else.
    """
    if cell.lower() in _UNKNOWN:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if value not in (0.0, 1.0):
        raise ValueError(f"{where}: {name} is {cell!r}; labels are 1, 0 or blank (map uncertain ones before)")
    return value


def number_or_text(cell: str) -> str | float:
    """A finite number where the cell is one, else its text: for ages, scanners and other subgroups."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return value if math.isfinite(value) else cell  # "nan" and "inf" are words here


def _read_excel(path: Path) -> DataFrame:
    import pandas as pd

    try:
        rows = pd.read_excel(path, dtype=str, keep_default_na=False)
    except ImportError as error:
        raise ValueError(
            f"{path}: Excel tables need a reader; pip install 'medvl[xls]', or save the table as CSV"
        ) from error
    except Exception as error:  # both readers raise many types on damaged files
        raise ValueError(f"{path}: unreadable Excel file ({str(error)[:120]}); save it as CSV") from error
    return rows.set_axis(range(2, len(rows) + 2))


def _read_csv(path: Path, encoding: str, only: Callable[[str], bool] | None) -> DataFrame:
    import csv
    import io

    import pandas as pd

    raw = _unpacked(path)
    try:
        text = raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not {encoding}; "
            "save it as UTF-8 or pass encoding='cp1252'"
        ) from error
    lines: dict[int, list[str]] = {}
    header, kept = None, []
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), strict=True), 1):
            if header is None and cells:
                header = cells
                kept = [i for i, name in enumerate(header) if only is None or only(name.strip())]
            elif header is not None and cells:
                if len(cells) != len(header):
                    raise ValueError(
                        f"{path}, row {number}: {len(cells)} cells, the header has {len(header)}; "
                        "quote cells with commas"
                    )
                lines[number] = [cells[i] for i in kept]
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV table ({error}); look for an unclosed quote") from error
    if header is None:
        raise ValueError(f"{path}: the table is empty; write a header and one row per study")
    return pd.DataFrame(list(lines.values()), columns=[header[i] for i in kept], index=list(lines), dtype=str)


def _unpacked(path: Path) -> bytes:
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    from medvl_imaging.readers.checks import MAX_BYTES, gunzip

    return gunzip(path, raw, MAX_BYTES)
