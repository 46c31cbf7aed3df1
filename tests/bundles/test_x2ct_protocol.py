"""The paper's protocol on a trained bundle: its evaluators, external data, and the tables printed from them."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import pytest

from medvl_evaluation.run_comparison import compare_runs
from medvl_phantom import PhantomCohort
from tests.bundles import running
from tests.papers.x2ct.x2ct_layouts import write_rad_chest

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("_process_as_before"),
]
MORE = {
    "dataset::options_for::baseline/phantom::n_subjects": 60,
    "draws": 1,
    "few_shot::validation": 0.3,
    "probe": {"epochs": 20},
    "n_resamples": 10,
}


def numbers(folder, row="trained"):
    rows = json.loads((folder / "metrics.json").read_text())["rows"]
    return {name: entry["value"] for name, entry in rows[row].items()}


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """The protocol on the held-out phantoms."""
    folder = tmp_path_factory.mktemp("protocol")
    trained.run("train.json", "evaluate.json", "protocol.json", output_dir=str(folder), **MORE)
    return folder


def test_every_number_of_the_protocol_is_there(evaluated):
    found = numbers(evaluated)
    for way in ("own_item/", "duplicate_gallery/", ""):
        for side in ("ct", "report"):
            for k in (5, 10, 50):
                assert 0 <= found[f"{way}cxr_to_{side}/recall_at_{k}"] <= 1
    for stem in ("is_present", "there_is", "few_shot_20", "few_shot_50", "few_shot_100"):
        for average in ("macro", "weighted", "micro"):
            assert 0 <= found[f"{stem}/auroc_{average}"] <= 1
    assert found["duplicate_gallery/cxr_to_ct/recall_at_10"] <= found["own_item/cxr_to_ct/recall_at_10"]
    assert found["own_item/cxr_to_ct/recall_at_5"] <= found["cxr_to_ct/recall_at_5"]
    figures = {path.name for path in evaluated.glob("*.png")}
    assert {"is_present_roc.png", "there_is_roc.png", "own_item_cxr_to_ct.png"} <= figures


def test_vocabulary_of_training_is_the_one_used(trained, evaluated):
    """Evaluating more or other studies must not build another vocabulary over the trained one."""
    before = (trained.bundle / "models" / "vocabulary.txt").stat().st_mtime_ns
    assert before < (evaluated / "metrics.json").stat().st_mtime_ns
    assert before <= (trained.bundle / "models" / "teacher.pt").stat().st_mtime_ns


@pytest.mark.slow
def test_two_evaluations_are_compared_by_delong(trained, evaluated, tmp_path):
    other = tmp_path / "other"
    more = MORE | {"probe": {"epochs": 2}}
    trained.run("train.json", "evaluate.json", "protocol.json", output_dir=str(other), **more)
    test = compare_runs(evaluated, other, "few_shot_50")["few_shot_50"]
    (micro,) = [row for row in test.rows if row.name == "micro"]
    assert math.isfinite(micro.p)


@pytest.mark.slow
def test_another_data_set_is_evaluated_with_probes_from_the_source(trained, tmp_path):
    """Phantoms of another seed as target and the training phantoms as source: no subject in common."""
    overrides = {
        "dataset": {
            "_target_": "medvl_core.build_dataset",
            "name": "baseline/phantom",
            "seed": 5,
            "options_for": {
                "baseline/phantom": {"n_subjects": 30, "shape": [32, 32, 32]},
                "x2ct/rad_chest_ct": {},
                "x2ct/mimic_ct": {},
            },
        },
        "source_dataset::name": "baseline/phantom",
        "source_dataset::options_for::baseline/phantom": {"n_subjects": 40, "shape": [32, 32, 32], "seed": 0},
        "external::fractions": [0.4, 1.0],
        "few_shot::fractions": [0.5],
        "few_shot::validation": 0.4,
        "external::validation": 0.3,
        "draws": 1,
        "probe": {"epochs": 20},
        "n_resamples": 10,
    }
    trained.run("train.json", "evaluate.json", "protocol.json", "external.json", output_dir=str(tmp_path), **overrides)
    found = numbers(tmp_path)
    assert {"external_40/auroc_micro", "external_100/auroc_micro", "few_shot_50/auroc_micro"} <= set(found)


def test_data_without_reports_leaves_their_retrieval_out(trained, tmp_path):
    """RAD-ChestCT in its own layout: labels and volumes only."""
    data = tmp_path / "rad_chest"
    data.mkdir()
    write_rad_chest(data, PhantomCohort(12, (24, 24, 24), follow_up=0.0).studies("train")[:4])
    dataset = {
        "_target_": "medvl_core.build_dataset",
        "name": "x2ct/rad_chest_ct",
        "options_for": {"x2ct/rad_chest_ct": {"folder": str(data), "split": "test"}},
    }
    trained.run("train.json", "evaluate.json", dataset=dataset, output_dir=str(tmp_path / "eval"))
    found = numbers(tmp_path / "eval")
    assert "cxr_to_ct/recall_at_5" in found
    assert not any("report" in name for name in found)


def test_the_tables_show_the_numbers_of_the_evaluation(evaluated, capsys, monkeypatch):
    script = running.script("tables.py")
    monkeypatch.setattr("sys.argv", ["tables.py", "2", "3", "4a", "--eval", f"phantom={evaluated}"])
    assert script.main() == 0
    said = capsys.readouterr().out
    found = numbers(evaluated)
    for name in ("own_item/cxr_to_report/recall_at_5", "is_present/auroc_weighted", "few_shot_20/auroc_micro"):
        assert script._number(found[name]) in said
    assert script._number(numbers(evaluated, "untrained")["few_shot_20/auroc_micro"]) in said


def test_ablation_trains_one_teacher_and_three_students_per_seed(tmp_path, monkeypatch):
    script = running.script("ablation.py")
    words = ["--out", str(tmp_path), "--seeds", "3", "--config_file", "a", "b", "--set", "epochs=4"]
    monkeypatch.setattr("sys.argv", ["ablation.py", *words])
    ran, tables = [], []

    def run(files, folder, settings):
        ran.append((files, folder.name, settings))
        (folder / "models").mkdir(parents=True)
        (folder / "models" / "teacher.pt").touch()

    monkeypatch.setattr(script, "run_setting", run)
    monkeypatch.setattr(
        script.subprocess, "run", lambda command: tables.append(command) or SimpleNamespace(returncode=0)
    )
    assert script.main() == 0
    assert [name for _, name, _ in ran] == ["both", "beta", "gamma"]
    assert [(given["beta"], given["gamma"]) for *_, given in ran] == [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]
    teacher = str(tmp_path / "seed3" / "both" / "models" / "teacher.pt")
    assert [given.get("stage1_weights") for *_, given in ran] == [None, teacher, teacher]
    assert {(given["seed"], given["epochs"]) for *_, given in ran} == {(3, 4)}
    assert all(files == [running.Path("a"), running.Path("b")] for files, *_ in ran)
    assert tables == [[sys.executable, str(script.SCRIPTS / "tables.py"), "5", "--ablation", str(tmp_path)]]
