"""Verdicts, tables, figure and files of a comparison."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medvl_core.specs import Metric
from medvl_evaluation.comparison import Context, Estimate, compare, write_evaluation

CONTEXT = Context(n_studies=200, n_subjects=150, n_resamples=1000, seed=3)
RANK = Metric(name="median_rank", unit="rank", higher_is_better=False)
UNTRAINED = Estimate(0.2, 0.1, 0.3)
RECALL = Metric(name="recall_at_1")


def rows(trained: Estimate, untrained: Estimate = UNTRAINED, metric: str = "recall_at_1"):
    return {"chance": {metric: Estimate(0.1)}, "untrained": {metric: untrained}, "trained": {metric: trained}}


@pytest.mark.parametrize(
    ("trained", "verdict"),
    [
        (Estimate(0.5, 0.31, 0.7), "ahead"),
        (Estimate(0.5, 0.30, 0.7), "overlaps"),
        (Estimate(0.05, 0.01, 0.09), "behind"),
        (Estimate(0.15, 0.11, 0.2), "overlaps"),
        (Estimate(0.9), "no interval"),
        (Estimate(math.nan, math.nan, math.nan), "no interval"),
    ],
)
def test_ahead_means_clear_of_every_other_row(trained, verdict):
    assert compare(rows(trained), CONTEXT).verdicts == {"recall_at_1": verdict}


@pytest.mark.parametrize(("trained", "verdict"), [(Estimate(4, 3, 6), "ahead"), (Estimate(80, 60, 90), "behind")])
def test_direction_of_the_metric_counts(trained, verdict):
    table = rows(trained, Estimate(20, 12, 30), "median_rank") | {"chance": {"median_rank": Estimate(50)}}
    assert compare(table, CONTEXT, [RANK]).verdicts["median_rank"] == verdict


def test_undefined_other_row_gives_no_verdict():
    assert compare(rows(Estimate(0.5, 0.4, 0.6), Estimate(math.nan)), CONTEXT).verdicts["recall_at_1"] == "no interval"


def test_text_and_markdown_hold_every_number():
    both = {**rows(Estimate(0.5, 0.4, 0.6))}
    both["trained"] = {**both["trained"], "median_rank": Estimate(2.5, 2, 3)}
    comparison = compare(both, CONTEXT, [RECALL, RANK])
    for table in (comparison.text(), comparison.markdown()):
        for part in ("0.100", "0.200 [0.100, 0.300]", "0.500 [0.400, 0.600]", "ahead", "2.5 [2.0, 3.0]", "–"):
            assert part in table
        assert "median_rank [rank] ↓" in table
        assert "200 studies of 150 subjects" in table
        assert "plumbing" not in table


def test_few_studies_are_called_plumbing():
    few = Context(n_studies=29, n_subjects=10, n_resamples=100, seed=0)
    comparison = compare(rows(Estimate(0.5, 0.4, 0.6)), few)
    plain = re.sub(r"\s+", " ", comparison.text())
    for table in (plain, comparison.markdown(), comparison.as_dict()["context"]["caption"]):
        assert "Fewer than 30 studies: these numbers prove plumbing, not skill" in table


def test_names_are_no_markup():
    comparison = compare({"a|b [red]": {"x [bold]|y": Estimate(0.5, 0.4, 0.6)}}, CONTEXT)
    assert "x [bold]|y" in comparison.text()
    assert "a\\|b [red]" in comparison.markdown()


def test_written_files_can_be_read_back(tmp_path):
    comparison = compare(rows(Estimate(0.5, 0.4, 0.6)), CONTEXT)
    table = pd.DataFrame({"class": ["Nodule, left", "Hernia"], "auroc": [0.75, np.nan]})
    (tmp_path / "roc.png").touch()
    path = write_evaluation(tmp_path / "eval", comparison, {"per_class": table}, [tmp_path / "roc.png"])
    content = json.loads(path.read_text(encoding="utf-8"))
    expected = {"n_studies": 200, "n_subjects": 150, "n_resamples": 1000, "seed": 3, "level": 0.95}
    assert {**content["context"], **expected} == content["context"]
    assert content["rows"]["trained"]["recall_at_1"] == {"value": 0.5, "low": 0.4, "high": 0.6}
    assert content["rows"]["chance"]["recall_at_1"] == {"value": 0.1, "low": None, "high": None}
    assert content["verdicts"] == {"recall_at_1": "ahead"}
    assert content["figures"] == ["../roc.png", "comparison.png"]
    assert content["tables"] == ["per_class.csv"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "eval" / "per_class.csv"), table)
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["comparison.md", "comparison.png", "metrics.json", "per_class.csv"]


def test_metrics_json_is_replaced_last_and_whole(tmp_path, monkeypatch):
    """A write that fails midway leaves the previous metrics.json as it was."""
    write_evaluation(tmp_path, compare(rows(Estimate(0.5, 0.4, 0.6)), CONTEXT))
    before = (tmp_path / "metrics.json").read_bytes()

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_evaluation(tmp_path, compare(rows(Estimate(0.9, 0.8, 0.95)), CONTEXT))
    assert (tmp_path / "metrics.json").read_bytes() == before


def test_figure_draws_every_row(tmp_path):
    comparison = compare(rows(Estimate(0.9, 0.85, 0.95)), CONTEXT)
    with Image.open(comparison.figure(tmp_path / "forest.png")) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**24)}
    assert {(0x0B, 0x53, 0x94), (0xC4, 0x6A, 0x00)} <= colours


def test_unknown_candidate_and_metric():
    with pytest.raises(ValueError, match="candidate 'best' is none of the rows"):
        compare(rows(Estimate(0.5)), CONTEXT, candidate="best")
    with pytest.raises(ValueError, match=r"metrics \['dice'\] are in no row"):
        compare(rows(Estimate(0.5)), CONTEXT, [Metric(name="dice")])


def test_table_name_is_a_file_stem(tmp_path):
    with pytest.raises(ValueError, match="'a/b' becomes a file name"):
        write_evaluation(tmp_path, compare(rows(Estimate(0.5)), CONTEXT), {"a/b": pd.DataFrame()})
