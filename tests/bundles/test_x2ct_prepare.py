"""The preparation script of x2ct, in this process; as commands in tests/integration/test_prepare.py."""

from __future__ import annotations

import csv
import importlib.util
import shutil
import sys

import pytest

from medvl_core.build import build_dataset
from medvl_core.bundle.startup import OverrideError
from medvl_core.errors import OptionError
from medvl_phantom import PhantomCohort, write_ct_rate_layout
from tests.bundles import running

pytestmark = pytest.mark.usefixtures("_process_as_before")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Ten phantom patients as CT-RATE, both releases."""
    folder = tmp_path_factory.mktemp("ct_rate")
    cohort = PhantomCohort(10, (32, 32, 32))
    return {version: write_ct_rate_layout(cohort, folder / version, version) for version in ("v1", "v2")}


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """Runs the script on a copy of the bundle; gives exit code and what it said."""
    bundle = running.copy_bundle(tmp_path)
    path = bundle / "scripts" / "prepare_triplets.py"
    spec = importlib.util.spec_from_file_location("prepare_triplets", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(data, *words):
        configs = [str(bundle / "configs" / "train.json"), str(running.tiny(bundle))]
        fixed = ["--out", str(tmp_path / "out"), "--workers", "0", "--config_file", *configs]
        dataset = ["--dataset#name", "x2ct/ct_rate", "--dataset_dir", str(data)]
        monkeypatch.setattr(sys, "argv", [str(path), *fixed, *dataset, *words])
        return script.main(), capsys.readouterr().err

    run.bundle = bundle
    return run


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_bad_case_is_listed_skipped_and_done_after_its_repair(originals, prepare, tmp_path):
    data = tmp_path / "dataset"
    shutil.copytree(originals["v2"], data)
    bad = sorted((data / "train_fixed").rglob("*.nii.gz"))[1]
    shutil.copy(next((originals["v1"] / "train").rglob(bad.name)), bad)  # raw values in a _fixed folder
    n = len(list(data.rglob("*.nii.gz")))
    code, said = prepare(data)
    assert code == 65
    assert f"{n - 1} studies are ready ({n} tried now)" in said
    (failed,) = table(tmp_path / "out" / "failed.csv")
    assert failed["study"] == bad.name.removesuffix(".nii.gz")
    assert "a v1 file in a _fixed (v2) folder" in failed["reason"]
    rows = table(tmp_path / "out" / "studies.csv")
    assert len(rows) == n - 1
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    assert len(list((tmp_path / "out" / "cxr").iterdir())) == n - 1
    kept = build_dataset("x2ct/ct_rate", folder=data, exclude=tmp_path / "out" / "failed.csv")
    assert failed["study"] not in {s.study_id for s in kept.studies("train") + kept.studies("validation")}

    shutil.copy(next((originals["v2"] / "train_fixed").rglob(bad.name)), bad)
    code, said = prepare(data)
    assert code == 0
    assert f"{n} studies are ready (1 tried now)" in said
    assert table(tmp_path / "out" / "failed.csv") == []
    assert "(0 tried now)" in prepare(data)[1]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_its_table_is_read_by_the_folder_dataset(originals, prepare, tmp_path, version):
    assert prepare(originals[version], "--make", "ct")[0] == 0
    names = list(build_dataset("x2ct/ct_rate", folder=originals[version]).label_names)
    from_table = build_dataset(
        "baseline/folder", table=tmp_path / "out" / "studies.csv", label_columns=names, split_column="split"
    )
    direct = build_dataset("x2ct/ct_rate", folder=originals["v2"])
    for split in ("train", "validation", "test"):
        for one, other in zip(from_table.studies(split), direct.studies(split), strict=True):
            assert (one.study_id, one.subject_id, one.scan_id) == (other.study_id, other.subject_id, other.scan_id)
            assert (one.report, one.labels) == (other.report, other.labels)
            ct, expected = one.images["ct"].load().array, other.images["ct"].load().array
            assert (ct == expected).all()
            assert one.images["cxr"].load().array.shape == other.images["cxr"].load().array.shape
    copies = list((tmp_path / "out").glob("ct/*.nii.gz"))
    assert len(copies) == sum(len(direct.studies(s)) for s in ("train", "validation", "test"))


def test_other_settings_are_prepared_anew(originals, prepare):
    assert "tried now" in prepare(originals["v2"], "--splits", "test")[1]
    code, said = prepare(originals["v2"], "--splits", "test", "--ct_encoder#size", "[24,24,24]")
    assert code == 0
    assert "(0 tried now)" not in said
    assert "(0 tried now)" in prepare(originals["v2"], "--splits", "test", "--ct_encoder#size", "[24,24,24]")[1]


def test_wrong_words_are_refused_before_any_work(originals, prepare, tmp_path):
    with pytest.raises(OverrideError, match="no config has the key 'dataset_dri'; did you mean 'dataset_dir'"):
        prepare(originals["v2"], "--dataset_dri", "x")
    with pytest.raises(OverrideError, match="is no list of --KEY VALUE"):
        prepare(originals["v2"], "--seed")
    with pytest.raises(OptionError, match="embeddings need a trained teacher; pass --stage1_weights FILE"):
        prepare(originals["v2"], "--make", "embeddings")
    with pytest.raises(RuntimeError, match="dataset") as caught:
        prepare(tmp_path)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert not (tmp_path / "out").exists()


def test_help_names_every_option_and_shows_commands(prepare, originals, capsys):
    with pytest.raises(SystemExit, match="0"):
        prepare(originals["v2"], "--help")
    said = capsys.readouterr().out
    for word in ("--out", "--make", "--splits", "--workers", "--memory-limit", "--scheduler", "tcp://", "failed.csv"):
        assert word in said


def test_values_are_read_as_monai_reads_them(prepare):
    spec = importlib.util.spec_from_file_location("p", prepare.bundle / "scripts" / "prepare_triplets.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    words = ["--a#b", "[1, 2]", "--c", "x/y", "--d", "None", "--e", "true"]
    assert script._overrides(words) == {"a#b": [1, 2], "c": "x/y", "d": None, "e": "true"}
