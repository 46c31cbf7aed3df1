from __future__ import annotations

import pytest

from medvl_baseline.reports.rules import Cue, Cues, load_cues, sentences

CUES = load_cues()


def verdict(text, mention):
    start = text.lower().index(mention)
    found = CUES.verdict(text, start, start + len(mention))
    return found.status, None if found.cue is None else text[slice(*found.cue)]


@pytest.mark.parametrize(
    ("text", "mention", "status", "cue"),
    [
        ("There is a nodule.", "nodule", "present", None),
        ("No nodule.", "nodule", "absent", "No"),
        ("No effusion, nodule or mass.", "mass", "absent", "No"),
        ("No large effusion, or pneumothorax.", "pneumothorax", "absent", "No"),
        ("No effusion and mild emphysema.", "emphysema", "present", None),
        ("No effusion but emphysema.", "emphysema", "present", None),
        ("Emphysema without effusion.", "emphysema", "present", None),
        ("Emphysema without effusion.", "effusion", "absent", "without"),
        ("No change in the nodule.", "nodule", "present", None),
        ("Not only a nodule.", "nodule", "present", None),
        ("The effusion has resolved.", "effusion", "absent", "has resolved"),
        ("Effusion is not seen.", "effusion", "absent", "is not seen"),
        ("The nodule is no longer seen.", "nodule", "absent", "no longer seen"),
        ("No opacity to suggest pneumonia.", "pneumonia", "absent", "No opacity to suggest"),
        ("Possible small effusion.", "effusion", "uncertain", "Possible"),
        ("This may represent a nodule.", "nodule", "uncertain", "may"),
        ("A nodule cannot be excluded.", "nodule", "uncertain", "cannot be excluded"),
        ("Possible nodule, no effusion.", "effusion", "absent", "no"),
        ("History of pneumonia.", "pneumonia", "history", "History of"),
        ("If there is concern for fracture, obtain views.", "fracture", "history", "If there is concern for"),
        ("Neither effusion nor nodule.", "nodule", "absent", "nor"),
        ("Clear of effusion; nodule on the left.", "nodule", "present", None),
        ("Pleural effusion: none.", "effusion", "absent", "none"),
        ("No effusion while a nodule is seen.", "nodule", "present", None),
        ("No effusion, whereas a nodule is seen.", "nodule", "present", None),
        ("CT from 2019 showed a nodule.", "nodule", "history", "CT from 2019 showed"),
        ("A prior chest CT demonstrated a nodule.", "nodule", "history", "prior chest CT demonstrated"),
    ],
)
def test_scope(text, mention, status, cue):
    assert verdict(text, mention) == (status, cue)


def test_clause_ends_where_scope_does():
    text = "No effusion, but a nodule; heart normal."
    start, end = CUES.clause(text, text.index("nodule"), text.index("nodule") + 6)
    assert text[start:end].strip() == "a nodule"


def test_clauses_cover_the_sentence():
    text = "No effusion, but a nodule; heart normal."
    assert [text[start:end].strip() for start, end in CUES.clauses(text)] == [
        "No effusion,",
        "a nodule",
        "heart normal.",
    ]
    left = "Left: stone. Liver: cyst"
    assert [left[start:end] for start, end in CUES.clauses(left)] == ["Left: stone. Liver", " cyst"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("A nodule of 1.5 cm is seen. No mass.", ["A nodule of 1.5 cm is seen.", "No mass."]),
        ("Seen by Dr. Smith. Done.", ["Seen by Dr. Smith.", "Done."]),
        ("limits.Minimal change.", ["limits.", "Minimal change."]),
        ("Liver: cyst\nSpleen: normal\n- a nodule", ["Liver: cyst", "Spleen: normal", "- a nodule"]),
        ("first line\ngoes on\n\nsecond", ["first line\ngoes on", "second"]),
        ("", []),
        ("  . ", ["."]),
    ],
)
def test_sentences_are_spans_of_the_text(text, parts):
    assert [text[start:end] for start, end in sentences(text)] == parts


def test_own_cues_replace_those_of_medvl(tmp_path):
    path = tmp_path / "cues.csv"
    path.write_text("kind,direction,pattern\nabsent,before,kein\n", encoding="utf-8")
    own = load_cues(path)
    assert own.verdict("kein Erguss", 5, 11).status == "absent"
    assert own.verdict("no Erguss", 3, 9).status == "present"
    assert Cues([Cue("uncertain", "after", "fraglich")]).verdict("Erguss fraglich", 0, 6).status == "uncertain"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("denied,before,no", "row 2 is .*kind is one of"),
        ("absent,,no", "row 2 is .*with before or after"),
        ("absent,before,(no", "row 2: .*is no regular expression"),
    ],
)
def test_bad_rules_are_refused(tmp_path, row, message):
    path = tmp_path / "cues.csv"
    path.write_text(f"kind,direction,pattern\n{row}\n")
    with pytest.raises(ValueError, match=message):
        load_cues(path)
