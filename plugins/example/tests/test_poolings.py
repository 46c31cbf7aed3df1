import torch
from medvl_example.poolings import WeightedMean


def test_equal_scores_give_the_mean():
    pooling = WeightedMean(4)
    torch.nn.init.zeros_(pooling.score.weight)
    tokens = torch.randn(2, 3, 4)
    torch.testing.assert_close(pooling(tokens), tokens.mean(dim=1))


def test_a_row_without_a_valid_token_gives_zeros():
    mask = torch.tensor([[True, True], [False, False]])
    pooled = WeightedMean(4)(torch.randn(2, 2, 4), mask)
    assert pooled[0].any()
    assert not pooled[1].any()
