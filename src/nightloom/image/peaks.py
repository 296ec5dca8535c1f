"""Peaks: local maxima of the frame filtered with a Gaussian, above a threshold.

The threshold is in units of the filtered noise there. The background is taken off on the fly,
so the frame is read once.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nightloom.image.calibrate import MASK_BAD, MASK_COSMIC, MASK_NAN, Mask, Pixels
from nightloom.image.mesh import Mesh, along_rows, between

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
# Two lines between which a limit or the sky lies, and how far past the first.
Limit: TypeAlias = tuple[Pixels, Pixels, np.float32]

UNUSABLE = MASK_BAD | MASK_COSMIC | MASK_NAN

_STRIP = 2112  # columns filtered together: the rows under the filter fit a near cache
_SLIDE = 48  # rows that the window holds beyond those under the filter
_INNER = 5  # pairs of taps that one pass takes: all, up to a FWHM of 4.7 px
_RUN = 32  # columns looked at together, as most have no peak


def gaussian_taps(fwhm_px: float) -> Pixels:
    """Half of a Gaussian of unit sum from its centre to 2.5 sigma, float32."""
    sigma_px = fwhm_px / 2.3548
    steps = np.arange(max(1, int(np.ceil(2.5 * sigma_px))) + 1)
    taps = np.exp(-0.5 * (steps / sigma_px) ** 2)
    half: Pixels = (taps / (2.0 * taps.sum() - taps[0])).astype(np.float32)
    return half


@njit(nogil=True, cache=True)
def sort_few(values: Floats) -> None:
    """Sort some ten values in place, by insertion."""
    for k in range(1, len(values)):
        value, place = values[k], k
        while place > 0 and values[place - 1] > value:
            values[place] = values[place - 1]
            place -= 1
        values[place] = value


@njit(nogil=True, cache=True)
def filter_gain(taps: Pixels) -> float:
    """Noise of the filtered frame over that of a pixel."""
    total = 0.0
    for k in range(len(taps)):
        total += (1.0 if k == 0 else 2.0) * taps[k] * taps[k]
    return total


@njit(nogil=True, cache=True)
def _limit_lines(mesh: Mesh, factor: float, nx: int) -> Pixels:
    """Noise times a factor, as rows of boxes at every column; past the last centres it stays."""
    _, noise, x0, dx, _, _ = mesh
    lines: Pixels = along_rows(noise * np.float32(factor), x0, dx, nx)
    first, last = max(0, int(np.ceil(x0))), int(np.floor(x0 + (noise.shape[1] - 1) * dx))
    for k in range(len(lines)):
        lines[k, :first] = noise[k, 0] * np.float32(factor)
        lines[k, last + 1 :] = noise[k, -1] * np.float32(factor)
    return lines


@njit(nogil=True, cache=True)
def _residual(
    frame: Pixels, flags: Mask, y: int, columns: tuple[int, int], sky: Pixels,
    rows: tuple[int, int, np.float32], out: Pixels, place: int,
) -> None:  # fmt: skip
    """Pixels of a row above the sky, which lies between two lines; 0 where none is usable.

    By places, not by slices: each slice is counted in and out as an owner of the memory.
    """
    above, below, part = rows
    row, upper, lower = np.uint64(y), np.uint64(above), np.uint64(below)
    first, behind = np.uint64(columns[0]), np.uint64(place)
    for k in range(np.uint64(columns[1] - columns[0])):
        x = first + k
        value = frame[row, x] - (sky[upper, x] + part * (sky[lower, x] - sky[upper, x]))
        good = ((flags[row, x] & UNUSABLE) == 0) & (abs(value) < np.float32(np.inf))
        out[behind + k] = value if good else np.float32(0.0)


@njit(nogil=True, cache=True)
def _down(rows: Pixels, taps: Pixels, out: Pixels, next_out: Pixels) -> None:
    """Twelve rows, one behind the other, under the inner taps: two lines, as they share them."""
    t0, t1, t2, t3, t4, t5 = taps[0], taps[1], taps[2], taps[3], taps[4], taps[5]
    for x in range(len(out)):
        r0, r1, r2 = rows[x], rows[x + _STRIP], rows[x + 2 * _STRIP]
        r3, r4, r5 = rows[x + 3 * _STRIP], rows[x + 4 * _STRIP], rows[x + 5 * _STRIP]
        r6, r7, r8 = rows[x + 6 * _STRIP], rows[x + 7 * _STRIP], rows[x + 8 * _STRIP]
        r9, r10, r11 = rows[x + 9 * _STRIP], rows[x + 10 * _STRIP], rows[x + 11 * _STRIP]
        far = t3 * (r2 + r8) + t4 * (r1 + r9) + t5 * (r0 + r10)
        out[x] = t0 * r5 + t1 * (r4 + r6) + t2 * (r3 + r7) + far
        far = t3 * (r3 + r9) + t4 * (r2 + r10) + t5 * (r1 + r11)
        next_out[x] = t0 * r6 + t1 * (r5 + r7) + t2 * (r4 + r8) + far


@njit(nogil=True, cache=True)
def _across(row: Pixels, taps: Pixels, out: Pixels) -> None:
    """The same along a row that begins five pixels before the first that is wanted."""
    t0, t1, t2, t3, t4, t5 = taps[0], taps[1], taps[2], taps[3], taps[4], taps[5]
    for x in range(len(out)):
        near = t0 * row[x + 5] + t1 * (row[x + 4] + row[x + 6]) + t2 * (row[x + 3] + row[x + 7])
        far = t3 * (row[x + 2] + row[x + 8]) + t4 * (row[x + 1] + row[x + 9])
        out[x] = near + far + t5 * (row[x] + row[x + 10])


@njit(nogil=True, cache=True)
def _add_pair(a: Pixels, b: Pixels, tap: np.float32, out: Pixels) -> None:
    for x in range(len(out)):
        out[x] += tap * (a[x] + b[x])


@njit(nogil=True, cache=True)
def _filter_down(rows: Pixels, taps: Pixels, out: Pixels, next_out: Pixels) -> None:
    """The two middle ones of rows one behind the other, filtered with the taps down."""
    reach = len(taps) - 1
    _down(rows[(reach - _INNER) * _STRIP :], taps, out, next_out)
    for k in range(_INNER + 1, reach + 1):
        before, behind = rows[(reach - k) * _STRIP :], rows[(reach + k) * _STRIP :]
        _add_pair(before, behind, taps[k], out)
        _add_pair(before[_STRIP:], behind[_STRIP:], taps[k], next_out)


@njit(nogil=True, cache=True)
def _filter_across(down: Pixels, taps: Pixels, out: Pixels) -> None:
    reach = len(taps) - 1
    _across(down[reach - _INNER :], taps, out)
    for k in range(_INNER + 1, reach + 1):
        _add_pair(down[reach - k :], down[reach + k :], taps[k], out)


@njit(nogil=True, cache=True)
def _limit(
    mesh: Mesh, limits: Pixels, least: Pixels, y: int, span: tuple[int, int]
) -> tuple[Limit, Pixels]:
    """The limit in row y of a strip, and the least of it in each run."""
    place = min(max((y - mesh[4]) / mesh[5], 0.0), len(limits) - 1.0)
    above, below, part = between(place, len(limits))
    lines = limits[above][span[0] : span[1]], limits[below][span[0] : span[1]]
    return (lines[0], lines[1], part), least[above]


@njit(nogil=True, cache=True)
def _least_of_runs(limits: Pixels, span: tuple[int, int]) -> Pixels:
    """The least limit in each run of a strip, for every row of boxes and that below it."""
    n_rows, wide = len(limits), span[1] - span[0]
    least = np.empty((n_rows, -(-wide // _RUN)), dtype=np.float32)
    for k in range(least.shape[1]):
        start, stop = span[0] + k * _RUN, min(span[0] + (k + 1) * _RUN, span[1])
        for above in range(n_rows):
            below = min(above + 1, n_rows - 1)
            least[above, k] = min(limits[above, start:stop].min(), limits[below, start:stop].min())
    return least


@njit(nogil=True, cache=True)
def _hot_runs(line: Pixels, wide: int, least: Pixels, hot: NDArray[np.bool_]) -> None:
    """Which runs of a filtered line of so many pixels rise anywhere above their least limit."""
    for k in range(len(hot)):
        here, limit = line[1 + k * _RUN :], least[k]
        above = False
        # Of an end that is no constant: then it runs on vectors, else it is unrolled.
        for x in range(min(_RUN, wide - k * _RUN)):
            above |= bool(here[x] > limit)
        hot[k] = above


@njit(nogil=True, cache=True)
def find_peaks(
    frame: Pixels, flags: Mask, mesh: Mesh, taps: Pixels, threshold_sigma: float
) -> tuple[Ints, Pixels]:
    """Local maxima of the filtered frame above the threshold: [peak, (x, y)], and their heights.

    The frame is taken in strips of columns, whose rows under the filter fit a near cache.
    Raises ValueError: the taps reach so far that no strip has room for them.
    """
    nx = frame.shape[1]
    taps = _padded(taps)
    reach = len(taps) - 1
    room = _STRIP - 2 * (reach + 1)
    if room < _RUN:
        raise ValueError("the filter is too wide")
    level, _, x0, dx, _, _ = mesh
    sky = along_rows(level, x0, dx, nx)
    limits = _limit_lines(mesh, threshold_sigma * filter_gain(taps), nx)
    n_strips = -(-nx // room)
    found, heights = np.empty((64, 2), dtype=np.int64), np.empty(64, dtype=np.float32)
    n = 0
    for k in range(n_strips):
        span = k * nx // n_strips, (k + 1) * nx // n_strips
        found, heights, n = _strip_peaks(
            frame, flags, mesh, taps, (sky, limits), span, found, heights, n
        )
    return found[:n], heights[:n]


@njit(nogil=True, cache=True)
def _padded(taps: Pixels) -> Pixels:
    """At least the taps that one pass takes."""
    padded = np.zeros(max(_INNER + 1, len(taps)), dtype=np.float32)
    padded[: len(taps)] = taps
    return padded


@njit(nogil=True, cache=True)
def _strip_peaks(
    frame: Pixels,
    flags: Mask,
    mesh: Mesh,
    taps: Pixels,
    lines: tuple[Pixels, Pixels],
    span: tuple[int, int],
    found: Ints,
    heights: Pixels,
    n: int,
) -> tuple[Ints, Pixels, int]:
    ny, nx = frame.shape
    sky, limits = lines
    start, stop = span
    reach, wide = len(taps) - 1, stop - start
    origin = start - reach - 1  # column of the frame that is first in a row of the window
    left, right = max(0, origin), min(nx, stop + reach + 1)
    # Rows slide through a window, so that those under the filter lie one behind the other.
    held = 2 * reach + 1
    window = np.zeros((held + 1 + _SLIDE) * _STRIP, dtype=np.float32)
    down = np.empty((2, wide + 2 * (reach + 1)), dtype=np.float32)
    # Filtered rows with a rim lower than anything, so that the edge needs no case of its own.
    filtered = np.full((3, _RUN * (-(-wide // _RUN)) + 2), -np.inf, dtype=np.float32)
    hot = np.zeros((3, -(-wide // _RUN)), dtype=np.bool_)
    least = _least_of_runs(limits, span)
    slot = reach
    for ahead in range(ny + reach + 2):
        if slot == held + 1 + _SLIDE:
            _move(window, (slot - held) * _STRIP, held * _STRIP)
            slot = held
        place = slot * _STRIP
        if ahead < ny:
            rows = between((ahead - mesh[4]) / mesh[5], len(sky))
            _residual(frame, flags, ahead, (left, right), sky, rows, window, place + left - origin)
        else:
            window[place : place + _STRIP] = np.float32(0.0)
        slot += 1
        y = ahead - reach - 1
        if 0 <= y < ny:
            line = filtered[y % 3]
            if y % 2 == 0:
                _filter_down(window[(slot - held - 1) * _STRIP :], taps, down[0], down[1])
            _filter_across(down[y % 2], taps, line[: wide + 2])
            if start == 0:
                line[0] = -np.inf
            if stop == nx:
                line[wide + 1] = -np.inf
            _hot_runs(line, wide, _limit(mesh, limits, least, y, span)[1], hot[y % 3])
        elif y == ny:
            filtered[y % 3] = -np.inf
        if y >= 1 and hot[(y - 1) % 3].any():
            limit, lowest = _limit(mesh, limits, least, y - 1, span)
            if n + wide > len(found):
                found, heights = _longer(found, heights, n, 2 * (n + wide))
            n = _maxima(
                filtered, y - 1, hot[(y - 1) % 3], limit, lowest, start, found, heights, n
            )  # fmt: skip
    return found, heights, n


@njit(nogil=True, cache=True)
def _move(values: Pixels, start: int, n: int) -> None:
    """Move n values from `start` to the front."""
    place, held = values[:n], values[start : start + n]
    for k in range(n):
        place[k] = held[k]


@njit(nogil=True, cache=True)
def _longer(rows: Ints, heights: Pixels, used: int, size: int) -> tuple[Ints, Pixels]:
    longer, more = np.empty((size, 2), dtype=np.int64), np.empty(size, dtype=np.float32)
    for k in range(used):
        longer[k, 0], longer[k, 1], more[k] = rows[k, 0], rows[k, 1], heights[k]
    return longer, more


@njit(nogil=True, cache=True)
def _rises(above: Pixels, here: Pixels, below: Pixels, run: int, limit: np.float32) -> bool:
    """Whether a pixel of a run is above a limit and higher than its four neighbours: few have one.

    The lines begin one pixel before the first run.
    """
    any_of_them = False
    first = np.uint64(run * _RUN)
    one, two = np.uint64(1), np.uint64(2)
    for x in range(first, first + np.uint64(_RUN)):
        value = here[x + one]
        in_line = (value > limit) & (value > here[x]) & (value >= here[x + two])
        any_of_them |= in_line & (value > above[x + one]) & (value >= below[x + one])
    return any_of_them


@njit(nogil=True, cache=True)
def _maxima(
    lines: Pixels,
    y: int,
    hot: NDArray[np.bool_],
    limit: Limit,
    least: Pixels,
    start: int,
    found: Ints,
    heights: Pixels,
    n: int,
) -> int:
    """Add the local maxima of line y above the limit to the first n found; of equals the first.

    least: of the limit in each run.
    """
    above, here, below = lines[(y - 1) % 3], lines[y % 3], lines[(y + 1) % 3]
    upper, lower, part = limit
    for run in range(len(hot)):
        first = run * _RUN
        wide = min(_RUN, len(upper) - first)
        if not hot[run] or not _rises(above, here, below, run, least[run]):
            continue
        for x in range(first, first + wide):
            value = here[x + 1]
            if not value > upper[x] + part * (lower[x] - upper[x]):
                continue
            if value > here[x] and value >= here[x + 2]:
                before = max(above[x], above[x + 1], above[x + 2])
                after = max(below[x], below[x + 1], below[x + 2])
                if value > before and value >= after:
                    found[n, 0], found[n, 1], heights[n] = start + x, y, value
                    n += 1
    return n
