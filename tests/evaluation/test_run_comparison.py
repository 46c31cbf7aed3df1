"""Two evaluation folders against each other, from Python and from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm
from typer.testing import CliRunner

from medvl_core.command import cli
from medvl_evaluation.comparison import Context, Estimate, compare, write_evaluation
from medvl_evaluation.metrics import auroc, holm
from medvl_evaluation.predictions import Predictions
from medvl_evaluation.run_comparison import RunsDifferError, compare_predictions, compare_runs

CLASSES = ("Nodule [left]", "Hernia", "Rare")


def predictions(signal: float, n: int = 60, per_subject: int = 1, seed: int = 1) -> Predictions:
    labels = (np.random.default_rng(0).random((n, 3)) < (0.5, 0.3, 0.0)).astype(float)
    labels[3, 0] = np.nan
    scores = signal * np.nan_to_num(labels) + np.random.default_rng(seed).normal(size=(n, 3))
    ids = [f"s{i:03}" for i in range(n)]
    return Predictions(ids, [f"p{i // per_subject}" for i in range(n)], CLASSES, labels, scores)


def write(folder, **tables):
    context = Context(n_studies=60, n_subjects=60, n_resamples=10, seed=0)
    rows = compare({"trained": {"auroc_macro": Estimate(0.5, 0.4, 0.6)}}, context)
    write_evaluation(folder, rows, {f"{name}_predictions": made.table() for name, made in tables.items()})
    return folder


def slow_delong(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Areas and two-tailed p from all pairs, by the definition."""
    known = ~np.isnan(labels)
    labels, both = labels[known], [a[known], b[known]]
    v10, v01 = [], []
    for scores in both:
        wins = np.sign(scores[labels == 1][:, None] - scores[labels == 0][None]) / 2 + 0.5
        v10.append(wins.mean(1))
        v01.append(wins.mean(0))
    areas = [part.mean() for part in v10]
    s = np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])
    z = (areas[0] - areas[1]) / np.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    return areas[0], areas[1], 2 * norm.sf(abs(z))


def test_every_class_equals_delong_by_the_definition(tmp_path):
    a, b = predictions(1.5), predictions(0.5, seed=2)
    write(tmp_path / "a", zero_shot=a)
    write(tmp_path / "b", zero_shot=b)
    test = compare_runs(tmp_path / "a", tmp_path / "b")["zero_shot"]
    rows = {row.name: row for row in test.rows}
    slow = [slow_delong(a.labels[:, c], a.scores[:, c], b.scores[:, c]) for c in (0, 1)]
    for name, (one, other, p) in zip(CLASSES[:2], slow, strict=True):
        assert (rows[name].auroc_a, rows[name].auroc_b) == pytest.approx((one, other), abs=1e-12)
        assert rows[name].p == pytest.approx(p, rel=1e-9)
        assert rows[name].difference == pytest.approx(one - other, abs=1e-12)
        assert rows[name].low < rows[name].difference < rows[name].high
    assert [rows[name].p_holm for name in CLASSES[:2]] == pytest.approx(holm([p for *_, p in slow]), rel=1e-9)
    assert rows["macro"].auroc_a == pytest.approx(np.nanmean(auroc(a.labels, a.scores)))
    assert rows["macro"].low < rows["macro"].difference < rows["macro"].high
    assert np.isnan([rows["Rare"].auroc_a, rows["Rare"].p, rows["Rare"].p_holm, rows["macro"].p]).all()
    assert [row.kind for row in test.rows] == ["class"] * 3 + ["average"] * 2


def test_order_of_studies_and_classes_does_not_matter():
    a, b = predictions(1.5), predictions(0.5, seed=2)
    order = np.random.default_rng(3).permutation(60)
    mixed = Predictions(
        [b.study_id[i] for i in order],
        [b.subject_id[i] for i in order],
        CLASSES[::-1],
        b.labels[order][:, ::-1],
        b.scores[order][:, ::-1],
    )
    assert str(compare_predictions(a, mixed, n_resamples=20)) == str(compare_predictions(a, b, n_resamples=20))


def test_studies_of_one_subject_are_not_independent():
    """The same studies four times over say no more than once: a test that took them as new would."""
    a, b = predictions(1.0), predictions(0.3, seed=2)

    def copies(one: Predictions, subjects) -> Predictions:
        ids = [f"{study}_{copy}" for copy in range(4) for study in one.study_id]
        return Predictions(ids, subjects, CLASSES, np.tile(one.labels, (4, 1)), np.tile(one.scores, (4, 1)))

    whole = copies(a, a.subject_id * 4), copies(b, b.subject_id * 4)
    apart = [f"p{i}" for i in range(240)]
    clustered = compare_predictions(*whole, n_resamples=20).rows[0]
    naive = compare_predictions(copies(a, apart), copies(b, apart), n_resamples=20).rows[0]
    once = compare_predictions(a, b, n_resamples=20).rows[0]
    assert abs(clustered.z) == pytest.approx(abs(once.z), rel=0.1)
    assert abs(naive.z) > 1.7 * abs(clustered.z)
    assert "counted as dependent" in compare_predictions(*whole, n_resamples=20).caption()


def changed(one: Predictions, **fields) -> Predictions:
    kept = {name: getattr(one, name) for name in ("study_id", "subject_id", "classes", "labels", "scores")}
    return Predictions(**{**kept, **fields})


def test_other_cases_labels_or_classes_are_refused():
    a = predictions(1.0)
    labels = a.labels.copy()
    labels[5, 1] = 1 - labels[5, 1]
    unknown = a.labels.copy()
    unknown[0, 0] = np.nan
    for other, message in (
        (changed(a, study_id=["x", *a.study_id[1:]]), "run A has 1 studies that run B lacks, study 's000' among them"),
        (predictions(1.0, n=61), "run B has 1 studies that run A lacks, study 's060' among them"),
        (
            changed(a, classes=("Nodule", *CLASSES[1:])),
            r"run A has 1 classes that run B lacks, class 'Nodule \[left\]'",
        ),
        (changed(a, labels=labels), r"study 's005': label 'Hernia' is . in run A but . in run B \(1 such\)"),
        (changed(a, labels=unknown), "study 's000': label 'Nodule .left.' is . in run A but nan in run B"),
        (changed(a, subject_id=["q", *a.subject_id[1:]]), "study 's000' is of subject 'p0' in run A, of 'q' in run B"),
    ):
        with pytest.raises(RunsDifferError, match=message):
            compare_predictions(a, other)


def test_folders_without_common_predictions(tmp_path):
    write(tmp_path / "a", zero_shot=predictions(1))
    write(tmp_path / "b", matching=predictions(1))
    with pytest.raises(RunsDifferError, match=r"a has predictions of zero_shot, .*b of matching"):
        compare_runs(tmp_path / "a", tmp_path / "b")
    with pytest.raises(RunsDifferError, match=r"no predictions 'zero_shoot', only zero_shot; did you mean 'zero_shot'"):
        compare_runs(tmp_path / "a", tmp_path / "a", "zero_shoot")
    with pytest.raises(FileNotFoundError, match="holds no metrics"):
        compare_runs(tmp_path / "a", tmp_path / "nothing")
    (tmp_path / "a" / "zero_shot_predictions.csv").write_text("study_id\n")
    with pytest.raises(RunsDifferError, match=r"zero_shot_predictions\.csv: no column subject_id"):
        compare_runs(tmp_path / "a", tmp_path / "a")
    (tmp_path / "b" / "metrics.json").write_text("[]")
    with pytest.raises(RunsDifferError, match=r"metrics\.json: damaged"):
        compare_runs(tmp_path / "a", tmp_path / "b")


def test_validation_predictions_are_not_compared(tmp_path):
    write(tmp_path / "a", zero_shot=predictions(1), validation_zero_shot=predictions(1))
    assert list(compare_runs(tmp_path / "a", tmp_path / "a")) == ["zero_shot"]


def test_a_run_against_itself_differs_by_nothing(tmp_path):
    write(tmp_path / "a", zero_shot=predictions(1))
    for row in compare_runs(tmp_path / "a", tmp_path / "a", n_resamples=20)["zero_shot"].rows:
        assert row.name == "Rare" or (row.difference, row.low, row.high) == (0, 0, 0)


def test_command_prints_a_table_or_json(tmp_path):
    folders = [str(write(tmp_path / name, zero_shot=predictions(*options))) for name, options in RUNS.items()]
    printed = CliRunner().invoke(cli.app, ["compare", *folders])
    assert printed.exit_code == 0
    for part in ("Nodule [left]", "macro average", "Holm", "60 studies of 60 subjects"):
        assert part in printed.output
    assert "nan" not in printed.output
    content = json.loads(CliRunner().invoke(cli.app, ["compare", *folders, "--json", "--task", "zero_shot"]).output)
    (task,) = content["tasks"]
    assert [row["name"] for row in task["rows"]] == [*CLASSES, "macro", "micro"]
    assert task["rows"][2]["p"] is None
    assert task["rows"][0]["p_holm"] >= task["rows"][0]["p"]


RUNS = {"a": (1.5,), "b": (0.5, 60, 1, 2)}


def test_command_refuses_other_cases_with_exit_code_65(tmp_path, monkeypatch, capsys):
    folders = [str(write(tmp_path / f"{n}", zero_shot=predictions(1, n=n))) for n in (60, 61)]
    monkeypatch.setattr("sys.argv", ["medvl", "compare", *folders])
    with pytest.raises(SystemExit, match="65"):
        cli.main()
    assert "has 1 studies that" in capsys.readouterr().err
    bad = CliRunner().invoke(cli.app, ["compare", *folders, "--level", "95"])
    assert bad.exit_code == 2


def test_a_list_of_tables_that_is_none_is_damage(tmp_path):
    write(tmp_path, zero_shot=predictions(1.0))
    (tmp_path / "metrics.json").write_text('{"tables": null}')
    with pytest.raises(RunsDifferError, match=r"metrics\.json: damaged"):
        compare_runs(tmp_path, tmp_path)
