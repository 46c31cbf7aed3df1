"""Ranks, recall and their chance level against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl_evaluation import metrics


def slow_ranks(queries, gallery, query_groups, gallery_groups) -> list[int]:
    """Float64, one query and one item at a time: 1 + wrong items at least as similar as the best correct one."""
    q, g = (np.array(v, dtype=np.float64) for v in (queries, gallery))
    q, g = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, g))
    ranks = []
    for vector, group in zip(q, query_groups, strict=True):
        cosines = [float(vector @ item) for item in g]
        best = max(c for c, other in zip(cosines, gallery_groups, strict=True) if other == group)
        wrong = [c for c, other in zip(cosines, gallery_groups, strict=True) if other != group]
        ranks.append(1 + sum(c >= best - 1e-6 for c in wrong))
    return ranks


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    groups=st.lists(st.integers(0, 6), min_size=1, max_size=25),
    chunk=st.sampled_from([1, 3, 1024]),
    levels=st.sampled_from([2, 1000]),
)
def test_ranks_equal_brute_force_with_groups_and_ties(seed, groups, chunk, levels):
    """Coordinates of few levels make many exactly tied cosines."""
    rng = np.random.default_rng(seed)
    left, right = (rng.integers(1, levels + 1, (len(groups), 4)) * rng.choice([-1, 1], 4) for _ in range(2))
    names = [f"scan{g}" for g in groups]
    forward, backward = metrics.two_way_ranks(left, right, names, names, chunk=chunk)
    np.testing.assert_array_equal(forward, slow_ranks(left, right, groups, groups))
    np.testing.assert_array_equal(backward, slow_ranks(right, left, groups, groups))
    np.testing.assert_array_equal(metrics.retrieval_ranks(left, right, names, names, chunk=chunk), forward)


def test_gallery_longer_than_a_block():
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((9000, 8)).astype(np.float32)
    targets = np.array([8999, 0, 8192, 17])
    queries = gallery[targets] + 0.3 * rng.standard_normal((4, 8))
    ranks = metrics.retrieval_ranks(queries, gallery, targets, np.arange(9000))
    np.testing.assert_array_equal(ranks, slow_ranks(queries, gallery, targets, range(9000)))


def test_collapsed_encoder_has_no_recall():
    same = torch.ones(20, 8)
    ranks = metrics.retrieval_ranks(same, same)
    np.testing.assert_array_equal(ranks, 20)
    assert metrics.recall_of_ranks(ranks, (1, 5, 19)) == {1: 0.0, 5: 0.0, 19: 0.0}
    np.testing.assert_array_equal(metrics.retrieval_ranks(torch.zeros(5, 8), same[:5]), 5)


def test_nearly_collapsed_encoder_has_no_recall_either():
    """Rounding differs between tiles of a matrix product; it must not decide ties."""
    base = torch.randn(1, 512, generator=torch.Generator().manual_seed(0)).expand(700, 512).contiguous()
    np.testing.assert_array_equal(metrics.retrieval_ranks(base, base, chunk=33), 700)


def test_duplicated_correct_item_does_not_count_against_its_query():
    items = torch.eye(4)
    gallery = torch.cat([items, items])
    ranks = metrics.retrieval_ranks(items, gallery, list("abcd"), list("abcdabcd"))
    np.testing.assert_array_equal(ranks, 1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(1, 20), chunk=st.sampled_from([1, 7, 1024]))
def test_targets_may_overlap_in_any_way(seed, n, chunk):
    """Each query has its own set of correct items, which no grouping could state."""
    rng = np.random.default_rng(seed)
    queries, gallery = rng.standard_normal((n, 5)), rng.standard_normal((n + 3, 5))
    targets = [rng.choice(n + 3, rng.integers(1, 4), replace=False).tolist() for _ in range(n)]
    cosines = queries @ gallery.T / np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(gallery, axis=1))
    expected = []
    for row, correct in zip(cosines, targets, strict=True):
        expected.append(1 + sum(row[j] >= row[correct].max() - 1e-6 for j in range(n + 3) if j not in correct))
    np.testing.assert_array_equal(metrics.retrieval_ranks(queries, gallery, targets=targets, chunk=chunk), expected)
    found = metrics.recall_at_k(queries, gallery, (1, 3), targets=targets, chunk=chunk)
    assert found == {k: np.mean(np.array(expected) <= k) for k in (1, 3)}


def test_two_reconstructions_share_one_report():
    """Group-aware: either reconstruction's report is right, and the twin never counts against the query."""
    rng = np.random.default_rng(0)
    reports = np.repeat(rng.standard_normal((30, 16)), 2, axis=0)
    scans = reports + 0.1 * rng.standard_normal(reports.shape)
    groups = np.repeat(np.arange(30), 2)
    assert metrics.recall_at_k(scans, reports, (1,), groups, groups) == {1: 1.0}
    assert metrics.recall_at_k(scans, reports, (1, 2)) == {1: 0.0, 2: 1.0}, "without groups the twin's equal text ties"


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        ([[0]], {}, "1 target lists, 0 empty, for 2 queries"),
        ([[0], []], {}, "2 target lists, 1 empty"),
        ([[0], [3]], {}, "targets 0 to 3 for a gallery of 2 items"),
        ([[0], [-1]], {}, "targets -1 to 0"),
        ([[0], [1]], {"query_groups": [0, 1], "gallery_groups": [0, 1]}, "both targets and groups"),
    ],
)
def test_targets_that_do_not_fit(targets, options, message):
    with pytest.raises(ValueError, match=message):
        metrics.retrieval_ranks(torch.eye(2), torch.eye(2), targets=targets, **options)


def test_negative_similarities_are_ranked():
    queries, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.1], [-1.0, 0.0]])
    assert metrics.retrieval_ranks(queries, gallery, [0], [0, 1]).tolist() == [1]
    assert metrics.retrieval_ranks(queries, gallery, [1], [0, 1]).tolist() == [2]


def test_recall_and_median():
    assert metrics.recall_of_ranks([1, 2, 6, 11], (1, 5, 10)) == {1: 0.25, 5: 0.5, 10: 0.75}
    assert metrics.median_rank([1, 2, 6, 11]) == 4.0


@pytest.mark.parametrize(("correct", "items"), [([1, 1, 2], 5), ([3], 6), ([2, 4], 4)])
def test_chance_equals_all_orders(correct, items):
    """Average over every placement of the correct items."""
    reached = np.zeros(items)
    for m in correct:
        best = [min(places) for places in itertools.combinations(range(1, items + 1), m)]
        reached += [np.mean([rank <= k for rank in best]) / len(correct) for k in range(1, items + 1)]
    ks = range(1, items + 1)
    np.testing.assert_allclose(list(metrics.chance_recall(correct, items, ks).values()), reached, atol=1e-12)
    assert metrics.chance_median_rank(correct, items) == 1 + int(np.argmax(reached >= 0.5))


def test_chance_is_what_random_embeddings_get():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), 2)
    ranks = metrics.retrieval_ranks(rng.standard_normal((600, 32)), rng.standard_normal((600, 32)), groups, groups)
    for k, expected in metrics.chance_recall(np.full(600, 2), 600, (10, 100)).items():
        assert metrics.recall_of_ranks(ranks, (k,))[k] == pytest.approx(expected, abs=4 * np.sqrt(expected / 600))


def test_depth_above_the_gallery_is_certain():
    assert metrics.chance_recall([1], 3, (10,)) == {10: 1.0}


def test_nan_embedding_names_the_row():
    bad = torch.zeros(3, 4)
    bad[1, 0] = torch.nan
    with pytest.raises(ValueError, match="gallery: row 1 \\(1 in all\\) is not finite"):
        metrics.retrieval_ranks(torch.ones(3, 4), bad)


def test_query_without_match_is_an_error():
    with pytest.raises(ValueError, match="query 1 \\(group b\\) has no match"):
        metrics.retrieval_ranks(torch.ones(2, 4), torch.ones(2, 4), ["a", "b"], ["a", "c"])
    with pytest.raises(ValueError, match="item 1 \\(group c\\) has no match"):
        metrics.two_way_ranks(torch.ones(1, 4), torch.ones(2, 4), ["a"], ["a", "c"])


@pytest.mark.parametrize(
    ("shapes", "groups", "message"),
    [
        (((2, 4), (3, 4)), {}, "2 queries and 3 items; without groups"),
        (((2, 4), (2, 5)), {}, "4 dimensions, the gallery 5"),
        (((0, 4), (2, 4)), {}, r"queries has shape \(0, 4\)"),
        (((2, 4), (2, 4)), {"query_groups": [0, 1]}, "give both or neither"),
        (((2, 4), (2, 4)), {"query_groups": [0], "gallery_groups": [0, 1]}, "1 and 2 groups for 2 queries"),
    ],
)
def test_shapes_that_do_not_fit(shapes, groups, message):
    with pytest.raises(ValueError, match=message):
        metrics.retrieval_ranks(*(torch.ones(shape) for shape in shapes), **groups)


def test_recall_needs_ranks_and_depths():
    with pytest.raises(ValueError, match="recall of 0 ranks"):
        metrics.recall_of_ranks([], (1,))
    with pytest.raises(ValueError, match="every k at least 1"):
        metrics.recall_of_ranks([1], (0,))
    with pytest.raises(ValueError, match="between 1 and 3"):
        metrics.chance_recall([4], 3, (1,))


def test_no_ranks_and_depths_below_one_are_refused():
    with pytest.raises(ValueError, match="median of 0 ranks"):
        metrics.median_rank([])
    with pytest.raises(ValueError, match=r"at \(0,\); every k is at least 1"):
        metrics.chance_recall([1, 1], 10, [0])
