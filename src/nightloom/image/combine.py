"""Stacks of frames to masters: exact median, clipped mean, noise of one frame.

Every pixel is combined alone (or with its row, never with another row), so a stack may be any
section of rows and the section's size changes no bit. Columns of values are sorted side by side
by Batcher's merge-exchange network: no branch depends on a value, so it runs on whole vectors.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_EXACT_KINDS = ("u1", "i1", "u2", "i2", "u4", "i4")
_KINDS_OF_FLOAT32 = ("u1", "i1", "u2", "i2", "f4")  # whose values float32 holds exactly
_CHUNK_BYTES = 16384  # half of the nearest cache
_MAX_ROUNDS = 20


def median_combine(
    stack: NDArray[Any], *, valid: NDArray[Any] | None = None
) -> NDArray[np.float32]:
    """Median over frames, [frame, row, x] -> [row, x]; of an even number the middle two's mean.

    Integers without `valid`: the same bits as np.median(stack, axis=0).astype(float32). NaN and
    values where valid [frame, row, x] is 0 are left out; NaN where none is left.
    Raises ValueError: no such stack, shapes differ.
    """
    _check(stack, valid)
    n = len(stack)
    if valid is None and stack.dtype.str[1:] in _EXACT_KINDS:
        native = np.ascontiguousarray(stack, dtype=stack.dtype.newbyteorder("="))
        network = _pruned(_merge_exchange(n), wanted={(n - 1) // 2, n // 2})
        buffer = np.empty((n, _chunk_px(n, native.itemsize)), dtype=native.dtype)
        exact: NDArray[np.float32] = _median_of_integers(native, network, buffer)
        return exact
    native, allowed = _prepared(stack, valid)
    buffer = np.empty((n, _chunk_px(n, native.itemsize)), dtype=native.dtype)
    result: NDArray[np.float32] = _median_of_valid(native, allowed, _merge_exchange(n), buffer)
    return result


def clipped_mean(
    stack: NDArray[Any],
    *,
    sigma: float,
    scale: NDArray[Any] | float | None = None,
    valid: NDArray[Any] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Mean over frames of what lies within sigma * scale of the median, and how many: [row, x].

    The median is taken anew of what is kept until nothing more goes. scale: noise of one value,
    a number or [row, x]; None: 1.4826 MAD of the pixel, at least that of half the pixels of its
    row, since the MAD of a few values is now and then far too small, and of integers half a unit.
    NaN and what is not `valid` is left out; NaN and 0 where none is left.
    Raises ValueError: no such stack, shapes differ.
    """
    mean, used, _ = _clipped_moments(stack, sigma, scale, valid)
    return mean.astype(np.float32), used


def stack_noise(
    stack: NDArray[Any],
    centre: NDArray[Any],
    *,
    sigma: float = 5.0,
    valid: NDArray[Any] | None = None,
) -> NDArray[np.float32]:
    """Noise of one frame, [row, x]: standard deviation about `centre` of the values kept.

    Values are kept as in `clipped_mean`; one degree of freedom is the centre's. A standard
    deviation and not the MAD: the MAD of a few small integers is 0 or 1. NaN below two values.
    Raises ValueError: no such stack, shapes differ.
    """
    if centre.shape != stack.shape[1:]:
        raise ValueError(f"centre is {centre.shape}, frames are {stack.shape[1:]}")
    mean, used, squares = _clipped_moments(stack, sigma, None, valid)
    squares = squares + used * (mean - centre) ** 2
    freedom = np.where(used > 1, used - 1.0, np.nan)
    noise: NDArray[np.float32] = np.sqrt(squares / freedom).astype(np.float32)
    return noise


def _clipped_moments(
    stack: NDArray[Any],
    sigma: float,
    scale: NDArray[Any] | float | None,
    valid: NDArray[Any] | None,
) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float64]]:
    """Mean, number and sum of squares about the mean of the kept values, [row, x]."""
    _check(stack, valid)
    native, allowed = _prepared(stack, valid)
    n, _, nx = native.shape
    width = _chunk_px(n, native.itemsize)
    given = np.empty((0, 0), dtype=np.float64)
    if scale is not None:
        given = np.ascontiguousarray(np.broadcast_to(scale, native.shape[1:]), dtype=np.float64)
    buffer = np.empty((-(-nx // width), n, width), dtype=native.dtype)
    unit = 0.0 if stack.dtype.kind == "f" else 1.0
    moments: tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float64]] = _clip(
        native, allowed, _merge_exchange(n), given, float(sigma), 0.5 * unit, buffer
    )
    return moments


def _check(stack: NDArray[Any], valid: NDArray[Any] | None) -> None:
    if stack.ndim != 3 or len(stack) == 0 or stack.dtype.kind not in "uif":
        raise ValueError(f"a stack [frame, row, x] of numbers is needed, not {stack.shape}")
    if valid is not None and valid.shape != stack.shape:
        raise ValueError(f"valid is {valid.shape}, the stack is {stack.shape}")


def _prepared(
    stack: NDArray[Any], valid: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """The stack as native float32 (float64 where that loses digits), valid as uint8 or empty."""
    kind = np.float32 if stack.dtype.str[1:] in _KINDS_OF_FLOAT32 else np.float64
    if valid is None:
        return np.ascontiguousarray(stack, dtype=kind), np.empty((0, 0, 0), dtype=np.uint8)
    return np.ascontiguousarray(stack, dtype=kind), np.ascontiguousarray(valid, dtype=np.uint8)


def _chunk_px(n_frames: int, itemsize: int) -> int:
    return max(64, _CHUNK_BYTES // (n_frames * itemsize) // 64 * 64)


def _merge_exchange(n: int) -> NDArray[np.int64]:
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


def _pruned(network: NDArray[np.int64], *, wanted: set[int]) -> NDArray[np.int64]:
    """The comparators that the `wanted` places of the sorted order depend on."""
    needed = set(wanted)
    kept: list[tuple[int, int]] = []
    for i, j in reversed(network.tolist()):
        if i in needed or j in needed:
            needed.update((i, j))
            kept.append((i, j))
    return np.array(kept[::-1], dtype=np.int64).reshape(-1, 2)


@njit(nogil=True, cache=True)
def _exchange(buffer: NDArray[Any], network: NDArray[np.int64], width: int) -> None:
    """Send each of `width` columns of buffer [value, column] through the network."""
    for k in range(len(network)):
        low = buffer[network[k, 0]]
        high = buffer[network[k, 1]]
        for x in range(width):
            a = low[x]
            b = high[x]
            low[x] = a if a < b else b
            high[x] = b if a < b else a


@njit(nogil=True, cache=True)
def _median_of_integers(
    stack: NDArray[Any], network: NDArray[np.int64], buffer: NDArray[Any]
) -> NDArray[np.float32]:
    n, ny, nx = stack.shape
    median = np.empty((ny, nx), dtype=np.float32)
    step = buffer.shape[1]
    for y in range(ny):
        for x0 in range(0, nx, step):
            width = min(step, nx - x0)
            for k in range(n):
                source, place = stack[k, y, x0 : x0 + width], buffer[k]
                for x in range(width):
                    place[x] = source[x]
            _exchange(buffer, network, width)
            below = buffer[(n - 1) // 2]
            above = buffer[n // 2]
            for x in range(width):
                median[y, x0 + x] = 0.5 * (np.float64(below[x]) + np.float64(above[x]))
    return median


@njit(nogil=True, cache=True)
def _load(
    stack: NDArray[Any],
    valid: NDArray[np.uint8],
    y: int,
    x0: int,
    chunk: NDArray[Any],
    count: NDArray[np.int64],
) -> None:
    """Values of row y from x0 on into chunk [frame, x], what is left out as +inf; count the rest.

    An infinite value sorts among those left out, but is counted, so it keeps its place.
    """
    for x in range(len(count)):
        count[x] = 0
    for k in range(len(stack)):
        row = chunk[k]
        source = stack[k, y, x0 : x0 + len(count)]
        for x in range(len(count)):
            value = source[x]
            good = value == value
            count[x] += good
            row[x] = value if good else np.inf
        if valid.size:
            allowed = valid[k, y, x0 : x0 + len(count)]
            for x in range(len(count)):
                if allowed[x] == 0 and source[x] == source[x]:
                    count[x] -= 1
                    row[x] = np.inf


@njit(nogil=True, cache=True)
def _middle(column: NDArray[Any], low: int, high: int) -> float:
    """Median of the sorted column[low:high]; NaN where that is empty."""
    if high <= low:
        return np.nan
    total = low + high
    return 0.5 * (np.float64(column[(total - 1) // 2]) + np.float64(column[total // 2]))


@njit(nogil=True, cache=True)
def _median_of_valid(
    stack: NDArray[Any],
    valid: NDArray[np.uint8],
    network: NDArray[np.int64],
    buffer: NDArray[Any],
) -> NDArray[np.float32]:
    _, ny, nx = stack.shape
    median = np.empty((ny, nx), dtype=np.float32)
    step = buffer.shape[1]
    count = np.empty(step, dtype=np.int64)
    for y in range(ny):
        for x0 in range(0, nx, step):
            width = min(step, nx - x0)
            _load(stack, valid, y, x0, buffer, count[:width])
            _exchange(buffer, network, width)
            for x in range(width):
                median[y, x0 + x] = _middle(buffer[:, x], 0, count[x])
    return median


@njit(nogil=True, cache=True)
def _median_deviation(column: NDArray[Any], n: int, median: float) -> float:
    """Median of |value - median| of the sorted column[:n]: walk outwards from the middle."""
    left, right = n // 2 - 1, n // 2
    before, last = 0.0, 0.0
    for _ in range(n // 2 + 1):
        before = last
        if right >= n or (left >= 0 and median - column[left] <= column[right] - median):
            last = median - column[left]
            left -= 1
        else:
            last = column[right] - median
            right += 1
    return last if n % 2 else 0.5 * (before + last)


@njit(nogil=True, cache=True)
def _mean_deviation(column: NDArray[Any], n: int, median: float) -> float:
    total = 0.0
    for k in range(n):
        total += abs(column[k] - median)
    return total / n


@njit(nogil=True, cache=True)
def _kept(column: NDArray[Any], n: int, reach: float) -> tuple[int, int]:
    """Range of the sorted column[:n] within `reach` of its own median."""
    low, high = 0, n
    for _ in range(_MAX_ROUNDS):
        median = _middle(column, low, high)
        was = high - low
        while low < high and column[low] < median - reach:
            low += 1
        while low < high and column[high - 1] > median + reach:
            high -= 1
        if high - low == was:
            break
    return low, high


@njit(nogil=True, cache=True)
def _median_of_known(values: NDArray[np.float64]) -> float:
    """Upper median of what is not NaN, by Hoare's selection; 0 where nothing is."""
    known = np.empty(len(values))
    n = 0
    for k in range(len(values)):
        if values[k] == values[k]:
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
def _row_scale(
    buffer: NDArray[Any], count: NDArray[np.int64], scale: NDArray[np.float64], least: float
) -> None:
    """Noise of one value for each column of a row, as `clipped_mean` says."""
    step = buffer.shape[2]
    for x in range(len(scale)):
        column = buffer[x // step, :, x % step]
        scale[x] = np.nan
        if count[x]:
            median = _middle(column, 0, count[x])
            scale[x] = 1.4826 * _median_deviation(column, count[x], median)
    least = max(least, _median_of_known(scale))
    for x in range(len(scale)):
        scale[x] = max(scale[x], least)
        if scale[x] == 0.0 and count[x]:
            # More than half the values are equal: sigma of a normal law by its mean deviation.
            column = buffer[x // step, :, x % step]
            scale[x] = 1.2533 * _mean_deviation(column, count[x], _middle(column, 0, count[x]))


@njit(nogil=True, cache=True)
def _clip(
    stack: NDArray[Any],
    valid: NDArray[np.uint8],
    network: NDArray[np.int64],
    given: NDArray[np.float64],
    sigma: float,
    least: float,
    buffer: NDArray[Any],
) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float64]]:
    """Moments of `_clipped_moments`; buffer [chunk, frame, x] holds one sorted row."""
    _, ny, nx = stack.shape
    mean = np.full((ny, nx), np.nan)
    used = np.zeros((ny, nx), dtype=np.int32)
    squares = np.zeros((ny, nx))
    scale = np.empty(nx)
    count = np.empty(nx, dtype=np.int64)
    step = buffer.shape[2]
    for y in range(ny):
        for chunk in range(len(buffer)):
            x0 = chunk * step
            _load(stack, valid, y, x0, buffer[chunk], count[x0 : x0 + step])
            _exchange(buffer[chunk], network, min(step, nx - x0))
        if given.size:
            for x in range(nx):
                scale[x] = given[y, x]
        else:
            _row_scale(buffer, count, scale, least)
        for x in range(nx):
            column = buffer[x // step, :, x % step]
            low, high = _kept(column, count[x], sigma * scale[x])
            used[y, x] = high - low
            if high > low:
                middle = _middle(column, low, high)
                first, second = 0.0, 0.0
                for k in range(low, high):
                    deviation = column[k] - middle
                    first += deviation
                    second += deviation * deviation
                mean[y, x] = middle + first / (high - low)
                squares[y, x] = max(0.0, second - first * first / (high - low))
    return mean, used, squares
