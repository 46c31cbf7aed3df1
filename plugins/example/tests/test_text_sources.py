import numpy as np
import pytest
from medvl_example.text_sources import RandomSentences

from medvl_core.study import Report, Study


def study(report: Report | None) -> Study:
    return Study(study_id="s1", subject_id="p1", scan_id="s1", images={}, report=report)


def test_sentences_keep_their_order_and_change_with_the_generator():
    one = study(Report("A. B. C.", "D."))
    texts = {RandomSentences(2).texts([one], np.random.default_rng(seed))[0] for seed in range(20)}
    assert len(texts) > 3
    assert all(text.split() == sorted(text.split()) and len(text.split()) == 2 for text in texts)


def test_a_short_report_is_kept_whole():
    assert RandomSentences(9).texts([study(Report("A. B.", ""))], np.random.default_rng(0)) == ["A. B."]


def test_a_study_without_a_report_is_refused():
    with pytest.raises(ValueError, match="s1: has no report"):
        RandomSentences().texts([study(None)], np.random.default_rng(0))
