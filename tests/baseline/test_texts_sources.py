from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl_baseline.texts.sources import ReportText
from medvl_core.study import Report, Study

FINDINGS = "Heart is normal. No effusion! Nodule of 1.5 cm? Bones intact."


def _study(report: Report | None, study_id: str = "s1") -> Study:
    return Study(study_id=study_id, subject_id="p1", scan_id="c1", images={}, report=report)


def _texts(report: Report | None, seed: int = 0, **options: object) -> str:
    return ReportText(**options).texts([_study(report)], np.random.default_rng(seed))[0]


def test_sections_are_joined_in_the_order_asked_for_and_absent_ones_left_out():
    report = Report(findings=" Clear lungs. ", impression="Normal.")
    assert _texts(report) == "Clear lungs. Normal."
    assert _texts(report, sections=("impression", "findings"), join=" | ") == "Normal. | Clear lungs."
    assert _texts(report, sections=("impression",)) == "Normal."
    assert _texts(Report(impression="Normal.")) == "Normal."


@pytest.mark.parametrize("report", [None, Report(), Report(findings=" \n")])
def test_a_study_without_text_is_named(report):
    with pytest.raises(ValueError, match=r"^s7: no text in report sections \('findings', 'impression'\)"):
        ReportText().texts([_study(Report(findings="x"), "s1"), _study(report, "s7")], np.random.default_rng(0))


def test_without_dropout_the_generator_is_not_touched():
    rng = np.random.default_rng(3)
    ReportText().texts([_study(Report(findings=FINDINGS))], rng)
    assert rng.bit_generator.state == np.random.default_rng(3).bit_generator.state


@given(st.integers(0, 2**32), st.floats(0.01, 0.999))
def test_dropout_keeps_whole_sentences_in_order_and_never_none(seed, chance):
    report = Report(findings=FINDINGS, impression="All normal.")
    text = _texts(report, seed=seed, sentence_dropout=chance, join=" # ")
    sentences = ["Heart is normal.", "No effusion!", "Nodule of 1.5 cm?", "Bones intact.", "All normal."]
    positions = [text.find(sentence) for sentence in sentences]
    kept = [p for p in positions if p >= 0]
    assert kept
    assert kept == sorted(kept)
    rest = text
    for sentence in sentences:
        rest = rest.replace(sentence, "")
    assert rest.strip() in ("", "#")
    assert ("#" in text) == (text.count("All normal.") == 1 and len(kept) > 1)
    assert text == _texts(report, seed=seed, sentence_dropout=chance, join=" # ")


def test_dropout_leaves_out_the_share_asked_for():
    source = ReportText(sentence_dropout=0.3)
    studies = [_study(Report(findings=FINDINGS))] * 2000
    kept = sum(
        text.count(".") + text.count("!") + text.count("?") for text in source.texts(studies, np.random.default_rng(0))
    )
    full = FINDINGS.count(".") + FINDINGS.count("!") + FINDINGS.count("?")
    assert kept / (2000 * full) == pytest.approx(0.7, abs=0.02)


def test_wrong_options_are_refused():
    for sections in ((), ("history",), ("findings", "findings")):
        with pytest.raises(ValueError, match=r"choose from \('findings', 'impression'\), each once"):
            ReportText(sections=sections)
    with pytest.raises(ValueError, match=r"sentence_dropout is 1.0; choose a chance in \[0, 1\)"):
        ReportText(sentence_dropout=1.0)
