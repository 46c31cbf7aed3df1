from __future__ import annotations

import os

import pytest

from medvl_core.files import safe_name, write_text


def test_text_replaces_the_old_file_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    assert write_text(path, "é\n") == path
    assert path.read_bytes() == "é\n".encode()
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_text(tmp_path / "a.txt", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_safe_names_never_collide():
    assert safe_name("CT_1.a-2") == "CT_1.a-2"
    assert len({safe_name(name) for name in ("a/b", "a:b", "a_b")}) == 3
    assert "/" not in safe_name("../a")
