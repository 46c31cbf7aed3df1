from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from medvl_core.study import Report, Study
from medvl_ct_glip import lexicon, spot_check
from medvl_ct_glip.lexicon import load_lexicon
from medvl_ct_glip.organ_findings import OrganFindings
from medvl_ct_glip.region_sets import region_set
from medvl_ct_glip.report_findings import (
    ExtractionError,
    Mention,
    RuleExtractor,
    check_mentions,
    status_of,
)

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
NAMES = region_set("ts_v2_117").by_id
LOBES = {
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
}


def study(findings="", impression="", names=NAMES):
    report = Report(findings, impression)
    return Study(study_id="case", subject_id="s", scan_id="c", images={}, region_names=names, report=report)


def regions_of(text, finding):
    (mention,) = (m for m in RuleExtractor()(Report(findings=text)) if m.finding == finding)
    return set(mention.regions)


@pytest.mark.parametrize(
    ("text", "finding", "regions"),
    [
        ("Emphysema.", "emphysema", LOBES),
        ("Nodule in the right upper lobe.", "lung nodule", {"lung_upper_lobe_right"}),
        (
            "Nodules in the right middle lobe and left lower lobe.",
            "lung nodule",
            {"lung_middle_lobe_right", "lung_lower_lobe_left"},
        ),
        ("Right pleural effusion.", "pleural effusion", {name for name in LOBES if name.endswith("right")}),
        ("Bilateral pleural effusions.", "pleural effusion", LOBES),
        ("Bibasilar atelectasis.", "atelectasis", {"lung_lower_lobe_left", "lung_lower_lobe_right"}),
        ("Atelectasis at the left base.", "atelectasis", {"lung_lower_lobe_left"}),
        ("Lingular scarring.", "pulmonary fibrotic sequela", {"lung_upper_lobe_left"}),
        ("Left renal cyst.", "kidney cyst", {"kidney_left"}),
        ("Simple cysts of both kidneys.", "kidney cyst", {"kidney_left", "kidney_right"}),
        ("Stone in the right kidney.", "kidney stone", {"kidney_right"}),
        ("Hepatic calcification.", "liver calcification", {"liver"}),
        ("Calcified granulomas in the spleen.", "splenic calcification", {"spleen"}),
        ("Mediastinal lymphadenopathy.", "lymphadenopathy", set()),
    ],
)
def test_findings_lie_where_the_report_says(text, finding, regions):
    assert regions_of(text, finding) == regions


def test_organs_of_a_list_do_not_mix():
    found = RuleExtractor()(Report(findings="Hepatic calcification, left renal cyst and gallstones."))
    assert {m.finding for m in found} == {"liver calcification", "kidney cyst", "gallstone"}


@pytest.mark.parametrize(
    ("text", "region", "expected"),
    [
        ("Fatty liver.", "liver", ("fatty liver", "abnormal")),
        ("Possible liver cyst.", "liver", ("possible liver cyst", "uncertain")),
        ("The liver is unremarkable.", "liver", ("no evident abnormality in liver", "normal")),
        ("The liver is not normal.", "liver", None),
        ("No hepatic cyst.", "liver", None),
        ("History of pneumonia.", "lung_lower_lobe_left", None),
        ("Fatty liver with two hepatic cysts.", "liver", ("fatty liver, liver cyst", "abnormal")),
        ("Possible liver cyst. Fatty liver.", "liver", ("fatty liver", "abnormal")),
        ("Right kidney stone.", "kidney_left", None),
        ("Both kidneys are normal.", "kidney_left", ("no evident abnormality in left kidney", "normal")),
        ("No acute cardiopulmonary abnormality.", "heart", ("no evident abnormality in heart", "normal")),
        ("The heart, liver and spleen are normal.", "spleen", ("no evident abnormality in spleen", "normal")),
        ("The heart is normal, but the spleen is enlarged.", "spleen", ("splenomegaly", "abnormal")),
        ("The lungs are clear.", "spleen", None),
    ],
)
def test_status_of_a_region(text, region, expected):
    found = OrganFindings().region_texts(study(text)).get(region)
    assert (None if found is None else (found.text, found.status)) == expected


def test_every_mention_points_at_its_words():
    report = Report("Heart size normal. No pleural effusion.", "Possible nodule in the left upper lobe.")
    mentions = RuleExtractor()(report)
    words = {(m.finding, m.status): getattr(report, m.section)[m.start : m.end] for m in mentions}
    assert words == {
        ("", "normal"): "Heart size",
        ("pleural effusion", "absent"): "pleural effusion",
        ("lung nodule", "uncertain"): "nodule",
    }
    cues = {getattr(report, m.section)[slice(*m.cue)] for m in mentions}
    assert cues == {"normal", "No", "Possible"}


def read(text, unmentioned="skip"):
    """Region → its finding, or "normal"."""
    found = OrganFindings(unmentioned=unmentioned).region_texts(study(text))
    return {region: "normal" if said.status == "normal" else said.text for region, said in found.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4 cm mass in the sigmoid colon.", {"colon": "colon mass"}),
        ("Gastric carcinoma.", {"stomach": "gastric tumor"}),
        ("Bladder mass.", {"urinary_bladder": "bladder mass"}),
        ("Right adnexal mass.", {}),
        ("Known breast carcinoma.", {}),
        ("Peritoneal nodules.", {}),
        ("Periportal edema.", {}),
        ("Bowel wall edema.", {"small_bowel": "bowel wall thickening", "colon": "bowel wall thickening"}),
        ("Fatty infiltration of the pancreas.", {"pancreas": "fatty pancreas"}),
        ("Opacification of the portal vein.", {}),
        ("Cortical scarring of the left kidney.", {"kidney_left": "kidney scarring"}),
        ("Small knee joint effusion.", {}),
        ("Hepatic congestion.", {}),
        ("Emphysematous cholecystitis.", {"gallbladder": "cholecystitis"}),
        ("Mediastinal mass.", {}),
        ("Hepatic flexure mass.", {"colon": "colon mass"}),
        ("No mass in the abdomen.", {}),
        ("Liver: No mass.", {}),
        ("Calcified lymph nodes near the liver.", {}),
        ("The liver is normal, nodule in the right upper lobe.", {"lung_upper_lobe_right": "lung nodule"}),
    ],
)
def test_words_of_lung_findings_said_of_other_organs_are_not_of_the_lungs(text, expected):
    found = read(text)
    assert {region: said for region, said in found.items() if said != "normal"} == expected
    assert not any(found.get(lobe) == "normal" for lobe in LOBES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Liver: 2 cm cyst.", {"liver": "liver cyst"}),
        ("Kidneys: 5 mm stone on the right.", {"kidney_right": "kidney stone"}),
        ("Kidneys: Left: 5 mm stone. Right: normal.", {"kidney_left": "kidney stone"}),
        ("Right kidney: 2 cm cyst.", {"kidney_right": "kidney cyst"}),
        ("Gallbladder: Multiple stones.", {"gallbladder": "gallstone"}),
        ("Spleen: Enlarged.", {"spleen": "splenomegaly"}),
        ("Aorta: Calcified plaques.", {"aorta": "arterial wall calcification"}),
        ("Right upper lobe: 5 mm nodule.", {"lung_upper_lobe_right": "lung nodule"}),
        ("Liver: Normal in size. 1 cm hypodensity.", {"liver": "liver lesion"}),
        ("Liver: 2 cm cyst\nSpleen: Normal", {"liver": "liver cyst", "spleen": "normal"}),
        ("Liver: Normal\n\n2 cm cyst.", {"liver": "normal"}),
        ("Liver: Normal\r\n\r\n2 cm cyst.", {"liver": "normal"}),
        ("Liver: Normal\n \n2 cm cyst.", {"liver": "normal"}),
        ("Mass in the pancreatic head.", {"pancreas": "pancreatic mass"}),
        ("Left renal mass.", {"kidney_left": "kidney mass"}),
        ("Splenic lesion.", {"spleen": "splenic lesion"}),
        ("There is a calculus in the left kidney.", {"kidney_left": "kidney stone"}),
        ("Stones are seen in the gallbladder.", {"gallbladder": "gallstone"}),
        ("Cysts in liver and right kidney.", {"liver": "liver cyst", "kidney_right": "kidney cyst"}),
        ("The pancreas is atrophic.", {"pancreas": "pancreatic atrophy"}),
        ("Abnormal liver.", {"liver": "liver abnormality"}),
        ("The liver and spleen are enlarged.", {"liver": "hepatomegaly", "spleen": "splenomegaly"}),
        (
            "Left kidney contains a 2 cm cyst while the right kidney is unremarkable.",
            {"kidney_left": "kidney cyst", "kidney_right": "normal"},
        ),
        ("The spleen is unremarkable except for a tiny granuloma.", {"spleen": "splenic granuloma"}),
        ("Unremarkable except for a tiny splenic granuloma.", {"spleen": "splenic granuloma"}),
        ("The liver is normal in size; a 5 mm hypodensity.", {"liver": "liver lesion"}),
        (
            "Emphysematous changes in the upper lobes, more on the right.",
            {"lung_upper_lobe_left": "emphysema", "lung_upper_lobe_right": "emphysema"},
        ),
        ("CT from 2019 showed liver cyst.", {}),
        ("Nodule in left adrenal, probably adenoma.", {"adrenal_gland_left": "adrenal mass"}),
        ("The gallbladder is normally distended.", {"gallbladder": "normal"}),
        ("Compression fracture of the L1 vertebra.", {"vertebrae_L1": "fracture"}),
        ("Status post left nephrectomy.", {"kidney_left": "nephrectomy"}),
        ("No lesion in the liver; the spleen is normal.", {"spleen": "normal"}),
        ("No rib fracture.", {}),
        ("History of left pneumonia. No pneumothorax.", {}),
    ],
)
def test_organs_and_sides_are_those_of_the_sentence(text, expected):
    assert read(text) == expected


def test_a_rib_fracture_is_on_its_side_and_in_no_other_bone():
    assert set(read("Left rib fracture.")) == {f"rib_left_{number}" for number in range(1, 13)}


@pytest.mark.parametrize(
    ("text", "region", "expected"),
    [
        ("The pancreas shows a heterogeneous texture.", "pancreas", None),
        ("The prostate is unremarkable. Heterogeneous enhancement of the prostate.", "prostate", None),
        ("The liver is not well visualised.", "liver", None),
        ("CT from 2019 showed liver cyst.", "liver", None),
        ("CT from 2019 showed liver cyst. The liver is normal.", "liver", "normal"),
        ("No heterogeneous enhancement of the prostate.", "prostate", "normal"),
        ("Heterogeneous liver with a 2 cm cyst.", "liver", "liver cyst"),
        ("No rib fracture.", "rib_left_1", "normal"),
    ],
)
def test_silence_makes_no_organ_normal_of_which_something_unread_is_said(text, region, expected):
    assert read(text, "normal").get(region) == expected


def test_unmentioned_regions_are_left_out_or_called_normal():
    report = study("Fatty liver.", names={1: "liver", 2: "spleen"})
    assert set(OrganFindings().region_texts(report)) == {"liver"}
    filled = OrganFindings(unmentioned="normal", normal="nothing in {}").region_texts(report)
    assert (filled["spleen"].text, filled["spleen"].status) == ("nothing in spleen", "normal")


def test_texts_are_one_line_per_study():
    source, rng = OrganFindings(), np.random.default_rng(0)
    assert source.texts([study("Left renal cyst. Fatty liver.")], rng) == [
        "left kidney: kidney cyst. liver: fatty liver"
    ]
    assert source.texts([study("The lungs are clear.")], rng) == ["no evident abnormality in the scan"]
    with pytest.raises(ValueError, match="case: has no report text"):
        source.texts([study()], rng)


def test_a_model_may_read_instead_but_not_invent():
    report = study("Fatty liver.")
    model = OrganFindings(extract=lambda text: [Mention("steatosis", "present", ("liver",), "findings", 0, 11)])
    assert model.region_texts(report)["liver"].text == "steatosis"
    liar = OrganFindings(extract=lambda text: [Mention("tumour", "present", ("liver",), "findings", 5, 900)])
    with pytest.raises(ExtractionError, match=r"'tumour' \(present\) at findings 5:900 is not in the report \(12 char"):
        liar.region_texts(report)
    with pytest.raises(ExtractionError, match="status is one of"):
        check_mentions(report.report, [Mention("a", "sure", (), "findings", 0, 1)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unmentioned": "maybe"}, "unmentioned is 'maybe'"),
        ({"normal": "fine"}, "write {} where the organ's name goes"),
        ({"extract": list, "cues": "a.csv"}, "leave them out with extract"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OrganFindings(**options)


def test_lexicon_of_ones_own(tmp_path):
    for name in ("organs", "findings", "places", "normal", "abnormal"):
        shutil.copy(Path(lexicon.__file__).parent / "report_rules" / f"{name}.csv", tmp_path)
    with (tmp_path / "findings.csv").open("a") as file:
        file.write("liver steatosis,liver,,gentle fat\n")
    assert OrganFindings(rules=str(tmp_path)).region_texts(study("Gentle fat."))["liver"].text == "liver steatosis"
    with (tmp_path / "findings.csv").open("a") as file:
        file.write("x,lever,,y\n")
    load_lexicon.cache_clear()
    with pytest.raises(ValueError, match=r"findings\.csv: row \d+: \['lever'\] are no organs"):
        load_lexicon(tmp_path)


def test_lexicon_names_only_known_regions():
    rules = load_lexicon()
    known = {*region_set("ts_v1_104").names, *NAMES.values()}
    assert all(set(regions) <= known for regions in rules.regions.values())
    assert {place.rpartition("_")[0] for place in rules.places} == {"lung_upper", "lung_middle", "lung_lower"}


def test_status_of_nothing_is_nothing():
    assert status_of([]) == {}


def test_spot_check_marks_every_span_and_escapes(tmp_path):
    source = OrganFindings()
    page = spot_check.spot_check(
        [study("Fatty liver. <script>alert(1)</script> No nodule.")], source, tmp_path / "a.html"
    )
    text = page.read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert re.search(r'<mark class="present" title="fatty liver: liver">Fatty liver</mark>', text)
    assert re.search(r'<mark class="cue"[^>]*>No</mark>', text)
    assert re.search(r'<mark class="absent" title="lung nodule: [^"]*">nodule</mark>', text)


def test_spot_check_reads_files_and_phantoms(tmp_path):
    (tmp_path / "one.txt").write_text("FINDINGS: Left renal cyst.")
    assert spot_check.main(["--reports", str(tmp_path), "--out", str(tmp_path / "a.html")]) == 0
    assert "kidney_left" in (tmp_path / "a.html").read_text()
    assert spot_check.main(["--number", "3", "--out", str(tmp_path / "b.html")]) == 0
    assert (tmp_path / "b.html").read_text().count("<article") == 3
    (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit, match=r"no \.txt files"):
        spot_check.main(["--reports", str(tmp_path / "none")])


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import extraction_quality

    yield extraction_quality
    sys.modules.pop("extraction_quality", None)


def test_errors_are_counted_by_kind(quality):
    def case(text, truth):
        report = Report(findings=text)
        return report, RuleExtractor()(report), truth

    cases = [
        case("Fatty liver.", {"fat"}),
        case("Fatty liver.", set()),
        case("No fatty liver.", {"fat"}),
        case("Nothing.", {"fat"}),
        case("Possible fatty liver.", set()),
        case("No effusion and mild fatty liver.", set()),
        case("History of fatty liver.", {"fat"}),
        case("Nothing.", set()),
    ]
    (row,) = quality.count(cases, {"fat": frozenset({"fatty liver"})})
    counts = {kind: row[kind] for kind in quality.KINDS}
    assert counts == dict.fromkeys(quality.KINDS, 1)
    assert (row["labelled"], row["found"], row["precision"], row["recall"]) == (4, 4, 0.25, 0.25)


def test_phantom_reports_are_read_as_they_were_made(quality):
    cases = quality.phantom_cases(40)
    names = {name for _, _, truth in cases for name in truth}
    total = quality.overall(quality.count(cases, {name: frozenset({name}) for name in names}))
    assert total["recall"] > 0.98
    assert total["precision"] > 0.97
    assert total["cue missed"] == total["denied"] == 0


@pytest.mark.real_data
def test_open_i_reports_are_read_like_their_labels(real_data, quality):
    cases = quality.openi_cases(real_data / "text_openi_reports" / "NLMCXR_reports.tgz", odd=True, every=6)
    total = quality.overall(quality.count(cases, quality.finding_rules(BENCHMARKS / "openi_targets.csv")))
    assert total["recall"] > 0.92
    assert total["precision"] > 0.85
    assert total["cue missed"] + total["denied"] < 0.02 * total["labelled"]


def test_a_folder_of_rules_without_the_rows_part_and_near_is_read(tmp_path):
    shutil.copytree(Path(lexicon.__file__).parent / "report_rules", tmp_path / "rules")
    places = tmp_path / "rules" / "places.csv"
    kept = [line for line in places.read_text().splitlines() if not line.startswith(('part,"', "near,"))]
    places.write_text("\n".join(kept))
    found = RuleExtractor(load_lexicon(tmp_path / "rules"))(Report(findings="Right renal cyst."))
    assert [(mention.finding, mention.regions) for mention in found] == [("kidney cyst", ("kidney_right",))]
