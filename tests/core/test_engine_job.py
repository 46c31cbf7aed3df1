from __future__ import annotations

import re

import torch

from medvl_core.engine import prepare_batch, start_job


def test_fresh_job_forgets_old_checkpoints_and_a_resume_keeps_its_name(tmp_path):
    (tmp_path / "student_last.pt").write_bytes(b"old")
    (tmp_path / "thresholds.csv").write_bytes(b"of other weights")
    (tmp_path / "model.pt").write_bytes(b"weights")
    first = start_job(tmp_path, resume=False, name="x2ct")
    assert re.fullmatch(r"x2ct-\d{8}-\d{6}-\d+", first)
    assert not (tmp_path / "student_last.pt").exists()
    assert not (tmp_path / "thresholds.csv").exists()
    assert (tmp_path / "model.pt").exists()
    (tmp_path / "student_last.pt").write_bytes(b"new")
    assert start_job(tmp_path, resume=True, name="x2ct") == first
    assert (tmp_path / "student_last.pt").exists()


def test_resume_without_a_job_starts_one(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert start_job(tmp_path, resume=True, name="x2ct").startswith("x2ct-")
    assert "nothing to resume yet" in caplog.text


def test_batch_moves_its_tensors_only():
    moved, target = prepare_batch({"cxr": torch.zeros(1), "study_id": ["a"]}, "meta")
    assert moved["cxr"].device.type == "meta"
    assert moved["study_id"] == ["a"]
    assert target is None
