import pytest
import torch
from medvl_example_bundle.losses import SmoothInfoNCE

from medvl_core.protocols import AlignmentBatch


def test_smoothed_targets_by_hand():
    batch = AlignmentBatch({"cxr": torch.eye(2), "report": torch.eye(2)}, torch.tensor(3.0))
    log = torch.log_softmax(torch.tensor([3.0, 0.0]), dim=0)
    torch.testing.assert_close(SmoothInfoNCE(("cxr", "report"), 0.2)(batch).total, -(0.9 * log[0] + 0.1 * log[1]))


def test_smoothing_is_a_share():
    with pytest.raises(ValueError, match="smoothing is 1"):
        SmoothInfoNCE(("cxr", "report"), smoothing=1)
