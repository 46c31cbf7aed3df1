"""Large parts of one loop in threads of their own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

__all__ = ["in_threads"]

_MOST = 8  # each holds buffers of some 10 MB, and memory is read no faster by more


def in_threads(part: Callable[[int, int], Tensor], n: int, step: int) -> list[Tensor]:
    """``part(start, stop)`` of ranges that cover 0 to ``n``, one per thread of torch.

    A part is a loop of small operations. Torch would split each of them among its threads and wait for the slowest; on
    a busy machine one such loop took 20 s instead of 0.5 s. Here every thread runs its own loop and waits once.

    Args:
        part: Called in parallel; must not change what is shared.
        n: Length of the whole.
        step: Ranges begin at its multiples.
    """
    threads = min(torch.get_num_threads(), _MOST, -(-n // step))
    if threads == 1:
        return [part(0, n)]
    whole = torch.get_num_threads()
    starts = [i * -(-n // step) // threads * step for i in range(threads)]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(part, starts, [*starts[1:], n]))
    finally:
        torch.set_num_threads(whole)
