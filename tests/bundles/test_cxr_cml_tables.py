from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from medvl_evaluation.predictions import Predictions
from medvl_evaluation.splits.cross_validation import pool_folds, summary_table
from tests.bundles import running

BUNDLE = running.ROOT / "monai_bundles" / "cxr_cml"
CLASSES, GROUPS = ("Edema", "Mass", "Hernia"), {"base": ["Edema", "Mass"], "rare": ["Hernia"]}


def _folds(seed: int, signal: float) -> list[Predictions]:
    """Two folds of 60 studies of 30 patients; scores follow the labels by ``signal``."""
    labels = np.random.default_rng(99).integers(0, 2, (120, 3)).astype(float)
    scores = signal * labels + np.random.default_rng(seed).normal(size=labels.shape)
    names, patients = [f"s{i}" for i in range(120)], [f"p{i // 2}" for i in range(120)]
    halves = slice(0, 60), slice(60, 120)
    return [Predictions(names[h], patients[h], CLASSES, labels[h], scores[h]) for h in halves]


@pytest.fixture
def runs(tmp_path):
    for seed in (0, 1):
        for name, signal in (("clip", 0.2), ("nu4", 1.5), ("unfinished", 0.0)):
            folder = tmp_path / f"seed{seed}" / name / "cross_validation"
            folder.mkdir(parents=True)
            for fold, found in enumerate(_folds(seed, signal)):
                found.table().to_csv(folder / f"fold_{fold}_predictions.csv", index=False)
            if name != "unfinished":
                (folder / "metrics.json").write_text(json.dumps({"groups": GROUPS}))
    return tmp_path


def _table(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.syspath_prepend(str(BUNDLE / "scripts"))
    monkeypatch.setattr(sys, "argv", ["tables.py", *arguments])
    return running.script("tables.py", BUNDLE).main(), "".join(capsys.readouterr())


def _cells(text: str, name: str) -> list[str]:
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_one_run_gives_the_numbers_of_the_cross_validation(runs, monkeypatch, capsys):
    code, text = _table(monkeypatch, capsys, "--runs", str(runs / "seed0"))
    assert code == 0
    row = summary_table(_folds(0, 1.5), GROUPS).set_index("group").loc["base"]
    expected = f"{row.auroc_mean:.3f} ± {row.auroc_sd:.3f}; {row.auroc_pooled:.3f} [{row.pooled_low:.3f}, "
    assert _cells(text, "nu4")[3].startswith(expected)
    assert _cells(text, "nu4")[-1] == "3 / 0"
    assert "unfinished" not in text


def test_several_seeds_are_pooled_and_count_patients_once(runs, monkeypatch, capsys):
    both = [str(runs / f"seed{seed}") for seed in (0, 1)]
    text = _table(monkeypatch, capsys, "--runs", *both, "--labels", "nu4")[1]
    assert "240 studies of 60 subjects" in text
    areas = [pool_folds(_folds(seed, 1.5)) for seed in (0, 1)]
    scores, labels = (np.concatenate([getattr(one, name)[:, 0] for one in areas]) for name in ("scores", "labels"))
    positive, negative = scores[labels == 1][:, None], scores[labels == 0]
    area = np.mean((positive > negative) + (positive == negative) / 2)
    edema = next(line for line in text.splitlines() if line.startswith("| Edema |"))
    assert f"| {area:.3f} |" in edema


def test_missing_reference_is_named(runs, monkeypatch, capsys):
    code, text = _table(monkeypatch, capsys, "--runs", str(runs / "seed0"), "--against", "nu6")
    assert code == 1
    assert "no run called 'nu6' in every folder, only clip, nu4" in text


def test_every_setting_of_a_seed_differs_by_what_its_name_says(tmp_path, monkeypatch):
    script, ran = running.script("experiments.py", BUNDLE), []
    monkeypatch.setattr(script, "run_setting", lambda *given: ran.append(given))
    words = ["--out", str(tmp_path), "--configs", "nih.json", "--settings", "clip", "nu2", "--seeds", "4"]
    monkeypatch.setattr(sys, "argv", ["experiments.py", *words, "--set", "metric_weight=7", "dataset_dir=/data"])
    assert script.main() == 0
    assert [file.name for file in ran[0][0]] == ["train.json", "nih.json", "cross_validate.json"]
    assert [folder for _, folder, *_ in ran] == [tmp_path / "seed4" / name for name in ("clip", "nu2")]
    clip, nu2 = (settings for _, _, settings, _ in ran)
    assert (clip["metric_weight"], nu2["metric_weight"], nu2["nu"]) == (0, 7, 2)  # a setting is what its name says
    assert {(given["seed"], given["dataset_dir"], given["cache_dir"]) for given in (clip, nu2)} == {
        (4, "/data", str(tmp_path / "cache"))
    }
