from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import totalsegmentator

from medvl_core.study import Image, Study
from medvl_ct_glip.mask_maker import (
    _CONFIG,
    _GET,
    _MODELS,
    MakeMasks,
    MaskMakerError,
    WeightsMissingError,
    weights_folder,
    write_mask_table,
)
from medvl_ct_glip.masks import _label_table
from medvl_imaging.readers import read_volume
from medvl_imaging.scale import Journal, ScaleReport, map_studies
from tests.papers.ct_glip.totalseg_weights import random_weights

DOWNLOADS = Path(totalsegmentator.__file__).parent / "bin" / "totalseg_download_weights.py"
SCRIPT = Path(__file__).parents[3] / "monai_bundles" / "ct_glip" / "scripts" / "make_masks.py"
AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])


class Block:
    """A CT of a warm block in air."""

    def load(self):
        array = np.full((24, 20, 22), -1000, np.float32)
        array[4:20, 4:16, 3:19] = 40
        return Image(array, AFFINE)

    def fingerprint(self):
        return "block"


def block(name="a/b"):
    return Study(study_id=name, subject_id="s", scan_id="c", images={"ct": Block()})


def rows(table):
    return list(csv.DictReader(table.read_text().splitlines()))


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """The child process replaced: what it was asked to do, and what it leaves behind."""
    calls = []

    def run(command, env, **options):
        calls.append((command, env, json.loads((Path(env["TOTALSEG_HOME_DIR"]) / "config.json").read_text())))
        ct = nib.load(command[3])
        nib.save(nib.Nifti1Image(np.ones(ct.shape, np.uint8), ct.affine), command[4])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("medvl_ct_glip.mask_maker.subprocess.run", run)
    return calls


@pytest.mark.parametrize(("speed", "task"), [("full", "total"), ("fast", "total_fast"), ("fastest", "total_fast")])
def test_missing_weights_are_refused_in_one_line_that_says_what_to_fetch(tmp_path, speed, task):
    with pytest.raises(WeightsMissingError, match=rf"no weights of TotalSegmentator in .*-t {task}\)") as refusal:
        weights_folder(tmp_path, speed)
    assert "\n" not in str(refusal.value)
    assert all(name in str(refusal.value) for name in _MODELS[speed])


def test_weights_are_found_where_totalsegmentator_looks(tmp_path, monkeypatch):
    for name in _MODELS["fast"]:
        checkpoint = tmp_path / "nnunet" / "results" / name / "trainer" / "fold_0" / "checkpoint_final.pth"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
    monkeypatch.delenv("TOTALSEG_WEIGHTS_PATH", raising=False)
    monkeypatch.setenv("TOTALSEG_HOME_DIR", str(tmp_path))
    assert weights_folder(None, "fast") == tmp_path / "nnunet" / "results"
    with pytest.raises(ValueError, match="speed is 'slow'; one of full, fast, fastest"):
        weights_folder(None, "slow")


def test_model_folders_are_those_of_the_installed_totalsegmentator():
    from totalsegmentator.map_tasks_config import TASK_CONFIGS, TASK_ID_WEIGHTS_CONFIGS

    for speed, mode in (("full", "default"), ("fast", "fast"), ("fastest", "fastest")):
        ids = TASK_CONFIGS["total"]["sub_modes"][mode]["task_id"]
        ids = ids if isinstance(ids, list) else [ids]
        assert f'"{_GET[speed]}": [' in DOWNLOADS.read_text()
        assert _MODELS[speed] == tuple(TASK_ID_WEIGHTS_CONFIGS[number]["foldername"] for number in ids)


def test_child_gets_no_telemetry_a_limit_and_the_ct_in_hu(fake, tmp_path):
    record = MakeMasks(tmp_path, tmp_path / "w", "fast", "cpu", memory_gib=2)(block())
    (command, environment, config) = fake[0]
    assert config["send_usage_stats"] is False
    assert config == _CONFIG
    assert command[-3:] == ["fast", "cpu", str(2 * 2**30)]
    assert environment["TOTALSEG_WEIGHTS_PATH"] == str(tmp_path / "w")
    assert record["names"] == "ts_v2_117"
    mask = tmp_path / record["masks"]
    assert list(mask.parent.iterdir()) == [mask]  # nothing else is left
    made = read_volume(mask, content="labels")
    assert made.array.all()
    np.testing.assert_array_equal(made.affine, AFFINE)


def test_map_resumes_and_lists_failures(fake, tmp_path):
    make = MakeMasks(tmp_path, tmp_path, "fast", "cpu")
    flat = Study(study_id="flat", subject_id="s", scan_id="c", images={})
    for computed in (2, 1):  # the failed one is tried again
        report = map_studies(make, [block(), flat], Journal(tmp_path / "journal", make.task()), workers=0)
        assert report.computed == computed
    assert len(fake) == 1
    table, failed = write_mask_table(tmp_path, report)
    assert [row["study"] for row in rows(table)] == ["a/b"]
    assert rows(failed) == [{"study": "flat", "reason": "flat: has no CT to segment"}]


def test_failure_gives_the_last_line_and_leaves_nothing(monkeypatch, tmp_path):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nMemoryError: cannot allocate")

    monkeypatch.setattr("medvl_ct_glip.mask_maker.subprocess.run", run)
    with pytest.raises(MaskMakerError, match=r"a/b: TotalSegmentator failed: MemoryError.*memory_gib is 1, give more"):
        MakeMasks(tmp_path, tmp_path, memory_gib=1)(block())
    assert list((tmp_path / "masks").iterdir()) == []


def test_timeout_is_a_failure(monkeypatch, tmp_path):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr("medvl_ct_glip.mask_maker.subprocess.run", run)
    with pytest.raises(MaskMakerError, match="a/b: no mask after 5 s"):
        MakeMasks(tmp_path, tmp_path, timeout_s=5)(block())


def test_empty_report_writes_empty_tables(tmp_path):
    table, failed = write_mask_table(tmp_path, ScaleReport({}, {}, 0))
    assert table.read_text() == "study,masks,names,made_by\n"
    assert failed.read_text() == "study,reason\n"


@pytest.mark.slow
def test_totalsegmentator_runs_from_scan_to_checked_mask(tmp_path):
    """The real program with random weights: plumbing from CT to region ids, through the script."""
    image = Block().load()
    nib.save(nib.Nifti1Image(image.array.astype(np.int16), AFFINE), tmp_path / "block.nii.gz")
    weights = random_weights(tmp_path / "weights")
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out"), "--weights", str(weights)]
    command += ["--speed", "fastest", "--device", "cpu", "--workers", "0", str(tmp_path / "block.nii.gz")]
    first = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert first.returncode == 0, first.stderr
    (row,) = rows(tmp_path / "out" / "masks.csv")
    assert row["made_by"].startswith("totalsegmentator 2")
    made = read_volume(tmp_path / "out" / row["masks"], content="labels")  # noise: no mask that training would take
    assert made.array.shape == image.array.shape
    assert _label_table(tmp_path / "out" / row["masks"])[1] == "spleen"
    np.testing.assert_allclose(made.affine, AFFINE, atol=1e-3)
    assert made.array.any()
    again = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "1 already done" in again.stderr


@pytest.mark.slow
def test_memory_limit_ends_the_child_not_the_run(tmp_path):
    make = MakeMasks(tmp_path / "out", random_weights(tmp_path / "weights"), "fastest", "cpu", memory_gib=0.3)
    with pytest.raises(MaskMakerError, match=r"memory_gib is 0\.3, give more"):
        make(block())


def test_script_refuses_before_any_work_and_explains_itself(tmp_path):
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out"), "--weights", str(tmp_path)]
    refused = subprocess.run([*command, "a.nii.gz"], capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2
    assert "totalseg_download_weights -t total" in refused.stderr
    assert not (tmp_path / "out").exists()
