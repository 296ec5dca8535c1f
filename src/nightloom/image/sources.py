"""Sources: what each peak of a frame is, and which of them are stars that stand out."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numba import njit

from nightloom.image.calibrate import Mask, Pixels
from nightloom.image.mesh import Mesh, level_at, noise_at
from nightloom.image.peaks import (
    UNUSABLE,
    Floats,
    Ints,
    filter_gain,
    sort_few,
)
from nightloom.image.prefetch import prefetch
from nightloom.image.saturation import Groups, nearest_group

X, Y, FLUX, PEAK, SNR, ELONGATION, SHARPNESS, GROUP = range(8)  # columns of a star
N_COLUMNS = 8

_SHARP = 0.16  # neighbours over the brightest pixel; 0.24 in a centred star of FWHM 1.2 px
_MOST_ROUNDS_OF_SHARP = 8
_NEAR_PX = 2  # from a hit of a cosmic ray to the star that it hides
_WINDOW_ROUNDS = 10
_LARGEST_SHIFT_PX = 2.0
_CENTRED_PX = 0.002


@njit(nogil=True, cache=True)
def _cut(frame: Pixels, flags: Mask, mesh: Mesh, x0: int, y0: int, cut: Floats) -> None:
    """Square around a pixel above the background; NaN off the frame and where not usable."""
    ny, nx = frame.shape
    half = len(cut) // 2
    level = level_at(mesh, np.float64(x0), np.float64(y0))
    slope_x = level_at(mesh, x0 + 1.0, np.float64(y0)) - level
    slope_y = level_at(mesh, np.float64(x0), y0 + 1.0) - level
    left, right = max(0, half - x0), min(len(cut), nx - x0 + half)  # columns on the frame
    if left > 0 or right < len(cut):
        cut[:] = np.nan
    for j in range(len(cut)):
        y = y0 - half + j
        if not 0 <= y < ny:
            cut[j] = np.nan
            continue
        row, line, first = np.uint64(y), np.uint64(j), np.uint64(x0 - half + left)
        for k in range(np.uint64(max(right - left, 0))):
            value = frame[row, first + k]
            good = ((flags[row, first + k] & UNUSABLE) == 0) & (abs(value) < np.float32(np.inf))
            sky = level + slope_x * (np.int64(k) + left - half) + slope_y * (y - y0)
            cut[line, np.uint64(left) + k] = value - sky if good else np.nan


@njit(nogil=True, cache=True)
def _brightest(cut: Floats, reach: int) -> tuple[int, int]:
    """Row and column of the brightest pixel near the centre."""
    half = len(cut) // 2
    row, column = half, half
    for y in range(half - reach, half + reach + 1):
        for x in range(half - reach, half + reach + 1):
            if cut[y, x] > cut[row, column]:
                row, column = y, x
    return row, column


@njit(nogil=True, cache=True)
def _neighbour_part(cut: Floats, y: int, x: int) -> float:
    """Mean of the two neighbours over the pixel, along x or y, whichever is less.

    A hot pixel has none, a track of a cosmic ray none across it; a star has both.
    """
    across = 0.5 * (cut[y, x - 1] + cut[y, x + 1])
    along = 0.5 * (cut[y - 1, x] + cut[y + 1, x])
    return min(across, along) / cut[y, x] if cut[y, x] > 0 else 0.0


@njit(nogil=True, cache=True)
def _take_out_sharp(cut: Floats, reach: int, least: float) -> bool:
    """Replace pixels above `least` too sharp for a star by their neighbours' median; whether any.

    Again and again, since a track of a cosmic ray is eaten up from its ends.
    """
    half = len(cut) // 2
    reach = min(reach, half - 1)
    near = np.empty(8)
    changed = False
    for _ in range(_MOST_ROUNDS_OF_SHARP):
        taken = False
        for y in range(half - reach, half + reach + 1):
            for x in range(half - reach, half + reach + 1):
                if cut[y, x] <= least or _neighbour_part(cut, y, x) >= _SHARP:
                    continue
                k = 0
                for dy in range(-1, 2):
                    for dx in range(-1, 2):
                        if dx or dy:
                            near[k] = cut[y + dy, x + dx]
                            k += 1
                sort_few(near)
                cut[y, x] = min(0.5 * (near[3] + near[4]), 0.5 * cut[y, x])
                taken = True
        if not taken:
            break
        changed = True
    return changed


@lru_cache(maxsize=16)  # all frames of a field ask for the same
def _ring(half: int, inner_px: float, outer_px: float) -> Ints:
    """Rows and columns [pixel, 2] of a ring around the centre of a square."""
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    far = np.hypot(x, y)
    return np.argwhere((far >= inner_px) & (far <= outer_px))


@njit(nogil=True, cache=True)
def _sums_within(values: Floats, origin: float, reach: float) -> tuple[int, float, float]:
    """Number of values within reach of an origin, sum of their distances and of the squares.

    Four of each, as an addition waits for the last one; values come in fours, NaN at their end.
    """
    n, a0, a1, a2, a3 = 0, 0.0, 0.0, 0.0, 0.0
    b0, b1, b2, b3 = 0.0, 0.0, 0.0, 0.0
    for k in range(len(values) // 4):
        v0, v1 = values[4 * k] - origin, values[4 * k + 1] - origin
        v2, v3 = values[4 * k + 2] - origin, values[4 * k + 3] - origin
        w0, w1 = v0 if abs(v0) <= reach else 0.0, v1 if abs(v1) <= reach else 0.0
        w2, w3 = v2 if abs(v2) <= reach else 0.0, v3 if abs(v3) <= reach else 0.0
        n += (abs(v0) <= reach) + (abs(v1) <= reach) + (abs(v2) <= reach) + (abs(v3) <= reach)
        a0, a1, a2, a3 = a0 + w0, a1 + w1, a2 + w2, a3 + w3
        b0, b1, b2, b3 = b0 + w0 * w0, b1 + w1 * w1, b2 + w2 * w2, b3 + w3 * w3
    return n, (a0 + a1) + (a2 + a3), (b0 + b1) + (b2 + b3)


@njit(nogil=True, cache=True)
def _take_off_pedestal(cut: Floats, ring: Ints, held: Floats) -> float:
    """Take off the light per pixel on which the centre of a square stands, and return it.

    It is the mean of the ring, clipped twice; what is no number has that light too.
    held: room for a value of each of the ring's pixels.
    """
    for k in range(len(ring)):
        held[k] = cut[ring[k, 0], ring[k, 1]]
    mean, reach = 0.0, np.inf
    for _ in range(3):
        n, first, second = _sums_within(held, mean, reach)
        if n == 0:
            break
        mean, reach = mean + first / n, 2.0 * np.sqrt(max(0.0, second / n - (first / n) ** 2))
    for j in range(len(cut)):
        for i in range(len(cut)):
            cut[j, i] = 0.0 if np.isnan(cut[j, i]) else cut[j, i] - mean
    return mean


@njit(nogil=True, cache=True)
def _filtered(cut: Floats, taps: Pixels, dx: int, dy: int) -> float:
    """The filter's value dx, dy from the centre of a square."""
    half, reach = len(cut) // 2, len(taps) - 1
    total = 0.0
    for j in range(-reach, reach + 1):
        row, line = cut[half + dy + j], 0.0
        for i in range(-reach, reach + 1):
            line += taps[abs(i)] * row[half + dx + i]
        total += taps[abs(j)] * line
    return total


@njit(nogil=True, cache=True)
def _highest(cut: Floats, taps: Pixels) -> tuple[int, int]:
    """Where the filtered square is highest near its centre: dx, dy."""
    best_x, best_y, best = 0, 0, _filtered(cut, taps, 0, 0)
    for dy in range(-_NEAR_PX, _NEAR_PX + 1, _NEAR_PX):
        for dx in range(-_NEAR_PX, _NEAR_PX + 1, _NEAR_PX):
            value = _filtered(cut, taps, dx, dy)
            if value > best:
                best_x, best_y, best = dx, dy, value
    return best_x, best_y


@njit(nogil=True, cache=True)
def _middle(cut: Floats, reach_px: float) -> Floats:
    """The inner square that reaches so far from the centre."""
    half = len(cut) // 2
    reach = min(half, int(np.ceil(reach_px)))
    return cut[half - reach : half + reach + 1, half - reach : half + reach + 1]


@njit(nogil=True, cache=True)
def _window(offset: float, sigma_px: float, weights: Floats) -> None:
    """Gaussian window along one side of a square, its centre at an offset from the square's."""
    first, square = -(len(weights) // 2) - offset, sigma_px * sigma_px
    # The exponential of a quadratic, by two products a step.
    weight = np.exp(-0.5 * first * first / square)
    ratio, growth = np.exp(-0.5 * (2.0 * first + 1.0) / square), np.exp(-1.0 / square)
    for k in range(len(weights)):
        weights[k] = weight
        weight *= ratio
        ratio *= growth


@njit(nogil=True, cache=True)
def _window_mean(
    near: Floats, x: float, y: float, sigma_px: float, across: Floats, down: Floats
) -> tuple[float, float, float]:
    """Light under a Gaussian window at (x, y) from the centre, and its mean offset from there."""
    half = len(near) // 2
    _window(x, sigma_px, across)
    _window(y, sigma_px, down)
    total, mx, my = 0.0, 0.0, 0.0
    for j in range(len(near)):
        line, moment = 0.0, 0.0
        for i in range(len(near)):
            light = across[i] * near[j, i]
            line += light
            moment += light * (i - half)
        total += down[j] * line
        mx += down[j] * moment
        my += down[j] * line * (j - half)
    if total <= 0:
        return total, 0.0, 0.0
    return total, mx / total - x, my / total - y


@njit(nogil=True, cache=True)
def _centre(cut: Floats, sigma_px: float) -> tuple[float, float]:
    """Windowed centroid from the centre of a square; the centre where it strays.

    Steps are twice the windowed mean at first, right where the star is as wide as the window;
    then the ratio of two steps tells what is right for this star.
    Source: SExtractor's XWIN_IMAGE (Bertin); Aitken's delta squared.
    """
    near = _middle(cut, 3.0 * sigma_px)
    across, down = np.empty(len(near)), np.empty(len(near))
    x, y, gain = 0.0, 0.0, 2.0
    last_x, last_y = 0.0, 0.0
    for turn in range(_WINDOW_ROUNDS):
        total, mx, my = _window_mean(near, x, y, sigma_px, across, down)
        last = last_x * last_x + last_y * last_y
        if turn > 0 and last > 0:
            ratio = gain * (mx * last_x + my * last_y) / last
            gain = min(max(gain / (1.0 - min(ratio, 0.7)), 1.0), 6.0)
        last_x, last_y = gain * mx, gain * my
        x, y = x + last_x, y + last_y
        if total <= 0 or not (abs(x) <= _LARGEST_SHIFT_PX and abs(y) <= _LARGEST_SHIFT_PX):
            return 0.0, 0.0
        if last_x * last_x + last_y * last_y < _CENTRED_PX * _CENTRED_PX:
            break
    return x, y


@njit(nogil=True, cache=True)
def _elongation(cut: Floats, x: float, y: float, sigma_px: float) -> float:
    """Ratio of the axes: second moments under a window, its narrowing taken off."""
    near = _middle(cut, 3.0 * sigma_px + 1.0)
    half = len(near) // 2
    across, down = np.empty(len(near)), np.empty(len(near))
    _window(x, sigma_px, across)
    _window(y, sigma_px, down)
    total, xx, yy, xy = 0.0, 0.0, 0.0, 0.0
    for j in range(len(near)):
        dy = j - half - y
        for i in range(len(near)):
            dx = i - half - x
            light = down[j] * across[i] * near[j, i]
            total += light
            xx += light * dx * dx
            yy += light * dy * dy
            xy += light * dx * dy
    if total <= 0:
        return np.nan
    mean, part = 0.5 * (xx + yy) / total, np.hypot(0.5 * (xx - yy), xy) / total
    if mean - part <= 0 or mean + part >= sigma_px * sigma_px:
        return np.nan
    window = 1.0 / (sigma_px * sigma_px)
    ratio: float = np.sqrt((1.0 / (mean - part) - window) / (1.0 / (mean + part) - window))
    return ratio


@njit(nogil=True, cache=True)
def _aperture(cut: Floats, x: float, y: float, radius_px: float) -> float:
    near = _middle(cut, radius_px + _LARGEST_SHIFT_PX)
    half = len(near) // 2
    total = 0.0
    for j in range(len(near)):
        for i in range(len(near)):
            if (i - half - x) ** 2 + (j - half - y) ** 2 <= radius_px * radius_px:
                total += near[j, i]
    return total


def measure(
    frame: Pixels,
    flags: Mask,
    mesh: Mesh,
    found: Ints,
    taps: Pixels,
    *,
    fwhm_px: float,
    threshold_sigma: float,
    groups: Groups,
    most: int,
) -> tuple[Floats, int]:
    """Stars [star, column] of those peaks that are none of hot pixels and cosmic rays.

    Peaks are taken in their order up to the star number `most`; how many were looked at.
    """
    half = max(len(taps) - 1 + _NEAR_PX, math.ceil(2.5 * fwhm_px), 3)
    ring = _ring(half, 1.5 * fwhm_px, 2.5 * fwhm_px)
    stars = np.empty((min(most, len(found)), N_COLUMNS))
    n_stars, n_looked = _measure(
        frame, flags, mesh, found, taps, fwhm_px, threshold_sigma, groups, ring, half, stars
    )
    return stars[:n_stars], n_looked


@njit(nogil=True, cache=True)
def _measure(
    frame: Pixels,
    flags: Mask,
    mesh: Mesh,
    found: Ints,
    taps: Pixels,
    fwhm_px: float,
    threshold_sigma: float,
    groups: Groups,
    ring: Ints,
    half: int,
    stars: Floats,
) -> tuple[int, int]:
    """Fill `stars` from the peaks in their order; how many stars, and how many peaks it took."""
    cut = np.empty((2 * half + 1, 2 * half + 1))
    held = np.full(-(-len(ring) // 4) * 4, np.nan)
    gain, n = filter_gain(taps), 0
    for k in range(len(found)):
        if n == len(stars):
            return n, k
        x0, y0 = found[k, 0], found[k, 1]
        ahead = found[min(k + 1, len(found) - 1)]
        prefetch(frame, flags, np.float64(ahead[0]), np.float64(ahead[1]), np.float64(half), 0, 1)
        noise = noise_at(mesh, np.float64(x0), np.float64(y0))
        least = threshold_sigma * noise
        _cut(frame, flags, mesh, x0, y0, cut)
        light = _take_off_pedestal(cut, ring, held)
        if _take_out_sharp(cut, len(taps) - 1, least):
            # Without the hit the peak, if there still is one, lies elsewhere.
            dx, dy = _highest(cut, taps)
            if _filtered(cut, taps, dx, dy) < gain * least:
                continue
            x0, y0 = x0 + dx, y0 + dy
            _cut(frame, flags, mesh, x0, y0, cut)
            light = _take_off_pedestal(cut, ring, held)
            _take_out_sharp(cut, len(taps) - 1, least)
        group = nearest_group(flags, groups, x0, y0, fwhm_px)
        if group >= 0:
            # The ring of a saturated star may lie on its plateau.
            for row in range(len(cut)):
                for column in range(len(cut)):
                    cut[row, column] += light
        else:
            noise = np.sqrt(noise * noise + max(light, 0.0))
        snr = _filtered(cut, taps, 0, 0) / (gain * noise)
        if not snr > threshold_sigma:
            continue
        stars[n, SNR], stars[n, GROUP] = snr, group
        _describe(stars[n], cut, x0, y0, fwhm_px, groups)
        n += 1
    return n, len(found)


@njit(nogil=True, cache=True)
def _describe(star: Floats, cut: Floats, x0: int, y0: int, fwhm_px: float, groups: Groups) -> None:
    """Place, light and shape of a star of a known group from the square about (x0, y0)."""
    sigma_px, group = fwhm_px / 2.3548, int(star[GROUP])
    x, y = _centre(cut, sigma_px)
    top_row, top_column = _brightest(cut, int(np.ceil(0.5 * fwhm_px)))
    star[X], star[Y] = x0 + x, y0 + y
    star[FLUX] = _aperture(cut, x, y, 1.5 * fwhm_px)
    star[PEAK] = cut[top_row, top_column]
    star[ELONGATION] = _elongation(cut, x, y, sigma_px)
    star[SHARPNESS] = 1.0 - _neighbour_part(cut, top_row, top_column)
    if group >= 0:
        star[FLUX] = max(star[FLUX], groups[5][group])
        star[ELONGATION] = np.nan
        if groups[4][group] > fwhm_px * fwhm_px:
            star[X], star[Y] = groups[2][group], groups[3][group]
