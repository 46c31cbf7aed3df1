"""Everything medvl expects of a component, and of a bundle."""

from pathlib import Path

import pytest

from medvl_core.bundle.check import check_bundle
from medvl_core.testing import contract_cases


@pytest.mark.parametrize("case", contract_cases("medvl_example_bundle.plugin"))
def test_contract(case):
    case()


def test_bundle():
    assert check_bundle(Path(__file__).parents[1] / "example_bundle") == []
