from __future__ import annotations

import numpy as np
import pytest

from medvl_imaging.store.shards import DamagedShard, Shard, row_digest, write_shard

META = {"shape": [3], "dtype": "float32"}
ITEMS = [(("a", "f1"), np.arange(3, dtype=np.float32)), (("b", "f2"), np.ones(3, np.float32))]


def test_round_trip_and_a_name_by_content(tmp_path):
    path = write_shard(tmp_path, META, ITEMS)
    shard = Shard(path)
    assert shard.keys == [key for key, _ in ITEMS]
    assert shard.metadata == META
    for (key, row), stored, digest in zip(ITEMS, shard.rows, shard.digests, strict=True):
        np.testing.assert_array_equal(stored, row)
        assert digest.tobytes() == row_digest(key, row)
    assert not shard.rows.flags.writeable
    assert write_shard(tmp_path, META, ITEMS) == path
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_it_is_a_safetensors_file(tmp_path):
    from safetensors.numpy import load_file

    tensors = load_file(write_shard(tmp_path, META, ITEMS))
    assert any(np.array_equal(tensor, np.stack([row for _, row in ITEMS])) for tensor in tensors.values())


@pytest.mark.parametrize("cut", [0, 7, 40, -1])
def test_cut_file_is_refused_by_name(tmp_path, cut):
    path = write_shard(tmp_path, META, ITEMS)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedShard, match=path.name):
        Shard(path)


def test_digest_covers_key_and_values():
    row = np.zeros(3, np.float32)
    assert len({row_digest(("a", "f"), row), row_digest(("b", "f"), row), row_digest(("a", "f"), row + 1)}) == 3


def test_more_files_than_maps_are_read(tmp_path, monkeypatch):
    from functools import lru_cache

    from medvl_imaging.store import shards

    assert shards._mapped.cache_info().maxsize < 65_530  # Linux's default limit per process
    few = lru_cache(maxsize=3)(shards._mapped.__wrapped__)
    monkeypatch.setattr(shards, "_mapped", few)
    metadata = {"shape": [4], "dtype": "float32"}
    paths = [
        write_shard(tmp_path / f"{i}.safetensors", metadata, [((f"s{i}", "x"), np.full(4, i, np.float32))])
        for i in range(9)
    ]
    files = [Shard(path) for path in paths]
    for _ in range(2):
        assert [float(file.rows[0, 0]) for file in files] == list(range(9))
    assert few.cache_info().currsize == 3
