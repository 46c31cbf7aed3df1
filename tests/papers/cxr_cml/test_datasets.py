from __future__ import annotations

import gzip
import logging
import math
import pickle
import shutil
from functools import partial

import numpy as np
import pytest

from medvl_core.build import build_dataset
from medvl_cxr_cml.chexpert import CHEXPERT_LABELS, build_chexpert
from medvl_cxr_cml.cxr_lt import CXR_LT_LABELS, CXR_LT_RARE, build_cxr_lt
from medvl_cxr_cml.nih import NIH_LABELS, build_nih_chestxray14
from medvl_cxr_cml.padchest import build_padchest
from tests.papers.cxr_cml import cxr_sets
from tests.papers.cxr_cml.cxr_sets import edit, read_rows, write_table

SPLITS = ("train", "validation", "test")
BUILDERS = {
    "cxr_lt": (cxr_sets.cxr_lt, build_cxr_lt),
    "chexpert": (cxr_sets.chexpert, build_chexpert),
    "nih": (cxr_sets.nih, build_nih_chestxray14),
    "padchest": (cxr_sets.padchest, build_padchest),
}


def everything(data):
    return [study for split in SPLITS for study in data.studies(split)]


def by_id(data):
    return {study.study_id: study for study in everything(data)}


def positives(study):
    return {name for name, value in study.labels.items() if value == 1}


@pytest.fixture(params=BUILDERS)
def any_set(request, tmp_path):
    make, build = BUILDERS[request.param]
    return partial(build, **make(tmp_path))


# what all four share


def test_five_folds_test_every_image_once_and_never_share_a_patient(any_set):
    tested = []
    for fold in range(5):
        data = any_set(fold=fold)
        patients = {split: {s.subject_id for s in data.studies(split)} for split in SPLITS}
        assert all(patients.values())
        assert not patients["train"] & patients["test"]
        assert not patients["validation"] & (patients["train"] | patients["test"])
        tested += [s.study_id for s in data.studies("test")]
        assert len(everything(data)) == len(by_id(data))
    assert sorted(tested) == sorted(by_id(any_set()))


def test_split_follows_the_seed(any_set):
    first, again, other = ([s.study_id for s in any_set(seed=seed).studies("test")] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_no_validation_share_leaves_it_empty(any_set):
    data = any_set(validation_share=0)
    assert data.studies("validation") == []
    assert len(everything(data)) == len(everything(any_set()))


def test_compat_mode_splits_images_and_says_so(any_set, caplog):
    with caplog.at_level(logging.WARNING):
        data = any_set(split="image_stratified_compat", seed=42, n_folds=2)
    assert "patients are in training and test" in caplog.text
    held = [s.study_id for s in data.studies("test")]
    assert [s.study_id for s in data.studies("validation")] == held
    assert not {s.study_id for s in data.studies("train")} & set(held)
    shared = {s.subject_id for s in data.studies("train")} & {s.subject_id for s in data.studies("test")}
    assert f"compat: {len(shared)} patients" in caplog.text
    assert shared


def test_wrong_splits_are_refused(any_set):
    with pytest.raises(ValueError, match="split is 'random'; choose one of patients, official"):
        any_set(split="random")
    with pytest.raises(ValueError, match="fold is 5 of 5 folds; count them from 0"):
        any_set(fold=5)
    with pytest.raises(ValueError, match=r"\.csv: 1\d patients leave|\.csv: \d+ patients leave|\.csv: k=12"):
        any_set(n_folds=12, validation_share=0.95)
    with pytest.raises(ValueError, match="no split 'dev'; there are train, validation, test"):
        any_set().studies("dev")
    with pytest.raises(ValueError, match="rare names 'Hernai', which is no label"):
        any_set(rare=["Hernai"])


def test_studies_are_small_and_go_to_worker_processes(any_set):
    data = any_set()
    study = data.studies("train")[0]
    again = pickle.loads(pickle.dumps(study))
    assert dict(again.labels) == pytest.approx(dict(study.labels), nan_ok=True)
    assert tuple(study.labels) == data.label_names
    assert math.isnan(study.labels.get("absent", math.nan))
    assert study.images["cxr"].load().array.shape == (20, 16)


def test_images_that_are_not_there_are_left_out_and_counted(any_set, caplog):
    full = by_id(any_set())
    gone = sorted(full)[3]
    full[gone].images["cxr"].path.unlink()
    with caplog.at_level(logging.INFO):
        assert set(by_id(any_set())) == set(full) - {gone}
    assert "have no file here and are left out" in caplog.text
    for study in full.values():
        study.images["cxr"].path.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"csv: no file of its \d+ rows is there; the first is"):
        any_set()


def test_other_views_only(any_set):
    with pytest.raises(ValueError, match=r"is never one of \('XTABLE',\); it is"):
        any_set(views=["XTABLE"])
    assert len(everything(any_set(views=None))) >= len(everything(any_set()))


# CXR-LT


def test_cxr_lt_reads_frontal_views_with_ids_and_groups(tmp_path):
    options = cxr_sets.cxr_lt(tmp_path)
    data = build_dataset("cxr_cml/cxr_lt", **options)
    studies = everything(data)
    assert len(studies) == 40
    assert {s.metadata["view"] for s in studies} == {"AP", "PA"}
    study = by_id(data)["040aa804e-bde0afdd"]
    assert (study.subject_id, study.scan_id) == ("10000036", "s50000040")
    assert positives(study) == {name for i, name in enumerate(CXR_LT_LABELS) if (4 + i) % 10 == 0}
    assert data.label_names == CXR_LT_LABELS
    assert (len(CXR_LT_LABELS), len(data.label_groups["base"]), data.label_groups["rare"]) == (40, 28, CXR_LT_RARE)
    assert {"Normal", "Support Devices"} <= set(data.label_groups["base"])


def test_cxr_lt_takes_study_ids_and_the_rounded_label_in_either_spelling(tmp_path):
    options = cxr_sets.cxr_lt(tmp_path)
    expected = {key: (s.scan_id, dict(s.labels)) for key, s in by_id(build_cxr_lt(**options)).items()}
    rows = read_rows(options["table"])
    for row in rows:
        row["study_id"] = row["study_id"].removeprefix("s")
        row["Rounded Atelectasis"] = row.pop("Round(ed) Atelectasis")
    write_table(options["table"], rows)
    assert {key: (s.scan_id, dict(s.labels)) for key, s in by_id(build_cxr_lt(**options)).items()} == expected


def test_cxr_lt_never_takes_a_missing_view_for_a_frontal_one(tmp_path):
    options = cxr_sets.cxr_lt(tmp_path)
    edit(options["table"], 2, ViewPosition="")
    assert len(everything(build_cxr_lt(**options))) == 39
    assert len(everything(build_cxr_lt(**options, views=None))) == 60


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"Edema": 2}, r"train_labeled\.csv, row 4: Edema is '2'; labels are 1, 0 or blank"),
        ({"subject_id": ""}, r"row 4: the subject id is blank"),
        ({"dicom_id": "000aa804e-bde0afdd"}, r"row 4: image '000aa804e-bde0afdd' is in the table before"),
    ],
)
def test_cxr_lt_names_the_row_at_fault(tmp_path, cells, message):
    options = cxr_sets.cxr_lt(tmp_path)
    edit(options["table"], 4, **cells)
    with pytest.raises(ValueError, match=message):
        build_cxr_lt(**options)


def test_cxr_lt_without_a_label_column_is_refused(tmp_path):
    options = cxr_sets.cxr_lt(tmp_path)
    write_table(
        options["table"], [{k: v for k, v in row.items() if k != "Kyphosis"} for row in read_rows(options["table"])]
    )
    with pytest.raises(ValueError, match=r"train_labeled\.csv: no column Kyphosis among"):
        build_cxr_lt(**options)
    with pytest.raises(FileNotFoundError, match="no such table"):
        build_cxr_lt(tmp_path / "gone.csv", tmp_path)


# CheXpert


def test_chexpert_strips_the_release_and_keeps_frontals(tmp_path):
    options = cxr_sets.chexpert(tmp_path)
    renamed = tmp_path / "my copy"
    options["folder"].rename(renamed)
    data = build_chexpert(renamed)
    study = by_id(data)["train/patient00004/study2/view1_frontal"]
    assert (study.subject_id, study.scan_id) == ("patient00004", "train/patient00004/study2")
    assert study.metadata == {"sex": "Female", "age": 64.0, "view": "Frontal", "projection": "AP"}
    assert data.label_names == CHEXPERT_LABELS
    assert len(everything(data)) == 40
    assert len(everything(build_chexpert(renamed, views=None))) == 60


@pytest.mark.parametrize(("policy", "value"), [("unknown", math.nan), ("zero", 0.0), ("one", 1.0)])
def test_chexpert_policies(tmp_path, policy, value):
    options = cxr_sets.chexpert(tmp_path)
    labels = by_id(build_chexpert(**options, uncertain=policy))["train/patient00000/study1/view1_frontal"].labels
    expected = [1.0, 0.0, value, 0.0] * 4  # the cells of this row are 1, 0, -1, blank, 1, ...
    np.testing.assert_array_equal(list(labels.values()), expected[:14])
    blank = by_id(build_chexpert(**options, blank=policy))["train/patient00000/study1/view1_frontal"].labels
    np.testing.assert_array_equal(list(blank.values()), ([1.0, 0.0, math.nan, value] * 4)[:14])


def test_chexpert_policies_label_by_label(tmp_path):
    options = cxr_sets.chexpert(tmp_path)
    data = build_chexpert(**options, uncertain={"Cardiomegaly": "one", "Consolidation": "zero"})
    labels = by_id(data)["train/patient00000/study1/view1_frontal"].labels
    assert [labels[name] for name in ("Cardiomegaly", "Consolidation")] == [1.0, 0.0]
    assert math.isnan(labels["Pleural Effusion"])


def test_chexpert_official_split_tests_on_valid(tmp_path):
    data = build_chexpert(**cxr_sets.chexpert(tmp_path), split="official")
    assert {s.subject_id for s in data.studies("test")} == {"patient64541", "patient64542", "patient64543"}
    assert len(data.studies("train")) + len(data.studies("validation")) == 40
    assert data.studies("validation")


def test_chexpert_exactly_one_of_keeps_single_positives(tmp_path):
    options = cxr_sets.chexpert(tmp_path)
    names = ("Pneumothorax", "Pleural Effusion", "Edema", "Atelectasis", "Lung Lesion")
    rows = read_rows(options["folder"] / "train.csv")
    frontal = [row for row in rows if row["Frontal/Lateral"] == "Frontal"]
    expected = {
        row["Path"].removeprefix(f"{cxr_sets.RELEASE}/").removesuffix(".jpg"): [n for n in names if row[n] == "1.0"]
        for row in frontal
    }
    expected = {key: found for key, found in expected.items() if len(found) == 1}
    data = build_chexpert(**options, exactly_one_of=names)
    assert data.label_names == names
    assert {key: list(positives(s)) for key, s in by_id(data).items()} == expected
    assert not any(math.isnan(v) for s in everything(data) for v in s.labels.values())


def test_chexpert_draws_so_many_of_each_label(tmp_path):
    options = {
        **cxr_sets.chexpert(tmp_path),
        "exactly_one_of": ("Edema", "Lung Lesion"),
        "n_folds": 2,
        "validation_share": 0,
    }
    drawn = by_id(build_chexpert(**options, per_label=3))
    assert sorted(name for s in drawn.values() for name in positives(s)) == ["Edema"] * 3 + ["Lung Lesion"] * 3
    assert set(by_id(build_chexpert(**options, per_label=3))) == set(drawn)
    assert set(by_id(build_chexpert(**options, per_label=3, seed=1))) != set(drawn)
    with pytest.raises(ValueError, match=r"train\.csv: \d+ images have Edema alone; lower per_label from 30"):
        build_chexpert(**options, per_label=30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uncertain": "ones"}, "policy is ones; choose from unknown, zero, one"),
        ({"uncertain": {"Oedema": "one"}}, "CheXpert has no label 'Oedema'; did you mean 'Edema'"),
        ({"exactly_one_of": ["Efusion"]}, "CheXpert has no label 'Efusion'"),
        ({"per_label": 5}, "per_label is 5 without exactly_one_of"),
    ],
)
def test_chexpert_refuses_wrong_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build_chexpert(tmp_path, **options)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"Edema": "3"}, r"train\.csv, row 4: Edema is '3'; CheXpert's labels are 1, 0, -1 or blank"),
        ({"Path": "CheXpert/patient1.jpg"}, r"row 4: Path is 'CheXpert/patient1\.jpg'; it must end in"),
    ],
)
def test_chexpert_names_the_row_at_fault(tmp_path, cells, message):
    options = cxr_sets.chexpert(tmp_path)
    edit(options["folder"] / "train.csv", 4, **cells)
    with pytest.raises(ValueError, match=message):
        build_chexpert(**options)


def test_chexpert_names_the_table_at_fault(tmp_path):
    options = cxr_sets.chexpert(tmp_path)
    valid = options["folder"] / "valid.csv"
    edit(valid, 4, Path=read_rows(valid)[0]["Path"])
    with pytest.raises(ValueError, match=r"valid\.csv, row 4: image 'valid/patient64541/.*' is in the table before"):
        build_chexpert(**options, split="official")


# NIH


def test_nih_finds_images_and_findings(tmp_path):
    data = build_nih_chestxray14(**cxr_sets.nih(tmp_path), rare=["Hernia"])
    study = by_id(data)["00000001_001"]
    assert positives(study) == {"Cardiomegaly", "Emphysema"}
    assert study.subject_id == "1"
    assert study.metadata == {"age": 50.0, "sex": "F", "view": "AP"}
    assert positives(by_id(data)["00000001_000"]) == set()
    assert positives(by_id(data)["00000002_001"]) == {"Pleural Thickening"}
    assert data.label_names == NIH_LABELS
    assert (len(data.label_groups["base"]), data.label_groups["rare"]) == (13, ("Hernia",))
    assert build_nih_chestxray14(tmp_path).label_groups == {}
    assert len(everything(build_nih_chestxray14(tmp_path, views=["PA"]))) == 20


def test_nih_official_lists(tmp_path):
    data = build_nih_chestxray14(**cxr_sets.nih(tmp_path), split="official")
    assert {s.subject_id for s in data.studies("test")} == {"19", "20"}
    assert len(data.studies("train")) + len(data.studies("validation")) == 36
    assert data.studies("validation")
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n")
    with pytest.raises(ValueError, match=r"row 3: 00000001_001\.png is in neither official list"):
        build_nih_chestxray14(tmp_path, split="official")
    names = [row["Image Index"] for row in read_rows(tmp_path / "Data_Entry_2017_v2020.csv")]
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[:37]))
    (tmp_path / "test_list.txt").write_text("\n".join(names[37:]))
    with pytest.raises(ValueError, match=r"patients \['19'\] are in the official training and test lists"):
        build_nih_chestxray14(tmp_path, split="official")
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_list\.txt: no such list; copy it there, or split='patients'"):
        build_nih_chestxray14(tmp_path, split="official")


def test_nih_reads_a_gzipped_table_and_a_flat_folder(tmp_path):
    cxr_sets.nih(tmp_path)
    expected = {key: dict(s.labels) for key, s in by_id(build_nih_chestxray14(tmp_path)).items()}
    table = tmp_path / "Data_Entry_2017_v2020.csv"
    (tmp_path / "Data_Entry_2017_v2020.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    with pytest.raises(ValueError, match="both fit Data_Entry_2017"):
        build_nih_chestxray14(tmp_path)
    table.unlink()
    (tmp_path / "images").mkdir()
    for path in sorted(tmp_path.glob("images_*/images/*.png")):
        path.rename(tmp_path / "images" / path.name)
    assert {key: dict(s.labels) for key, s in by_id(build_nih_chestxray14(tmp_path)).items()} == expected


def test_nih_faults_are_named(tmp_path):
    cxr_sets.nih(tmp_path)
    table = tmp_path / "Data_Entry_2017_v2020.csv"
    shutil.copy(tmp_path / "images_001/images/00000001_000.png", tmp_path / "images_002/images/00000001_000.png")
    with pytest.raises(ValueError, match=r"images_002/images/00000001_000\.png: also at .*images_001"):
        build_nih_chestxray14(tmp_path)
    (tmp_path / "images_002/images/00000001_000.png").rename(tmp_path / "images_002/images/x.png")
    with pytest.raises(ValueError, match=r"x\.png: is in no row of Data_Entry_2017_v2020\.csv"):
        build_nih_chestxray14(tmp_path)
    (tmp_path / "images_002/images/x.png").unlink()
    edit(table, 5, **{"Finding Labels": "Mass|Effussion"})
    with pytest.raises(
        ValueError, match=r"row 5: Finding Labels is 'Mass\|Effussion'; 'Effussion' is none of the 14; did"
    ):
        build_nih_chestxray14(tmp_path)
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"no table Data_Entry_2017\*\.csv or"):
        build_nih_chestxray14(tmp_path)


@pytest.mark.real_data
def test_nih_reads_the_real_subset(real_data):
    folder = real_data / "cxr_nih1000_64"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    data = build_nih_chestxray14(folder)
    studies = everything(data)
    assert len(studies) == len({s.study_id for s in studies}) == 824
    assert len({s.subject_id for s in studies}) == 212
    assert all(s.study_id.startswith(f"{int(s.subject_id):08d}_") for s in studies)
    counts = {name: int(sum(s.labels[name] for s in studies)) for name in data.label_names}
    assert counts == {
        "Atelectasis": 79, "Cardiomegaly": 78, "Effusion": 138, "Infiltration": 132, "Mass": 33, "Nodule": 30,
        "Pneumonia": 8, "Pneumothorax": 33, "Consolidation": 38, "Edema": 28, "Emphysema": 30, "Fibrosis": 26,
        "Pleural Thickening": 27, "Hernia": 8,
    }  # fmt: skip
    assert sum(not positives(s) for s in studies) == 406
    assert 0.15 < len(data.studies("test")) / 824 < 0.25
    for study in (studies[0], studies[-1]):
        assert study.images["cxr"].load().array.shape == (64, 64)


# PadChest


def test_padchest_reads_lists_of_findings(tmp_path):
    data = build_padchest(**cxr_sets.padchest(tmp_path))
    assert data.label_names == ("COPD signs", "cardiomegaly", "normal", "pleural effusion")
    studies = by_id(data)
    assert len(studies) == 38  # nineteen usable patients with a PA and an AP_horizontal
    assert positives(studies["2168401113669640010_00-163-008"]) == {"COPD signs", "cardiomegaly"}
    assert positives(studies["2168401113669640030_00-163-008"]) == {"COPD signs"}  # "unchanged" is no finding
    study = studies["2168401113669640020_00-163-008"]
    assert (study.subject_id, study.scan_id, study.metadata["view"]) == ("839802", "20536020", "PA")
    assert study.images["cxr"].load().array.max() > 255
    assert everything(build_padchest(tmp_path, min_images=2, views=["L"]))


def test_padchest_options(tmp_path):
    options = cxr_sets.padchest(tmp_path)
    physician = build_padchest(**options, labelled_by="physician", n_folds=2, validation_share=0)
    assert {s.subject_id for s in everything(physician)} == {f"8398{n:02d}" for n in range(1, 20, 2) if n != 9}
    chosen = build_padchest(tmp_path, label_names=["normal", "COPD signs"])
    assert chosen.label_names == ("normal", "COPD signs")
    for change, message in (
        ({"label_names": ["COPD sign"]}, "no image kept has the label 'COPD sign'; did you mean 'COPD signs'"),
        ({"min_images": 50}, "no label has 50 images; lower min_images"),
        ({"labelled_by": "nurse"}, "labelled_by is 'nurse'; choose 'any' or 'physician'"),
    ):
        with pytest.raises(ValueError, match=message):
            build_padchest(**{**options, **change})


def test_padchest_names_the_row_at_fault(tmp_path):
    options = cxr_sets.padchest(tmp_path)
    edit(next(tmp_path.glob("*.csv")), 4, Labels="normal, COPD")
    with pytest.raises(ValueError, match=r"row 4: Labels is 'normal, COPD'; it must be a list such as \['normal'\]"):
        build_padchest(**options)
