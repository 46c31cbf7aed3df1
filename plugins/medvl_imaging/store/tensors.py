"""Embedding store: one row per study, computed once, found by content, checked before it is used."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medvl_imaging.store.shards import DamagedShard, Key, Shard, row_digest, write_shard

__all__ = ["Key", "TensorStore"]

_log = logging.getLogger(__name__)
_VERSION = 1
_STALE_S = 24 * 3600
_SMALL, _MERGED = 2**24, 2**28  # bytes: files up to the first are merged into files up to the second


class TensorStore:
    """Rows of one shape, keyed by ``(study_id, fingerprint of the input)``.

    The folder below ``folder`` is named by a digest of producer, preprocessing, shape and dtype, so results of another
    model or another preprocessing are never mixed in. A source that changes gets another fingerprint, so another key:
    stale rows are not served. Every row carries a SHA-256 over its key and bytes, checked the first time this process
    reads it; a row that fails is missing, is logged once, and is computed again by ``fill``. Rows live in immutable
    safetensors files written as temporary file, fsync, rename: a kill or a full disk loses at most the batch under way,
    and several processes may write at once.

    Study ids are stored as they are, also in exported files: use pseudonyms, as a dataset should anyway.

    Args:
        folder: Where stores live; made when needed.
        producer: Digest of the weights that made the rows, or name and version of another process.
        preprocessing: Digest of the preprocessing, ``ImageInput.digest()``.
        shape: Shape of one row.
        dtype: What rows are stored as.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        producer: str,
        preprocessing: str,
        shape: tuple[int, ...],
        dtype: Literal["float32", "float16"] = "float32",
    ) -> None:
        if dtype not in ("float32", "float16") or any(n < 1 for n in shape):
            raise ValueError(
                f"{folder}: rows of shape {shape}, {dtype!r}; sizes are positive, dtypes float32 and float16"
            )
        self.producer, self.preprocessing, self.dtype = producer, preprocessing, np.dtype(dtype)
        self.shape = tuple(int(n) for n in shape)
        digest = hashlib.sha256(json.dumps(self.metadata, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder) / digest[:32]
        self._single: Path | None = None
        self._forget()

    @classmethod
    def open(cls, path: str | Path) -> TensorStore:
        """A read-only store over one exported file; ``producer`` and ``preprocessing`` are the file's.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged or no exported store.
        """
        path = Path(path)
        try:
            content = Shard(path).metadata
            store = cls(path.parent, **{k: content[k] for k in ("producer", "preprocessing", "shape", "dtype")})
        except (DamagedShard, KeyError, TypeError) as error:
            raise ValueError(f"{path}: no exported store ({error}); export it again") from error
        store._single = path
        store._refresh()
        if not store._rows:
            raise ValueError(f"{path}: no exported store of this version; export it again")
        return store

    @property
    def metadata(self) -> dict[str, Any]:
        """What makes rows comparable: version, producer, preprocessing, shape, dtype."""
        own = {"producer": self.producer, "preprocessing": self.preprocessing}
        return {"version": _VERSION, **own, "shape": list(self.shape), "dtype": self.dtype.name}

    def __len__(self) -> int:
        self._refresh()
        return len(self._rows)

    def __contains__(self, key: Key) -> bool:
        return not self.missing([key])

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers get the address, not the maps."""
        if self._single is not None:
            return TensorStore.open, (self._single,)
        return _rebuild, (self.folder.parent, self.producer, self.preprocessing, self.shape, self.dtype.name)

    def keys(self) -> list[Key]:
        """Keys of all rows, sorted."""
        self._refresh()
        return sorted(self._rows)

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """The keys without a row that passes its check, in their order, each once."""
        self._refresh()
        return [key for key in dict.fromkeys(map(_as_key, keys)) if self._find(key) is None]

    def get(self, key: Key) -> np.ndarray:
        """The row of a key: a read-only view of the mapped file.

        Raises:
            KeyError: If it is missing or damaged; ``fill`` computes it.
        """
        key = _as_key(key)
        if (row := self._find(key)) is None:
            self._refresh()
            if (row := self._find(key)) is None:
                raise KeyError(
                    f"{self._where()}: no row for study {key[0]!r} with input {key[1][:12]}; fill the store first"
                )
        return row

    def get_batch(self, keys: Sequence[Key]) -> np.ndarray:
        """Rows of several keys, copied: ``len(keys) *shape``."""
        out = np.empty((len(keys), *self.shape), self.dtype)
        for target, key in zip(out, keys, strict=True):
            target[...] = self.get(key)
        return out

    def put(self, keys: Sequence[Key], rows: np.ndarray) -> None:
        """Store rows, durably when it returns.

        Args:
            keys: One per row.
            rows: ``len(keys) *shape``; cast to the store's dtype.

        Raises:
            ValueError: If shape or number differ, or a value is NaN or Inf; the message names the studies.
            OSError: If the disk is full (path and missing megabytes are named) or not writable.
        """
        if self._single is not None:
            raise ValueError(f"{self._single}: an exported store is read-only; put rows into a folder store")
        keys = [_as_key(key) for key in keys]
        with np.errstate(over="ignore"):  # what overflows float16 is named below
            rows = np.ascontiguousarray(rows, self.dtype)
        if rows.shape != (len(keys), *self.shape):
            raise ValueError(
                f"{self.folder}: {len(keys)} keys and rows of shape {rows.shape}; {(len(keys), *self.shape)} is needed"
            )
        bad = [key[0] for key, row in zip(keys, rows, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise ValueError(
                f"{self.folder}: rows of studies {bad} are not finite as {self.dtype}; look at these studies first"
            )
        if keys:
            self._add(self._write(list(zip(keys, rows, strict=True))))

    def fill(
        self,
        keys: Sequence[Key],
        compute: Callable[[list[int]], np.ndarray],
        *,
        batch_size: int = 32,
        description: str = "Embedding",
    ) -> int:
        """Compute and store what is missing, batch by batch; run it again after a kill to go on.

        Args:
            keys: All keys that will be read; a repeated key is computed once.
            compute: Positions in ``keys`` → rows ``n *shape``.
            batch_size: Rows per call, and per file.
            description: Shown beside the progress bar.

        Returns:
            How many rows were computed.
        """
        position = {key: i for i, key in reversed(list(enumerate(map(_as_key, keys))))}
        todo = [position[key] for key in self.missing(keys)]
        if not todo:
            return 0
        from rich.console import Console
        from rich.progress import track

        title = f"{description} ({len(todo)} of {len(position)})"
        for start in track(range(0, len(todo), batch_size), title, console=Console(stderr=True), transient=True):
            batch = todo[start : start + batch_size]
            self.put([keys[i] for i in batch], compute(batch))
        return len(todo)

    def export(self, path: str | Path) -> Path:
        """Write all valid rows, sorted by key, as one safetensors file; equal rows give equal bytes."""
        path = Path(path)
        keys = [key for key in self.keys() if self._find(key) is not None]
        if not keys:
            raise ValueError(f"{self._where()}: the store has no rows to export; fill it first")
        return write_shard(path, self.metadata, [(key, self.get(key)) for key in keys])

    def compact(self) -> None:
        """Merge small files, and remove damaged ones and old temporary ones; for a store filled one row at a time.

        A kill leaves every row in one file or in two. Other processes may read and write meanwhile, but on a network
        drive no other machine may: it could lose a file that it has mapped.
        """
        self._refresh()
        shards = {shard.path: shard for places in self._rows.values() for shard, _ in places}
        sizes = {path: identity[2] for path, identity in self._seen if path in shards and identity[2] <= _SMALL}
        damaged = {path for path, _ in self._seen} - set(shards)
        done: set[Key] = set()
        for group in _groups(sizes) if len(sizes) > 1 else ():
            keys = sorted({key for path in group for key in shards[path].keys} - done)
            rows = [(key, np.array(row)) for key in keys if (row := self._find(key)) is not None]
            done.update(key for key, _ in rows)
            self._remove(group - {self._write(rows)} if rows else group)
        self._remove(damaged)
        for path in self.folder.glob(".tmp-*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _STALE_S:
                    path.unlink()
        self._forget()

    def _remove(self, paths: set[Path]) -> None:
        for path, identity in self._seen:
            # another process may have removed it, or put a repaired file in its place
            with suppress(FileNotFoundError):
                if path in paths and _identity(path) == identity:
                    path.unlink()

    def _where(self) -> Path:
        return self._single or self.folder

    def _forget(self) -> None:
        self._seen: set[tuple[Path, tuple[int, int, int]]] = set()
        self._rows: dict[Key, list[tuple[Shard, int]]] = {}
        self._checked: set[tuple[Shard, int]] = set()

    def _refresh(self) -> None:
        """Take in files that appeared since the last look. A replaced file counts as new."""
        for path in [self._single] if self._single else sorted(self.folder.glob("*.safetensors")):
            try:
                seen = (path, _identity(path))
                if seen not in self._seen:
                    self._seen.add(seen)
                    self._take(Shard(path))
            except FileNotFoundError:
                return self._refresh()  # merged by another process meanwhile: list again
            except DamagedShard as error:
                _log.warning("%s; ignored, its rows are computed again", error)

    def _take(self, shard: Shard) -> None:
        if shard.metadata != self.metadata or shard.rows.shape[1:] != self.shape or shard.rows.dtype != self.dtype:
            raise DamagedShard(f"{shard.path}: header belongs to another store")
        for i, key in enumerate(shard.keys):
            self._rows.setdefault(key, []).append((shard, i))

    def _find(self, key: Key) -> np.ndarray | None:
        """The checked row, or ``None``. Copies that fail are dropped, so each is reported once."""
        places = self._rows.get(key, [])
        while places:
            shard, i = places[-1]
            try:
                row = shard.rows[i]
                if (shard, i) in self._checked or row_digest(key, row) == shard.digests[i].tobytes():
                    self._checked.add((shard, i))  # of this copy: another process may store the key again
                    return row
                _log.warning("%s: the row of study %r fails its checksum; it is computed again", shard.path, key[0])
            except (FileNotFoundError, ValueError):
                pass  # merged by another process, or cut since its header was read
            places.pop()
        return None

    def _write(self, items: list[tuple[Key, np.ndarray]]) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return write_shard(self.folder, self.metadata, items)

    def _add(self, path: Path) -> None:
        try:
            self._seen.add((path, _identity(path)))
            self._take(Shard(path))
        except FileNotFoundError:
            self._refresh()  # already merged by another process


def _groups(sizes: Mapping[Path, int]) -> Iterator[set[Path]]:
    """Files to merge into one, in the order of their names."""
    group: set[Path] = set()
    total = 0
    for path in sorted(sizes):
        total += sizes[path]
        if group and total > _MERGED:
            yield group
            group, total = set(), sizes[path]
        group.add(path)
    yield group


def _identity(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return (stat.st_ino, stat.st_mtime_ns, stat.st_size)


def _as_key(key: Key) -> Key:
    study_id, fingerprint = key
    return (str(study_id), str(fingerprint))


def _rebuild(folder: Path, producer: str, preprocessing: str, shape: tuple[int, ...], dtype: Any) -> TensorStore:
    return TensorStore(folder, producer=producer, preprocessing=preprocessing, shape=shape, dtype=dtype)
