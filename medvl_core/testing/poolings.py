"""Contract checks of poolings.

A global pooling is called as ``pooling(tokens B N F, mask B N or None) -> B F``, a region pooling as
``pooling(features B F X Y Z, regions B X Y Z) -> B R F`` with ``regions`` an integer label map: 0 is background, r is
region r. ``tiny`` must give ``n_regions`` of 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medvl_core.testing import modules
from medvl_core.testing.harness import ROWS, Subject, as_module, require, require_close

__all__ = ["CHECKS"]

_TOKENS, _REGIONS, _GRID = 6, 4, (4, 4, 4)


def _inputs(pooling: Any, subject: Subject) -> tuple[Tensor, Tensor]:
    """Content and mask: the last token of row 1, or the last region of every row, is empty."""
    generator = torch.Generator().manual_seed(0)
    width = getattr(pooling, "embed_dim", None) or subject.spec.tiny.get("embed_dim", 16)
    if subject.spec.scope == "global":
        mask = torch.ones(ROWS, _TOKENS, dtype=torch.bool)
        mask[1, -1] = False
        return torch.randn(ROWS, _TOKENS, width, generator=generator), mask
    regions = torch.randint(0, _REGIONS, (ROWS, *_GRID), generator=generator)  # the last region is empty
    return torch.randn(ROWS, width, *_GRID, generator=generator), regions


def _runner(subject: Subject) -> modules.Run:
    return lambda pooling: [pooling(*_inputs(pooling, subject))]


def shapes(subject: Subject) -> None:
    """``B F`` for a global, ``B R F`` for a region pooling, and finite; a global one also takes no mask."""
    pooling = as_module(subject.build(), subject).eval()
    content, mask = _inputs(pooling, subject)
    is_global = subject.spec.scope == "global"
    expected = (ROWS, content.shape[2]) if is_global else (ROWS, _REGIONS, content.shape[1])
    with torch.no_grad():
        outputs = [pooling(content, mask)] + ([pooling(content, None)] if is_global else [])
    for out in outputs:
        require(out.shape == expected, subject, f"output has shape {tuple(out.shape)}, not {expected}")
        require(bool(out.isfinite().all()), subject, "the output is not finite (empty regions must give finite values)")


def rows_are_independent(subject: Subject) -> None:
    """In eval mode row i of the output does not depend on the other rows of the batch."""
    pooling = as_module(subject.build(), subject).eval()
    content, mask = _inputs(pooling, subject)
    with torch.no_grad():
        together = pooling(content, mask)
        for index in range(ROWS):
            rows = slice(index, index + 1)
            alone = pooling(content[rows], mask[rows])
            require_close(alone, together[rows], subject, f"row {index} depends on the rest of the batch")


def padding_has_no_influence(subject: Subject) -> None:
    """Values of masked tokens, and of the background, change nothing."""
    pooling = as_module(subject.build(), subject).eval()
    content, mask = _inputs(pooling, subject)
    with torch.no_grad():
        before = pooling(content, mask)
        if subject.spec.scope == "global":
            after = pooling(content.masked_fill(~mask[..., None], 1e3), mask)
            require_close(after, before, subject, "masked tokens change the output")
        else:
            after = pooling(content.masked_fill((mask == 0)[:, None], 1e3), mask)
            require_close(after, before, subject, "the background changes the output")


def order(subject: Subject) -> None:
    """Permuting the tokens changes the output if, and only if, the spec says ``order_sensitive``."""
    if subject.spec.scope != "global":
        return
    pooling = as_module(subject.build(), subject).eval()
    content, mask = _inputs(pooling, subject)
    with torch.no_grad():
        before, after = pooling(content, mask), pooling(content.flip(1), mask.flip(1))
    sensitive = not torch.allclose(before, after, atol=1e-5)
    declared = subject.spec.order_sensitive
    require(sensitive == declared, subject, f"order_sensitive is {declared} but permuted tokens say {sensitive}")


def gradients(subject: Subject) -> None:
    """A gradient reaches every trainable parameter."""
    modules.gradients(subject, _runner(subject))


def finite_in_bf16(subject: Subject) -> None:
    """Outputs are finite under bfloat16 autocast."""
    modules.bf16_is_finite(subject, _runner(subject))


def state_dict(subject: Subject) -> None:
    """The state dict holds everything the outputs depend on."""
    modules.state_dict_round_trip(subject, _runner(subject))


def global_rng(subject: Subject) -> None:
    """The global random states stay as they are."""
    modules.global_rng(subject, _runner(subject))


CHECKS = (
    shapes,
    rows_are_independent,
    padding_has_no_influence,
    order,
    gradients,
    finite_in_bf16,
    state_dict,
    global_rng,
)
