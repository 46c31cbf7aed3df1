from __future__ import annotations

from functools import partial

import pytest

from medvl_core.testing import contract_cases
from tests.papers.cxr_cml import cxr_sets

SETS = {
    "cxr_lt": cxr_sets.cxr_lt,
    "chexpert": cxr_sets.chexpert,
    "nih_chestxray14": cxr_sets.nih,
    "padchest": cxr_sets.padchest,
}
OPTIONS: dict[str, dict[str, object]] = {}


@pytest.fixture(scope="module", autouse=True)
def _sets(tmp_path_factory):
    """A miniature of every set on disk."""
    for name, make in SETS.items():
        OPTIONS[name] = make(tmp_path_factory.mktemp(name))


@pytest.mark.parametrize(
    "case",
    contract_cases(
        "medvl_cxr_cml.plugin", options={f"dataset/{name}": partial(OPTIONS.__getitem__, name) for name in SETS}
    ),
)
def test_contract(case):
    case()
