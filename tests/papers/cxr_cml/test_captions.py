from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl_baseline.encoders.clip_tokenizer import ClipTokenizer
from medvl_baseline.texts.vocabulary import bpe_merges
from medvl_core.study import Study
from medvl_cxr_cml.captions import MetaLabelCaptions
from medvl_cxr_cml.cxr_lt import CXR_LT_LABELS

LABELS = {"Adenopathy": 1.0, "Edema": 0.0, "Pleural Effusion": 1.0, "Mass": float("nan")}


def study(labels=LABELS):
    return Study(study_id="s7", subject_id="p1", scan_id="c1", images={}, labels=labels)


def caption(labels=LABELS, seed=0, **options):
    return MetaLabelCaptions(**options).texts([study(labels)], np.random.default_rng(seed))[0]


def test_the_codes_style_is_sentences_and_the_papers_is_clauses():
    assert caption() == "Adenopathy is present. Pleural Effusion is present."
    paper = caption(style="commas", lower_case=True)
    assert paper == "adenopathy is present, pleural effusion is present"
    assert caption(style="commas") == "Adenopathy is present, Pleural Effusion is present"
    assert caption(lower_case=True) == "adenopathy is present. pleural effusion is present."


def test_a_row_without_positives_says_so_in_the_same_style():
    nothing = dict.fromkeys(LABELS, 0.0)
    assert caption(nothing) == "No finding is present."
    assert caption(nothing, style="commas", lower_case=True) == "no finding is present"
    assert caption({}, empty="Nothing new") == "Nothing new is present."


def test_synonyms_are_drawn_and_without_them_the_generator_is_not_touched():
    synonyms = {"Pleural Effusion": ["Fluid in the pleural space", "Hydrothorax"]}
    drawn = {caption({"Pleural Effusion": 1.0}, seed, synonyms=synonyms) for seed in range(40)}
    assert drawn == {
        "Pleural Effusion is present.", "Fluid in the pleural space is present.", "Hydrothorax is present."
    }  # fmt: skip
    assert caption(seed=3, synonyms=synonyms) == caption(seed=3, synonyms=synonyms)
    rng = np.random.default_rng(3)
    MetaLabelCaptions().texts([study()], rng)
    assert rng.bit_generator.state == np.random.default_rng(3).bit_generator.state
    with pytest.raises(
        ValueError, match=r"^s7: synonyms are for 'Oedema', which is no label of it; did you mean 'Edema'"
    ):
        caption(synonyms={"Oedema": ["x"]})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [f"{name} is present." for name in CXR_LT_LABELS]
    return ClipTokenizer(bpe_merges(texts * 3, tmp_path_factory.mktemp("v") / "merges.txt", size=900), 77)


def test_a_caption_of_all_forty_labels_loses_whole_sentences_and_keeps_its_end_token(tokenizer):
    everything = dict.fromkeys(CXR_LT_LABELS, 1.0)
    whole = caption(everything)
    assert tokenizer.count([whole])[0] > 77
    text = caption(everything, count_tokens=tokenizer.count)
    assert whole.startswith(text + " ")
    assert text.endswith(" is present.")
    batch = tokenizer([text])
    assert batch.input_ids.shape[1] == tokenizer.count([text])[0] <= 77
    assert batch.input_ids[0, -1] == tokenizer.end
    kept = text.count("present")
    one_more = " ".join(f"{name} is present." for name in CXR_LT_LABELS[: kept + 1])
    assert tokenizer.count([one_more])[0] > 77


@given(st.sets(st.sampled_from(CXR_LT_LABELS)), st.sampled_from(["sentences", "commas"]), st.integers(12, 77))
def test_no_caption_is_longer_than_its_limit_and_none_is_empty(tokenizer, positive, style, limit):
    labels = {name: float(name in positive) for name in CXR_LT_LABELS}
    text = caption(labels, style=style, count_tokens=tokenizer.count, max_tokens=limit)
    assert tokenizer.count([text])[0] <= limit
    clauses = text.split(", ") if style == "commas" else text.removesuffix(".").split(". ")
    names = [clause.removesuffix(" is present") for clause in clauses]
    expected = [name for name in CXR_LT_LABELS if name in positive] or ["No finding"]
    assert names == expected[: len(names)]


def test_faults_are_named(tokenizer):
    with pytest.raises(ValueError, match=r"^s7: 'Calcification of the Aorta is present.' alone has more than 5 tokens"):
        caption({"Calcification of the Aorta": 1.0}, count_tokens=tokenizer.count, max_tokens=5)
    with pytest.raises(ValueError, match=r"caption style is 'prose', empty 'No finding'; choose from \('sentences'"):
        MetaLabelCaptions(style="prose")
    with pytest.raises(ValueError, match="empty ' '"):
        MetaLabelCaptions(empty=" ")
