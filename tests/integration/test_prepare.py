"""From a CT-RATE folder to an evaluation, by commands only."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medvl_phantom import PhantomCohort, write_ct_rate_layout
from tests.bundles import running

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bundle without anything made, and CT-RATE v1 beside it."""
    folder = tmp_path_factory.mktemp("commands")
    return running.copy_bundle(folder), write_ct_rate_layout(PhantomCohort(60, (32, 32, 32)), folder, "v1"), folder


def prepare_command(place, *words):
    bundle, data, folder = place
    config = [str(bundle / "configs" / "train.json"), str(running.tiny(bundle))]
    script = [sys.executable, str(bundle / "scripts" / "prepare_triplets.py")]
    return [*script, "--out", str(folder / "out"), *words, "--config_file", *config, *dataset(data)]


def dataset(data: Path) -> list[str]:
    return ["--dataset#name", "x2ct/ct_rate", "--dataset_dir", str(data)]


def prepare(place, *words):
    done = subprocess.run(
        prepare_command(place, *words), env=running.environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def journal(folder):
    return {p: p.stat().st_mtime_ns for p in (folder / "out" / "journal").rglob("*.json") if p.name[0] != "."}


def rows_of_images(bundle):
    """Shards that hold standardised images; those of embeddings are much smaller."""
    made = re.compile(rb"standardise \d+/(ct|cxr)\b")  # embeddings of images name what standardised these too
    return {p.name for p in (bundle / "cache").rglob("*.safetensors") if made.search(p.read_bytes()[:4096])}


def test_killed_preparation_goes_on_and_training_finds_its_work(place):
    bundle, data, folder = place
    n = len(list(data.rglob("*.nii.gz")))
    process = subprocess.Popen(
        prepare_command(place), env=running.environment(), stderr=subprocess.DEVNULL, start_new_session=True
    )
    limit = time.monotonic() + 120
    while len(journal(folder)) < 3 and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)  # the command alone: its workers must notice
    process.wait()
    before = journal(folder)
    assert before

    said = prepare(place)
    after = journal(folder)
    assert f"{n} studies are ready" in said
    assert len(after) == n  # one completion per study
    kept = [path for path, made in before.items() if after[path] == made]
    assert len(kept) == len(before)  # nothing that was done is done again
    films = {p.name: p.read_bytes() for p in (folder / "out" / "cxr").iterdir() if p.name[0] != "."}
    with (folder / "out" / "studies.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(films) == n

    images = rows_of_images(bundle)
    words = [*dataset(data), "--exclude", str(folder / "out" / "failed.csv")]
    trained = running.run(bundle, *words)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert rows_of_images(bundle) == images  # training made no image again
    evaluated = running.run(bundle, *words, configs=("train.json", "evaluate.json"))
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert "trained vs the others" in evaluated.stdout

    tables(bundle, folder, words)

    alone = prepare(place, "--workers", "0", "--out", str(folder / "serial"))
    assert f"{n} studies are ready" in alone
    assert {p.name: p.read_bytes() for p in (folder / "serial" / "cxr").iterdir()} == films  # same bytes
    assert (folder / "serial" / "studies.csv").read_bytes() == (folder / "out" / "studies.csv").read_bytes()


def tables(bundle, folder, words):
    """The protocol of the paper on the trained bundle, and its tables printed beside the published ones."""
    few = ["--draws", "1", "--few_shot#validation", "0.3", "--output_dir", str(folder / "protocol")]
    configs = ("train.json", "evaluate.json", "protocol.json")
    protocol = running.run(bundle, *words, *few, configs=configs)
    assert protocol.returncode == 0, protocol.stdout + protocol.stderr
    command = [sys.executable, str(bundle / "scripts" / "tables.py"), "2", "3", "4a"]
    command += ["--eval", f"ct_rate={folder / 'protocol'}"]
    printed = subprocess.run(command, env=running.environment(), capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    for title in ("Table 2", "Table 3", "Table 4a"):
        assert title in printed.stdout


def test_embeddings_of_a_teacher_are_found_by_training(place):
    bundle, data, folder = place
    teacher = str(bundle / "models" / "teacher.pt")
    first = running.run(bundle, *dataset(data), "--epochs", "1")
    assert first.returncode == 0, first.stdout + first.stderr
    kept = folder / "teacher.pt"
    Path(teacher).rename(kept)
    for path in (bundle / "cache").rglob("*.safetensors"):
        if path.name not in rows_of_images(bundle):
            path.unlink()
    prepare(place, "--make", "embeddings", "--out", str(folder / "embedded"), "--stage1_weights", str(kept))
    stores = set((bundle / "cache").rglob("*.safetensors"))
    again = running.run(bundle, *dataset(data), "--epochs", "1", "--stage1_weights", str(kept))
    assert again.returncode == 0, again.stdout + again.stderr
    assert set((bundle / "cache").rglob("*.safetensors")) == stores  # nothing left to embed


def test_running_cluster_by_its_address(place):
    from distributed import LocalCluster

    folder = place[2]
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        prepare(place, "--scheduler", cluster.scheduler_address, "--splits", "test", "--out", str(folder / "cluster"))
    with (folder / "cluster" / "failed.csv").open() as file:
        assert file.read() == "study,reason\n"
