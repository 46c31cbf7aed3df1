"""The phantom cohort as a dataset: splits, labels, reports, and the CT-RATE folder layout."""

from __future__ import annotations

import ast
import re
import time

import numpy as np
import pandas as pd
import pytest

from medvl_phantom import CT_GLIP_NAMES, CT_RATE_NAMES, FINDINGS, PhantomCohort, write_ct_rate_layout
from medvl_phantom.findings import FACTORS, draw_detail, draw_present
from medvl_phantom.reports import write_report
from medvl_phantom.streams import stream

SPLITS = ("train", "validation", "test")

# A reader of reports, written without a look at the sentences' table: a word pattern per finding.
MENTIONS = {
    "Medical material": r"medical device|medical material|catheter|pacemaker|sternotomy",
    "Arterial wall calcification": r"aortic wall|calcified atheroma",
    "Cardiomegaly": r"cardiomegaly|heart is \w+ly enlarged|enlarged heart|heart size is increased",
    "Pericardial effusion": r"pericardial (effusion|fluid|space)",
    "Coronary artery wall calcification": r"coronary",
    "Hiatal hernia": r"hiatal hernia|oesophageal hiatus",
    "Lymphadenopathy": r"lymph",
    "Emphysema": r"emphysema",
    "Atelectasis": r"\batelecta",
    "Lung nodule": r"nodule",
    "Lung opacity": r"ground-glass",
    "Pulmonary fibrotic sequela": r"fibrotic|sequela",
    "Pleural effusion": r"pleural (effusion|fluid)|\bpleural or",
    "Mosaic attenuation pattern": r"mosaic",
    "Peribronchial thickening": r"peribronchial|bronchial wall",
    "Consolidation": r"consolidat",
    "Bronchiectasis": r"bronchiect",
    "Interlobular septal thickening": r"interlobular",
    "Splenomegaly": r"splenomegaly|spleen is \w+ly enlarged|spleen size is increased|enlarged spleen",
    "Splenic calcification": r"splenic (calc|gran)|calcified splenic|in the spleen",
    "Acute pancreatitis": r"acute (pancreatitis|inflammation of the pancreas)",
    "Chronic pancreatitis": r"chronic pancreatitis",
    "Pancreatic duct stones": r"pancreatic duct",
    "Arteriosclerosis": r"arteriosclero",
    "Kidney stone": r"kidney stone|nephrolithiasis|renal calculi|stone in the (left|right|bilateral) kidney",
    "Kidney cyst": r"(renal|kidney|cortical) cyst",
    "Fatty liver": r"steatosis|fatty liver|hepatosteatosis",
    "Liver cyst": r"(liver|hepatic|hypodense) cyst",
    "Liver calcification": r"(liver|hepatic|parenchymal) calcification|hepatic granuloma|coarse calcification",
    "Gallstone": r"gallstone|cholelithiasis|stones? in the gallbladder",
    "Cholecystitis": r"cholecystitis|inflammation of the gallbladder",
}  # fmt: skip
DENIED = re.compile(r"^(no|there is no|no evidence of)\b")


def _cohort(n: int, **options) -> PhantomCohort:
    return PhantomCohort(n, (16, 16, 16), **options)


def _all(cohort: PhantomCohort) -> list:
    return [study for split in SPLITS for study in cohort.studies(split)]


def _read(report) -> tuple[set[str], set[str]]:
    """Findings that the text states, and those it denies."""
    stated, denied = set(), set()
    for sentence in re.split(r"(?<=\.)\s+", report.findings.lower()):
        found = {name for name, pattern in MENTIONS.items() if re.search(pattern, sentence)}
        (denied if DENIED.match(sentence) else stated).update(found)
    return stated, denied


def test_labels_start_with_ct_rate_and_hold_what_ct_glip_lists():
    assert PhantomCohort.label_names[:18] == CT_RATE_NAMES
    assert CT_RATE_NAMES[0] == "Medical material"
    assert CT_RATE_NAMES[-1] == "Interlobular septal thickening"
    assert CT_GLIP_NAMES[0] == "Splenomegaly"
    assert CT_GLIP_NAMES[-1] == "Liver calcification"
    assert len(FINDINGS) == 31


def test_no_patient_is_in_two_splits_and_shares_are_kept():
    cohort = _cohort(200, shares=(0.6, 0.15, 0.25))
    subjects = {split: {study.subject_id for study in cohort.studies(split)} for split in SPLITS}
    assert [len(subjects[split]) for split in SPLITS] == pytest.approx([120, 30, 50], abs=2)
    assert len(set.union(*subjects.values())) == 200


def test_more_patients_never_change_or_move_the_first_ones():
    few, many = (
        {study.study_id: (split, study) for split in SPLITS for study in _cohort(n).studies(split)} for n in (40, 80)
    )
    for key, (split, study) in few.items():
        assert many[key][0] == split
        assert many[key][1].report == study.report
        assert many[key][1].labels == study.labels


def test_study_ids_are_unique_and_reconstructions_share_scan_report_and_labels():
    studies = _all(_cohort(150))
    assert len({study.study_id for study in studies}) == len(studies)
    scans: dict[str, list] = {}
    for study in studies:
        scans.setdefault(study.scan_id, []).append(study)
    pairs = [group for group in scans.values() if len(group) == 2]
    assert len(pairs) / len(scans) == pytest.approx(0.25, abs=0.1)
    for first, second in pairs:
        assert (first.report, first.labels, first.subject_id) == (second.report, second.labels, second.subject_id)
        assert first.metadata["kernel"] != second.metadata["kernel"]
        assert first.images["ct"].fingerprint() != second.images["ct"].fingerprint()
        assert first.images["cxr"].fingerprint() != second.images["cxr"].fingerprint()
    assert len(scans) > len({study.subject_id for study in studies})  # follow-ups


def test_prevalence_is_long_tailed_and_correlated():
    rng = np.random.default_rng(0)
    n = 6000
    drawn = [draw_present(rng.standard_normal(len(FACTORS)), rng.standard_normal(len(FINDINGS))) for _ in range(n)]
    table = np.array([[name in names for name in FINDINGS] for names in drawn], float)
    np.testing.assert_allclose(table.mean(0), [f.prevalence for f in FINDINGS.values()], atol=0.02)
    assert table.mean(0).max() > 0.3
    assert (table.mean(0) < 0.05).sum() >= 5
    phi = dict(zip(FINDINGS, np.corrcoef(table.T), strict=True))
    at = list(FINDINGS).index
    assert phi["Arterial wall calcification"][at("Coronary artery wall calcification")] > 0.3
    assert phi["Cardiomegaly"][at("Pleural effusion")] > 0.12
    assert phi["Lung opacity"][at("Consolidation")] > 0.2
    assert abs(phi["Emphysema"][at("Gallstone")]) < 0.06


def test_every_loading_leaves_variance_to_the_finding_itself():
    for finding in FINDINGS.values():
        assert set(finding.loadings) <= set(FACTORS)
        assert sum(weight**2 for weight in finding.loadings.values()) < 0.9, finding.name


def test_reports_state_every_finding_and_deny_none_of_them():
    denials, hedges = 0, 0
    for study in _all(_cohort(300)):
        present = {name for name, value in study.labels.items() if value}
        stated, denied = _read(study.report)
        assert stated == present, study.report.findings
        assert not denied & present, study.report.findings
        denials += len(denied)
        hedges += bool(re.search(r"Possible|suspicious|suggests|Probable", study.report.findings))
        assert not re.search(r"[{}]|  |\.\.", study.report.findings + study.report.impression)
        assert study.report.impression
    assert denials > 300
    assert hedges > 20


@pytest.mark.parametrize("name", FINDINGS)
def test_every_wording_of_a_finding_is_recognised(name):
    for i in range(40):
        detail = draw_detail(FINDINGS[name], stream(1, name, i))
        stated, _ = _read(write_report({name: detail}, stream(2, name, i)))
        assert stated == {name}


def test_reports_vary_and_are_fast():
    cohort = _cohort(150, follow_up=0.0, second_reconstruction=0.0)
    start = time.process_time()
    studies = _all(cohort)
    assert (time.process_time() - start) / len(studies) < 0.004  # ids, body, findings, report; the report alone is half
    assert len({study.report.findings for study in studies}) == len(studies)
    first = {study.report.findings.split(".")[0] for study in studies}
    assert len(first) > 25


def test_severity_does_not_depend_on_whether_the_finding_is_present():
    detail = draw_detail(FINDINGS["Pleural effusion"], stream(0, 1))
    assert detail == draw_detail(FINDINGS["Pleural effusion"], stream(0, 1))
    assert 0 <= detail.severity <= 1
    assert detail.sides


def test_radiograph_follows_its_options():
    study = _cohort(6, radiograph={"size": (24, 20)}).studies("train")[0]
    assert study.images["cxr"].load().array.shape == (24, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_subjects": 0}, "n_subjects is 0; at least 1"),
        ({"n_subjects": 2}, "leaves .* empty; give more or set shares"),
        ({"shape": (96, 96)}, r"shape is \(96, 96\); three axes"),
        ({"shape": (8, 96, 96)}, "three axes of at least 16"),
        ({"shares": (0.5, 0.1, 0.1)}, r"shares is \(0.5, 0.1, 0.1\); three shares"),
        ({"follow_up": 2.0}, "follow_up is 2.0; a share between 0 and 1"),
        ({"prevalence": {"Kidney cyst": 1.0}}, "prevalence is {'Kidney cyst': 1.0}; shares between 0 and 1"),
        ({"prevalence": {"Cyst": 0.5}}, r"unknown findings \['Cyst'\]"),
        ({"lesions": ["Fatty liver"]}, r"lesions names \['Fatty liver'\], which have no voxels of their own"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PhantomCohort(**options)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'valid'; one of train, validation, test"):
        _cohort(20).studies("valid")


def _volumes(cohort: PhantomCohort) -> dict:
    """The cohort's studies by CT-RATE name."""
    named = {}
    for prefix, splits in {"train": ("train",), "valid": ("validation", "test")}.items():
        studies = [study for split in splits for study in cohort.studies(split)]
        subjects = list(dict.fromkeys(study.subject_id for study in studies))
        for study in studies:
            _, letter, number = study.study_id.rsplit("_", 2)
            named[f"{prefix}_{subjects.index(study.subject_id) + 1}_{letter}_{number}.nii.gz"] = study
    return named


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_ct_rate_layout_reads_back(tmp_path, version):
    import nibabel as nib

    cohort = PhantomCohort(6, (20, 20, 18), seed=2, second_reconstruction=0.5)
    root = write_ct_rate_layout(cohort, tmp_path, version)
    expected = _volumes(cohort)
    metadata = pd.concat(pd.read_csv(root / f"metadata/{t}_metadata.csv") for t in ("train", "validation"))
    reports = pd.concat(pd.read_csv(root / f"radiology_text_reports/{t}_reports.csv") for t in ("train", "validation"))
    labels = pd.concat(
        pd.read_csv(root / f"multi_abnormality_labels/{t}_predicted_labels.csv") for t in ("train", "valid")
    )
    for table in (metadata, reports, labels):
        assert list(table["VolumeName"]) == list(expected)
    assert list(labels.columns) == ["VolumeName", *CT_RATE_NAMES]
    assert list(reports.columns) == [
        "VolumeName",
        "ClinicalInformation_EN",
        "Technique_EN",
        "Findings_EN",
        "Impressions_EN",
    ]
    for (name, study), (_, row) in zip(expected.items(), metadata.iterrows(), strict=True):
        patient, letter = name.rsplit("_", 2)[0], name.rsplit("_", 1)[0]
        prefix = name.split("_")[0] + ("_fixed" if version == "v2" else "")
        file = nib.load(root / prefix / patient / letter / name)
        assert file.get_data_dtype() == np.int16
        voxels = np.asarray(file.dataobj).astype(float)
        affine = file.affine
        if version == "v1":
            np.testing.assert_array_equal(affine, np.eye(4))
            voxels = voxels * row["RescaleSlope"] + row["RescaleIntercept"]
            affine = _affine_of(row)
        image = study.images["ct"].load()
        canonical = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
        np.testing.assert_array_equal(canonical.get_fdata(), image.array)
        np.testing.assert_allclose(canonical.affine, image.affine, atol=1e-3)
    findings = dict(zip(reports["VolumeName"], reports["Findings_EN"], strict=True))
    assert all(findings[name] == study.report.findings for name, study in expected.items())
    by_name = labels.set_index("VolumeName")
    assert all(
        by_name.loc[name, label] == study.labels[label] for name, study in expected.items() for label in CT_RATE_NAMES
    )


def _affine_of(row) -> np.ndarray:
    """RAS+ affine from DICOM fields: columns of the direction in LPS, then x and y change sign."""
    right, down = np.array(ast.literal_eval(row["ImageOrientationPatient"])).reshape(2, 3)
    direction = np.stack([right, down, np.cross(right, down)], axis=1)
    affine = np.eye(4)
    affine[:3, :3] = direction * [*ast.literal_eval(row["XYSpacing"]), row["ZSpacing"]]
    affine[:3, 3] = ast.literal_eval(row["ImagePositionPatient"])
    return np.diag([-1, -1, 1, 1]) @ affine


def test_ct_rate_layout_refuses_to_overwrite_and_unknown_versions(tmp_path):
    (tmp_path / "dataset").mkdir()
    with pytest.raises(FileExistsError, match="give an empty folder"):
        write_ct_rate_layout(_cohort(6), tmp_path)
    with pytest.raises(ValueError, match="version is 'v3'; 'v1' or 'v2'"):
        write_ct_rate_layout(_cohort(6), tmp_path, "v3")


def test_gallery_writes_a_picture(tmp_path):
    from PIL import Image

    from medvl_phantom.gallery import save_gallery

    cohort = PhantomCohort(3, (24, 24, 24), shares=(1, 0, 0), follow_up=0, second_reconstruction=0)
    save_gallery(cohort.studies("train"), tmp_path / "gallery.png")
    with Image.open(tmp_path / "gallery.png") as picture:
        assert picture.size[0] > 500
        assert len(picture.getcolors()) > 20


def test_labels_can_be_chosen_and_rare_ones_named():
    whole, part = PhantomCohort(12), PhantomCohort(12, labels=["Cardiomegaly", "Emphysema"], rare=["Emphysema"])
    assert part.label_names == ("Cardiomegaly", "Emphysema")
    assert part.label_groups == {"base": ("Cardiomegaly",), "rare": ("Emphysema",)}
    assert whole.label_groups == {}
    for one, other in zip(whole.studies("train"), part.studies("train"), strict=True):
        assert other.labels == {name: one.labels[name] for name in part.label_names}
        assert other.report == one.report


@pytest.mark.parametrize(
    ("options", "message"),
    [({"labels": ["Cardiomegali"]}, "unknown findings"), ({"rare": ["Cardiomegali"]}, "not among the labels")],
)
def test_labels_that_are_no_findings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PhantomCohort(12, **options)


def test_prevalence_changes_who_has_a_finding_and_nothing_else():
    usual, often = _cohort(150), _cohort(150, prevalence={"Liver cyst": 0.5})
    pairs = list(zip(usual.studies("train"), often.studies("train"), strict=True))
    rates = [np.mean([pair[k].labels["Liver cyst"] for pair in pairs]) for k in (0, 1)]
    assert rates[0] < 0.25
    assert 0.35 < rates[1] < 0.65
    for one, other in pairs:
        assert one.study_id == other.study_id
        assert {k: v for k, v in one.labels.items() if k != "Liver cyst"} == {
            k: v for k, v in other.labels.items() if k != "Liver cyst"
        }
        assert one.images["ct"].fingerprint() != other.images["ct"].fingerprint()
