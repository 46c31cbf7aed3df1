"""The retrieval evaluator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from medvl_core.protocols import Evaluator
from medvl_evaluation.evaluators.retrieval import Retrieval
from medvl_evaluation.metrics import retrieval_ranks

N = 24


def outputs(noise: float = 1.0, n: int = N) -> dict:
    generator = torch.Generator().manual_seed(0)
    ct = torch.randn(n, 16, generator=generator)
    cxr = ct + noise * torch.randn(n, 16, generator=generator)
    ids = [f"{i:02}" for i in range(n)]
    return {
        "embeddings": {"ct": ct, "cxr": cxr},
        "study_id": ids,
        "subject_id": [f"p{i // 3}" for i in range(n)],
        "scan_id": [f"s{i // 2}" for i in range(n)],
    }


def part(batch: dict, rows: slice) -> dict:
    return {
        "embeddings": {name: value[rows] for name, value in batch["embeddings"].items()},
        **{name: batch[name][rows] for name in ("study_id", "subject_id", "scan_id")},
    }


def evaluator(batch: dict | None = None, **options) -> Retrieval:
    made = Retrieval("cxr", "ct", **options)
    made.update(batch or outputs())
    return made


def test_it_is_an_evaluator_and_names_its_metrics():
    made = evaluator(ks=(1, 5))
    assert isinstance(made, Evaluator)
    names = ["cxr_to_ct/recall_at_1", "cxr_to_ct/recall_at_5", "cxr_to_ct/median_rank"]
    assert list(made.compute()) == list(made.chance()) == list(made.intervals(20)) == names
    assert [metric.name for metric in made.metrics] == names
    assert [metric.higher_is_better for metric in made.metrics] == [True, True, False]


def test_perfect_embeddings():
    values = evaluator(outputs(noise=0.0), group_by=None).compute()
    assert values == {f"cxr_to_ct/recall_at_{k}": 1.0 for k in (1, 5, 10)} | {"cxr_to_ct/median_rank": 1.0}


def test_split_updates_equal_one_and_reset_forgets():
    batch, made = outputs(), Retrieval("cxr", "ct")
    made.update(part(batch, slice(0, 3)))
    made.reset()
    for rows in (slice(0, 7), slice(7, 20), slice(20, N)):
        made.update(part(batch, rows))
        made.compute()
    assert made.compute() == evaluator(batch).compute()
    assert made.intervals(30) == evaluator(batch).intervals(30)


def test_group_by_accepts_the_sibling_reconstruction():
    batch = outputs()
    embeddings = batch["embeddings"]
    np.testing.assert_array_equal(
        evaluator(batch, group_by=None).ranks(), retrieval_ranks(embeddings["cxr"], embeddings["ct"])
    )
    grouped = retrieval_ranks(embeddings["cxr"], embeddings["ct"], batch["scan_id"], batch["scan_id"])
    np.testing.assert_array_equal(evaluator(batch).ranks(), grouped)


def test_group_by_of_any_collected_column():
    batch = outputs(n=4) | {"text_group": [0, 0, 0, 0]}
    assert evaluator(batch, ks=(1,), group_by="text_group").compute()["cxr_to_ct/recall_at_1"] == 1.0


def test_chance_knows_the_groups():
    alone, pairs = evaluator(group_by=None).chance(), evaluator().chance()
    assert alone["cxr_to_ct/recall_at_5"] == pytest.approx(5 / N)
    assert pairs["cxr_to_ct/recall_at_5"] == pytest.approx(1 - (19 * 18) / (24 * 23))
    assert alone["cxr_to_ct/median_rank"] == 12


def test_duplicate_gallery_is_a_gallery_whose_items_are_all_there_twice():
    batch = outputs()
    published = evaluator(batch, ks=(3, 5, 10), group_by=None, duplicate_gallery=True, prefix="published")
    cosine = (
        torch.nn.functional.normalize(batch["embeddings"]["cxr"])
        @ torch.nn.functional.normalize(batch["embeddings"]["ct"]).repeat_interleave(2, 0).T
    )
    place = torch.sort(cosine, dim=1, descending=True, stable=True).indices.tolist()
    slow = np.array([row.index(2 * i) + 1 for i, row in enumerate(place)])  # the second copy does not count
    np.testing.assert_array_equal(published.ranks(), slow)
    standard = evaluator(batch, ks=(2, 3, 5), group_by=None).compute()
    assert published.compute()["published/cxr_to_ct/recall_at_5"] == standard["cxr_to_ct/recall_at_3"]
    assert published.compute()["published/cxr_to_ct/recall_at_10"] == standard["cxr_to_ct/recall_at_5"]
    table = published.tables(20)["published_cxr_to_ct"]
    assert table["n_gallery"].tolist() == [2 * N] * 3
    assert table["chance"].tolist() == pytest.approx([2 / N, 3 / N, 5 / N])
    assert published.chance()["published/cxr_to_ct/median_rank"] == 2 * 12 - 1


def test_prefix_keeps_two_of_a_kind_apart(tmp_path):
    made = evaluator(prefix="standard", group_by=None)
    assert list(made.compute()) == [metric.name for metric in made.metrics] == list(made.chance())
    assert next(iter(made.compute())) == "standard/cxr_to_ct/recall_at_1"
    assert list(made.tables(10)) == ["standard_cxr_to_ct"]
    assert [path.name for path in made.figures(tmp_path, 10)] == ["standard_cxr_to_ct.png"]
    with pytest.raises(ValueError, match="prefix is 'A/B'; it names files"):
        Retrieval("cxr", "ct", prefix="A/B")


def test_updates_are_copied():
    batch = outputs()
    made = evaluator(batch)
    before = made.compute()
    made = evaluator(batch)
    batch["embeddings"]["cxr"].zero_()
    assert made.compute() == before


def test_tables_and_intervals_agree():
    made = evaluator()
    table = made.tables(50, seed=3)["retrieval_cxr_to_ct"]
    bounds = made.intervals(50, seed=3)
    for row in table.to_dict("records"):
        name = f"cxr_to_ct/recall_at_{row['k']}"
        assert (row["recall_low"], row["recall_high"]) == bounds[name]
        assert row["recall"] == made.compute()[name]
        assert row["chance"] == made.chance()[name]
        assert row["recall_low"] <= row["recall"] <= row["recall_high"]


def test_figure(tmp_path):
    (path,) = evaluator().figures(tmp_path, n_resamples=20)
    assert path.name == "retrieval_cxr_to_ct.png"
    with Image.open(path) as image:
        assert image.size == (960, 690)


def test_errors_name_what_is_missing():
    with pytest.raises(ValueError, match=r"Retrieval cxr_to_ct needs \['ct'\] in embeddings, which has \['cxr'\]"):
        evaluator(outputs() | {"embeddings": {"cxr": torch.ones(N, 4)}})
    batch = outputs()
    del batch["scan_id"]
    with pytest.raises(ValueError, match=r"needs \['scan_id'\] in outputs"):
        evaluator(batch)
    with pytest.raises(ValueError, match="differ in length"):
        evaluator(outputs() | {"scan_id": ["a"]})
    with pytest.raises(ValueError, match="has collected no study; call update"):
        Retrieval("cxr", "ct").compute()
    with pytest.raises(ValueError, match=r"ks is \(0,\)"):
        Retrieval("cxr", "ct", ks=(0,))
