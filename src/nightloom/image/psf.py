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
from nightloom.image.moffat import fit_moffat

_MAX_STEPS = 60
_REACH_SIGMAS = 4.0  # half the box that moments are taken in
_MAX_REACH_PX = 60.0
_CLEAN_SIGMAS = 3.0  # a masked pixel nearer than this spoils the star
_MIN_VARIANCE_PX2 = 0.12  # narrower than any star: one hot pixel
_PIXEL_VARIANCE_PX2 = 1 / 12  # what the pixel's own width adds
_FIT_FWHM, _MIN_FIT_PX = 2.0, 4.0  # radius of the pixels that are fitted


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
    full, close = np.asarray(saturated, dtype=np.bool_), np.asarray(blended, dtype=np.bool_)
    if not full.shape == close.shape == x.shape:
        raise ValueError(f"saturated, blended: {full.shape, close.shape}, but stars: {x.shape}")
    guess = positive("guess_fwhm_px", guess_fwhm_px)
    chosen = np.flatnonzero(~full & ~close & np.isfinite(x) & np.isfinite(y) & np.isfinite(level))
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
    centres = np.ascontiguousarray(moments[:, :2])
    form, elongation, angle_deg = _axes(*np.median(moments[:, 2:], axis=0))
    start = form[3] / SIGMA_PER_FWHM
    reach = max(_FIT_FWHM * start, _MIN_FIT_PX)
    radii, values = _collect(pixels, flags, centres, level, form[:3], reach, elongation)
    fwhm, inverse_beta, settled = fit_moffat(radii, values, start, reach)
    if not settled:
        return _NO_SHAPE
    return PsfShape(fwhm, 1 / inverse_beta, elongation, angle_deg, len(moments))


def radial_profile(
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    x_px: ArrayLike,
    y_px: ArrayLike,
    *,
    background_e: ArrayLike,
    max_radius_px: float,
    bin_px: float,
) -> RadialProfile:
    """Profile of the stars together, each divided by its flux within max_radius_px.

    pixels_e, mask: [y, x]; x_px, y_px, background_e: [star]. Bins without a pixel are NaN.
    Raises ValueError: shapes differ, a length is not finite and above zero.
    """
    pixels, flags = frame_arrays(pixels_e, mask)
    x, y, level = star_vectors(x_px, y_px, background_e)
    reach, step = positive("max_radius_px", max_radius_px), positive("bin_px", bin_px)
    usable = (x > -1) & (x < pixels.shape[1]) & (y > -1) & (y < pixels.shape[0])
    usable &= np.isfinite(level)
    centres = np.stack([x[usable], y[usable]], axis=1)
    radii, values = _collect(pixels, flags, centres, level[usable], (1.0, 0.0, 1.0), reach, 1.0)
    flux = np.nansum(values, axis=1)
    bright = flux > 0
    fractions = values[bright] / flux[bright, None]
    held = np.isfinite(fractions)
    radius, fraction = radii[bright][held], fractions[held]
    n_bins = math.ceil(reach / step)
    places = np.minimum((radius / step).astype(np.int64), n_bins - 1)
    profile = np.full((2, n_bins), np.nan)
    for k in np.unique(places):
        profile[:, k] = radius[places == k].mean(), np.median(fraction[places == k])
    return RadialProfile(profile[0], profile[1], np.bincount(places, minlength=n_bins))


def _alike(moments: Floats) -> NDArray[np.bool_]:
    """Which stars [star] of moments [star, xx xy yy] are of the common size: no hits, galaxies."""
    usable: NDArray[np.bool_] = np.isfinite(moments.sum(axis=1))
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
def _core_sums(pixels: Pixels, x_px: Floats, y_px: Floats, levels: Floats, half: int) -> Floats:
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
    pxx, pxy, pyy = (
        myy / inside - yy / window,
        xy / window - mxy / inside,
        mxx / inside - xx / window,
    )
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
            value = pixels[j, i] - level
            if (mask[j, i] & UNUSABLE) != 0 or not abs(value) < np.inf:
                q = a * dx * dx + 2.0 * b * dx * dy + c * dy * dy
                if q < _CLEAN_SIGMAS * _CLEAN_SIGMAS:
                    return np.nan, 0.0, 0.0, 0.0, 0.0, 0.0
                value = 0.0
            value *= weight
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
    return radii[:, :longest].copy(), values[:, :longest].copy()
