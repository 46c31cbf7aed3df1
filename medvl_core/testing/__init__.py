"""Contract checks for plugin authors: one named pytest case per component and check.

A plugin's whole contract test::

    import pytest
    from medvl_core.testing import contract_cases

    @pytest.mark.parametrize("case", contract_cases("medvl_mine.plugin"))
    def test_contract(case):
        case()
"""

from medvl_core.testing.cases import Case, contract_cases, registry_cases
from medvl_core.testing.harness import ContractViolation, Subject

__all__ = ["Case", "ContractViolation", "Subject", "contract_cases", "registry_cases"]
