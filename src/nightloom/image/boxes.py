"""Clipped level and scatter of a frame in boxes, from a part of each box's pixels."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nightloom.image.calibrate import Mask, Pixels
from nightloom.image.cutout import copy_good
from nightloom.image.peaks import UNUSABLE
from nightloom.image.prefetch import prefetch_row
from nightloom.image.ranks import (
    INFINITE,
    LEAST,
    MOST,
    Keys,
    count_below,
    fill_keys,
    key_from,
    key_to,
    moments_within,
    ranked,
    value_of,
)

_LEAST_GOOD = 0.25  # of a box's pixels, else it is filled from its neighbours
_LEAST_PIXELS = 8
_CLIP_SIGMA = 3.0
_BELOW = 0.1587  # part of a normal law below one sigma under its middle
# Sigmas between values about the middle and about there, times their number.
_MIDDLE_SPACING, _BELOW_SPACING = 2.5066, 4.1327

Edges = NDArray[np.int64]


@njit(nogil=True, cache=True)
def box_statistics(
    frame: Pixels, flags: Mask, edges_y: Edges, edges_x: Edges, stride: int
) -> tuple[Pixels, Pixels]:
    """Clipped median and standard deviation [box row, box column]; NaN where too few are good.

    Of one in `stride` rows of the boxes between the edges.
    """
    boxes_y, boxes_x = len(edges_y) - 1, len(edges_x) - 1
    level = np.full((boxes_y, boxes_x), np.nan, dtype=np.float32)
    scatter = np.full((boxes_y, boxes_x), np.nan, dtype=np.float32)
    widest, tallest = 0, 0
    for j in range(boxes_x):
        widest = max(widest, edges_x[j + 1] - edges_x[j])
    for i in range(boxes_y):
        tallest = max(tallest, edges_y[i + 1] - edges_y[i])
    most = -(-tallest // stride) * widest
    samples = np.empty((boxes_x, most), dtype=np.float32)
    keys = np.empty(most, dtype=np.int32)
    near = np.nan, np.nan  # where the last box's values lay: so will the next one's
    for i in range(boxes_y):
        n_rows = _sample(frame, flags, (edges_y[i], edges_y[i + 1]), edges_x, stride, samples)
        for j in range(boxes_x):
            n = n_rows * (edges_x[j + 1] - edges_x[j])
            fill_keys(samples[j, :n], keys)
            n_good = count_below(keys[:n], INFINITE)
            if n_good >= max(_LEAST_PIXELS, _LEAST_GOOD * most):
                level[i, j], scatter[i, j], near = _clipped(samples[j, :n], keys[:n], n_good, near)
    return level, scatter


@njit(nogil=True, cache=True)
def _sample(
    frame: Pixels, flags: Mask, rows: tuple[int, int], edges_x: Edges, stride: int, samples: Pixels
) -> int:
    """Put one in `stride` of the rows of boxes into samples [box, pixel]; how many rows.

    One of so many neighbours each, now the first, now another, so that what comes back every few
    rows is seen as often as it is there. Whole rows are copied on vectors, half ones hardly.
    """
    n_rows, flat = -(-(rows[1] - rows[0]) // stride), samples.reshape(-1)
    for m in range(n_rows):
        y = _row_of_sample(m, n_rows, rows, stride)
        ahead = _row_of_sample(min(m + 1, n_rows - 1), n_rows, rows, stride)
        for j in range(len(edges_x) - 1):
            start, stop = edges_x[j], edges_x[j + 1]
            prefetch_row(frame, flags, ahead, start, stop)
            place = j * samples.shape[1] + m * (stop - start)
            copy_good(frame, flags, y, start, stop, UNUSABLE, flat, place)
    return n_rows


@njit(nogil=True, cache=True)
def _row_of_sample(m: int, n_rows: int, rows: tuple[int, int], stride: int) -> int:
    """Which of so many neighbours: in turn, and from both ends, so that no slope is seen."""
    tall, back = rows[1] - rows[0], n_rows - 1 - m
    turn = m % stride if m <= back else stride - 1 - back % stride
    place = 2 * (stride * m + turn) + 1 if m != back else n_rows * stride
    return rows[0] + place * tall // (2 * n_rows * stride)


@njit(nogil=True, cache=True)
def _quantile(
    keys: Keys, low: int, high: int, part: float, guess: float, spacing: float
) -> tuple[float, float]:
    """Quantile of those values that have ranks from low to below high, and the value next to it.

    Equal values are spread over their spacing: without that the median of few integers would be
    one of them (grouped data).
    """
    place = low + part * (high - low)
    key, first, last, before, behind = ranked(keys, min(int(place), high - 1), guess, spacing)
    value, apart = value_of(key), np.inf
    if first > low:
        apart = value - value_of(before)
    if last < high:
        apart = min(apart, value_of(behind) - value)
    if apart == np.inf:
        return value, value
    return value + apart * ((place - first) / (last - first) - 0.5), value


@njit(nogil=True, cache=True)
def _clipped(
    values: Pixels, keys: Keys, n: int, near: tuple[float, float]
) -> tuple[float, float, tuple[float, float]]:
    """Median and standard deviation of the n finite values, clipped; where to look in the next box.

    near: about where their median and the value a sigma below it lie.
    """
    low, high = 0, n
    lowest, highest = LEAST, MOST
    middle, below = near
    while True:
        apart = (middle - below) / n
        median, middle = _quantile(keys, low, high, 0.5, middle, _MIDDLE_SPACING * apart)
        lower, below = _quantile(keys, low, high, _BELOW, below, _BELOW_SPACING * apart)
        reach = _CLIP_SIGMA * (median - lower)
        size = high - low
        lowest, highest = (
            max(lowest, key_from(median - reach)), min(highest, key_to(median + reach))
        )  # fmt: skip
        low, high = count_below(keys, lowest), count_below(keys, highest + 1)
        if high - low == size or high - low < _LEAST_PIXELS:
            break
    first, second = moments_within(values, middle, value_of(lowest), value_of(highest))
    mean = first / (high - low)
    deviation = np.sqrt(max(0.0, second / (high - low) - mean * mean))
    return median, deviation, (middle, below)
