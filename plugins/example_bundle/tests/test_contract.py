"""Everything medvl expects of a component, and of a bundle."""

from pathlib import Path

import pytest

from medvl_core.testing import contract_cases
from medvl_tools.check import check_bundle


@pytest.mark.parametrize("case", contract_cases("medvl_example_bundle.plugin"))
def test_contract(case):
    case()


def test_bundle():
    assert check_bundle(Path(__file__).parents[1] / "example_bundle") == []
