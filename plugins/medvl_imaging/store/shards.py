"""One immutable file of rows: valid safetensors, with keys in its metadata and a SHA-256 per row."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medvl_core.engine.files import atomic

__all__ = ["DamagedShard", "Key", "Shard", "row_digest", "write_shard"]

Key = tuple[str, str]
"""Study id and fingerprint of the input."""

_CODE = {"float32": "F32", "float16": "F16"}


class DamagedShard(ValueError):
    """A file that is no whole shard. The message starts with its path."""


def row_digest(key: Key, row: np.ndarray) -> bytes:
    """SHA-256 over key and bytes, so that neither a flipped value nor a flipped key goes unnoticed."""
    digest = hashlib.sha256(json.dumps(key).encode())
    digest.update(np.ascontiguousarray(row).data)
    return digest.digest()


class Shard:
    """A file of rows, mapped when they are read.

    Args:
        path: The file.

    Attributes:
        metadata: What the writer stated about all rows.
        keys: One per row.
        layout: Offset and bytes of the rows, their shape and dtype.

    Raises:
        DamagedShard: If the file is cut, empty or garbled. Rows themselves are checked on use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                size = os.fstat(file.fileno()).st_size
                if not 2 <= length <= size - 8:
                    raise DamagedShard(f"{path}: {size} bytes are no whole shard")
                header = json.loads(file.read(length))
            self.metadata = json.loads(header["__metadata__"]["store"])
            self.keys: list[Key] = [
                (study, fingerprint) for study, fingerprint in json.loads(header["__metadata__"]["keys"])
            ]
            shape, dtype = (len(self.keys), *self.metadata["shape"]), np.dtype(self.metadata["dtype"])
            n_bytes = int(np.prod(shape)) * dtype.itemsize
            if size != 8 + length + n_bytes + 32 * len(self.keys):
                raise DamagedShard(
                    f"{path}: {size} bytes, its header needs {8 + length + n_bytes + 32 * len(self.keys)}"
                )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, DamagedShard):
                raise
            raise DamagedShard(f"{path}: unreadable header ({type(error).__name__})") from error
        self.layout = (8 + length, n_bytes, shape, dtype)

    @property
    def rows(self) -> np.ndarray:
        """``n *shape``, read-only view of the file."""
        return _mapped(self)[0]

    @property
    def digests(self) -> np.ndarray:
        """SHA-256 of each row, ``n 32``, uint8."""
        return _mapped(self)[1]


@lru_cache(maxsize=1 << 14)  # a system allows some 65,000 maps per process, and a store may have more files than that
def _mapped(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    offset, n_bytes, shape, dtype = shard.layout
    content = np.memmap(shard.path, np.uint8, "r", offset)
    return np.asarray(content[:n_bytes]).view(dtype).reshape(shape), np.asarray(content[n_bytes:]).reshape(-1, 32)


def write_shard(
    target: Path,
    metadata: dict[str, Any],
    items: Iterable[tuple[Key, np.ndarray]],
) -> Path:
    """Write rows one after another to a temporary file, flush it to the disk, and rename it.

    Args:
        target: The file, or a folder: then the file is named by its content, and equal shards replace each other.
        metadata: JSON values that describe all rows, ``shape`` and ``dtype`` of one row among them.
        items: Keys and rows; rows may be views of other shards.

    Returns:
        The file.

    Raises:
        OSError: With the path and the missing megabytes when the disk is full. The temporary file is removed.
    """
    folder = target if target.is_dir() else target.parent
    items = list(items)
    header = _header(metadata, [key for key, _ in items])
    digests = [row_digest(key, row) for key, row in items]
    name = hashlib.sha256(header + b"".join(digests)).hexdigest()[:40]
    path = folder / f"{name}.safetensors" if target.is_dir() else target
    try:
        with atomic(path) as file:
            file.write(header)
            for _, row in items:
                file.write(np.ascontiguousarray(row).data)
            file.writelines(digests)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        n_bytes = len(header) + sum(row.nbytes + 32 for _, row in items)
        missing = max(n_bytes - shutil.disk_usage(folder).free, 0) / 1e6
        text = f"{folder}: disk full, {n_bytes / 1e6:.1f} MB to write and {missing:.1f} MB missing"
        raise OSError(error.errno, f"{text}; free space and run again, earlier rows are kept") from error
    _sync_folder(folder)
    return path


def _header(metadata: dict[str, Any], keys: list[Key]) -> bytes:
    shape, dtype = [len(keys), *metadata["shape"]], np.dtype(metadata["dtype"])
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    header = {
        "__metadata__": {"store": json.dumps(metadata), "keys": json.dumps(keys)},
        "rows": {"dtype": _CODE[dtype.name], "shape": shape, "data_offsets": [0, n_bytes]},
        "sha256": {"dtype": "U8", "shape": [len(keys), 32], "data_offsets": [n_bytes, n_bytes + 32 * len(keys)]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # rows start aligned
    return len(text).to_bytes(8, "little") + text


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
