"""Text files that are whole or not there (written aside, flushed, renamed), and file names that every system takes."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

__all__ = ["safe_name", "write_text"]


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically, making the folder if absent: a killed process leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def safe_name(study_id: str) -> str:
    """A file name, without ending, that every system takes and that two ids never share."""
    name = re.sub(r"[^\w.-]", "_", study_id)
    return name if name == study_id else f"{name}-{hashlib.sha256(study_id.encode()).hexdigest()[:8]}"
