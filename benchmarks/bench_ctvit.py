"""CTViT on one volume: ours against the published form (stored attention weights, position bias over all pairs).

Run: ``python benchmarks/bench_ctvit.py [rounds] [--quick]``. Both share weights; the largest difference of their tokens
before the quantiser is logged. ``--quick`` takes a grid of 12 tokens a side in place of 24, where the gain is smaller.
"""

from __future__ import annotations

import logging
import sys
from unittest.mock import patch

import torch
from einops import rearrange
from rounds import measure, write_results
from torch import Tensor
from torch.nn import functional

from medvl_x2ct import ctvit
from medvl_x2ct.ctvit import CTViT

logger = logging.getLogger(__name__)


def stored_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """All logits of a batch in memory at once."""
    logits = q @ k.mT * scale
    return (logits if attn_mask is None else logits + attn_mask).softmax(-1) @ v


def bias_over_pairs(self: torch.nn.Module, side: int) -> Tensor:
    """The position network on every pair of tokens."""
    cells = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(-1, 2)
    offset = (cells[:, None] - cells[None, :]).float()
    bias = offset.sign() * offset.abs().log1p()
    for layer in self.net:
        bias = layer(bias)
    return rearrange(bias, "i j h -> 1 h i j")


def main(rounds: int, quick: bool) -> None:
    """Table to the log, rows to ``results/``."""
    side = 12 if quick else 24
    torch.manual_seed(0)
    network = CTViT(
        frames=10 * side,
        image_size=20 * side,
        temporal_patch_size=10,
        patch_size=20,
        dim=512,
        depth=4,
        heads=8,
        dim_head=32,
        codebook_size=8192,
    ).eval()
    volume = torch.rand(1, 1, 10 * side, 20 * side, 20 * side) * 2 - 1
    outputs = {}

    def ours() -> None:
        outputs["ours"] = network.encode(network.to_patch_emb(volume))
        network.vq["_codebook"](outputs["ours"])

    def published() -> None:
        with (
            patch.object(functional, "scaled_dot_product_attention", stored_attention),
            patch.object(ctvit._RelativeBias, "forward", bias_over_pairs),
        ):
            outputs["published"] = network.encode(network.to_patch_emb(volume))
            network.vq["_codebook"](outputs["published"])

    case = f"CTViT, {side}³ tokens, {torch.get_num_threads()} threads"
    with torch.no_grad():
        rows = measure(case, {"medvl": ours, "published form": published}, rounds, "medvl")
    difference = (outputs["ours"] - outputs["published"]).abs().max()
    logger.info("largest difference of the tokens: %.2g", difference)
    write_results("ctvit", rows)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    main(numbers[0] if numbers else 3, "--quick" in sys.argv)
