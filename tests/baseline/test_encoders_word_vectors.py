from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from medvl_baseline.encoders.word_vectors import WordVectors
from medvl_baseline.texts.vocabulary import word_weights
from medvl_core.build import build_pooling
from medvl_core.engine.alignment import Tower
from medvl_ct_glip.abnormalities import read_abnormalities

ORGANS = ("spleen", "liver", "aorta", "pancreas", "left kidney", "heart", "gallbladder")


@pytest.fixture
def tower(tmp_path):
    texts = [f"no evident abnormality in {organ}" for organ in ORGANS] * 5
    texts += [row.name for row in read_abnormalities()]
    return Tower(
        WordVectors(word_weights(texts, tmp_path / "w.tsv")), build_pooling("baseline/mean"), None, frozen=True
    )


def test_texts_of_other_organs_and_findings_are_well_apart(tower):
    normal = tower.embed_text([f"no evident abnormality in {organ}" for organ in ORGANS])
    named = tower.embed_text([f"this is a {organ} in the CT scan" for organ in ORGANS])
    abnormal = tower.embed_text([row.name for row in read_abnormalities(roles=["listed"])])
    others = ~torch.eye(len(ORGANS), dtype=torch.bool)
    assert (normal @ normal.T)[others].max() < 0.8
    assert (named @ named.T)[others].max() < 0.95
    assert (abnormal @ normal.T).max() < 0.65  # "fatty liver" shares its organ's word
    assert ((normal @ named.T).argmax(dim=1) == torch.arange(len(ORGANS))).all()


def test_bag_is_the_weighted_mean_of_word_vectors(tower):
    encoder = tower.encoder
    numbers = encoder.tokenize(["Fatty liver, fatty!"]).input_ids[0]
    assert numbers[0] == numbers[2] != numbers[1]
    expected = normalize(encoder.vectors[numbers].mean(dim=0), dim=0)
    torch.testing.assert_close(tower.embed_text(["Fatty liver, fatty!"])[0], expected)
    assert not list(filter(lambda p: p.requires_grad, encoder.parameters()))


def test_unknown_words_have_the_largest_weight(tower):
    encoder = tower.encoder
    rare, common = encoder.tokenize(["xenolith", "evident"]).input_ids[:, 0]
    assert encoder.vectors[rare].norm() == pytest.approx(float(encoder.vectors.norm(dim=1).max()), rel=1e-5)
    assert encoder.vectors[common].norm() < encoder.vectors[rare].norm()


def test_texts_without_words_still_have_an_embedding(tower):
    assert tower.embed_text(["?!", "..."]).norm(dim=1).tolist() == pytest.approx([1.0, 1.0])


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="width 1, buckets 16384, max_length 256"):
        WordVectors(width=1)
