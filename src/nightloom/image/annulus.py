"""Local background of stars: clipped median or mode of a ring of pixels, its error, the noise."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nightloom.image.aperture import UNUSABLE, Floats, frame_arrays, positive, star_vectors
from nightloom.image.calibrate import MASK_SATURATED, Mask, Pixels

_UNCLEAN = UNUSABLE | MASK_SATURATED
_MAX_CLIPS = 10
_MAX_STEPS = 40  # halvings alone come to 1e-12 of a count
_BLOCK_STARS = 64  # their rings fit the second-level cache
_HALF_DIAGONAL = math.sqrt(0.5)
_CROWDED = 0.3  # of the noise: where mean and median lie farther apart, the mode is no better
# Variances of 2.5 median - 1.5 mean and of the median over that of the mean, of a Gaussian, whose
# mean and median have the covariance of the mean.
_MODE_OVER_MEDIAN = math.sqrt((6.25 * math.pi / 2 + 2.25 - 7.5) / (math.pi / 2))


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
    step_e: float = 0.0,
) -> Annuli:
    """Clipped median of the pixels whose centres lie inner_px or more and below outer_px away.

    pixels_e, mask: [y, x]; x_px, y_px: [star]. Masked and saturated pixels and what lies off the
    frame are left out; the clipping repeats until nothing more goes, at most ten times.
    step_e: electrons of one count, over which each value is spread before the median is taken.
    Raises ValueError: shapes differ, radii do not rise from zero, clip_sigma not above zero.
    """
    annuli, _ = _annuli(
        pixels_e, mask, x_px, y_px, (inner_px, outer_px), clip_sigma, min_pixels, step_e
    )
    return annuli


def annulus_mode(
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    x_px: ArrayLike,
    y_px: ArrayLike,
    *,
    inner_px: float,
    outer_px: float,
    clip_sigma: float = 3.0,
    min_pixels: int = 20,
    step_e: float = 0.0,
) -> Annuli:
    """As annulus_background, with the mode in place of the median: 2.5 median - 1.5 mean.

    Faint stars in the ring that no clipping finds shift it less, for 1.7 times the error; where
    mean and median of what is left differ by 0.3 of the noise it is the median.
    Raises ValueError: as annulus_background. Source: Bertin & Arnouts 1996, A&AS 117, 393.
    """
    annuli, mean_e = _annuli(
        pixels_e, mask, x_px, y_px, (inner_px, outer_px), clip_sigma, min_pixels, step_e
    )
    skew_e = mean_e - annuli.level_e
    crowded = np.abs(skew_e) > _CROWDED * annuli.rms_e
    return replace(
        annuli,
        level_e=np.where(crowded, annuli.level_e, annuli.level_e - 1.5 * skew_e),
        error_e=np.where(crowded, 1.0, _MODE_OVER_MEDIAN) * annuli.error_e,
    )


def mean_of_photons(annuli: Annuli, *, dark_e: float = 0.0) -> Annuli:
    """The mean sky where photons make the noise: medians of skewed values lie below their mean.

    By up to a sixth of an electron a pixel, which a wide aperture about a faint star adds up.
    dark_e: electrons subtracted as dark, which were counted too.
    Source: Cornish & Fisher 1938: mean - median = third cumulant / 6 variances; Poisson's third
    cumulant is its mean.
    """
    counted_e = np.maximum(annuli.level_e + dark_e, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        skew_e = np.where(annuli.rms_e > 0, counted_e / (6 * annuli.rms_e**2), 0.0)
    return replace(annuli, level_e=annuli.level_e + np.minimum(skew_e, 1 / 6))


def _annuli(
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    x_px: ArrayLike,
    y_px: ArrayLike,
    radii_px: tuple[float, float],
    clip_sigma: float,
    min_pixels: int,
    step_e: float,
) -> tuple[Annuli, Floats]:
    """The medians, and the means of the same pixels."""
    inner_px, outer_px = radii_px
    pixels, flags = frame_arrays(pixels_e, mask)
    x, y = star_vectors(x_px, y_px)
    if not 0 <= inner_px < outer_px < math.inf:
        raise ValueError(f"annulus needs 0 <= inner < outer, not {inner_px} to {outer_px}")
    inner, outer = float(inner_px), float(outer_px)
    clip_sigma = positive("clip_sigma", clip_sigma)
    if not 0 <= step_e < math.inf:
        raise ValueError(f"step_e must be zero or more, not {step_e}")
    least = max(1, int(min_pixels))
    n_used = np.zeros(len(x), dtype=np.int32)
    levels = np.full((len(x), 4), np.nan)
    # Centres in the ring have their whole pixels in a ring wider by half a diagonal.
    hole = max(inner - _HALF_DIAGONAL, 0.0)
    room = int(math.pi * ((outer + _HALF_DIAGONAL) ** 2 - hole**2)) + 2
    ring = np.empty((_BLOCK_STARS, min(room, pixels.size + 1)), dtype=np.float32)
    for start in range(0, len(x), _BLOCK_STARS):
        block = slice(start, start + _BLOCK_STARS)
        counts = _fill_rings(pixels, flags, x[block], y[block], inner, outer, ring)
        ring[: len(counts), : max(1, int(counts.max()))].sort(axis=1)
        _clip_rings(ring, counts, clip_sigma, least, step_e, levels[block], n_used[block])
    level, error, rms, mean = np.ascontiguousarray(levels.T)
    scale = _clipped_deviation(clip_sigma)
    annuli = Annuli(level_e=level, error_e=error / scale, rms_e=rms / scale, n_used=n_used)
    return annuli, mean


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
    step: float,
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
        first, second = sums_about(row[low:high], origin)
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
            levels[star, 0] = _median_of_spread(row[low:high], step)
            levels[star, 1] = deviation * math.sqrt(0.5 * math.pi / n)
            levels[star, 2] = deviation
            levels[star, 3] = origin + first / n


@njit(nogil=True, cache=True)
def sums_about(values: Pixels, origin: float) -> tuple[float, float]:
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
def _median_of_spread(values: Pixels, step: float) -> float:
    """Median of sorted values, each spread evenly over `step` about itself.

    Raw counts are whole numbers: their plain median locks to one of them, up to half a count off,
    which a wide aperture multiplies by its area. Their ties need not be exact (a flat, a dark
    that is a mean), as those of the median of grouped data do. Found by Newton's steps on the
    piecewise linear distribution, bisection where one would leave the bracket.
    """
    n = len(values)
    median = 0.5 * (np.float64(values[(n - 1) // 2]) + np.float64(values[n // 2]))
    if step <= 0.0:
        return median
    low, high, middle = median - 0.5 * step, median + 0.5 * step, median
    first = int(np.searchsorted(values, np.float32(low - step)))
    while first > 0 and values[first - 1] > low - step:
        first -= 1
    for _ in range(_MAX_STEPS):
        below, inside = np.float64(first), 0
        for i in range(first, n):
            share = (middle - np.float64(values[i])) / step + 0.5
            if share <= 0.0:
                break
            below += min(share, 1.0)
            inside += 1 if share < 1.0 else 0
        short = 0.5 * n - below
        if abs(short) <= 1e-9 * n:
            break
        if short > 0.0:
            low = middle
        else:
            high = middle
        following = middle + short * step / inside if inside else low
        middle = following if low < following < high else 0.5 * (low + high)
    return middle
