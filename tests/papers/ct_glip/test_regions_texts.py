from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from medvl_core.build import build_encoder, build_pooling
from medvl_core.engine.alignment import Tower
from medvl_ct_glip.regions.texts import ABNORMAL, NORMAL, UNKNOWN, RegionTexts, StoredTexts, spoken
from tests.papers.ct_glip.region_studies import NAMES, Texts, study

STUDIES = [study(number) for number in range(5)]


class Embed:
    """A unit vector per text, and how often each text was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        rows = [torch.randn(6, generator=torch.Generator().manual_seed(len(t) + 7 * ord(t[0]))) for t in texts]
        return normalize(torch.stack(rows), dim=1)


def table(embed=None, **options):
    return RegionTexts(Texts(), embed or Embed(), NAMES, STUDIES, **options)


def test_each_text_is_embedded_once_and_found_again():
    embed = Embed()
    made = table(embed)
    assert len(embed.asked) == len(set(embed.asked))
    rows, group, status = made.of(STUDIES[1])
    torch.testing.assert_close(rows[0], Embed()(["liver cyst"])[0])
    assert status.tolist() == [ABNORMAL, ABNORMAL, UNKNOWN]  # the kidney is uncertain: no text
    assert rows[2].abs().sum() == 0
    assert group[2] == -1
    assert made.of(STUDIES[3])[2].tolist() == [NORMAL, NORMAL, UNKNOWN]
    assert made.of(STUDIES[0])[1][0] == made.of(STUDIES[2])[1][0]  # equal texts, equal groups
    torch.testing.assert_close(made.names_embedding[2], Embed()(["this is a left kidney in the CT scan"])[0])


def test_dictionary_is_of_training_texts_by_frequency():
    made = table()
    assert made.words == ("fatty liver", "large", "liver cyst")
    assert made.dictionary.shape == (3, 6)
    assert made.dictionary_group[0] == made.of(STUDIES[0])[1][0]
    assert table(size=1).words == ("fatty liver",)
    assert table(size=0).words == ()
    assert table(size=0).dictionary.shape == (0, 6)


def test_negatives_are_of_the_region_and_follow_the_generator():
    made = table(draws=2)
    drawn = made.negatives([0, 1, 2], np.random.default_rng(0)).view(3, 2)
    assert set(drawn[0].tolist()) == {0, 2}  # both liver texts
    assert drawn[1].tolist() == [1, -1]  # the only spleen text
    assert drawn[2].tolist() == [-1, -1]
    assert (made.negatives([], np.random.default_rng(0)) == -1).all()
    one = table(draws=1)
    draws = {int(one.negatives([0], np.random.default_rng(seed))[0]) for seed in range(20)}
    assert draws == {0, 2}
    torch.testing.assert_close(
        one.negatives([0], np.random.default_rng(3)), one.negatives([0], np.random.default_rng(3))
    )


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="dictionary of size -1 with 5 draws"):
        table(size=-1)
    with pytest.raises(ValueError, match="none of 1 studies has a text for any of the 1 regions"):
        RegionTexts(Texts(), Embed(), ["skull"], STUDIES[:1])
    with pytest.raises(KeyError, match="s9: not among the studies whose region texts were read"):
        table().of(study(9))


def test_stored_texts_come_from_disk_the_second_time(tmp_path, monkeypatch):
    torch.manual_seed(0)
    encoder = build_encoder("baseline/word_vectors", width=8, buckets=64)
    tower = Tower(encoder, build_pooling("baseline/mean"), embed_dim=None, frozen=True)
    texts = ["fatty liver", "stone", "fatty liver"]
    first = StoredTexts(tower, tmp_path)(texts)
    torch.testing.assert_close(first, tower.embed_text(texts))
    monkeypatch.setattr(Tower, "embed_text", None)
    torch.testing.assert_close(StoredTexts(tower, tmp_path)(texts), first)
    with pytest.raises(ValueError, match="keeps unit vectors"):
        StoredTexts(tower, tmp_path)(texts, normalise=False)


def test_another_pooling_never_meets_rows_of_this_one(tmp_path):
    torch.manual_seed(0)
    encoder = build_encoder("baseline/word_vectors")
    towers = [Tower(encoder, build_pooling(f"baseline/{name}"), embed_dim=None) for name in ("mean", "cls")]
    rows = [StoredTexts(tower, tmp_path)(["fatty liver"]) for tower in towers]
    for tower, row in zip(towers, rows, strict=True):
        torch.testing.assert_close(row, tower.embed_text(["fatty liver"]))
    assert not torch.allclose(*rows)


@pytest.mark.parametrize(
    ("name", "words"),
    [("kidney_right", "right kidney"), ("rib_left_3", "left rib 3"), ("liver", "liver")],
)  # fmt: skip
def test_names_as_one_says_them(name, words):
    assert spoken(name) == words


def test_tower_without_trained_weights_is_enough():
    assert isinstance(Tower(build_encoder("baseline/word_vectors"), build_pooling("baseline/mean")), nn.Module)


def test_without_a_source_there_are_names_alone():
    made = RegionTexts(None, Embed(), NAMES, STUDIES)
    rows, group, status = made.of(STUDIES[0])
    assert made.names_embedding.shape == (3, 6)
    assert rows.shape == (3, 6)
    assert rows.abs().sum() == 0
    assert group.tolist() == status.tolist() == [-1, -1, -1]
    assert made.dictionary.shape == (0, 6)
    assert (made.negatives([0], np.random.default_rng(0)) == -1).all()
