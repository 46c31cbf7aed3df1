from __future__ import annotations

import logging
import math

import pytest

from medvl_x2ct.mimic_ct import build_mimic_ct
from tests.papers.x2ct.x2ct_layouts import SECRET, drop, edit_gz, write_mimic
from tests.refusals import refused


@pytest.fixture
def folder(tmp_path):
    write_mimic(tmp_path)
    return tmp_path


def film_of(study):
    return study.images["cxr"].path.stem


def test_nearest_pair_of_each_admission(folder):
    studies = build_mimic_ct(folder).studies("test")
    assert [(s.study_id, s.scan_id, film_of(s)) for s in studies] == [
        ("10000001-RR-1", "501", "aaaa"),
        ("10000001-RR-2", "502", "cccc"),
        ("10000002-RR-5", "503", "dddd"),
    ]
    assert [s.subject_id for s in studies] == ["10000001", "10000001", "10000002"]
    assert [s.metadata["gap_hours"] for s in studies] == [0.5, 14.0, 1.0]
    assert set(studies[0].images) == {"cxr"}
    assert studies[0].images["cxr"].load().array.shape == (20, 24)


def test_labels_and_sections(folder):
    data = build_mimic_ct(folder)
    one, two, three = data.studies("test")
    assert len(data.label_names) == 11
    assert (one.report.findings, one.report.impression) == ("Mild emphysema. No pericardial effusion.", "Emphysema.")
    assert {name for name, value in one.labels.items() if value == 1} == {"Emphysema"}
    assert math.isnan(two.labels["Atelectasis"])
    assert three.labels["Hiatal hernia"] == 1


def test_second_start_reads_the_table_and_nothing_else(folder):
    first = build_mimic_ct(folder)
    for name in ("mimic-iv", "mimic-iv-note"):
        (folder / name).rename(folder / f"{name}-away")
    again = build_mimic_ct(folder)
    assert repr(again.studies("test")) == repr(first.studies("test"))
    with pytest.raises(FileNotFoundError, match=r"no admissions.csv"):
        build_mimic_ct(folder, label_set="rad_chest_9", labeler="tests.papers.x2ct.test_mimic_ct:everything")


def everything(text, names):
    """Stands for a language model."""
    return dict.fromkeys(names, float("emphysema" in text.lower()))


def half(text, names):
    return dict.fromkeys(names, 0.5)


def test_own_labeler_replaces_the_rules(folder):
    data = build_mimic_ct(folder, labeler=f"{__name__}:everything", label_set="ct_rate_18")
    assert len(data.label_names) == 18
    assert [sum(s.labels.values()) for s in data.studies("test")] == [18, 0, 0]
    with pytest.raises(ValueError, match=r"the labeler gives no 1, 0 or NaN for Arterial wall calcification"):
        build_mimic_ct(folder, labeler=f"{__name__}:half")
    with pytest.raises(ValueError, match=r"cannot be made from report"):
        build_mimic_ct(folder, label_set="ct_rate_18")


def test_logs_and_messages_hold_no_text_and_no_ids(folder, caplog):
    with caplog.at_level(logging.DEBUG):
        build_mimic_ct(folder)
    assert "8 chest CT reports" not in caplog.text
    assert "7 chest CT reports, 1 of them without" in caplog.text
    edit_gz(folder / "mimic-iv-note/note/radiology.csv.gz", lambda rows: rows[3].update(charttime=f"{SECRET} 10:00"))
    with pytest.raises(ValueError, match=r"radiology\.csv\.gz, row 5: charttime is no time") as caught:
        build_mimic_ct(folder, labeler=f"{__name__}:everything")
    for text in (caplog.text, str(caught.value)):
        assert SECRET not in text
        assert "emphysema" not in text.lower()
        assert not any(name in text.replace(str(folder), "") for name in ("10000001", "501", "90001"))


FAULTS = {
    "admission twice": (
        "mimic-iv/hosp/admissions.csv.gz",
        lambda r: [*r, r[0]],
        r"admissions.csv.gz, row \d+: hadm_id",
    ),
    "admission time": (
        "mimic-iv/hosp/admissions.csv.gz",
        lambda r: r[1].update(dischtime="later"),
        "row 3: dischtime is no time",
    ),
    "no text": ("mimic-iv-note/note/radiology.csv.gz", drop("text"), "unreadable or without a column of note_id"),
    "no exam name": (
        "mimic-iv-note/note/radiology_detail.csv.gz",
        drop("field_value"),
        "radiology_detail.csv.gz: unreadable or without a column",
    ),
    "film time": (
        "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv.gz",
        lambda r: r[3].update(StudyTime="996100"),
        "row 5: StudyDate and StudyTime is no time",
    ),
    "nothing in common": (
        "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv.gz",
        lambda r: [{**row, "subject_id": "7"} for row in r],
        "none of 5 chest CT reports of an admission has one of 0 frontal radiographs",
    ),
}


@pytest.mark.parametrize(("path", "change", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_are_named(folder, path, change, message):
    edit_gz(folder / path, change)
    with refused(folder, message):
        build_mimic_ct(folder)
    assert not list(folder.glob("mimic_ct-*.csv"))


def test_cut_archive_and_missing_parts_are_named(folder):
    path = folder / "mimic-iv-note/note/radiology.csv.gz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"radiology\.csv\.gz: unreadable"):
        build_mimic_ct(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no radiology\.csv or radiology\.csv\.gz"):
        build_mimic_ct(folder)
    next((folder / "mimic-cxr-jpg").glob("*metadata*")).unlink()
    with pytest.raises(FileNotFoundError, match="no radiology"):
        build_mimic_ct(folder)


def test_radiographs_that_are_not_downloaded_are_counted(folder):
    for name in ("aaaa", "cccc"):
        next(folder.rglob(f"{name}.jpg")).unlink()
    with pytest.raises(FileNotFoundError, match=r"mimic_ct-\w+\.csv, row 2 and 1 more: .*download what the column cxr"):
        build_mimic_ct(folder)
    with pytest.raises(ValueError, match="image is 'png'"):
        build_mimic_ct(folder, image="png")


def test_shares_split_by_patient(folder):
    data = build_mimic_ct(folder, shares=(0.5, 0.0, 0.5))
    people = [{s.subject_id for s in data.studies(split)} for split in ("train", "test")]
    assert len(people[0] | people[1]) == 2
    assert not people[0] & people[1]
