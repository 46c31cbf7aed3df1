"""The scripts that run the paper's tables and print them."""

from __future__ import annotations

import json
import sys

import pytest

from tests.bundles import running

FOLDER = running.ROOT / "monai_bundles" / "ct_glip"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "scripts"))
    for name in ("ablation", "finetuning", "tables"):
        sys.modules.pop(name, None)
    yield {name: running.script(f"{name}.py", FOLDER) for name in ("ablation", "finetuning", "tables")}
    sys.modules.pop("ablation", None)


def write(folder, seed=0, **values):
    """A finished evaluation: every metric has this value, plus and minus 0.1."""
    (folder / "eval").mkdir(parents=True)
    rows = {
        network: {key: {"value": value, "low": value - 0.1, "high": value + 0.1} for key, value in metrics.items()}
        for network, metrics in values.items()
    }
    (folder / "eval" / "metrics.json").write_text(json.dumps({"rows": rows}))


@pytest.fixture
def calls(scripts, monkeypatch):
    """What would be run."""
    made = []

    def run(files, folder, settings):
        made.append(([file.name for file in files], folder, settings))
        assert all(file.is_file() for file in files)

    monkeypatch.setattr(scripts["ablation"], "run_setting", run)
    monkeypatch.setattr(scripts["finetuning"], "run_setting", run)
    return made


def main(script, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["script.py", *map(str, words)])
    return script.main()


def test_rows_share_the_segmentation_stage_of_their_seed_and_backbone(scripts, calls, tmp_path, monkeypatch):
    words = ("--out", tmp_path, "--seeds", "4", "--set", "epochs=2")
    assert main(scripts["ablation"], monkeypatch, *words) == 0
    assert [(folder.parent.name, folder.name) for _, folder, _ in calls] == [
        (backbone, row)
        for backbone in ("nnunet", "mit")
        for row in ("full", "vanilla", "diagnosis_only", "no_dictionary")
    ]
    assert "stage1_weights" not in calls[0][2]
    files, _, settings = calls[5]
    assert files == ["train.json", "mit.json", "vanilla.json"]
    assert settings["stage1_weights"] == str(tmp_path / "seed4/mit/full/models/segmentation.pt")
    assert (settings["seed"], settings["epochs"]) == (4, 2)


def test_every_start_of_finetuning_takes_the_weights_of_its_seed(scripts, calls, tmp_path, monkeypatch):
    words = ("--pretrained", tmp_path / "t1", "--out", tmp_path / "t2", "--seeds", "1", "--shares", "0.1")
    assert main(scripts["finetuning"], monkeypatch, *words) == 0
    weights = {folder.name: settings["initial_weights"] for _, folder, settings in calls[:4]}
    assert weights["scratch"] is None
    assert weights["segmentation"] == str(tmp_path / "t1/seed1/nnunet/full/models/segmentation.pt")
    assert weights["full"] == str(tmp_path / "t1/seed1/nnunet/full/models/model.pt")
    assert calls[4][0] == ["train.json", "mit.json", "finetune.json", "finetune_mit.json"]
    assert calls[0][1] == tmp_path / "t2/seed1/nnunet/share0.1/scratch"
    assert calls[0][2]["cache_dir"] == str(tmp_path / "t2/cache")


def test_table_1_averages_seeds_and_compares_rows_of_one_seed(scripts, tmp_path, monkeypatch, capsys):
    for seed, value in ((0, 0.5), (1, 0.7)):
        for row, shift in (("full", 0.1), ("vanilla", 0.0)):
            metrics = {"organ/top_1": value + shift * (1 + seed)}
            write(tmp_path / f"seed{seed}" / "nnunet" / row, trained=metrics, untrained=metrics, chance=metrics)
    assert main(scripts["tables"], monkeypatch, "1", "--runs", tmp_path) == 0
    said = capsys.readouterr().out
    half = (0.1**2 + 0.1**2) ** 0.5 / 2  # of the mean of two independent estimates
    assert f"| + dictionary (full), 2 seeds | 0.75 [{0.75 - half:.2f}, {0.75 + half:.2f}] |" in said
    assert "| global alignment, 2 seeds | 0.60 [" in said
    assert "| full − vanilla | +0.15 (+0.10, +0.20) |" in said
    assert "| global alignment | 0.01 | 32.75 | 35.19 | 33.93 | 52.23 |" in said
    assert "MiT" not in said


def test_table_2_has_a_block_per_share(scripts, tmp_path, monkeypatch, capsys):
    for start, value in (("scratch", 0.3), ("full", 0.5)):
        metrics = {"segmentation/dice_macro": value, "segmentation/detection_auroc_macro": value + 0.3}
        write(tmp_path / "seed0" / "nnunet" / "share0.1" / start, trained=metrics)
    assert main(scripts["tables"], monkeypatch, "2", "--runs", tmp_path) == 0
    said = capsys.readouterr().out
    assert "nnU-Net, 0.1 of the training patients" in said
    assert "| CT-GLIP | 0.50 [0.40, 0.60] | 0.80 [0.70, 0.90] | +0.20 (+0.20) | +0.20 (+0.20) | 34.7 / 89.55 |" in said
    assert "| organ segmentation |" not in said


def test_a_folder_without_runs_is_refused(scripts, tmp_path, monkeypatch, capsys):
    for table in "12":
        assert main(scripts["tables"], monkeypatch, table, "--runs", tmp_path) == 1
        assert "run the experiments first" in capsys.readouterr().err
