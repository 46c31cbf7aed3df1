"""``medvl leaks``; ``report`` and ``compare`` are run by the tests of what they call."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from medvl_core.command import cli

ROWS = [
    "subject,study,scan,cxr,report,split",
    "p0,s0,c0,0.png,No acute <b>finding</b> today.,train",
    "p1,s1,c1,1.png,Nodule.,train",
    "p0,s2,c2,2.png,Mass.,test",
    "p3,s3,c1,3.png,no acute b FINDING b today,test",
    "p4,s4,c4,4.png,Fine.,tune",
]


@pytest.fixture
def table(tmp_path):
    for i in range(5):
        noise = np.random.default_rng(i % 4).standard_normal((64, 64))  # the last one is the first
        Image.fromarray((400 * gaussian_filter(noise, 3) + 120).clip(0, 255).astype(np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    path = tmp_path / "table.csv"
    path.write_text("\n".join(ROWS) + "\n", encoding="utf-8")
    return path


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["medvl", "leaks", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, *capsys.readouterr()


def test_every_leak_is_a_line_and_report_text_is_in_none(table, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, table, "--image", "cxr")
    assert code == 65
    assert out.splitlines() == [
        "patient p0: study s0 of train and study s2 of test",
        "scan c1: study s1 of train and study s3 of test",
        "report: study s0 of train and study s3 of test",
        "image cxr, similarity 1.000: study s0 of train and study s4 of tune",
        f"{table}: 4 leak(s)",
        "compared: 4 patients, 5 studies, 4 scans, 5 reports, 5 cxr images",
    ]
    code, out, error = run(monkeypatch, capsys, table, "--shortest-report", "7", "--json")
    assert (code, [leak["kind"] for leak in json.loads(out)]) == (65, ["patient", "scan"])
    assert error == "compared: 4 patients, 5 studies, 4 scans, 0 reports\n"


def test_a_clean_table_ends_with_0(table, monkeypatch, capsys):
    table.write_text("\n".join([*ROWS[:3], ROWS[5]]) + "\n", encoding="utf-8")
    code, out, _ = run(monkeypatch, capsys, table)
    assert (code, out.splitlines()[0]) == (0, f"{table}: 0 leak(s)")


@pytest.fixture
def other_names(tmp_path):
    path = tmp_path / "other.csv"
    rows = ["subject,study,volume,Findings_EN,split", "p0,s0,v0,Same words.,train", "p1,s1,v0,same WORDS,test"]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_columns_nobody_named_are_not_compared_and_the_last_line_says_so(other_names, monkeypatch, capsys):
    monkeypatch.setenv("MEDVL_PLUGINS", "mine")  # the command needs no plugin
    code, out, _ = run(monkeypatch, capsys, other_names)
    assert code == 0
    assert out.splitlines()[-1] == "compared: 2 patients, 2 studies, scans = studies, 0 reports"
    code, out, _ = run(monkeypatch, capsys, other_names, "--report-column", "Findings_EN", "--scan-column", "volume")
    assert code == 65
    assert out.splitlines() == [
        "scan v0: study s0 of train and study s1 of test",
        "report: study s0 of train and study s1 of test",
        f"{other_names}: 2 leak(s)",
        "compared: 2 patients, 2 studies, 1 scans, 2 reports",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split-column", "fold"], "table.csv: no column fold among"),
        (["--report-column", "Findings"], "table.csv: no column Findings among"),
        (["--scan-column", "volume"], "table.csv: no column volume among"),
        (["--image", "ct"], "images is ['ct']"),
        (["--similarity", "95"], "similarity is 95.0"),
    ],
)
def test_unusable_input_is_one_line(table, arguments, message, monkeypatch, capsys):
    code, _, error = run(monkeypatch, capsys, table, *arguments)
    assert (code, error.count("\n")) == (65, 1)
    assert message in error


def test_an_absent_table_cannot_be_read(tmp_path, monkeypatch, capsys):
    code, _, error = run(monkeypatch, capsys, tmp_path / "none.csv")
    assert code == 74
    assert "none.csv: no such table" in error
