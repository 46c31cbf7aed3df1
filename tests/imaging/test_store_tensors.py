import errno
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from medvl_imaging.store.tensors import TensorStore

ROOT = Path(__file__).parents[2]
KEYS = [(f"study{i}", f"{i:064x}") for i in range(12)]


def make(folder, **changes) -> TensorStore:
    return TensorStore(folder, **{"producer": "weights-1", "preprocessing": "input-1", "shape": (8,), **changes})


def values(keys) -> np.ndarray:
    return np.stack([np.random.default_rng(int(f, 16)).normal(size=8) for _, f in keys]).astype(np.float32)


def filled(folder, **changes) -> TensorStore:
    store = make(folder, **changes)
    store.fill(KEYS, lambda rows: values([KEYS[i] for i in rows]), batch_size=4)
    return store


def shards(store) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


def test_rows_come_back_bit_identical_in_another_process_too(tmp_path):
    filled(tmp_path)
    again = make(tmp_path)
    assert len(again) == 12
    assert KEYS[3] in again
    assert ("other", KEYS[3][1]) not in again
    np.testing.assert_array_equal(again.get_batch(KEYS), values(KEYS))


def test_rows_are_read_only_views_of_the_mapped_file(tmp_path):
    row = filled(tmp_path).get(KEYS[0])
    assert not row.flags.writeable
    base = row
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)


def test_fill_computes_each_missing_row_once(tmp_path):
    calls = []

    def compute(rows):
        calls.extend(rows)
        return values([KEYS[i] for i in rows])

    store = make(tmp_path)
    store.put(KEYS[:3], values(KEYS[:3]))
    assert store.fill([*KEYS, *KEYS], compute, batch_size=5) == 9
    assert calls == list(range(3, 12))
    assert store.fill(KEYS, compute) == 0


def test_other_producer_preprocessing_shape_or_dtype_never_mix(tmp_path):
    filled(tmp_path)
    others = ({"producer": "weights-2"}, {"preprocessing": "input-2"}, {"shape": (4, 2)}, {"dtype": "float16"})
    for change in others:
        assert make(tmp_path, **change).missing(KEYS) == KEYS


def test_changed_source_is_another_key(tmp_path):
    store = filled(tmp_path)
    changed = (KEYS[0][0], "f" * 64)
    assert store.missing([KEYS[0], changed]) == [changed]
    with pytest.raises(KeyError, match="no row for study 'study0' with input ffffffffffff; fill the store first"):
        store.get(changed)


@pytest.mark.parametrize("where", ["row", "digest", "key", "header"])
def test_one_flipped_bit_is_missed_reported_once_and_rebuilt(tmp_path, caplog, where):
    path = shards(filled(tmp_path))[0]
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    at = {"row": 8 + length + 5, "digest": len(raw) - 1, "key": raw.index(b"study"), "header": raw.index(b"weights-1")}
    raw[at[where]] ^= 1
    path.write_bytes(raw)
    store = make(tmp_path)
    with caplog.at_level(logging.WARNING):
        lost = store.missing(KEYS)
        assert store.missing(KEYS) == lost
    assert len(lost) == (4 if where == "header" else 1)
    assert len([r for r in caplog.records if str(path) in r.getMessage()]) == (0 if where == "key" else 1)
    computed = store.fill(KEYS, lambda rows: values([KEYS[i] for i in rows]))
    assert computed == len(lost)
    np.testing.assert_array_equal(make(tmp_path).get_batch(KEYS), values(KEYS))


def test_every_single_flipped_byte_gives_the_right_row_or_none(tmp_path):
    store = make(tmp_path)
    store.put(KEYS[:2], values(KEYS[:2]))
    path = shards(store)[0]
    good = path.read_bytes()
    served = 0
    for at in range(0, len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        again = make(tmp_path)
        for key, expected in zip(KEYS[:2], values(KEYS[:2]), strict=True):
            if key in again:
                served += 1
                np.testing.assert_array_equal(again.get(key), expected)
    assert 0 < served < 2 * len(good)


@pytest.mark.parametrize("content", [b"", b"\x08", b"garbage" * 50, "cut", "longer"])
def test_unreadable_file_is_ignored_and_its_rows_are_computed_again(tmp_path, caplog, content):
    path = shards(filled(tmp_path))[1]
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "longer": whole + b"x"}.get(content, content))
    store = make(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert len(store.missing(KEYS)) == 4
    assert "ignored, its rows are computed again" in caplog.text
    store.fill(KEYS, lambda rows: values([KEYS[i] for i in rows]), batch_size=4)
    np.testing.assert_array_equal(make(tmp_path).get_batch(KEYS), values(KEYS))


def test_key_stored_again_by_another_process_is_checked_too(tmp_path, caplog):
    store = make(tmp_path)
    store.put(KEYS[:1], values(KEYS[:1]))
    assert store.missing(KEYS[:2]) == KEYS[1:2]
    known = shards(store)
    make(tmp_path).put(KEYS[:2], values(KEYS[:2]))
    (path,) = set(shards(store)) - set(known)
    raw = bytearray(path.read_bytes())
    raw[8 + int.from_bytes(raw[:8], "little")] ^= 1  # in the row of the first key
    path.write_bytes(raw)
    assert store.missing(KEYS[:2]) == []
    np.testing.assert_array_equal(store.get_batch(KEYS[:2]), values(KEYS[:2]))
    assert "study 'study0' fails its checksum" in caplog.text


def test_wrong_rows_are_refused_with_the_studies(tmp_path):
    store = make(tmp_path)
    rows = values(KEYS)
    rows[4, 2] = np.nan
    with pytest.raises(ValueError, match=r"rows of studies \['study4'\] are not finite"):
        store.put(KEYS, rows)
    with pytest.raises(ValueError, match="rows of shape"):
        store.put(KEYS, rows[:3])
    with pytest.raises(ValueError, match="not finite as float16"):
        make(tmp_path, dtype="float16").put(KEYS[:1], np.full((1, 8), 1e6, np.float32))
    with pytest.raises(ValueError, match="sizes are positive"):
        make(tmp_path, shape=(0,))


def test_export_is_one_safetensors_file_and_opens_as_a_store(tmp_path):
    store = filled(tmp_path / "a")
    path = store.export(tmp_path / "shared.safetensors")
    np.testing.assert_array_equal(load_file(path)["rows"], np.stack([store.get(key) for key in sorted(KEYS)]))
    opened = TensorStore.open(path)
    assert (opened.producer, opened.preprocessing, opened.shape) == ("weights-1", "input-1", (8,))
    np.testing.assert_array_equal(opened.get_batch(KEYS), values(KEYS))
    with pytest.raises(ValueError, match="read-only"):
        opened.put(KEYS[:1], values(KEYS[:1]))
    backwards = make(tmp_path / "b")
    backwards.fill(KEYS[::-1], lambda rows: values([KEYS[::-1][i] for i in rows]), batch_size=5)
    assert backwards.export(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_open_refuses_what_is_no_export(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nonsense" * 10)
    with pytest.raises(ValueError, match="no exported store"):
        TensorStore.open(path)
    with pytest.raises(ValueError, match="no rows to export"):
        make(tmp_path).export(path)


def test_compact_leaves_one_file_with_the_valid_rows(tmp_path):
    store = filled(tmp_path)
    path = shards(store)[0]
    raw = bytearray(path.read_bytes())
    raw[8 + int.from_bytes(raw[:8], "little")] ^= 1
    path.write_bytes(raw)
    stale, fresh = store.folder / ".tmp-1-a", store.folder / ".tmp-2-b"
    for file in (stale, fresh):
        file.write_bytes(b"x")
    os.utime(stale, (0, 0))
    reader = make(tmp_path)
    held = reader.get(KEYS[11])
    again = make(tmp_path)
    again.compact()
    assert len(shards(store)) == 1
    assert not stale.exists()
    assert fresh.exists()
    assert len(again) == 11
    np.testing.assert_array_equal(held, values(KEYS[11:])[0])  # an open map outlives its file
    again.compact()
    assert len(again) == 11


def test_compact_of_a_large_store_merges_small_files_group_by_group(tmp_path, monkeypatch):
    store = make(tmp_path)
    for key in KEYS[1:]:
        store.put([key], values([key]))
    store.put(KEYS, values(KEYS))
    large = max(shards(store), key=lambda path: path.stat().st_size)
    small = shards(store)[0].stat().st_size
    monkeypatch.setattr("medvl_imaging.store.tensors._SMALL", large.stat().st_size - 1)
    monkeypatch.setattr("medvl_imaging.store.tensors._MERGED", 4 * small + 50)
    reader = make(tmp_path)
    assert reader.missing(KEYS) == []
    again = make(tmp_path)
    again.compact()
    assert large in shards(store)  # as it was
    assert len(shards(store)) == 4  # 11 small ones became 3
    np.testing.assert_array_equal(reader.get_batch(KEYS), values(KEYS))
    np.testing.assert_array_equal(again.get_batch(KEYS), values(KEYS))


def test_compact_killed_between_writing_and_removing_loses_nothing(tmp_path, monkeypatch):
    store = filled(tmp_path)
    before = shards(store)

    def killed(self, paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TensorStore, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            store.compact()
    assert set(before) < set(shards(store))
    again = make(tmp_path)
    np.testing.assert_array_equal(again.get_batch(KEYS), values(KEYS))
    again.compact()
    assert len(shards(store)) == 1
    np.testing.assert_array_equal(make(tmp_path).get_batch(KEYS), values(KEYS))


def test_workers_reopen_the_store_instead_of_copying_it(tmp_path):
    store = filled(tmp_path)
    packed = pickle.dumps(store)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).get_batch(KEYS), values(KEYS))
    single = TensorStore.open(store.export(tmp_path / "one.safetensors"))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(single)).get(KEYS[2]), values(KEYS)[2])


def test_full_disk_names_path_and_megabytes_and_keeps_earlier_rows(tmp_path, monkeypatch):
    store = make(tmp_path)
    store.put(KEYS[:4], values(KEYS[:4]))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("medvl_imaging.store.shards.os.fsync", full)
        with pytest.raises(
            OSError, match=r"disk full, 0\.0 MB to write and .* MB missing; free space and run again"
        ) as caught:
            store.put(KEYS[4:], values(KEYS[4:]))
    assert caught.value.errno == errno.ENOSPC
    assert str(store.folder) in str(caught.value)
    assert [p.name for p in store.folder.iterdir()] == [shards(store)[0].name]
    assert make(tmp_path).missing(KEYS) == KEYS[4:]


WRITER = """
import sys, json, time, numpy as np
from medvl_imaging.store.tensors import TensorStore
folder, log, n, delay = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
keys = [(f"study{i}", f"{i:064x}") for i in range(n)]
def compute(rows):
    with open(log, "a") as file:
        file.write(json.dumps(rows) + "\\n")
    time.sleep(delay)
    return np.stack([np.random.default_rng(i).normal(size=8) for i in rows])
TensorStore(folder, producer="weights-1", preprocessing="input-1", shape=(8,)).fill(keys, compute, batch_size=4)
"""


def start_writer(folder, log, n, delay) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(folder), str(log), str(n), str(delay)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)


def test_kill_at_random_instants_loses_and_repeats_at_most_the_batch_under_way(tmp_path):
    n, kills, log = 96, 0, tmp_path / "log"
    rng = np.random.default_rng(0)
    keys = [(f"study{i}", f"{i:064x}") for i in range(n)]
    for _ in range(8):
        done_before = set(make(tmp_path / "s").keys())
        process = start_writer(tmp_path / "s", log, n, 0.005)
        while process.poll() is None and set(make(tmp_path / "s").keys()) == done_before:
            time.sleep(0.005)  # it has started to write
        time.sleep(rng.uniform(0, 0.03))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        assert done_before <= set(make(tmp_path / "s").keys())
    process = start_writer(tmp_path / "s", log, n, 0.0)
    assert process.wait() == 0
    store = make(tmp_path / "s")
    assert kills >= 4
    assert len(store) == n
    assert store.missing(keys) == []
    computed = [i for line in log.read_text().splitlines() for i in json.loads(line)]
    assert len(computed) <= n + 4 * kills
    whole = make(tmp_path / "t")
    whole.fill(keys, lambda rows: np.stack([np.random.default_rng(i).normal(size=8) for i in rows]))
    assert store.export(tmp_path / "s.st").read_bytes() == whole.export(tmp_path / "t.st").read_bytes()


def test_two_processes_fill_and_a_third_compacts_at_the_same_time(tmp_path):
    n, keys = 64, [(f"study{i}", f"{i:064x}") for i in range(64)]
    writers = [start_writer(tmp_path, tmp_path / f"log{k}", n, 0.01) for k in range(2)]
    while any(w.poll() is None for w in writers):
        make(tmp_path).compact()
    assert [w.wait() for w in writers] == [0, 0]
    expected = np.stack([np.random.default_rng(i).normal(size=8) for i in range(n)]).astype(np.float32)
    np.testing.assert_array_equal(make(tmp_path).get_batch(keys), expected)


def test_lookup_of_a_batch_takes_less_than_a_millisecond(tmp_path):
    keys = [(f"study{i}", f"{i:064x}") for i in range(512)]
    store = make(tmp_path, shape=(512,))
    store.put(keys, np.random.default_rng(0).normal(size=(512, 512)))
    store.missing(keys)
    rounds = []
    for start in range(0, 512, 32):
        begin = time.perf_counter()
        store.get_batch(keys[start : start + 32])
        rounds.append(time.perf_counter() - begin)
    assert np.median(rounds) < 1e-3
