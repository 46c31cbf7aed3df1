from __future__ import annotations

from functools import partial

import pytest

from medvl_core.testing import contract_cases
from tests.papers.radclip.radclip_sets import SETS

OPTIONS: dict[str, dict[str, object]] = {}


@pytest.fixture(scope="module", autouse=True)
def _sets(tmp_path_factory):
    """A miniature of every set on disk."""
    for name, make in SETS.items():
        OPTIONS[name] = make(tmp_path_factory.mktemp(name))


@pytest.mark.parametrize(
    "case",
    contract_cases(
        "medvl_radclip.plugin", options={f"dataset/{name}": partial(OPTIONS.__getitem__, name) for name in SETS}
    ),
)
def test_contract(case):
    case()
