"""Order statistics of values that are not sorted, found by counting.

A pass that counts a thousand values below a limit runs on whole vectors. A few of them, each at
the limit that those before point to, find a rank in a fraction of the time of sorting; what they
find is the very value that sorting would put there, wherever the search began.
Values are compared as keys: int32 in the order of the float32 they stand for.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

Keys: TypeAlias = NDArray[np.int32]
# The value of a rank as key; how many values lie below it, how many do not lie above it; the
# nearest keys of other values below and above, LEAST and MOST where there are none.
Ranked: TypeAlias = tuple[int, int, int, int, int]

LEAST, MOST = -(2**31), 2**31 - 1
INFINITE = int(np.float32(np.inf).view(np.int32))  # the key of infinity
_MAGNITUDE = np.int32(2**31 - 1)  # the bits of a float32 that are not its sign
_BISECT_EVERY = 4  # turns: so that values far from evenly spread are found in few of them, too
_STEPS = 32768.0  # of the reach, that differences are rounded to


@njit(nogil=True, cache=True)
def fill_keys(values: NDArray[np.float32], keys: Keys) -> None:
    """Keys of as many values, none of them NaN."""
    same = keys.view(np.float32)
    for i in range(len(values)):
        same[i] = values[i] + np.float32(0.0)  # of the two zeros there must be but one
    for i in range(len(values)):
        keys[i] = keys[i] ^ ((keys[i] >> np.int32(31)) & _MAGNITUDE)


@njit(nogil=True, cache=True)
def value_of(key: int) -> float:
    bits = np.int32(key)
    return np.float64(np.int32(bits ^ ((bits >> np.int32(31)) & _MAGNITUDE)).view(np.float32))


@njit(nogil=True, cache=True)
def key_from(limit: float) -> int:
    """Key of the least float32 that is not below a limit."""
    key: int = _nearest_key(limit)
    return key + 1 if value_of(key) < limit else key


@njit(nogil=True, cache=True)
def key_to(limit: float) -> int:
    """Key of the greatest float32 that is not above a limit."""
    key: int = _nearest_key(limit)
    return key - 1 if value_of(key) > limit else key


@njit(nogil=True, cache=True)
def _nearest_key(value: float) -> int:
    bits = np.float32(np.float32(value) + np.float32(0.0)).view(np.int32)
    return int(bits ^ ((bits >> np.int32(31)) & _MAGNITUDE))


@njit(nogil=True, cache=True)
def count_below(keys: Keys, limit: int) -> int:
    """How many keys lie below a limit."""
    total, least = np.int32(0), np.int32(limit)
    for i in range(len(keys)):
        total = np.int32(total + np.int32(keys[i] < least))
    return int(total)


@njit(nogil=True, cache=True)
def around(keys: Keys, limit: int) -> tuple[int, int, int]:
    """How many keys lie below a limit; the highest of them, and the lowest of the others."""
    total, least = np.int32(0), np.int32(limit)
    below, above = np.int32(LEAST), np.int32(MOST)
    for i in range(len(keys)):
        key = keys[i]
        is_below = key < least
        total = np.int32(total + np.int32(is_below))
        below = max(below, key if is_below else np.int32(LEAST))
        above = min(above, np.int32(MOST) if is_below else key)
    return int(total), int(below), int(above)


@njit(nogil=True, cache=True)
def ranked(keys: Keys, rank: int, guess: float, spacing: float) -> Ranked:
    """The value of a rank, from 0 for the least of the keys.

    guess, spacing: about where it lies, and how far values lie apart there. They decide how many
    passes it takes, and nothing else; not finite or not above zero, they are not used.
    """
    low, high, first, last = LEAST, MOST, 0, len(keys)
    before, behind = low, high
    start = guess if abs(guess) < np.inf else value_of(keys[len(keys) // 2])
    limit, turn, stride = key_from(start), 0, spacing
    while low < high:
        limit = min(max(limit, low + 1), high)
        n_below, below, above = around(keys, limit)
        if n_below <= rank:
            low, first, before = above, n_below, below
        else:
            high, last, behind = below, n_below, above
        turn += 1
        if first == rank:
            limit = low + 1
        elif last == rank + 1:
            limit = high
        elif turn % _BISECT_EVERY == 0 or not 0.0 < stride < np.inf:
            limit = low + (high - low) // 2 + 1
        elif low > LEAST and high < MOST:
            part = (rank - first + 0.5) / (last - first)
            least = value_of(low)
            limit = key_from(least + part * (value_of(high) - least))
        else:
            limit = key_from(value_of(limit) + stride * (rank + 0.5 - n_below))
            stride *= 2.0
    return low, first, last, before, behind


@njit(nogil=True, cache=True)
def middle(keys: Keys, low: int, n: int, guess: float, spacing: float) -> tuple[float, float]:
    """The two middle values of n that have ranks from low on: equal, where n is odd.

    guess, spacing: as for `ranked`.
    """
    key, _, last, _, behind = ranked(keys, low + (n - 1) // 2, guess, spacing)
    value = value_of(key)
    return value, value_of(behind) if low + n // 2 >= last else value


@njit(nogil=True, cache=True)
def moments_within(
    values: NDArray[np.float32], origin: float, lowest: float, highest: float
) -> tuple[float, float]:
    """Sums of the values from lowest to highest less an origin among them, and of its square.

    Origin and limits are float32 numbers. Differences are rounded to 1/32768 of the largest and
    summed as integers: on whole vectors, and the same in any order.
    """
    reach = max(highest - origin, origin - lowest)
    if not 0.0 < reach < np.inf:
        return 0.0, 0.0
    scale, middle = np.float32(_STEPS / reach), np.float32(origin)
    low, high = np.float32(lowest), np.float32(highest)
    first, second = np.int64(0), np.int64(0)
    for i in range(len(values)):
        inside = (values[i] >= low) & (values[i] <= high)
        away = values[i] - middle if inside else np.float32(0.0)
        steps = np.int64(np.int32(np.rint(away * scale)))
        first += steps
        second += steps * steps
    unit = 1.0 / np.float64(scale)
    return first * unit, second * unit * unit
