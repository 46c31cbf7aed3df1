from __future__ import annotations

import pytest

from medvl_core.testing import contract_cases
from tests.papers.cxr_cml import cxr_sets
from tests.papers.miniatures import written_when_needed

SETS = {
    "cxr_lt": cxr_sets.cxr_lt,
    "chexpert": cxr_sets.chexpert,
    "nih_chestxray14": cxr_sets.nih,
    "padchest": cxr_sets.padchest,
}


@pytest.mark.parametrize("case", contract_cases("medvl_cxr_cml.plugin", options=written_when_needed(SETS)))
def test_contract(case):
    case()
