from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from medvl_baseline.label_map import merge_labels, read_label_map


def test_map_is_read_with_single_names_and_lists(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"calcification": ["arterial", "coronary"], "nodule": "lung nodule"}))
    expected = {"calcification": ("arterial", "coronary"), "nodule": ("lung nodule",)}
    assert read_label_map(tmp_path / "map.json") == expected


def test_every_combination_of_two_sources():
    def by_hand(a: float, b: float) -> float:
        if 1 in (a, b):
            return 1.0
        return math.nan if math.isnan(a) or math.isnan(b) else 0.0

    values = list(itertools.product((0.0, 1.0, math.nan), repeat=2))
    merged = merge_labels(np.array(values), ("a", "b"), ("both", "a"), {"both": ("a", "b")})
    np.testing.assert_array_equal(merged[:, 0], [by_hand(*pair) for pair in values])
    np.testing.assert_array_equal(merged[:, 1], [a for a, _ in values])


def test_source_that_is_no_column():
    with pytest.raises(ValueError, match="'x' is made from 'nodul', which is no source column; did you mean 'nodule'"):
        merge_labels(np.zeros((1, 1)), ("nodule",), ("x",), {"x": ("nodul",)})
    with pytest.raises(ValueError, match="label 'hernia' is made from 'hernia', which is no source column"):
        merge_labels(np.zeros((1, 1)), ("nodule",), ("hernia",), {})
    with pytest.raises(ValueError, match=r"shape \(1, 2\) for 1 source columns"):
        merge_labels(np.zeros((1, 2)), ("nodule",), ("nodule",), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no label map; write one JSON object"),
        ("{}", "no label map; write one JSON object"),
        ("{", "no label map"),
        ('{"a": []}', r"target 'a' is made from \[\]"),
        ('{"a": [1]}', r"target 'a' is made from \[1\]"),
        ('{"a": ["x"], "a": ["y"]}', "a appears twice"),
    ],
)
def test_unusable_maps(tmp_path, text, message):
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(ValueError, match=rf"map\.json: .*{message}"):
        read_label_map(tmp_path / "map.json")


def test_missing_map(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such label map"):
        read_label_map(tmp_path / "map.json")
