from __future__ import annotations

import math

import pytest

from medvl_x2ct.labels import load_label_set
from medvl_x2ct.report_labels import RuleLabeler, named_labeler, sections

PATTERNS = load_label_set("mimic_ct_11", "report")
LABELER = RuleLabeler(PATTERNS)
NAN = float("nan")

CASES = [
    ("There is mild emphysema.", "Emphysema", 1),
    ("Centrilobular emphysematous change.", "Emphysema", 1),
    ("Subcutaneous emphysema in the left chest wall.", "Emphysema", 0),
    ("No emphysema.", "Emphysema", 0),
    ("The lungs are clear.", "Emphysema", 0),
    ("No pericardial effusion, lymphadenopathy, or hiatal hernia.", "Hiatal hernia", 0),
    ("No pericardial effusion; there is bronchiectasis.", "Bronchiectasis", 1),
    ("No pericardial effusion but bibasilar atelectasis.", "Atelectasis", 1),
    ("Bibasilar atelectasis without bronchiectasis.", "Atelectasis", 1),
    ("Bibasilar atelectasis without bronchiectasis.", "Bronchiectasis", 0),
    ("Atelectasis is not seen.", "Atelectasis", 0),
    ("The pericardial effusion has resolved.", "Pericardial effusion", 0),
    ("Interval resolution of the pericardial effusion.", "Pericardial effusion", 0),
    ("No significant change in emphysema.", "Emphysema", 1),
    ("Emphysema is not significantly changed.", "Emphysema", 1),
    ("Possible small pericardial effusion.", "Pericardial effusion", NAN),
    ("Opacity may represent atelectasis.", "Atelectasis", NAN),
    ("Atelectasis cannot be excluded.", "Atelectasis", NAN),
    ("Cannot exclude atelectasis.", "Atelectasis", NAN),
    ("Possible nodule, no emphysema.", "Emphysema", 0),
    ("No evidence to suggest lymphadenopathy.", "Lymphadenopathy", 0),
    ("Possible atelectasis. Definite atelectasis on the right.", "Atelectasis", 1),
    ("No atelectasis on the left. Possible atelectasis on the right.", "Atelectasis", NAN),
    ("Enlarged mediastinal lymph nodes.", "Lymphadenopathy", 1),
    ("Mediastinal lymph nodes are not enlarged.", "Lymphadenopathy", 0),
    ("No pathologically enlarged lymph nodes.", "Lymphadenopathy", 0),
    ("Hilar adenopathy.", "Lymphadenopathy", 1),
    ("Moderate coronary artery calcifications.", "Coronary artery wall calcification", 1),
    ("Calcification of the coronary arteries.", "Coronary artery wall calcification", 1),
    ("Atherosclerotic calcification of the thoracic aorta.", "Arterial wall calcification", 1),
    ("Moderate coronary artery calcifications.", "Arterial wall calcification", 0),
    ("Calcification of the coronary arteries.", "Arterial wall calcification", 0),
    ("Coronary artery and aortic calcifications.", "Arterial wall calcification", 1),
    ("Interlobular septa are thickened.", "Interlobular septal thickening", 1),
    ("Mosaic attenuation in both lungs.", "Mosaic attenuation pattern", 1),
    ("Bronchial wall thickening.", "Peribronchial thickening", 1),
    ("Smooth interlobular septal thickening.", "Interlobular septal thickening", 1),
    ("Small hiatal\nhernia.", "Hiatal hernia", 1),
    ("Neither effusion nor hiatal hernia.", "Hiatal hernia", 0),
]


@pytest.mark.parametrize(("text", "name", "expected"), CASES, ids=[case[0][:40] + case[1][:3] for case in CASES])
def test_rules(text, name, expected):
    found = LABELER(text, list(PATTERNS))[name]
    assert found == expected or (math.isnan(found) and math.isnan(expected))


def test_every_label_is_found_and_negated_by_its_own_name():
    for name in PATTERNS:
        assert LABELER(f"There is {name.lower()}.", [name]) == {name: 1.0}
        assert LABELER(f"There is no {name.lower()}.", [name]) == {name: 0.0}


def test_phantom_reports_are_labelled_as_they_were_made():
    """Reports whose truth is known: how often the rules agree. Not every phantom phrase is one radiologists use."""
    from medvl_phantom import PhantomCohort

    shared = [name for name in PATTERNS if name in PhantomCohort.label_names]
    studies = PhantomCohort(60, (16, 16, 16), shares=(1, 0, 0)).studies("train")
    right = total = 0
    for study in studies:
        found = LABELER(f"{study.report.findings} {study.report.impression}", shared)
        right += sum(found[name] == study.labels[name] for name in shared)
        total += len(shared)
    assert right / total > 0.95


def test_sections_end_at_any_heading_and_lose_blanks():
    text = (
        "EXAMINATION:  CT CHEST W/CONTRAST\nINDICATION:  ___ year old with cough\n"
        "FINDINGS:\n\nThe lungs are clear.\nSmall node (series 3:14).\nBONES AND SOFT TISSUES:  Normal.\n"
        "IMPRESSION:\n\n1. Seen by Dr. ___.\nNOTIFICATION:  Called."
    )
    assert sections(text) == {
        "findings": "The lungs are clear. Small node (series 3:14).",
        "impression": "1. Seen by Dr. .",
    }
    assert sections("no heading at all") == {"findings": "", "impression": ""}


def test_wrong_labeler_names_are_explained():
    with pytest.raises(ValueError, match="labeler 'x' is no function; give 'rules'"):
        named_labeler("x")
    with pytest.raises(ValueError, match=r"labeler 'not_there\.a:b' cannot be imported"):
        named_labeler("not_there.a:b")
    with pytest.raises(ValueError, match="labeler 'math:pi' is no function"):
        named_labeler("math:pi")
