from __future__ import annotations

import csv
import os
import stat

import pytest

from medvl_core.engine.files import atomic, read_text, safe_name, write_csv, write_text


def names(folder):
    return [file.name for file in folder.iterdir()]


def test_text_replaces_the_old_file_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    assert write_text(path, "é\n") == path
    assert path.read_bytes() == "é\n".encode()
    assert names(path.parent) == ["a.txt"]


def test_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    path = write_text(tmp_path / "a.txt", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_block_that_raises_or_is_interrupted_changes_nothing(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")

    def half(error):
        with atomic(path) as file:
            file.write(b"ne")
            raise error("half")

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error, match="half"):
            half(error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_unfinished_file_is_on_the_disk_before_it_gets_its_name_and_has_no_ending(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(names(tmp_path)))
    with atomic(tmp_path / "a.png") as file:
        file.write(b"x")
        assert not list(tmp_path.glob("*.png"))
    ((partial,),) = synced
    assert partial.startswith(".tmp-")
    assert names(tmp_path) == ["a.png"]


def test_others_may_read_what_the_process_lets_them_read(tmp_path):
    before = os.umask(0o022)
    try:
        path = write_text(tmp_path / "a.txt", "shared")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_cells_with_line_breaks_quotes_and_commas_come_back(tmp_path):
    rows = [["1\r2", 'a "b", c'], ["3\n4", "5\r\n6"]]
    path = write_csv(tmp_path / "a.csv", ("x", "y"), rows)
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file, strict=True)) == [["x", "y"], *rows]
    assert write_csv(path, ("x", "y"), [(1, 0.5)]).read_bytes() == b"x,y\n1,0.5\n"


def test_text_of_another_encoding_is_named_by_its_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffé".encode())
    assert read_text(path) == "é"
    path.write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.txt: byte 0xe9 at 0 is not UTF-8"):
        read_text(path)


def test_safe_names_never_collide_and_fit_every_system():
    assert safe_name("CT_1.a-2") == "CT_1.a-2"
    assert len({safe_name(name) for name in ("a/b", "a:b", "a_b")}) == 3
    assert "/" not in safe_name("../a")
    long = [safe_name("série/" * 60 + end) for end in "ab"]
    assert len(set(long)) == 2
    assert max(len(name.encode()) for name in long) < 220
