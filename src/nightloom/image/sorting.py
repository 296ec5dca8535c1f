"""Sorting networks: columns of values sorted side by side, with no branch on a value."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


def merge_exchange(n: int) -> NDArray[np.int64]:
    """Comparators [pair, 2] that sort n values, in order.

    Source: Batcher 1968; Knuth, TAOCP 3, algorithm 5.2.2M.
    """
    pairs: list[tuple[int, int]] = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs.extend((i, i + d) for i in range(n - d) if i & p == r)
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def pruned(network: NDArray[np.int64], *, wanted: set[int]) -> NDArray[np.int64]:
    """The comparators that the `wanted` places of the sorted order depend on."""
    needed = set(wanted)
    kept: list[tuple[int, int]] = []
    for i, j in reversed(network.tolist()):
        if i in needed or j in needed:
            needed.update((i, j))
            kept.append((i, j))
    return np.array(kept[::-1], dtype=np.int64).reshape(-1, 2)


@njit(nogil=True, cache=True)
def exchange(buffer: NDArray[Any], network: NDArray[np.int64], width: int) -> None:
    """Send each of `width` columns of buffer [value, column] through the network."""
    for k in range(len(network)):
        low = buffer[network[k, 0]]
        high = buffer[network[k, 1]]
        for x in range(width):
            a = low[x]
            b = high[x]
            low[x] = a if a < b else b
            high[x] = b if a < b else a
