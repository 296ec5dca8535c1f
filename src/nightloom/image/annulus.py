"""Local background of stars: the clipped median of a ring of pixels, its error, the noise."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nightloom.image.aperture import UNUSABLE, Floats, frame_arrays, positive, star_vectors
from nightloom.image.calibrate import MASK_SATURATED, Mask, Pixels

_UNCLEAN = UNUSABLE | MASK_SATURATED
_MAX_CLIPS = 10
_BLOCK_STARS = 64  # their rings fit the second-level cache
_HALF_DIAGONAL = math.sqrt(0.5)


@dataclass(frozen=True, slots=True)
class Annuli:
    """Arrays [star]; NaN where fewer than the required pixels are left.

    level_e and its error error_e, rms_e: noise of one pixel, electrons; n_used: pixels kept.
    """

    level_e: Floats
    error_e: Floats
    rms_e: Floats
    n_used: NDArray[np.int32]


def annulus_background(
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    x_px: ArrayLike,
    y_px: ArrayLike,
    *,
    inner_px: float,
    outer_px: float,
    clip_sigma: float = 3.0,
    min_pixels: int = 20,
) -> Annuli:
    """Clipped median of the pixels whose centres lie inner_px or more and below outer_px away.

    pixels_e, mask: [y, x]; x_px, y_px: [star]. Masked and saturated pixels and what lies off the
    frame are left out; the clipping repeats until nothing more goes, at most ten times.
    Raises ValueError: shapes differ, radii do not rise from zero, clip_sigma not above zero.
    """
    pixels, flags = frame_arrays(pixels_e, mask)
    x, y = star_vectors(x_px, y_px)
    if not 0 <= inner_px < outer_px < math.inf:
        raise ValueError(f"annulus needs 0 <= inner < outer, not {inner_px} to {outer_px}")
    inner, outer = float(inner_px), float(outer_px)
    clip_sigma = positive("clip_sigma", clip_sigma)
    least = max(1, int(min_pixels))
    n_used = np.zeros(len(x), dtype=np.int32)
    levels = np.full((len(x), 3), np.nan)
    # Centres in the ring have their whole pixels in a ring wider by half a diagonal.
    hole = max(inner - _HALF_DIAGONAL, 0.0)
    room = int(math.pi * ((outer + _HALF_DIAGONAL) ** 2 - hole**2)) + 2
    ring = np.empty((_BLOCK_STARS, min(room, pixels.size + 1)), dtype=np.float32)
    for start in range(0, len(x), _BLOCK_STARS):
        block = slice(start, start + _BLOCK_STARS)
        counts = _fill_rings(pixels, flags, x[block], y[block], inner, outer, ring)
        ring[: len(counts), : max(1, int(counts.max()))].sort(axis=1)
        _clip_rings(ring, counts, clip_sigma, least, levels[block], n_used[block])
    level, error, rms = np.ascontiguousarray(levels.T)
    scale = _clipped_deviation(clip_sigma)
    return Annuli(level_e=level, error_e=error / scale, rms_e=rms / scale, n_used=n_used)


def _clipped_deviation(clip_sigma: float) -> float:
    """Deviation of a unit Gaussian cut at +-clip_sigma."""
    density = math.exp(-0.5 * clip_sigma**2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * clip_sigma * density / math.erf(clip_sigma / math.sqrt(2)))


@njit(nogil=True, cache=True)
def _fill_rings(
    pixels: Pixels,
    mask: Mask,
    x_px: Floats,
    y_px: Floats,
    inner: float,
    outer: float,
    ring: Pixels,
) -> NDArray[np.int64]:
    """Pixels of each ring in the rows of `ring`, infinity behind them; their numbers.

    Marked ones are left out; of the others some may not be finite.
    """
    ny, nx = pixels.shape
    counts = np.zeros(x_px.size, dtype=np.int64)
    for star in range(x_px.size):
        x, y, row = x_px[star], y_px[star], ring[star]
        n = 0
        low, high = max(np.ceil(y - outer), 0.0), min(np.floor(y + outer), ny - 1.0)
        if math.isfinite(x) and math.isfinite(y) and low <= high:
            rows = int(low), int(high) + 1
            columns = int(min(max(x - outer, 0.0), nx)), int(max(min(x + outer + 1.0, nx), 0.0))
            clean = _is_clean(mask, rows, columns)
            for j in range(rows[0], rows[1]):
                dy2 = (j - y) * (j - y)
                left, right = _span(x, outer * outer - dy2, nx)
                hole, beyond = _span(x, inner * inner - dy2, nx)
                if beyond <= hole:
                    hole = beyond = right
                if clean:
                    n = _append(pixels[j], left, hole, row, n)
                    n = _append(pixels[j], beyond, right, row, n)
                else:
                    n = _append_good(pixels[j], mask[j], left, hole, row, n)
                    n = _append_good(pixels[j], mask[j], beyond, right, row, n)
        row[n:] = np.inf
        counts[star] = n
    return counts


@njit(nogil=True, cache=True)
def _is_clean(mask: Mask, rows: tuple[int, int], columns: tuple[int, int]) -> bool:
    """Whether no pixel of a box is marked."""
    marks = np.uint8(0)
    for j in range(rows[0], rows[1]):
        row = mask[j][columns[0] : columns[1]]
        for i in range(len(row)):
            marks |= row[i]
    return bool(marks & _UNCLEAN == 0)


@njit(nogil=True, cache=True)
def _span(x: float, square: float, nx: int) -> tuple[int, int]:
    """First pixel, and the one after the last, whose centres lie within sqrt(square) of x."""
    if square <= 0.0:
        return 0, 0
    half = math.sqrt(square)
    first, last = np.floor(x - half), np.ceil(x + half)
    while (first - x) * (first - x) >= square and first <= last:
        first += 1.0
    while (last - x) * (last - x) >= square and last >= first:
        last -= 1.0
    return int(min(max(first, 0.0), nx)), int(max(min(last + 1.0, nx), 0.0))


@njit(nogil=True, cache=True)
def _append(row: Pixels, start: int, stop: int, ring: Pixels, n: int) -> int:
    """Copy pixels from start to stop behind the first n of `ring`; their number."""
    for i in range(max(stop - start, 0)):
        ring[n + i] = row[start + i]
    return n + max(stop - start, 0)


@njit(nogil=True, cache=True)
def _append_good(row: Pixels, flags: Mask, start: int, stop: int, ring: Pixels, n: int) -> int:
    """The same for those that are not marked."""
    for i in range(start, stop):
        ring[n] = row[i]
        n += (flags[i] & _UNCLEAN) == 0
    return n


@njit(nogil=True, cache=True)
def _clip_rings(
    ring: Pixels,
    counts: NDArray[np.int64],
    clip_sigma: float,
    least: int,
    levels: Floats,
    n_used: NDArray[np.int32],
) -> None:
    """Level, its error and the deviation of the rows, each sorted, after clipping."""
    for star in range(counts.size):
        row = ring[star]
        low, high = 0, counts[star]
        # What is not finite and not marked has been sorted to the ends.
        while low < high and row[low] == -np.inf:
            low += 1
        while high > low and not row[high - 1] < np.inf:
            high -= 1
        origin = np.float64(row[(low + high) // 2]) if high > low else 0.0
        first, second = _sums(row[low:high], origin)
        deviation = 0.0
        for clips in range(_MAX_CLIPS + 1):
            n = high - low
            if n < least:
                break
            centre = 0.5 * (np.float64(row[low + (n - 1) // 2]) + np.float64(row[low + n // 2]))
            mean = first / n
            deviation = math.sqrt(max(second / n - mean * mean, 0.0))
            if clips == _MAX_CLIPS:
                break
            reach = clip_sigma * deviation
            while row[low] < centre - reach:
                away = row[low] - origin
                first, second, low = first - away, second - away * away, low + 1
            while row[high - 1] > centre + reach:
                away = row[high - 1] - origin
                first, second, high = first - away, second - away * away, high - 1
            if high - low == n:
                break
        n = high - low
        n_used[star] = n
        if n >= least:
            levels[star, 0] = _median_of_steps(row, low, high)
            levels[star, 1] = deviation * math.sqrt(0.5 * math.pi / n)
            levels[star, 2] = deviation


@njit(nogil=True, cache=True)
def _sums(values: Pixels, origin: float) -> tuple[float, float]:
    """Sums of the values less an origin near their mean, and of its square.

    Four of each keep the adders busy.
    """
    t0 = t1 = t2 = t3 = s0 = s1 = s2 = s3 = 0.0
    n = values.size
    for i in range(0, n - 3, 4):
        d0, d1 = values[i] - origin, values[i + 1] - origin
        d2, d3 = values[i + 2] - origin, values[i + 3] - origin
        t0, t1, t2, t3 = t0 + d0, t1 + d1, t2 + d2, t3 + d3
        s0, s1, s2, s3 = s0 + d0 * d0, s1 + d1 * d1, s2 + d2 * d2, s3 + d3 * d3
    for i in range(n - n % 4, n):
        d0 = values[i] - origin
        t0, s0 = t0 + d0, s0 + d0 * d0
    return t0 + t1 + t2 + t3, s0 + s1 + s2 + s3


@njit(nogil=True, cache=True)
def _median_of_steps(row: Pixels, low: int, high: int) -> float:
    """Median of sorted row[low:high]; among many equal values, the place within their step.

    Raw counts are whole numbers: their plain median locks to one of them, up to half a count off.
    Source: the median of grouped data.
    """
    n = high - low
    below, above = row[low + (n - 1) // 2], row[low + n // 2]
    if below != above or n < 3:
        return 0.5 * (np.float64(below) + np.float64(above))
    a, b = low + (n - 1) // 2, low + n // 2 + 1
    while a > low and row[a - 1] == below:
        a -= 1
    while b < high and row[b] == below:
        b += 1
    down = 0.5 * (np.float64(below) - row[a - 1]) if a > low else np.inf
    up = 0.5 * (np.float64(row[b]) - below) if b < high else np.inf
    down, up = min(down, 1e30), min(up, 1e30)
    if b - a < 2 or min(down, up) >= 1e30:
        return np.float64(below)
    down, up = (up if down >= 1e30 else down), (down if up >= 1e30 else up)
    return np.float64(below) - down + (down + up) * (low + 0.5 * n - a) / (b - a)
