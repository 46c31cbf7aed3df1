from __future__ import annotations

import pytest
import torch

from medvl_core.testing import contract_cases

EXTRAS = {
    "scan": lambda pairs: torch.arange(pairs) // 4,
    "anatomy_group": torch.arange,
    "logits": lambda pairs: (
        torch.randn(2, 5, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(),
        torch.randn(2, 5, 2, 2, 2, generator=torch.Generator().manual_seed(1)).requires_grad_(),
    ),
    "regions": lambda pairs: torch.randint(0, 5, (2, 4, 4, 4), generator=torch.Generator().manual_seed(2)),
}


@pytest.mark.parametrize("case", contract_cases("medvl_ct_glip.plugin", extras=EXTRAS))
def test_contract(case):
    case()
