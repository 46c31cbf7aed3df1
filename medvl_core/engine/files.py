"""Files that are whole or not there (written aside, flushed, renamed), and file names that every system takes."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["atomic", "read_text", "safe_name", "write_csv", "write_text"]

_LONGEST = 200  # bytes of a name without digest and ending; systems take 255


@contextmanager
def atomic(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends: flushed to the disk, then renamed; the folder is made.

    A killed process leaves the old file or the new one, and perhaps a ``.tmp-*`` beside it. A block that raises leaves
    the old file alone.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # no ending: what looks for files of a kind must not find half of one
    partial = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(8)}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text as `atomic` does."""
    with atomic(path) as file:
        file.write(text.encode("utf-8"))
    return Path(path)


def write_csv(path: str | Path, header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a table as `atomic` does: UTF-8, commas, a line feed after each row."""
    lines = [header, *rows]
    # before Python 3.13 a lone carriage return is not quoted, and a reader would break the row there
    broken = any("\r" in str(cell) for line in lines for cell in line)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if broken else csv.QUOTE_MINIMAL).writerows(lines)
    return write_text(path, text.getvalue())


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not UTF-8. The message starts with the path.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte 0x{error.object[error.start]:02x} at {error.start} is not UTF-8; save it as UTF-8"
        ) from error


def safe_name(study_id: str) -> str:
    """A file name, without ending, that every system takes and that two ids never share."""
    name = re.sub(r"[^\w.-]", "_", study_id).encode()[:_LONGEST].decode(errors="ignore")
    return name if name == study_id else f"{name}-{hashlib.sha256(study_id.encode()).hexdigest()[:8]}"
