"""Sorted columns of values: their median, their robust scale, and the moments of what is near.

Columns stand side by side, [value, column]; what is left out of a column is +inf at its end.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_EVERY = 4  # of a run's pixels are enough to know the scale of their like
_NORMAL_MAD = 1.4826  # standard deviation of a normal law over its median deviation
_NORMAL_MEAN_DEVIATION = 1.2533  # and over its mean deviation


@njit(nogil=True, cache=True)
def middle_of(column: NDArray[Any], n: int) -> float:
    """Median of the sorted column[:n]; NaN where that is empty."""
    if n <= 0:
        return np.nan
    return 0.5 * (np.float64(column[(n - 1) // 2]) + np.float64(column[n // 2]))


@njit(nogil=True, cache=True)
def _median_deviation(deviations: NDArray[Any], n: int) -> float:
    """Median of |deviation| of the sorted deviations[:n]: walk outwards from the middle."""
    left, right = n // 2 - 1, n // 2
    before, last = 0.0, 0.0
    for _ in range(n // 2 + 1):
        before = last
        if right >= n or (left >= 0 and -deviations[left] <= deviations[right]):
            last = -deviations[left]
            left -= 1
        else:
            last = deviations[right]
            right += 1
    return last if n % 2 else 0.5 * (before + last)


@njit(nogil=True, cache=True)
def _mean_deviation(deviations: NDArray[Any], n: int) -> float:
    total = 0.0
    for k in range(n):
        total += abs(deviations[k])
    return total / n


@njit(nogil=True, cache=True)
def _smallest_reach(
    deviations: NDArray[Any], n_within: int, reach: NDArray[Any], width: int
) -> None:
    """Of each sorted column the distance within which `n_within` values lie of 0.

    They stand side by side, so it is the least over all runs of that length of the larger end:
    no branch, where a walk outwards from the middle has one a step.
    """
    for x in range(width):
        reach[x] = np.inf
    for k in range(len(deviations) - n_within + 1):
        first, last = deviations[k], deviations[k + n_within - 1]
        for x in range(width):
            reach[x] = min(reach[x], max(-first[x], last[x]))


@njit(nogil=True, cache=True)
def centre(
    chunk: NDArray[Any],
    count: NDArray[np.int64],
    deviations: NDArray[Any],
    median: NDArray[Any],
    other: NDArray[Any],
) -> None:
    """Median of each sorted column, and what its values deviate from it."""
    n, width = len(chunk), len(count)
    half = median.dtype.type(0.5)
    below, above = chunk[(n - 1) // 2], chunk[n // 2]
    for x in range(width):
        median[x] = below[x]
        other[x] = above[x]
    for x in range(width):
        median[x] = half * (median[x] + other[x])
    for x in range(width):
        if count[x] < n:
            median[x] = middle_of(chunk[:, x], count[x])
    for k in range(n):
        values, row = chunk[k], deviations[k]
        for x in range(width):
            row[x] = values[x]
        for x in range(width):
            row[x] -= median[x]


@njit(nogil=True, cache=True)
def scales(
    deviations: NDArray[Any],
    count: NDArray[np.int64],
    least: float,
    scale: NDArray[Any],
    other: NDArray[Any],
) -> None:
    """Noise of one value of each column, as `combine` says."""
    n, width = len(deviations), len(count)
    normal, half = scale.dtype.type(_NORMAL_MAD), scale.dtype.type(0.5)
    _smallest_reach(deviations, (n + 1) // 2, scale, width)
    if n % 2 == 0:
        _smallest_reach(deviations, n // 2 + 1, other, width)
        for x in range(width):
            scale[x] = half * (scale[x] + other[x])
    for x in range(width):
        scale[x] *= normal
    for x in range(width):
        if count[x] < n:
            scale[x] = np.nan
            if count[x] > 0:
                scale[x] = _NORMAL_MAD * _median_deviation(deviations[:, x], count[x])
    floor = scale.dtype.type(max(least, _median_of_known(scale[:width:_EVERY], other)))
    for x in range(width):
        scale[x] = max(scale[x], floor)
    if floor == 0.0:
        for x in range(width):
            if scale[x] == 0.0 and count[x] > 0:  # more than half the values are equal
                spread = _mean_deviation(deviations[:, x], count[x])
                scale[x] = _NORMAL_MEAN_DEVIATION * spread


@njit(nogil=True, cache=True)
def _median_of_known(values: NDArray[Any], known: NDArray[Any]) -> float:
    """Upper median of what is a number, by Hoare's selection in `known`; 0 where nothing is."""
    n = 0
    for k in range(len(values)):
        if abs(values[k]) < np.inf:
            known[n] = values[k]
            n += 1
    if n == 0:
        return 0.0
    low, high, wanted = 0, n - 1, n // 2
    while low < high:
        pivot, i, j = known[(low + high) // 2], low, high
        while i <= j:
            while known[i] < pivot:
                i += 1
            while known[j] > pivot:
                j -= 1
            if i <= j:
                known[i], known[j] = known[j], known[i]
                i, j = i + 1, j - 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    median: float = known[wanted]
    return median


@njit(nogil=True, cache=True)
def moments(
    deviations: NDArray[Any],
    reach: NDArray[Any],
    used: NDArray[np.int32],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
) -> None:
    """Number, sum and sum of squares of the deviations within `reach`."""
    width = len(used)
    nothing = reach.dtype.type(0.0)
    for x in range(width):
        used[x] = 0
        first[x] = 0.0
        second[x] = 0.0
    for k in range(len(deviations)):
        row = deviations[k]
        for x in range(width):
            kept = abs(row[x]) <= reach[x]
            value = row[x] if kept else nothing
            used[x] += kept
            first[x] += value
            second[x] += np.float64(value) * np.float64(value)
