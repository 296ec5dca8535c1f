"""Stacks of frames to masters: exact median, clipped mean, noise of one frame.

Every pixel is combined alone (or with a run of its row, never with another row), so a stack may
be any section of rows and the section's size changes no bit. Columns of values are sorted side by
side by Batcher's merge-exchange network: no branch depends on a value, so it runs on whole
vectors; what follows works on the sorted columns while they lie in the cache.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nightloom.image.clipping import centre, middle_of, moments, scales
from nightloom.image.sorting import exchange, merge_exchange, pruned

_EXACT_KINDS = ("u1", "i1", "u2", "i2", "u4", "i4")
_KINDS_OF_FLOAT32 = ("u1", "i1", "u2", "i2", "f4")  # whose values float32 holds exactly
# Of the columns that are sorted together. Longer runs than the nearest cache holds are faster:
# a comparator costs some ten instructions before its first value.
_CHUNK_BYTES = 65536
_MAX_CHUNK_PX = 1024
_UNSIGNED_ZERO = 32768

_NO_WORDS = np.empty((0, 0), np.uint16)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Combined:
    """What a stack comes to, each [row, x]; NaN where no value is usable."""

    median: Floats
    mean: Floats  # of the values kept
    noise: Floats  # of one frame: standard deviation of the values kept; NaN below two
    used: NDArray[np.int32]  # how many were kept


def median_combine(
    stack: NDArray[Any], *, valid: NDArray[Any] | None = None, zero: int = 0
) -> Floats:
    """Median over frames, [frame, row, x] -> [row, x]; of an even number the middle two's mean.

    Integers without `valid`: the same bits as np.median(stack, axis=0).astype(float32). NaN and
    values where valid [frame, row, x] is 0 are left out; NaN where none is left. zero: 32768
    where 16-bit integers are stored less that much, as FITS' unsigned are.
    Raises ValueError: no such stack, shapes differ.
    """
    native, allowed = _prepared(stack, valid, zero)
    n = len(native)
    network = merge_exchange(n)
    if native.dtype.kind in "iu":
        room = _room(stack, native, zero)
        network = pruned(network, wanted={(n - 1) // 2, n // 2})
        # The mean of two 16-bit integers is exact in float32, which is twice as fast.
        kind = np.float32 if native.itemsize <= 2 else np.float64
        pair = np.empty((2, room[0].shape[1]), kind)
        exact: Floats = _median_of_integers(native, network, *room, pair)
        return exact
    buffer = np.empty((n, _chunk_px(native)), dtype=native.dtype)
    result: Floats = _median_of_valid(native, allowed, network, buffer)
    return result


def combine(
    stack: NDArray[Any], *, sigma: float = 5.0, valid: NDArray[Any] | None = None, zero: int = 0
) -> Combined:
    """Median, clipped mean, noise and numbers of values kept of [frame, row, x], in one pass.

    Kept is what lies within sigma scales of the median; the scale is 1.4826 MAD of the pixel,
    at least the median one of its run of the row (the MAD of a few values is now and then far
    too small), and of integers half a unit. The median is that of `median_combine`.
    Raises ValueError: no such stack, shapes differ.
    Source: one clip about the median by a robust scale, as BANZAI's sigma_clipped_mean.
    """
    native, allowed = _prepared(stack, valid, zero)
    n, ny, nx = native.shape
    width = _chunk_px(native)
    kind = np.float32 if native.dtype.str[1:] in _KINDS_OF_FLOAT32 else np.float64
    made = Combined(
        np.empty((ny, nx), np.float32), np.empty((ny, nx), np.float32),
        np.empty((ny, nx), np.float32), np.empty((ny, nx), np.int32),
    )  # fmt: skip
    least = 0.0 if stack.dtype.kind == "f" else 0.5
    _combine(
        native, allowed, merge_exchange(n), native.dtype.kind != "f", float(sigma), least,
        *_room(stack, native, zero), np.empty((n, width), kind), np.empty((3, width), kind),
        made.median, made.mean, made.noise, made.used,
    )  # fmt: skip
    return made


def median_variance(noise: NDArray[Any], n: NDArray[Any]) -> Floats:
    """Variance of the median of n normal values of this noise; the mean's grows to pi / 2 times.

    Source: Kenney & Keeping 1962, Mathematics of Statistics, vol. 2: pi / (2 (n - 1) + pi).
    """
    variance: Floats = (noise**2 * (np.pi / (2 * (n - 1) + np.pi))).astype(np.float32)
    return variance


def _prepared(
    stack: NDArray[Any], valid: NDArray[Any] | None, zero: int
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """The stack as it is loaded, as floats where it must hold infinity; valid, or nothing.

    16-bit integers stay as they are stored: their bytes are swapped when they are in the cache.
    """
    if stack.ndim != 3 or len(stack) == 0 or stack.dtype.kind not in "uif":
        raise ValueError(f"a stack [frame, row, x] of numbers is needed, not {stack.shape}")
    if valid is not None and valid.shape != stack.shape:
        raise ValueError(f"valid is {valid.shape}, the stack is {stack.shape}")
    if zero and (zero != _UNSIGNED_ZERO or stack.dtype.str[1:] != "i2"):
        raise ValueError(f"zero {zero} is none of {stack.dtype}")
    if valid is None and stack.dtype.str[1:] == "i2":
        return np.ascontiguousarray(stack).view(np.int16), np.empty((0, 0, 0), dtype=np.uint8)
    if zero:
        stack = (stack.astype(np.int32) + zero).astype(np.uint16)
    if valid is None and stack.dtype.str[1:] in _EXACT_KINDS:
        native = np.ascontiguousarray(stack, dtype=stack.dtype.newbyteorder("="))
        return native, np.empty((0, 0, 0), dtype=np.uint8)
    kind = np.float32 if stack.dtype.str[1:] in _KINDS_OF_FLOAT32 else np.float64
    allowed = np.empty((0, 0, 0)) if valid is None else valid
    return (
        np.ascontiguousarray(stack, dtype=kind),
        np.ascontiguousarray(allowed, dtype=np.uint8),
    )


def _room(
    stack: NDArray[Any], native: NDArray[Any], zero: int
) -> tuple[NDArray[Any], NDArray[np.uint16], bool, np.uint16]:
    """Room for a chunk [frame, x], the same as words where they need work, and which work."""
    stored = native.dtype.str[1:] == "i2"
    kind = np.dtype(np.uint16) if stored and zero else native.dtype
    buffer = np.empty((len(native), _chunk_px(native)), dtype=kind)
    swapped = stored and not stack.dtype.isnative
    words = buffer.view(np.uint16) if swapped or kind != native.dtype else _NO_WORDS
    return buffer, words, swapped, np.uint16(zero)


def _chunk_px(stack: NDArray[Any]) -> int:
    """Columns sorted together; bits depend on it, so it goes by the frames and their type only."""
    px = _CHUNK_BYTES // (len(stack) * stack.itemsize) // 64 * 64
    return max(64, min(_MAX_CHUNK_PX, px))


@njit(nogil=True, cache=True)
def _copy(stack: NDArray[Any], y: int, x0: int, chunk: NDArray[Any], width: int) -> None:
    for k in range(len(stack)):
        source, place = stack[k, y, x0 : x0 + width], chunk[k]
        for x in range(width):
            place[x] = source[x]


@njit(nogil=True, cache=True)
def _unfold(words: NDArray[np.uint16], swapped: bool, zero: np.uint16, width: int) -> None:
    """Stored words to numbers: bytes in our order, and `zero` added, which is to flip a bit."""
    for k in range(len(words)):
        row = words[k]
        if swapped:
            for x in range(width):
                word = row[x]
                row[x] = np.uint16(np.uint16(word << 8) | np.uint16(word >> 8)) ^ zero
        else:
            for x in range(width):
                row[x] ^= zero


@njit(nogil=True, cache=True)
def _median_of_integers(
    stack: NDArray[Any],
    network: NDArray[np.int64],
    buffer: NDArray[Any],
    words: NDArray[np.uint16],
    swapped: bool,
    zero: np.uint16,
    pair: NDArray[Any],
) -> NDArray[np.float32]:
    n, ny, nx = stack.shape
    half = pair.dtype.type(0.5)
    low, high = pair[0], pair[1]
    median = np.empty((ny, nx), dtype=np.float32)
    step = buffer.shape[1]
    for y in range(ny):
        for x0 in range(0, nx, step):
            width = min(step, nx - x0)
            _copy(stack, y, x0, buffer, width)
            if words.size:
                _unfold(words, swapped, zero, width)
            exchange(buffer, network, width)
            below = buffer[(n - 1) // 2]
            above = buffer[n // 2]
            for x in range(width):
                low[x] = below[x]
                high[x] = above[x]
            row = median[y, x0 : x0 + width]
            for x in range(width):
                row[x] = half * (low[x] + high[x])
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
            exchange(buffer, network, width)
            for x in range(width):
                median[y, x0 + x] = middle_of(buffer[:, x], count[x])
    return median


@njit(nogil=True, cache=True)
def _combine(
    stack: NDArray[Any],
    valid: NDArray[np.uint8],
    network: NDArray[np.int64],
    whole: bool,
    sigma: float,
    least: float,
    buffer: NDArray[Any],
    words: NDArray[np.uint16],
    swapped: bool,
    zero: np.uint16,
    deviations: NDArray[Any],
    rows: NDArray[Any],
    median: Floats,
    mean: Floats,
    noise: Floats,
    used: NDArray[np.int32],
) -> None:
    """`combine`; buffer, deviations [frame, x] and rows [3, x] are room to work in."""
    n, ny, nx = stack.shape
    step = buffer.shape[1]
    middle, scale, other = rows[0], rows[1], rows[2]
    count = np.full(step, n, dtype=np.int64)
    first, second = np.empty(step), np.empty(step)
    wide = scale.dtype.type(sigma)
    for y in range(ny):
        for x0 in range(0, nx, step):
            width = min(step, nx - x0)
            counted = count[:width]
            if whole:
                _copy(stack, y, x0, buffer, width)
                if words.size:
                    _unfold(words, swapped, zero, width)
            else:
                _load(stack, valid, y, x0, buffer, counted)
            exchange(buffer, network, width)
            centre(buffer, counted, deviations, middle, other)
            scales(deviations, counted, least, scale, other)
            for x in range(width):
                scale[x] *= wide
            kept = used[y, x0 : x0 + width]
            moments(deviations, scale, kept, first, second)
            for x in range(width):
                median[y, x0 + x] = middle[x]
                m = np.float64(kept[x])
                mean[y, x0 + x] = middle[x] + first[x] / m if m > 0 else np.nan
                squares = second[x] - first[x] * first[x] / max(m, 1.0)
                noise[y, x0 + x] = np.sqrt(max(0.0, squares) / (m - 1)) if m > 1 else np.nan
