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
from nightloom.image.cutout import copy_good
from nightloom.image.prefetch import prefetch
from nightloom.image.ranks import (
    INFINITE,
    LEAST,
    Keys,
    around,
    count_below,
    fill_keys,
    key_from,
    key_to,
    middle,
    moments_within,
    value_of,
)

_UNCLEAN = UNUSABLE | MASK_SATURATED
_MAX_CLIPS = 10
_MAX_STEPS = 40  # halvings alone come to 1e-12 of a count
_MIDDLE_SPACING = 2.5066  # deviations between values about the middle, times their number
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
    room = min(room, pixels.size + 1)
    _measure_rings(
        pixels,
        flags,
        x,
        y,
        (inner, outer),
        (clip_sigma, least, float(step_e)),
        room,
        levels,
        n_used,
    )
    level, error, rms, mean = np.ascontiguousarray(levels.T)
    scale = _clipped_deviation(clip_sigma)
    annuli = Annuli(level_e=level, error_e=error / scale, rms_e=rms / scale, n_used=n_used)
    return annuli, mean


def _clipped_deviation(clip_sigma: float) -> float:
    """Deviation of a unit Gaussian cut at +-clip_sigma."""
    density = math.exp(-0.5 * clip_sigma**2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * clip_sigma * density / math.erf(clip_sigma / math.sqrt(2)))


@njit(nogil=True, cache=True)
def _measure_rings(
    pixels: Pixels,
    mask: Mask,
    x_px: Floats,
    y_px: Floats,
    radii: tuple[float, float],
    limits: tuple[float, int, float],
    room: int,
    levels: Floats,
    n_used: NDArray[np.int32],
) -> None:
    """Level, its error, the deviation and the mean of the ring about each star, after clipping."""
    ring, keys = np.empty(room, dtype=np.float32), np.empty(room, dtype=np.int32)
    near = np.nan, np.nan  # level and deviation of the last ring: about those of the next one
    for star in range(x_px.size):
        x, y = x_px[star], y_px[star]
        n = _fill_ring(pixels, mask, x, y, radii[0], radii[1], ring)
        if star + 1 < x_px.size:
            prefetch(pixels, mask, x_px[star + 1], y_px[star + 1], radii[1], 0, 1)
        n_used[star], level, deviation, mean = _clip_ring(ring[:n], keys[:n], limits, near)
        if n_used[star] >= limits[1]:
            levels[star, 0], levels[star, 2], levels[star, 3] = level, deviation, mean
            levels[star, 1] = deviation * math.sqrt(0.5 * math.pi / n_used[star])
            near = level, deviation


@njit(nogil=True, cache=True)
def _fill_ring(
    pixels: Pixels, mask: Mask, x: float, y: float, inner: float, outer: float, ring: Pixels
) -> int:
    """Put the pixels of a ring into `ring`, infinity for what is marked or not finite; how many."""
    ny, nx = pixels.shape
    n = 0
    low, high = max(np.ceil(y - outer), 0.0), min(np.floor(y + outer), ny - 1.0)
    if not (math.isfinite(x) and math.isfinite(y) and low <= high):
        return 0
    for j in range(int(low), int(high) + 1):
        dy2 = (j - y) * (j - y)
        left, right = _span(x, outer * outer - dy2, nx)
        hole, beyond = _span(x, inner * inner - dy2, nx)
        if beyond <= hole:
            hole = beyond = right
        for start, stop in ((left, hole), (beyond, right)):
            copy_good(pixels, mask, j, start, stop, _UNCLEAN, ring, n)
            n += max(stop - start, 0)
    return n


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
def _clip_ring(
    ring: Pixels, keys: Keys, limits: tuple[float, int, float], near: tuple[float, float]
) -> tuple[int, float, float, float]:
    """How many finite values are left after clipping; their median, deviation and mean.

    limits: of the clipping, in deviations; least number; step. near: about median and deviation.
    """
    clip_sigma, least, step = limits
    fill_keys(ring, keys)
    low = 0
    high, highest, _ = around(keys, INFINITE)
    _, _, lowest = around(keys, LEAST)
    centre, deviation = near
    mean = np.nan
    for clips in range(_MAX_CLIPS + 1):
        n = high - low
        if n < least:
            return n, np.nan, np.nan, np.nan
        spacing = _MIDDLE_SPACING * deviation / n
        origin, other = middle(keys, low, n, centre, spacing)
        centre = 0.5 * (origin + other)
        first, second = moments_within(ring, origin, value_of(lowest), value_of(highest))
        mean = first / n
        deviation = math.sqrt(max(second / n - mean * mean, 0.0))
        mean += origin
        if clips == _MAX_CLIPS:
            break
        reach = clip_sigma * deviation
        lowest, highest = (
            max(lowest, key_from(centre - reach)),
            min(highest, key_to(centre + reach)),
        )
        low, high = count_below(keys, lowest), count_below(keys, highest + 1)
        if high - low == n:
            break
    n = high - low
    if n < least:
        return n, np.nan, np.nan, np.nan
    if step > 0.0:
        centre = _median_of_spread(ring, keys, (low, high), (lowest, highest), centre, step)
    return n, centre, deviation, mean


@njit(nogil=True, cache=True)
def _median_of_spread(
    ring: Pixels,
    keys: Keys,
    ranks: tuple[int, int],
    limits: tuple[int, int],
    median: float,
    step: float,
) -> float:
    """Median of the values of some ranks, each spread evenly over `step` about itself.

    Raw counts are whole numbers: their plain median locks to one of them, up to half a count off,
    which a wide aperture multiplies by its area. Their ties need not be exact (a flat, a dark
    that is a mean), as those of the median of grouped data do. Found by Newton's steps on the
    piecewise linear distribution, bisection where one would leave the bracket.
    The keys are written over. limits: of the values of these ranks, as keys.
    """
    n = ranks[1] - ranks[0]
    low, high, middle = median - 0.5 * step, median + 0.5 * step, median
    # No others can be spread over where the median may lie.
    least = max(limits[0], key_from(low - step))
    most = min(limits[1], key_to(high + step))
    first = count_below(keys, least) - ranks[0]
    near, n_near = keys.view(np.float32), 0
    for i in range(len(ring)):
        inside = (keys[i] >= least) & (keys[i] <= most)
        near[n_near] = ring[i]  # behind what is still to be read
        n_near += inside
    inverse = 1.0 / step
    for _ in range(_MAX_STEPS):
        below, inside = np.float64(first), 0
        for i in range(n_near):
            share = min(max((middle - np.float64(near[i])) * inverse + 0.5, 0.0), 1.0)
            below += share
            inside += (share > 0.0) & (share < 1.0)
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
