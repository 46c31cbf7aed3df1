import pytest
import torch
from medvl_example.losses import AgeAware
from torch.nn.functional import cross_entropy, normalize

from medvl_core.protocols import AlignmentBatch


def total(age: torch.Tensor, years: float = 5.0) -> torch.Tensor:
    rows = normalize(torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    batch = AlignmentBatch({"cxr": rows[0], "report": rows[1]}, torch.tensor(10.0), extras={"age": age})
    return AgeAware(("cxr", "report"), years)(batch).total


@pytest.mark.parametrize("age", [torch.tensor([20.0, 50.0, 80.0]), torch.full((3,), torch.nan)])
def test_distant_and_unknown_ages_give_plain_infonce(age):
    rows = normalize(torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    logits, own = 10 * rows[0] @ rows[1].T, torch.arange(3)
    expected = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(total(age, years=0.1), expected)


def test_targets_are_a_gaussian_of_the_difference():
    targets = AgeAware(("cxr", "report"), years=10.0).targets(torch.tensor([40.0, 50.0]))
    near = torch.exp(torch.tensor(-0.5))
    torch.testing.assert_close(targets, torch.tensor([[1.0, near], [near, 1.0]]) / (1 + near))


def test_years_must_be_positive():
    with pytest.raises(ValueError, match="years is 0"):
        AgeAware(("cxr", "report"), years=0)
