from __future__ import annotations

import math
from dataclasses import replace

import pytest

from medvl_core.bundle.manifest import cohort_digest, read_manifest, run_manifest, write_manifest
from tests.conftest import ArraySource


def test_round_trip_names_what_a_run_was_made_with(tmp_path, studies):
    manifest = run_manifest(seed=3, device="cpu", studies={"test": studies}, labels=["a", "b"])
    path = write_manifest(tmp_path / "models" / "manifest.json", manifest)
    read = read_manifest(path)
    assert read["seed"] == 3
    assert read["labels"] == ["a", "b"]
    cohort = read["data"]["test"]
    assert (cohort["studies"], cohort["subjects"]) == (len(studies), 6)
    assert cohort["labels"] == {"a": {"positive": 6, "known": 12}, "b": {"positive": 4, "known": 12}}
    assert "pytest" in read["command"]
    assert read["plugins"]["baseline"]["status"] == "loaded"
    assert read["packages"]["torch"] != "not installed"
    assert [file.name for file in path.parent.iterdir()] == ["manifest.json"]


def test_unknown_labels_are_not_counted(studies):
    unknown = [replace(studies[0], labels={"a": math.nan}), *studies[1:]]
    manifest = run_manifest(seed=0, device="cpu", studies={"test": unknown})
    assert manifest["data"]["test"]["labels"]["a"] == {"positive": 6, "known": 11}
    assert manifest["data"]["test"]["labels"]["b"] == {"positive": 3, "known": 11}


def test_digest_changes_with_an_image_and_with_the_order(studies):
    other = [replace(studies[0], images={"ct": ArraySource(99, (10, 10, 10))}), *studies[1:]]
    assert len({cohort_digest(part) for part in (studies, other, studies[::-1], studies[1:])}) == 4


def test_missing_manifest_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json: no manifest; train the bundle first"):
        read_manifest(tmp_path / "manifest.json")
