from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from medvl_imaging import scale
from medvl_imaging.scale import Journal, ScaleError, map_studies
from tests.conftest import synthetic_studies


@dataclass(frozen=True)
class Work:
    """Writes one file per study and a line per call; misbehaves once or always for some studies."""

    out: Path
    kills: str = ""  # study whose first call kills its worker half-way
    fatal: str = ""  # study that always kills its worker
    bad: str = ""
    error: Exception | None = None

    def __call__(self, study):
        with (self.out / "calls.log").open("a") as log:
            log.write(f"{study.study_id}\n")
        array = study.images["ct"].load().array
        target = self.out / f"{study.study_id}.bin"
        if study.study_id == self.fatal or (study.study_id == self.kills and not target.with_suffix(".part").exists()):
            target.with_suffix(".part").write_bytes(array.tobytes()[:100])
            os.kill(os.getpid(), signal.SIGKILL)
        if study.study_id == self.bad:
            raise self.error or ValueError(f"{study.study_id}: damaged")
        target.write_bytes(array.tobytes())
        return {"file": target.name, "sum": float(array.sum())}

    def calls(self) -> Counter[str]:
        return Counter((self.out / "calls.log").read_text().split())

    def results(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.glob("*.bin")}


@pytest.fixture
def folder(tmp_path):
    def make(name):
        (tmp_path / name).mkdir()
        return tmp_path / name

    return make


def journal(folder, task="a"):
    return Journal(folder / "journal", task)


def files(folder):
    return [path for path in (folder / "journal").rglob("*") if path.is_file()]


def test_records_come_in_the_order_of_the_studies_and_bad_ones_are_listed(folder):
    out = folder("a")
    work = Work(out, bad="study3")
    report = map_studies(work, synthetic_studies(6), journal(out), workers=0)
    assert list(report.records) == ["study0", "study1", "study2", "study4", "study5"]
    assert report.records["study1"]["file"] == "study1.bin"
    assert report.failed == {"study3": "study3: damaged"}
    assert report.computed == 6
    again = map_studies(work, synthetic_studies(7), journal(out), workers=0)
    assert again.computed == 2  # the bad one is tried again, the new one is done
    assert list(again.records) == [*report.records, "study6"]
    assert work.calls() == Counter({f"study{i}": 1 for i in range(7)}) + Counter(["study3"])
    repaired = map_studies(Work(out), synthetic_studies(7), journal(out), workers=0)
    assert (repaired.failed, len(repaired.records), repaired.computed) == ({}, 7, 1)


def test_stopped_pass_goes_on_where_it_was(folder):
    out = folder("a")
    with pytest.raises(KeyboardInterrupt):
        map_studies(Work(out, bad="study2", error=KeyboardInterrupt()), synthetic_studies(5), journal(out), workers=0)
    work = Work(out)
    assert len(map_studies(work, synthetic_studies(5), journal(out), workers=0).records) == 5
    assert work.calls() == Counter({f"study{i}": 1 for i in range(5)}) + Counter(["study2"])


def test_killed_worker_loses_nothing_and_doubles_nothing(folder):
    alone, shared = folder("serial"), folder("dask")
    expected = map_studies(Work(alone), synthetic_studies(24), journal(alone), workers=0)
    work = Work(shared, kills="study7")
    report = map_studies(work, synthetic_studies(24), journal(shared), workers=2)
    assert (shared / "study7.part").exists()  # the worker did die, half-way
    assert report.failed == {}
    assert report.records == expected.records
    assert list(report.records) == list(expected.records)
    assert work.results() == Work(alone).results()
    assert len(files(shared)) == 24  # one completion per study
    started_again = work.calls() - Counter({f"study{i}": 1 for i in range(24)})
    assert set(started_again) == {"study7"}
    assert map_studies(work, synthetic_studies(24), journal(shared), workers=2).computed == 0


def test_study_that_kills_every_worker_is_listed(folder):
    import dask

    out = folder("a")
    work = Work(out, fatal="study1")
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        report = map_studies(work, synthetic_studies(6), journal(out), workers=2)
    assert list(report.failed) == ["study1"]  # and none of those that were beside it
    assert "every worker that tried it died" in report.failed["study1"]
    assert len(report.records) == 5


def test_cluster_is_closed_only_when_dead_workers_are_replaced(monkeypatch):
    """Dask's nanny can fail when it is closed while it starts a worker; here the start takes a while."""
    import distributed
    from distributed.process import AsyncProcess

    start, leave, left = AsyncProcess.start, distributed.LocalCluster.__exit__, []

    async def late(process):
        await asyncio.sleep(0.5)
        await start(process)

    def closing(cluster, *error):
        left.append(len(cluster.scheduler.workers))
        return leave(cluster, *error)

    monkeypatch.setattr(distributed.LocalCluster, "__exit__", closing)
    with scale._client(distributed, None, 1, None) as client:
        monkeypatch.setattr(AsyncProcess, "start", late)
        (pid,) = client.run(os.getpid).values()
        os.kill(pid, signal.SIGKILL)
        while client.scheduler_info(n_workers=-1)["workers"]:
            time.sleep(0.01)
    assert left == [1]


def test_running_cluster_is_used_by_its_address(folder):
    from distributed import LocalCluster

    out = folder("a")
    with LocalCluster(n_workers=0, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        with pytest.raises(ScaleError, match="the scheduler has no workers; start some with 'dask worker tcp://"):
            map_studies(Work(out), synthetic_studies(3), journal(out), scheduler=address)
        cluster.scale(1)
        cluster.wait_for_workers(1)
        assert len(map_studies(Work(out), synthetic_studies(3), journal(out), scheduler=address).records) == 3
        assert len(map_studies(Work(out), synthetic_studies(5), journal(out), scheduler=address).records) == 5
    assert Work(out).calls() == Counter({f"study{i}": 1 for i in range(5)})


def test_absent_scheduler_is_named(folder, monkeypatch):
    monkeypatch.setattr(scale, "_CONNECT", "1s")
    with pytest.raises(ScaleError, match=r"tcp://127\.0\.0\.1:9: no Dask scheduler answers"):
        map_studies(Work(folder("a")), synthetic_studies(1), journal(folder("b")), scheduler="tcp://127.0.0.1:9")


def test_dask_is_needed_for_processes_only(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    out = folder("a")
    with pytest.raises(ScaleError, match=r"pip install medvl\[scale\], or use one process"):
        map_studies(Work(out), synthetic_studies(2), journal(out))
    assert map_studies(Work(out), synthetic_studies(2), journal(out), workers=0).computed == 2


def test_study_whose_worker_died_after_finishing_is_not_done_again(folder):
    out = folder("a")
    work, (study, other) = Work(out, bad="study1"), synthetic_studies(2)
    task = scale._Task(work, journal(out), lambda study: "", "run")
    first = task(study)
    assert task(study) == first  # what Dask does when it lost the result
    assert task(other) == task(other)
    assert work.calls() == Counter(["study0", "study1"])


def test_other_task_changed_source_and_damaged_file_are_done_again(folder):
    out = folder("a")
    work, studies = Work(out), synthetic_studies(2)
    assert map_studies(work, studies, journal(out), workers=0, version=lambda s: "1").computed == 2
    assert map_studies(work, studies, journal(out), workers=0, version=lambda s: "1").computed == 0
    assert map_studies(work, studies, journal(out), workers=0, version=lambda s: s.study_id[-1]).computed == 1
    assert map_studies(work, studies, journal(out, "b"), workers=0).computed == 2
    journal(out).path("study0").write_text('{"study": "stu')
    assert map_studies(work, studies, journal(out, "b"), workers=0).computed == 1


def test_full_disk_stops_the_pass(folder):
    out = folder("a")
    full = OSError(errno.ENOSPC, "disk full")
    for workers in (0, 1):
        with pytest.raises(OSError, match="disk full"):
            map_studies(
                Work(out, bad="study1", error=full), synthetic_studies(4), journal(out, str(workers)), workers=workers
            )


@pytest.mark.parametrize(("error", "reason"), [(KeyError("x"), "KeyError: 'x'"), (ValueError("a\nb"), "a")])
def test_reasons_are_one_line(folder, error, reason):
    out = folder("a")
    report = map_studies(Work(out, bad="study0", error=error), synthetic_studies(1), journal(out), workers=0)
    assert report.failed == {"study0": reason}


def test_record_that_is_no_json_is_a_failure(folder):
    report = map_studies(lambda study: {"x": {1}}, synthetic_studies(1), journal(folder("a")), workers=0)
    assert report.failed == {"study0": "TypeError: Object of type set is not JSON serializable"}


def test_wrong_arguments_are_named(folder):
    out = folder("a")
    with pytest.raises(ScaleError, match="share study ids"):
        map_studies(Work(out), synthetic_studies(1) * 2, journal(out), workers=0)
    with pytest.raises(ScaleError, match="workers is -1"):
        map_studies(Work(out), synthetic_studies(1), journal(out), workers=-1)
