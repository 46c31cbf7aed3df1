"""Work on many studies, each once: a resumable map over a Dask cluster with a journal. Needs ``medvl[scale]``.

Each study has one small file in the journal, written aside and renamed by the worker that finished it. So nothing is
lost when a worker, the scheduler or the command itself is killed, and nothing finished is done again: not by a Dask
retry, and not by the next run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from medvl_core.engine.files import write_text
from medvl_core.errors import MedvlError
from medvl_core.study import Study

__all__ = ["Journal", "ScaleError", "ScaleReport", "map_studies"]

logger = logging.getLogger(__name__)
Record = Mapping[str, Any]
_CONNECT = "10s"
_AHEAD = 2  # studies in flight per worker: enough to keep it busy, few to suspect when it dies
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class ScaleError(MedvlError):
    """The map cannot start or cannot go on; what is done stays in the journal."""


@dataclass(frozen=True, slots=True)
class ScaleReport:
    """What is known after a pass.

    Args:
        records: Study id → what the function returned, in the order of the studies; from earlier passes too.
        failed: Study id → reason, for the studies that were skipped.
        computed: How many studies this pass finished.
    """

    records: dict[str, dict[str, Any]]
    failed: dict[str, str]
    computed: int


class Journal:
    """A folder with one file per study that is done or failed.

    Args:
        folder: Made when needed. Workers must see it under the same path.
        task: What the records depend on besides the study: options, as text or digest. Records of another task do not
            count.
    """

    def __init__(self, folder: str | Path, task: str) -> None:
        self.folder = Path(folder)
        self.task = hashlib.sha256(task.encode()).hexdigest()[:16]

    def path(self, study_id: str) -> Path:
        """Its file; two hundred and fifty-six folders keep each small."""
        name = hashlib.sha256(study_id.encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.json"

    def read(self, study_id: str, version: str) -> dict[str, Any] | None:
        """The entry of a study; ``None`` if there is none for this version and task, or its file is damaged."""
        try:
            entry = json.loads(self.path(study_id).read_text(encoding="utf-8"))
            same = [entry["study"], entry["version"], entry["task"]] == [study_id, version, self.task]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            logger.warning("%s: damaged journal file; its study is done again", self.path(study_id))
            return None
        return entry if same else None

    def write(self, study_id: str, version: str, **outcome: Any) -> dict[str, Any]:
        """Record ``record=`` or ``error=`` atomically."""
        entry = {"study": study_id, "version": version, "task": self.task, **outcome}
        write_text(self.path(study_id), json.dumps(entry, sort_keys=True))
        return entry


def map_studies(
    function: Callable[[Study], Record],
    studies: Sequence[Study],
    journal: Journal,
    *,
    scheduler: str | None = None,
    workers: int = 2,
    memory_limit: str | None = None,
    version: Callable[[Study], str] | None = None,
    description: str = "Preparing",
) -> ScaleReport:
    """Call ``function`` once for every study that is not done, and record what it returns.

    A study whose call raises is recorded with its reason and skipped; the next pass tries it again. A worker that dies
    is replaced and its studies go to others; one that ends every worker is tried alone at the end, then recorded as
    failed. Run it again after a kill to go on.

    Args:
        function: Does the work of one study, writes its files atomically and returns a small JSON mapping. It is sent
            to every worker once, so it may carry models.
        studies: What to map over; ids are unique.
        journal: Where results are recorded.
        scheduler: Address of a running Dask cluster (``"tcp://host:8786"``) whose workers have medvl and see the same
            file system. ``None`` starts processes on this machine.
        workers: Processes of one thread each on this machine; 0 works in this process, without Dask.
        memory_limit: Per local worker, e.g. ``"8GiB"``: one that exceeds it is restarted. ``None`` shares the machine's
            memory.
        version: Of a study's sources, e.g. their sizes and times; a changed one is done again. ``None``: never.
        description: Shown beside the progress bar.

    Returns:
        Records and failures of all ``studies``.

    Raises:
        ScaleError: If Dask is not installed, the scheduler cannot be reached or has no workers, or a study id occurs
            twice.
        OSError: If the disk is full: going on would only fail again.
    """
    if len({study.study_id for study in studies}) < len(studies):
        raise ScaleError(f"{len(studies)} studies share study ids; give each its own, results are kept by id")
    task = _Task(function, journal, version or _unversioned, secrets.token_hex(8))
    entries = {study.study_id: journal.read(study.study_id, task.version(study)) for study in studies}
    done = {study_id for study_id, entry in entries.items() if entry is not None and "record" in entry}
    todo = [study for study in studies if study.study_id not in done]
    logger.info("%s: %d studies, %d already done", description, len(studies), len(done))
    serial = workers == 0 and scheduler is None
    with _progress(description, len(todo)) as advance:
        for entry in map(task, todo) if serial else _on_dask(task, todo, scheduler, workers, memory_limit):
            entries[entry["study"]] = entry
            advance()
    found = {study_id: entry for study_id, entry in entries.items() if entry is not None}
    return ScaleReport(
        {study_id: entry["record"] for study_id, entry in found.items() if "record" in entry},
        {study_id: entry["error"] for study_id, entry in found.items() if "error" in entry},
        len(todo),
    )


@dataclass(frozen=True)
class _Task:
    """The call of one study with its journal, as a worker runs it."""

    function: Callable[[Study], Record]
    journal: Journal
    version: Callable[[Study], str]
    run: str

    def __call__(self, study: Study) -> dict[str, Any]:
        version = self.version(study)
        entry = self.journal.read(study.study_id, version)
        if entry is not None and ("record" in entry or entry["run"] == self.run):
            return entry  # done by a worker that died before it could say so
        try:
            record = dict(self.function(study))
            json.dumps(record)
        except Exception as error:  # a bad case is recorded and skipped, whatever it raises
            if isinstance(error, OSError) and error.errno in _FULL:
                raise
            return self.journal.write(study.study_id, version, error=_reason(error), run=self.run)
        return self.journal.write(study.study_id, version, record=record)


def _unversioned(study: Study) -> str:
    return ""


def _reason(error: Exception) -> str:
    message = (str(error) or type(error).__name__).splitlines()[0]
    return message if isinstance(error, (ValueError, OSError, MedvlError)) else f"{type(error).__name__}: {message}"


def _on_dask(
    task: _Task, studies: list[Study], scheduler: str | None, workers: int, memory_limit: str | None
) -> Iterator[dict[str, Any]]:
    """Entries in the order of completion."""
    if not studies:
        return
    distributed = _distributed()
    with _client(distributed, scheduler, workers, memory_limit) as client:
        name = f"medvl-{task.run}"
        carrier = type("Carrier", (distributed.WorkerPlugin,), {"task": task})()
        client.register_plugin(carrier, name=name)  # kept by the scheduler: a restarted worker gets it too
        try:
            suspects: list[Study] = []
            n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
            for study, future in _flow(client, name, studies, _AHEAD * n_workers):
                try:
                    yield future.result()
                except distributed.KilledWorker:  # or one beside it did: Dask blames all that a lost worker held
                    suspects.append(study)
            for study in suspects:
                yield _alone(task, study, client.submit(_run, name, study, pure=False), distributed)
        finally:
            client.unregister_worker_plugin(name)


def _flow(client: Any, name: str, studies: list[Study], ahead: int) -> Iterator[tuple[Study, Any]]:
    """Studies with their futures as they complete; a new one is submitted for each."""
    from distributed import as_completed

    waiting = iter(studies)
    owner: dict[Any, Study] = {}

    def submit(n: int) -> list[Any]:
        new = {client.submit(_run, name, study, pure=False): study for study in islice(waiting, n)}
        owner.update(new)
        return list(new)

    completed = as_completed(submit(ahead), loop=client.loop)
    for future in completed:
        yield owner.pop(future), future
        completed.update(submit(1))


def _run(name: str, study: Study) -> dict[str, Any]:
    from distributed import get_worker

    worker: Any = get_worker()
    return worker.plugins[name].task(study)


def _alone(task: _Task, study: Study, future: Any, distributed: Any) -> dict[str, Any]:
    """The outcome of a study while no other runs."""
    try:
        return future.result()
    except distributed.KilledWorker:
        reason = f"{study.study_id}: every worker that tried it died, which is memory or a crashing decoder"
        return task.journal.write(study.study_id, task.version(study), error=reason, run=task.run)


@contextmanager
def _client(distributed: Any, scheduler: str | None, workers: int, memory_limit: str | None) -> Iterator[Any]:
    if scheduler is not None:
        try:
            client = distributed.Client(scheduler, timeout=_CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ScaleError(
                f"{scheduler}: no Dask scheduler answers ({error}); start one with 'dask scheduler'"
            ) from error
        with client:
            if not client.scheduler_info(n_workers=-1)["workers"]:
                raise ScaleError(
                    f"{scheduler}: the scheduler has no workers; start some with 'dask worker {scheduler}'"
                )
            yield client
        return
    if workers < 1:
        raise ScaleError(f"workers is {workers}; give 0 for this process or a positive number")
    options = {
        "memory_limit": memory_limit or "auto",
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": logging.ERROR,
    }
    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, **options) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client
        with suppress(TimeoutError):  # closing while Dask starts a dead worker anew ends in its AssertionError
            client.wait_for_workers(workers, timeout=_CONNECT)


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ScaleError(
            "dask.distributed is not installed; run: pip install medvl[scale], or use one process (workers 0)"
        ) from error
    return distributed


@contextmanager
def _progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=total == 0) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)
