from __future__ import annotations

import pytest

from medvl_core.testing import contract_cases
from tests.papers.miniatures import written_when_needed
from tests.papers.radclip.radclip_sets import SETS


@pytest.mark.parametrize("case", contract_cases("medvl_radclip.plugin", options=written_when_needed(SETS)))
def test_contract(case):
    case()
