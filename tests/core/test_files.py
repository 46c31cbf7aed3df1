from __future__ import annotations

import os

import pytest

from medvl_core.files import write_text


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
