from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score

from medvl_core.build import build_evaluator

KEY = "latent_map/adjusted_mutual_information"
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def _outputs(seed: int = 0, n: int = 60, apart: bool = True):
    """Three groups: label one, label two, none; far apart, or all alike."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(n) % 3
    rows = 0.05 * torch.randn(n, 8, generator=generator)
    rows += torch.eye(8)[group] if apart else 1
    labels = torch.stack([group == 0, group == 1], 1).double()
    return {
        "embeddings": {"cxr": torch.nn.functional.normalize(rows, dim=1)},
        "labels": labels,
        "study_id": [f"s{i}" for i in range(n)],
    }


def _map(**options):
    return build_evaluator("cxr_cml/latent_map", classes=("one", "two"), **{"n_clusters": 3, **options})


def test_clusters_that_are_labels_say_everything_and_others_nothing():
    found = {}
    for apart in (True, False):
        evaluator = _map()
        evaluator.update(_outputs(apart=apart))
        found[apart] = evaluator.compute()[KEY]
    assert found[True] == pytest.approx(1)
    assert abs(found[False]) < 0.15


def test_a_study_of_two_labels_counts_for_both():
    outputs = _outputs()
    outputs["labels"][0] = 1
    evaluator = _map()
    evaluator.update(outputs)
    clusters = evaluator.clusters()
    pairs = [(0, clusters[0]), (1, clusters[0]), *((i % 3, clusters[i]) for i in range(1, 60))]
    expected = adjusted_mutual_info_score(*zip(*pairs, strict=True))
    assert evaluator.compute()[KEY] == pytest.approx(expected)


def test_cluster_table_names_the_label_that_stands_out():
    evaluator = _map()
    evaluator.update(_outputs())
    table = evaluator.tables()["latent_map_clusters"]
    assert table["n"].sum() == 60
    assert set(table[table["share"] == 1]["label"]) == {"one", "two"}
    assert sorted(table["without_label"]) == [0, 0, 1]
    assert table["share_overall"].tolist() == pytest.approx([1 / 3] * 3)


def test_unknown_labels_are_not_drawn_as_present():
    outputs = _outputs()
    outputs["labels"][:] = torch.nan
    evaluator = _map()
    evaluator.update(outputs)
    assert (evaluator.tables()["latent_map_clusters"]["without_label"] == 1).all()


def test_map_of_a_large_set_shows_a_part_of_it(tmp_path):
    evaluator = _map(most=20)
    evaluator.update(_outputs())
    points = evaluator.tables()["latent_map_points"]
    assert len(points) == 20
    by_id = dict(zip([f"s{i}" for i in range(60)], evaluator.clusters(), strict=True))
    assert [by_id[study] for study in points["study_id"]] == points["cluster"].tolist()
    (figure,) = evaluator.figures(tmp_path)
    assert figure == tmp_path / "latent_map.png"
    assert figure.stat().st_size > 10_000


def test_few_studies_get_few_clusters():
    evaluator = _map(n_clusters=40)
    evaluator.update(_outputs(n=12))
    assert len(np.unique(evaluator.clusters())) <= 2


@pytest.mark.parametrize(
    ("options", "message"), [({"n_clusters": 0}, "n_clusters=0"), ({"classes": "one"}, "give a list of names")]
)
def test_options_that_make_no_map(options, message):
    with pytest.raises(ValueError, match=message):
        build_evaluator("cxr_cml/latent_map", **{"classes": ("one",), **options})


def test_labels_that_do_not_fit():
    outputs = _outputs()
    outputs["labels"] = outputs["labels"][:, :1]
    with pytest.raises(ValueError, match="needs cxr embeddings and labels of 2 classes"):
        _map().update(outputs)


def test_nothing_collected():
    with pytest.raises(ValueError, match="has collected no study"):
        _map().compute()
