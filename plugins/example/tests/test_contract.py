"""Everything medvl expects of a component, checked for every component of this plugin."""

import pytest

from medvl_core.testing import contract_cases


@pytest.mark.parametrize("case", contract_cases("medvl_example.plugin"))
def test_contract(case):
    case()
