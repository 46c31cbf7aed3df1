"""Everything medvl expects of a component, checked for every component of this plugin."""

import pytest
import torch  # loss: for extras

from medvl_core.testing import contract_cases


@pytest.mark.parametrize(
    "case",
    contract_cases(
        "medvl_example.plugin",
        extras={"age": lambda pairs: torch.linspace(20.0, 90.0, pairs)},  # loss: the entries it needs
    ),
)
def test_contract(case):
    case()
