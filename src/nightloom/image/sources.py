"""Sources: what each peak of a frame is, and which of them are stars that stand out."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nightloom.image.calibrate import Mask, Pixels
from nightloom.image.peaks import (
    UNUSABLE,
    Floats,
    Ints,
    Mesh,
    filter_gain,
    level_at,
    noise_at,
    sort_few,
)
from nightloom.image.saturation import Groups, nearest_group

X, Y, FLUX, PEAK, SNR, ELONGATION, SHARPNESS, GROUP = range(8)  # columns of a star
N_COLUMNS = 8

_SHARP = 0.16  # neighbours over the brightest pixel; 0.24 in a centred star of FWHM 1.2 px
_MOST_ROUNDS_OF_SHARP = 8
_NEAR_PX = 2  # from a hit of a cosmic ray to the star that it hides
_WINDOW_ROUNDS = 10
_LARGEST_SHIFT_PX = 2.0
_CENTRED_PX = 0.002
_REACH_FWHM = 5.0  # how far the light of a brighter star is looked at; twice if saturated
_LEAST_PROMINENCE = 0.05  # of the light of the brighter star on which a fainter one stands


@njit(nogil=True, cache=True)
def _cut(frame: Pixels, flags: Mask, mesh: Mesh, x0: int, y0: int, cut: Floats) -> None:
    """Square around a pixel above the background; NaN off the frame and where not usable."""
    ny, nx = frame.shape
    half = len(cut) // 2
    level = level_at(mesh, np.float64(x0), np.float64(y0))
    slope_x = level_at(mesh, x0 + 1.0, np.float64(y0)) - level
    slope_y = level_at(mesh, np.float64(x0), y0 + 1.0) - level
    for y in range(len(cut)):
        for x in range(len(cut)):
            cut[y, x] = np.nan
    for y in range(max(0, y0 - half), min(ny, y0 + half + 1)):
        for x in range(max(0, x0 - half), min(nx, x0 + half + 1)):
            if not flags[y, x] & UNUSABLE and abs(frame[y, x]) < np.inf:
                sky = level + slope_x * (x - x0) + slope_y * (y - y0)
                cut[y - y0 + half, x - x0 + half] = frame[y, x] - sky


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


@njit(nogil=True, cache=True)
def _take_off_pedestal(cut: Floats, inner_px: float, outer_px: float) -> float:
    """Take off the light per pixel on which the centre of a square stands, and return it.

    It is the mean of a ring, clipped twice; what is no number has that light too.
    """
    half = len(cut) // 2
    mean, reach = 0.0, np.inf
    for _ in range(3):
        n, first, second = 0, 0.0, 0.0
        for j in range(len(cut)):
            for i in range(len(cut)):
                far = (i - half) ** 2 + (j - half) ** 2
                value = cut[j, i] - mean
                if inner_px * inner_px <= far <= outer_px * outer_px and abs(value) <= reach:
                    n += 1
                    first += value
                    second += value * value
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
    for dy in range(-_NEAR_PX, _NEAR_PX + 1):
        for dx in range(-_NEAR_PX, _NEAR_PX + 1):
            value = _filtered(cut, taps, dx, dy)
            if value > best:
                best_x, best_y, best = dx, dy, value
    return best_x, best_y


@njit(nogil=True, cache=True)
def _window(offset: float, sigma_px: float, weights: Floats) -> None:
    """Gaussian window along one side of a square, its centre at an offset from the square's."""
    half = len(weights) // 2
    for k in range(len(weights)):
        weights[k] = np.exp(-0.5 * ((k - half - offset) / sigma_px) ** 2)


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
    half = len(cut) // 2
    reach = min(half, int(np.ceil(3.0 * sigma_px)))
    near = cut[half - reach : half + reach + 1, half - reach : half + reach + 1]
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
    half = len(cut) // 2
    across, down = np.empty(len(cut)), np.empty(len(cut))
    _window(x, sigma_px, across)
    _window(y, sigma_px, down)
    total, xx, yy, xy = 0.0, 0.0, 0.0, 0.0
    for j in range(len(cut)):
        dy = j - half - y
        for i in range(len(cut)):
            dx = i - half - x
            light = down[j] * across[i] * cut[j, i]
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
    half = len(cut) // 2
    total = 0.0
    for j in range(len(cut)):
        for i in range(len(cut)):
            if (i - half - x) ** 2 + (j - half - y) ** 2 <= radius_px * radius_px:
                total += cut[j, i]
    return total


@njit(nogil=True, cache=True)
def measure(
    frame: Pixels,
    flags: Mask,
    mesh: Mesh,
    found: Ints,
    taps: Pixels,
    fwhm_px: float,
    threshold_sigma: float,
    groups: Groups,
) -> Floats:
    """Stars [star, column] of those peaks that are none of hot pixels and cosmic rays."""
    reach_px, ring_px = 1.5 * fwhm_px, 2.5 * fwhm_px
    half = max(len(taps) - 1 + _NEAR_PX, int(np.ceil(ring_px)), 3)
    cut = np.empty((2 * half + 1, 2 * half + 1))
    stars = np.empty((len(found), N_COLUMNS))
    sigma_px = fwhm_px / 2.3548
    gain = filter_gain(taps)
    n = 0
    for k in range(len(found)):
        x0, y0 = found[k, 0], found[k, 1]
        noise = noise_at(mesh, np.float64(x0), np.float64(y0))
        least = threshold_sigma * noise
        _cut(frame, flags, mesh, x0, y0, cut)
        light = _take_off_pedestal(cut, reach_px, ring_px)
        if _take_out_sharp(cut, len(taps) - 1, least):
            # Without the hit the peak, if there still is one, lies elsewhere.
            dx, dy = _highest(cut, taps)
            if _filtered(cut, taps, dx, dy) < gain * least:
                continue
            x0, y0 = x0 + dx, y0 + dy
            _cut(frame, flags, mesh, x0, y0, cut)
            light = _take_off_pedestal(cut, reach_px, ring_px)
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
        x, y = _centre(cut, sigma_px)
        top_row, top_column = _brightest(cut, int(np.ceil(0.5 * fwhm_px)))
        star = stars[n]
        star[X], star[Y] = x0 + x, y0 + y
        star[FLUX] = _aperture(cut, x, y, reach_px)
        star[PEAK] = cut[top_row, top_column]
        star[SNR] = snr
        star[ELONGATION] = _elongation(cut, x, y, sigma_px)
        star[SHARPNESS] = 1.0 - _neighbour_part(cut, top_row, top_column)
        star[GROUP] = group
        if group >= 0:
            star[FLUX] = max(star[FLUX], groups[5][group])
            star[ELONGATION] = np.nan
            if groups[4][group] > fwhm_px * fwhm_px:
                star[X], star[Y] = groups[2][group], groups[3][group]
        n += 1
    return stars[:n]


@njit(nogil=True, cache=True)
def _light_at(frame: Pixels, flags: Mask, mesh: Mesh, x0: int, y0: int, taps: Pixels) -> float:
    """The filter's value above the background at a pixel of the frame."""
    ny, nx = frame.shape
    reach = len(taps) - 1
    level = level_at(mesh, np.float64(x0), np.float64(y0))
    total = 0.0
    for y in range(max(0, y0 - reach), min(ny, y0 + reach + 1)):
        row, marks, line = frame[y], flags[y], 0.0
        for x in range(max(0, x0 - reach), min(nx, x0 + reach + 1)):
            if not marks[x] & UNUSABLE and abs(row[x]) < np.inf:
                line += taps[abs(x - x0)] * (row[x] - level)
        total += taps[abs(y - y0)] * line
    return total


@njit(nogil=True, cache=True)
def _parted(
    frame: Pixels,
    flags: Mask,
    mesh: Mesh,
    star: Floats,
    other: Floats,
    taps: Pixels,
    step_px: float,
    top: float,
    threshold: float,
) -> bool:
    """Whether the light falls far enough on the way from a star of height `top` to another."""
    far = np.hypot(other[X] - star[X], other[Y] - star[Y])
    steps = max(2, int(np.ceil(far / step_px)))
    noise = noise_at(mesh, star[X], star[Y])
    for k in range(1, steps):
        x = int(np.round(star[X] + (other[X] - star[X]) * k / steps))
        y = int(np.round(star[Y] + (other[Y] - star[Y]) * k / steps))
        light = _light_at(frame, flags, mesh, x, y, taps)
        limit = threshold * np.sqrt(noise * noise + max(light, 0.0))
        if top - light >= max(limit, _LEAST_PROMINENCE * light):
            return True
    return False


@njit(nogil=True, cache=True)
def stand_out(
    frame: Pixels,
    flags: Mask,
    mesh: Mesh,
    stars: Floats,
    taps: Pixels,
    fwhm_px: float,
    threshold_sigma: float,
) -> NDArray[np.bool_]:
    """Which of the ranked stars stand out of the light of every brighter one.

    On the way there must be a point lower by the threshold in units of the noise of sky and
    light there, in electrons, and by a part of that light. Of those in one saturated group the
    first is kept.
    """
    threshold = threshold_sigma * filter_gain(taps)
    keep = np.ones(len(stars), dtype=np.bool_)
    x, y = stars[:, X].copy(), stars[:, Y].copy()
    reach_px = _REACH_FWHM * fwhm_px
    for k in range(len(stars)):
        star = stars[k]
        top = _light_at(frame, flags, mesh, int(np.round(star[X])), int(np.round(star[Y])), taps)
        for other in range(k):
            dx, dy = x[k] - x[other], y[k] - y[other]
            same = star[GROUP] >= 0 and star[GROUP] == stars[other, GROUP]
            reach = reach_px if stars[other, GROUP] < 0 else 2.0 * reach_px
            if not keep[other] or (dx * dx + dy * dy > reach * reach and not same):
                continue
            if same or not _parted(
                frame, flags, mesh, star, stars[other], taps, 0.5 * fwhm_px, top, threshold
            ):
                keep[k] = False
                break
    return keep
