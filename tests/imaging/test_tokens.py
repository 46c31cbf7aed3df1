from __future__ import annotations

import pytest
import torch

from medvl_imaging.tokens import check_tokens, masked_mean


def test_masked_mean_is_the_mean_of_the_valid_tokens():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    slow = torch.stack([tokens[0].sum(0) / 5, (tokens[1, 0] + tokens[1, 2]) / 2, torch.zeros(4, dtype=torch.float64)])
    tokens[~mask] = torch.nan
    torch.testing.assert_close(masked_mean(tokens, mask), slow)
    torch.testing.assert_close(masked_mean(tokens[:1], None), slow[:1])


def test_masked_mean_sums_half_precision_in_full():
    tokens = torch.full((1, 4000, 1), 1.001, dtype=torch.float16)
    assert masked_mean(tokens, torch.ones(1, 4000, dtype=torch.bool)).item() == pytest.approx(1.001, abs=1e-3)


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [
        (torch.zeros(2, 3), None, r"tokens has shape \(2, 3\); a global pooling needs B N F"),
        (torch.zeros(2, 3, 5), None, "tokens are 5 wide but the pooling was built with embed_dim=4"),
        (torch.zeros(2, 3, 4), torch.ones(2, 2).bool(), r"give torch.bool \(2, 3\), True = valid"),
        (torch.zeros(2, 3, 4), torch.ones(2, 3), "mask is torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(tokens, mask, message):
    with pytest.raises(ValueError, match=message):
        check_tokens(tokens, mask, 4)
