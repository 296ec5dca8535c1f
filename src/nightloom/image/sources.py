"""Sources: what each peak of a frame is, and which of them are stars that stand out."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nightloom.image.calibrate import MASK_SATURATED, Mask, Pixels
from nightloom.image.peaks import UNUSABLE, Floats, Ints, Mesh, filter_gain, level_at, noise_at

# Saturated pixels as sorted y * nx + x, the group of each; x, y, size and light of each group.
Groups: TypeAlias = tuple[Ints, Ints, Floats, Floats, Ints, Floats]

X, Y, FLUX, PEAK, SNR, ELONGATION, SHARPNESS, GROUP = range(8)  # columns of a star
N_COLUMNS = 8

_SHARP = 0.16  # neighbours over the brightest pixel; 0.24 in a centred star of FWHM 1.2 px
_MOST_SHARP_PIXELS = 16  # of one hit of a cosmic ray
_WINDOW_ROUNDS = 10
_LARGEST_SHIFT_PX = 2.0
_CENTRED_PX = 0.002
_REACH_FWHM = 8.0  # how far the light of a brighter star is looked at
_LEAST_PROMINENCE = 0.05  # of the light of the brighter star on which a fainter one stands


@njit(nogil=True, cache=True)
def saturated_groups(frame: Pixels, flags: Mask, mesh: Mesh) -> Groups:
    """Saturated pixels that touch, also at corners, are one group (union by the first pixel)."""
    ny, nx = frame.shape
    keys = np.empty(_count_saturated(flags), dtype=np.int64)
    n = 0
    for y in range(ny):
        marks = flags[y]
        for x in range(nx):
            if marks[x] & MASK_SATURATED and not marks[x] & UNUSABLE:
                keys[n] = y * nx + x
                n += 1
        if n == len(keys):
            break
    keys = keys[:n]
    parent = np.arange(n)
    behind = 0
    for k in range(n):
        if k > 0 and keys[k - 1] == keys[k] - 1 and keys[k] % nx:
            _unite(parent, k - 1, k)
        while keys[behind] < keys[k] - nx - 1:
            behind += 1
        other = behind
        while other < k and keys[other] <= keys[k] - nx + 1:
            if abs(keys[other] % nx - keys[k] % nx) <= 1:
                _unite(parent, other, k)
            other += 1
    groups: Groups = _group_sums(frame, mesh, keys, parent)
    return groups


@njit(nogil=True, cache=True)
def _count_saturated(flags: Mask) -> int:
    total = 0
    for y in range(len(flags)):
        marks = flags[y]
        for x in range(len(marks)):
            total += (marks[x] & MASK_SATURATED) != 0
    return total


@njit(nogil=True, cache=True)
def _root(parent: Ints, k: int) -> int:
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = parent[k]
    return k


@njit(nogil=True, cache=True)
def _unite(parent: Ints, a: int, b: int) -> None:
    first, second = _root(parent, a), _root(parent, b)
    parent[max(first, second)] = min(first, second)


@njit(nogil=True, cache=True)
def _group_sums(frame: Pixels, mesh: Mesh, keys: Ints, parent: Ints) -> Groups:
    n, nx = len(keys), frame.shape[1]
    group = np.empty(n, dtype=np.int64)
    x, y, light = np.zeros(n), np.zeros(n), np.zeros(n)
    size = np.zeros(n, dtype=np.int64)
    for k in range(n):
        root = _root(parent, k)
        group[k] = root
        size[root] += 1
        x[root] += keys[k] % nx
        y[root] += keys[k] // nx
        light[root] += frame[keys[k] // nx, keys[k] % nx] - level_at(
            mesh, np.float64(keys[k] % nx), np.float64(keys[k] // nx)
        )
    for k in range(n):
        if size[k]:
            x[k] /= size[k]
            y[k] /= size[k]
    return keys, group, x, y, size, light


@njit(nogil=True, cache=True)
def _nearest_group(flags: Mask, groups: Groups, x0: int, y0: int, radius_px: float) -> int:
    """Group of the saturated pixel nearest to (x0, y0) within the radius; -1: none."""
    keys, group = groups[0], groups[1]
    ny, nx = flags.shape
    reach = int(radius_px)
    nearest, least = -1, radius_px * radius_px
    if len(keys) == 0:
        return -1
    for y in range(max(0, y0 - reach), min(ny, y0 + reach + 1)):
        for x in range(max(0, x0 - reach), min(nx, x0 + reach + 1)):
            far = (x - x0) ** 2 + (y - y0) ** 2
            marks = flags[y, x]
            if marks & MASK_SATURATED and not marks & UNUSABLE and far <= least:
                least = far - 1e-9
                nearest = group[np.searchsorted(keys, y * nx + x)]
    return nearest


@njit(nogil=True, cache=True)
def _cut(frame: Pixels, flags: Mask, mesh: Mesh, x0: int, y0: int, cut: Floats) -> None:
    """Square around a pixel above the background; 0 off the frame and where not usable."""
    ny, nx = frame.shape
    half = len(cut) // 2
    level = level_at(mesh, np.float64(x0), np.float64(y0))
    slope_x = level_at(mesh, x0 + 1.0, np.float64(y0)) - level
    slope_y = level_at(mesh, np.float64(x0), y0 + 1.0) - level
    cut[:] = 0.0
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
def _take_out_sharp(cut: Floats) -> int:
    """Replace pixels too sharp for a star by the median of their neighbours; how many."""
    near = np.empty(8)
    for n in range(_MOST_SHARP_PIXELS):
        y, x = _brightest(cut, 2)
        if cut[y, x] <= 0 or _neighbour_part(cut, y, x) >= _SHARP:
            return n
        k = 0
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                if dx or dy:
                    near[k] = cut[y + dy, x + dx]
                    k += 1
        near.sort()
        cut[y, x] = min(0.5 * (near[3] + near[4]), 0.5 * cut[y, x])
    return _MOST_SHARP_PIXELS


@njit(nogil=True, cache=True)
def _filtered(cut: Floats, taps: Pixels) -> float:
    """The filter's value at the centre of a square."""
    half, reach = len(cut) // 2, len(taps) - 1
    total = 0.0
    for dy in range(-reach, reach + 1):
        line = 0.0
        for dx in range(-reach, reach + 1):
            line += taps[abs(dx)] * cut[half + dy, half + dx]
        total += taps[abs(dy)] * line
    return total


@njit(nogil=True, cache=True)
def _window(offset: float, sigma_px: float, weights: Floats) -> None:
    """Gaussian window along one side of a square, its centre at an offset from the square's."""
    half = len(weights) // 2
    for k in range(len(weights)):
        weights[k] = np.exp(-0.5 * ((k - half - offset) / sigma_px) ** 2)


@njit(nogil=True, cache=True)
def _centre(cut: Floats, sigma_px: float) -> tuple[float, float]:
    """Windowed centroid from the centre of a square; the centre where it strays.

    Source: SExtractor's XWIN_IMAGE (Bertin): steps of twice the windowed mean.
    """
    half = len(cut) // 2
    reach = min(half, int(np.ceil(3.0 * sigma_px)))
    near = cut[half - reach : half + reach + 1, half - reach : half + reach + 1]
    across, down = np.empty(len(near)), np.empty(len(near))
    x, y = 0.0, 0.0
    for _ in range(_WINDOW_ROUNDS):
        _window(x, sigma_px, across)
        _window(y, sigma_px, down)
        total, mx, my = 0.0, 0.0, 0.0
        for j in range(len(near)):
            line, moment = 0.0, 0.0
            for i in range(len(near)):
                light = across[i] * near[j, i]
                line += light
                moment += light * (i - reach - x)
            total += down[j] * line
            mx += down[j] * moment
            my += down[j] * line * (j - reach - y)
        if total <= 0:
            return 0.0, 0.0
        x, y = x + 2.0 * mx / total, y + 2.0 * my / total
        if not (abs(x) <= _LARGEST_SHIFT_PX and abs(y) <= _LARGEST_SHIFT_PX):
            return 0.0, 0.0
        if 4.0 * (mx * mx + my * my) < (_CENTRED_PX * total) ** 2:
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
    reach_px = 1.5 * fwhm_px
    half = max(len(taps) - 1, int(np.ceil(reach_px)) + 2, 3)
    cut = np.empty((2 * half + 1, 2 * half + 1))
    stars = np.empty((len(found), N_COLUMNS))
    sigma_px = fwhm_px / 2.3548
    gain = filter_gain(taps)
    n = 0
    for k in range(len(found)):
        x0, y0 = found[k, 0], found[k, 1]
        _cut(frame, flags, mesh, x0, y0, cut)
        _take_out_sharp(cut)
        snr = _filtered(cut, taps) / (gain * noise_at(mesh, np.float64(x0), np.float64(y0)))
        if not snr > threshold_sigma:
            continue
        x, y = _centre(cut, sigma_px)
        row, column = _brightest(cut, int(np.ceil(0.5 * fwhm_px)))
        star = stars[n]
        star[X], star[Y] = x0 + x, y0 + y
        star[FLUX] = _aperture(cut, x, y, reach_px)
        star[PEAK] = cut[row, column]
        star[SNR] = snr
        star[ELONGATION] = _elongation(cut, x, y, sigma_px)
        star[SHARPNESS] = 1.0 - _neighbour_part(cut, row, column)
        group = _nearest_group(flags, groups, x0, y0, fwhm_px)
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
    reach_px = _REACH_FWHM * fwhm_px
    for k in range(len(stars)):
        star = stars[k]
        top = star[SNR] * filter_gain(taps) * noise_at(mesh, star[X], star[Y])
        for other in range(k):
            dx, dy = abs(star[X] - stars[other, X]), abs(star[Y] - stars[other, Y])
            same = star[GROUP] >= 0 and star[GROUP] == stars[other, GROUP]
            if not keep[other] or (dx * dx + dy * dy > reach_px * reach_px and not same):
                continue
            if same or not _parted(
                frame, flags, mesh, star, stars[other], taps, 0.5 * fwhm_px, top, threshold
            ):
                keep[k] = False
                break
    return keep


@njit(nogil=True, cache=True)
def near_another(stars: Floats, radius_px: float) -> NDArray[np.bool_]:
    """Which stars have another within the radius."""
    near = np.zeros(len(stars), dtype=np.bool_)
    for k in range(len(stars)):
        for other in range(k):
            dx, dy = stars[k, X] - stars[other, X], stars[k, Y] - stars[other, Y]
            if dx * dx + dy * dy <= radius_px * radius_px:
                near[k] = near[other] = True
    return near
