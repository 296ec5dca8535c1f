"""The shape of stars in a frame: width, wings and elongation, from its clean stars together."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nightloom.image.aperture import UNUSABLE, Floats, frame_arrays, positive, star_vectors
from nightloom.image.calibrate import Mask, Pixels
from nightloom.image.centroid import SIGMA_PER_FWHM

_MAX_STEPS = 60
_REACH_SIGMAS = 4.0  # half the box that moments are taken in
_MAX_REACH_PX = 60.0
_CLEAN_SIGMAS = 3.0  # a masked pixel nearer than this spoils the star
_MIN_VARIANCE_PX2 = 0.12  # narrower than any star: one hot pixel
_PIXEL_VARIANCE_PX2 = 1 / 12  # what the pixel's own width adds
_FIT_FWHM, _MIN_FIT_PX = 2.0, 4.0  # radius of the pixels that are fitted
_TABLE = 256
_GAUSS_POINT = 0.5 / math.sqrt(3)  # two points a side integrate a pixel to third order
_MIN_INVERSE_BETA, _MAX_INVERSE_BETA = 0.02, 0.8
_MAX_FITS = 40


@dataclass(frozen=True, slots=True)
class PsfShape:
    """The stars' Moffat profile before the pixels blur it; NaN and n_stars 0 where none is usable.

    fwhm_px: geometric mean of both axes; beta: up to 50, where it is a Gaussian; elongation:
    major over minor axis; angle_deg: of the major axis, from x to y, above -90 up to 90.
    """

    fwhm_px: float
    beta: float
    elongation: float
    angle_deg: float
    n_stars: int


@dataclass(frozen=True, slots=True)
class RadialProfile:
    """Arrays [bin]: mean radius, median of the part of a star's flux in one pixel, pixels."""

    radius_px: Floats
    fraction: Floats
    n_pixels: NDArray[np.int64]


_NO_SHAPE = PsfShape(math.nan, math.nan, math.nan, math.nan, 0)


def measure_psf(
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    x_px: ArrayLike,
    y_px: ArrayLike,
    *,
    background_e: ArrayLike,
    saturated: ArrayLike,
    blended: ArrayLike,
    guess_fwhm_px: float = 4.0,
    max_stars: int = 50,
) -> PsfShape:
    """Moffat shape of the brightest stars that are neither saturated, blended nor masked.

    pixels_e, mask: [y, x]; the others [star], of any scale of flux. Axes from adaptive moments
    (Bernstein & Jarvis 2002), the median over stars; width and wings from one robust fit to the
    pixels of all stars whose size agrees with the others'.
    Raises ValueError: shapes differ, guess_fwhm_px or max_stars not above zero.
    """
    pixels, flags = frame_arrays(pixels_e, mask)
    x, y, level = star_vectors(x_px, y_px, background_e)
    spoilt = np.asarray(saturated, dtype=np.bool_) | np.asarray(blended, dtype=np.bool_)
    if spoilt.shape != x.shape:
        raise ValueError(f"saturated and blended must be [star] of {x.shape}, not {spoilt.shape}")
    guess = positive("guess_fwhm_px", guess_fwhm_px)
    chosen = np.flatnonzero(~spoilt & np.isfinite(x) & np.isfinite(y) & np.isfinite(level))
    core = _core_sums(pixels, x[chosen], y[chosen], level[chosen], max(1, round(guess / 2)))
    order = np.argsort(-core, kind="stable")[: int(positive("max_stars", max_stars))]
    chosen = chosen[order[core[order] > 0]]
    moments = _adaptive(
        pixels, flags, x[chosen], y[chosen], level[chosen], (guess * SIGMA_PER_FWHM) ** 2
    )
    usable = _alike(moments[:, 2:])
    if not usable.any():
        return _NO_SHAPE
    moments, level = moments[usable], level[chosen][usable]
    form, elongation, angle_deg = _axes(*np.median(moments[:, 2:], axis=0))
    start = form[3] / SIGMA_PER_FWHM
    reach = max(_FIT_FWHM * start, _MIN_FIT_PX)
    radii, values = _collect(pixels, flags, moments[:, :2], level, form[:3], reach, elongation)
    fwhm, inverse_beta, settled = _fit(radii, values, start, reach)
    if not settled:
        return _NO_SHAPE
    return PsfShape(fwhm, 1 / inverse_beta, elongation, angle_deg, len(moments))


def _alike(moments: Floats) -> NDArray[np.bool_]:
    """Which stars [star] of moments [star, xx xy yy] are of the common size: no hits, galaxies."""
    usable = np.isfinite(moments).all(axis=1)
    if not usable.any():
        return usable
    xx, xy, yy = moments[usable].T
    size = 0.25 * np.log(xx * yy - xy * xy)
    away = np.abs(size - np.median(size))
    usable[usable] = away <= 3 * max(1.4826 * float(np.median(away)), 0.02)
    return usable


def _axes(
    xx: float, xy: float, yy: float
) -> tuple[tuple[float, float, float, float], float, float]:
    """Form of the radius squared (xx, xy, yy) with its mean sigma; elongation; angle in degrees."""
    xx, yy = xx - _PIXEL_VARIANCE_PX2, yy - _PIXEL_VARIANCE_PX2
    mean, half = 0.5 * (xx + yy), math.hypot(0.5 * (xx - yy), xy)
    major, minor = mean + half, max(mean - half, 0.25 * _MIN_VARIANCE_PX2)
    angle = 0.5 * math.atan2(2 * xy, xx - yy)
    size = math.sqrt(major * minor)
    cosine, sine = math.cos(angle), math.sin(angle)
    form = (
        size * (cosine**2 / major + sine**2 / minor),
        size * (1 / major - 1 / minor) * sine * cosine,
        size * (sine**2 / major + cosine**2 / minor),
        math.sqrt(size),
    )
    return form, math.sqrt(major / minor), math.degrees(angle)


@njit(nogil=True, cache=True)
def _core_sums(
    pixels: Pixels, x_px: Floats, y_px: Floats, levels: Floats, half: int
) -> Floats:
    """Sum above the level in a square about each star; NaN where it is not within the frame."""
    ny, nx = pixels.shape
    sums = np.full(x_px.size, np.nan)
    for star in range(x_px.size):
        x, y = np.rint(x_px[star]), np.rint(y_px[star])
        if half <= x < nx - half and half <= y < ny - half:
            total = 0.0
            for j in range(int(y) - half, int(y) + half + 1):
                for i in range(int(x) - half, int(x) + half + 1):
                    total += pixels[j, i] - levels[star]
            sums[star] = total
    return sums


@njit(nogil=True, cache=True)
def _adaptive(
    pixels: Pixels, mask: Mask, x_px: Floats, y_px: Floats, levels: Floats, variance: float
) -> Floats:
    """x, y, xx, xy, yy [star, 5] of the Gaussian that is its own best window; NaN without one."""
    found = np.full((x_px.size, 5), np.nan)
    for star in range(x_px.size):
        x, y = x_px[star], y_px[star]
        xx, xy, yy = variance, 0.0, variance
        for _ in range(_MAX_STEPS):
            flux, dx, dy, mxx, mxy, myy = _moments(pixels, mask, x, y, levels[star], xx, xy, yy)
            inside = mxx * myy - mxy * mxy
            if not (flux > 0.0 and inside > 0.0 and mxx > 0.0):
                break
            nxx, nxy, nyy = _without_window(mxx, mxy, myy, xx, xy, yy)
            x, y = x + 2.0 * dx, y + 2.0 * dy
            change = abs(nxx - xx) + abs(nyy - yy) + 2.0 * abs(nxy - xy)
            xx, xy, yy = nxx, nxy, nyy
            smallest = 0.5 * (xx + yy) - math.hypot(0.5 * (xx - yy), xy)
            wandered = math.hypot(x - x_px[star], y - y_px[star]) > 2.0 * math.sqrt(variance) + 1.0
            if wandered or not smallest > _MIN_VARIANCE_PX2:
                break
            if change < 1e-3 * (xx + yy):
                found[star] = np.array((x, y, xx, xy, yy))
                break
    return found


@njit(nogil=True, cache=True)
def _without_window(
    mxx: float, mxy: float, myy: float, xx: float, xy: float, yy: float
) -> tuple[float, float, float]:
    """Covariance of a Gaussian whose moments under the window (xx, xy, yy) are (mxx, mxy, myy)."""
    inside, window = mxx * myy - mxy * mxy, xx * yy - xy * xy
    pxx, pxy, pyy = myy / inside - yy / window, xy / window - mxy / inside, mxx / inside - xx / window
    precision = pxx * pyy - pxy * pxy
    # Far from the window, or for no Gaussian at all, the inverse runs off: then step by factors.
    if pxx > 0.0 and precision * window > 1 / 16:
        return pyy / precision, -pxy / precision, pxx / precision
    return 2.0 * mxx, 2.0 * mxy, 2.0 * myy


@njit(nogil=True, cache=True)
def _moments(
    pixels: Pixels,
    mask: Mask,
    x: float,
    y: float,
    level: float,
    xx: float,
    xy: float,
    yy: float,
) -> tuple[float, float, float, float, float, float]:
    """Flux, centroid and central second moments under a Gaussian window; flux NaN if not clean."""
    ny, nx = pixels.shape
    determinant = xx * yy - xy * xy
    a, b, c = yy / determinant, -xy / determinant, xx / determinant
    reach_x, reach_y = _REACH_SIGMAS * math.sqrt(xx), _REACH_SIGMAS * math.sqrt(yy)
    left, right = np.ceil(x - reach_x), np.floor(x + reach_x)
    low, high = np.ceil(y - reach_y), np.floor(y + reach_y)
    f = fx = fy = fxx = fxy = fyy = 0.0
    off = left < 0 or low < 0 or right > nx - 1 or high > ny - 1
    if off or not max(reach_x, reach_y) <= _MAX_REACH_PX:
        return np.nan, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(int(low), int(high) + 1):
        dy, dx = j - y, left - x
        # exp of a quadratic along the row: by two products a pixel
        weight = math.exp(-0.5 * (a * dx * dx + 2.0 * b * dx * dy + c * dy * dy))
        ratio, growth = math.exp(-0.5 * a * (2.0 * dx + 1.0) - b * dy), math.exp(-a)
        for i in range(int(left), int(right) + 1):
            dx = i - x
            value = np.float64(pixels[j, i])
            if (mask[j, i] & UNUSABLE) != 0 or not abs(value) < np.inf:
                q = a * dx * dx + 2.0 * b * dx * dy + c * dy * dy
                if q < _CLEAN_SIGMAS * _CLEAN_SIGMAS:
                    return np.nan, 0.0, 0.0, 0.0, 0.0, 0.0
                value = level
            value = (value - level) * weight
            f, fx, fy = f + value, fx + value * dx, fy + value * dy
            fxx, fxy, fyy = fxx + value * dx * dx, fxy + value * dx * dy, fyy + value * dy * dy
            weight *= ratio
            ratio *= growth
    if not f > 0.0:
        return np.nan, 0.0, 0.0, 0.0, 0.0, 0.0
    mx, my = fx / f, fy / f
    return f, mx, my, fxx / f - mx * mx, fxy / f - mx * my, fyy / f - my * my


@njit(nogil=True, cache=True)
def _collect(
    pixels: Pixels,
    mask: Mask,
    centres: Floats,
    levels: Floats,
    form: tuple[float, float, float],
    reach: float,
    elongation: float,
) -> tuple[Floats, Floats]:
    """Elliptical radii and values above the level [star, pixel] of good pixels; NaN fills up."""
    ny, nx = pixels.shape
    a, b, c = form
    wide = reach * math.sqrt(elongation)
    side = 2 * int(wide) + 3
    radii = np.full((centres.shape[0], side * side), np.nan)
    values = np.full((centres.shape[0], side * side), np.nan)
    longest = 0
    for star in range(centres.shape[0]):
        x, y = centres[star]
        n = 0
        for j in range(max(0, int(np.ceil(y - wide))), min(ny - 1, int(y + wide)) + 1):
            for i in range(max(0, int(np.ceil(x - wide))), min(nx - 1, int(x + wide)) + 1):
                dx, dy = i - x, j - y
                square = a * dx * dx + 2.0 * b * dx * dy + c * dy * dy
                value = np.float64(pixels[j, i])
                good = (mask[j, i] & UNUSABLE) == 0 and abs(value) < np.inf
                if good and square < reach * reach:
                    radii[star, n], values[star, n] = math.sqrt(square), value - levels[star]
                    n += 1
        longest = max(longest, n)
    return radii[:, :longest], values[:, :longest]


@njit(nogil=True, cache=True)
def _profiles(fwhm: float, inverse_beta: float, reach: float) -> Floats:
    """Moffat of peak 1 averaged over a pixel, and its slopes in ln(fwhm) and 1/beta [3, radius].

    Rows run over radii from 0 to `reach`, evenly. The pixel lies at 22.5 degrees to the radius,
    where its corners weigh as they do on average.
    """
    table = np.zeros((3, _TABLE + 2))
    power = 2.0**inverse_beta
    scale = 4.0 * (power - 1.0) / (fwhm * fwhm)
    growth = 4.0 * math.log(2.0) * power / (fwhm * fwhm)
    cosine, sine = math.cos(math.pi / 8), math.sin(math.pi / 8)
    for k in range(_TABLE + 2):
        radius = reach * k / _TABLE
        for corner in range(4):
            px = radius * cosine + (_GAUSS_POINT if corner & 1 else -_GAUSS_POINT)
            py = radius * sine + (_GAUSS_POINT if corner & 2 else -_GAUSS_POINT)
            square = px * px + py * py
            q = 1.0 + scale * square
            logarithm = math.log(q)
            value = 0.25 * math.exp(-logarithm / inverse_beta)
            table[0, k] += value
            table[1, k] += value * 2.0 * (q - 1.0) / (q * inverse_beta)
            slope = logarithm / inverse_beta - growth * square / q
            table[2, k] += value * slope / inverse_beta
    return table


@njit(nogil=True, cache=True)
def _fit(
    radii: Floats, values: Floats, fwhm: float, reach: float
) -> tuple[float, float, bool]:
    """FWHM and 1/beta by robust Gauss-Newton, each star with its own peak; whether it settled."""
    inverse_beta = 0.3
    scales = np.full((values.shape[0], 2), np.inf)  # peak and scatter (of the peak) of each star
    scales[:, 0] = 1.0
    for step in range(_MAX_FITS):
        table = _profiles(fwhm, inverse_beta, reach)
        g0 = g1 = n00 = n01 = n11 = 0.0
        for star in range(values.shape[0]):
            s = _star_equations(radii[star], values[star], table, _TABLE / reach, scales[star])
            g0, g1, n00, n01, n11 = g0 + s[0], g1 + s[1], n00 + s[2], n01 + s[3], n11 + s[4]
        if not (n00 > 0.0 and n11 > 0.0):
            return fwhm, inverse_beta, False
        determinant = n00 * n11 * (1.0 + 1e-6) - n01 * n01
        wider, winged = (n11 * g0 - n01 * g1) / determinant, (n00 * g1 - n01 * g0) / determinant
        target = min(max(inverse_beta + winged, _MIN_INVERSE_BETA), _MAX_INVERSE_BETA)
        if target != inverse_beta + winged:  # at a limit: the best width for that
            wider = (g0 - n01 * (target - inverse_beta)) / n00
        wider = min(max(wider, -0.3), 0.3)
        winged = min(max(target - inverse_beta, -0.15), 0.15)
        fwhm, inverse_beta = fwhm * math.exp(wider), inverse_beta + winged
        if step > 2 and abs(wider) < 2e-4 and abs(winged) < 2e-3:
            return fwhm, inverse_beta, True
    return fwhm, inverse_beta, False


@njit(nogil=True, cache=True)
def _star_equations(
    radii: Floats, values: Floats, table: Floats, per_px: float, scales: Floats
) -> tuple[float, float, float, float, float]:
    """One star's part of the normal equations, its peak solved for; renews `scales`."""
    peak, scatter = scales
    tt = t0 = t1 = tv = v0 = v1 = j00 = j01 = j11 = 0.0
    for i in range(radii.size):
        if math.isnan(radii[i]):
            break
        place = radii[i] * per_px
        k = int(place)
        part = place - k
        t = table[0, k] + part * (table[0, k + 1] - table[0, k])
        a = table[1, k] + part * (table[1, k + 1] - table[1, k])
        b = table[2, k] + part * (table[2, k + 1] - table[2, k])
        # Hits and neighbours stand out from the scatter and from what the profile may be wrong by.
        excess = (values[i] / peak - t) / (3.0 * (scatter + 0.03 * t))
        weight = 1.0 / (1.0 + excess * excess) ** 2
        ta, tb = weight * a, weight * b
        tt, t0, t1 = tt + weight * t * t, t0 + ta * t, t1 + tb * t
        tv, v0, v1 = tv + weight * t * values[i], v0 + ta * values[i], v1 + tb * values[i]
        j00, j01, j11 = j00 + ta * a, j01 + ta * b, j11 + tb * b
    if not tv > 0.0:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    peak = tv / tt
    scatter = _scatter(radii, values, table, per_px, peak)
    scales[0], scales[1] = peak, scatter
    weight = 1.0 / (scatter * scatter + 1e-4)
    return (
        weight * (v0 / peak - t0),
        weight * (v1 / peak - t1),
        weight * (j00 - t0 * t0 / tt),
        weight * (j01 - t0 * t1 / tt),
        weight * (j11 - t1 * t1 / tt),
    )


@njit(nogil=True, cache=True)
def _scatter(radii: Floats, values: Floats, table: Floats, per_px: float, peak: float) -> float:
    """Robust deviation of a star's pixels from the profile, in units of its peak."""
    away = np.empty(radii.size)
    n = 0
    for i in range(radii.size):
        if math.isnan(radii[i]):
            break
        place = radii[i] * per_px
        k = int(place)
        t = table[0, k] + (place - k) * (table[0, k + 1] - table[0, k])
        away[n] = abs(values[i] / peak - t)
        n += 1
    return 1.4826 * np.median(away[:n])
