"""Positions of stars by a fit of pixel-integrated Gaussians to their 15x15 cutouts.

A position that can't be had is the one given, with `ok` false: the caller flags it.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nightloom.image.aperture import Floats, frame_arrays, positive, star_vectors
from nightloom.image.calibrate import Mask, Pixels
from nightloom.image.centroid import SIGMA_PER_FWHM, Centroids
from nightloom.image.cutout import corner, cut, starts

SIDE = 15
HALF = SIDE // 2

_MIN_PIXELS = SIDE * SIDE // 3
_ROUNDS = 3  # equal weights; then twice a cutout about the place found, weighted by its noise
_MAX_STEPS = 20
_STEP_PX = 1e-4
_LOG_WIDTH_ERROR = 0.3  # how well the frame's width is known to be a star's: 30 %
_MIN_DAMPING, _MAX_DAMPING = 1e-4, 1e6
_MIN_SIGNIFICANCE = 3.0
_FLUX, _X, _Y, _LOG_SIGMA, _LEVEL = range(5)


def gaussian2d(
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    x_px: ArrayLike,
    y_px: ArrayLike,
    *,
    background_e: ArrayLike,
    fwhm_px: float,
    max_shift_px: float,
) -> Centroids:
    """Centres of round Gaussians on a flat level, fitted by Levenberg-Marquardt to 15x15 pixels.

    pixels_e, mask: [y, x]; x_px, y_px, background_e: [star]. Flux, centre, width and level are
    free, the width held near fwhm_px; weights from photons, sky and scatter about the model.
    Masked pixels are left out. Not ok: under 75 good pixels, below three sigma, strayed beyond
    max_shift_px, did not settle, no start within the frame.
    Raises ValueError: shapes differ, a length is not finite and above zero.
    """
    pixels, flags = frame_arrays(pixels_e, mask)
    x, y, level = star_vectors(x_px, y_px, background_e)
    sigma_px = positive("fwhm_px", fwhm_px) * SIGMA_PER_FWHM
    reach = positive("max_shift_px", max_shift_px)
    found = Centroids(x_px=x.copy(), y_px=y.copy(), ok=np.zeros(len(x), dtype=np.bool_))
    _fit_all(pixels, flags, x, y, level, sigma_px, reach, found.x_px, found.y_px, found.ok)
    return found


@njit(nogil=True, cache=True)
def _fit_all(
    pixels: Pixels,
    mask: Mask,
    x_px: Floats,
    y_px: Floats,
    levels: Floats,
    sigma: float,
    max_shift: float,
    found_x: Floats,
    found_y: Floats,
    ok: NDArray[np.bool_],
) -> None:
    ny, nx = pixels.shape
    cutout = np.empty((2, SIDE, SIDE))  # values and their weights
    work = np.empty((2, 3, SIDE))
    for star in range(x_px.size):
        x, y, level = x_px[star], y_px[star], levels[star]
        if not starts(x, y, level, ny, nx):
            continue
        p = _fit_star(pixels, mask, x, y, level, sigma, max_shift, cutout, work)
        if math.hypot(p[_X] - x, p[_Y] - y) <= max_shift:
            found_x[star], found_y[star], ok[star] = p[_X], p[_Y], True


@njit(nogil=True, cache=True)
def _fit_star(
    pixels: Pixels,
    mask: Mask,
    x: float,
    y: float,
    level: float,
    sigma: float,
    max_shift: float,
    cutout: Floats,
    work: Floats,
) -> Floats:
    """Flux, x, y, log of sigma and level; NaN where they can't be had."""
    lost = np.full(5, np.nan)
    x, y, peak = _brightest(pixels, mask, x, y, min(max_shift, HALF))
    log_sigma = math.log(sigma)
    p = np.array([(peak - level) * 2.0 * math.pi * (sigma * sigma + 0.1), x, y, log_sigma, level])
    if not p[_FLUX] > 0.0:
        return lost
    sky = max(level, 0.0)
    for turn in range(_ROUNDS):
        left, low = corner(p[_X], HALF), corner(p[_Y], HALF)
        if cut(pixels, mask, left, low, 0.0, cutout[0]) < _MIN_PIXELS:
            return lost
        _equal_weights(cutout)
        if turn == 0:
            cutout[1] /= sky + 0.5 * (peak - level)
        else:
            _weigh(p, left, low, sky, cutout, work)
        if not _settle(p, left, low, log_sigma, cutout, work):
            return lost
        if abs(p[_X] - left - HALF) > HALF or abs(p[_Y] - low - HALF) > HALF:
            return lost
    return p if _significance(p, left, low, cutout, work) >= _MIN_SIGNIFICANCE else lost


@njit(nogil=True, cache=True)
def _brightest(
    pixels: Pixels, mask: Mask, x: float, y: float, reach: float
) -> tuple[float, float, float]:
    """Place and value of the highest mean of 3x3 good pixels within reach; else the start's."""
    wide = int(reach + 0.5)
    left, low = corner(x, wide), corner(y, wide)
    square = np.empty((2 * wide + 3, 2 * wide + 3))  # one pixel more on each side
    cut(pixels, mask, left - 1, low - 1, 0.0, square)
    best_x, best_y, best = x, y, -np.inf
    for j in range(2 * wide + 1):
        for i in range(2 * wide + 1):
            total, n = 0.0, 0
            for v in range(j, j + 3):
                for u in range(i, i + 3):
                    if not math.isnan(square[v, u]):
                        total, n = total + square[v, u], n + 1
            if n > 0 and total > best * n:
                best, best_x, best_y = total / n, float(left + i), float(low + j)
    return best_x, best_y, best


@njit(nogil=True, cache=True)
def _equal_weights(cutout: Floats) -> None:
    """Weight 1 for every value, or 0 with weight 0 where there is no good pixel."""
    for j in range(SIDE):
        for i in range(SIDE):
            lost = math.isnan(cutout[0, j, i])
            cutout[1, j, i] = 0.0 if lost else 1.0
            if lost:
                cutout[0, j, i] = 0.0


@njit(nogil=True, cache=True)
def _weigh(p: Floats, left: int, low: int, sky: float, cutout: Floats, work: Floats) -> None:
    """Weights of good pixels: one over the variance of sky and of the model's photons.

    Where the pixels scatter by more than that about the model, read noise, another gain or wings
    that are no Gaussian's, the rest is taken as one more sky: weights grow equal.
    """
    _axis(p[_X] - left, p[_LOG_SIGMA], work[0])
    _axis(p[_Y] - low, p[_LOG_SIGMA], work[1])
    excess, n = 0.0, 0
    for j in range(SIDE):
        for i in range(SIDE):
            if cutout[1, j, i] > 0.0:
                signal = p[_FLUX] * work[0, 0, i] * work[1, 0, j]
                excess += (cutout[0, j, i] - signal - p[_LEVEL]) ** 2 - signal
                n += 1
    base = max(sky, excess / n, 1e-6 * p[_FLUX], 1e-30)
    for j in range(SIDE):
        for i in range(SIDE):
            if cutout[1, j, i] > 0.0:
                signal = p[_FLUX] * work[0, 0, i] * work[1, 0, j]
                cutout[1, j, i] = 1.0 / (base + signal)


@njit(nogil=True, cache=True)
def _settle(p: Floats, left: int, low: int, log_sigma: float, cutout: Floats, work: Floats) -> bool:
    """Levenberg-Marquardt steps of p in place; whether the centre came to rest."""
    matrix, slope = np.empty((5, 5)), np.empty(5)
    scratch_matrix, scratch_slope = np.empty((5, 5)), np.empty(5)
    cost = _normal(p, left, low, log_sigma, cutout, work, matrix, slope)
    damping = 1e-3
    for _ in range(_MAX_STEPS):
        step = _solve(matrix, slope, damping)
        trial = p + step
        resting = math.hypot(step[_X], step[_Y]) < _STEP_PX and abs(step[_LOG_SIGMA]) < 1e-2
        new = np.inf
        if trial[_FLUX] > 0.0 and abs(step[_LOG_SIGMA]) < 2.0:
            new = _normal(trial, left, low, log_sigma, cutout, work, scratch_matrix, scratch_slope)
        if new <= cost:
            p[:], matrix[:], slope[:], cost = trial, scratch_matrix, scratch_slope, new
            damping = max(damping * 0.1, _MIN_DAMPING)
        else:
            damping *= 10.0
        if resting and (new <= cost or damping > 1.0):
            return True
        if damping > _MAX_DAMPING:
            return False
    return False


@njit(nogil=True, cache=True)
def _normal(
    p: Floats,
    left: int,
    low: int,
    log_sigma: float,
    cutout: Floats,
    work: Floats,
    matrix: Floats,
    slope: Floats,
) -> float:
    """Half the Hessian and minus half the gradient of chi squared, which is returned."""
    _axis(p[_X] - left, p[_LOG_SIGMA], work[0])
    _axis(p[_Y] - low, p[_LOG_SIGMA], work[1])
    matrix[:] = 0.0
    slope[:] = 0.0
    flux: float = p[_FLUX]
    cost = 0.0
    d = np.ones(5)
    for j in range(SIDE):
        uy, sy, wy = work[1, 0, j], work[1, 1, j], work[1, 2, j]
        for i in range(SIDE):
            weight = cutout[1, j, i]
            if weight == 0.0:
                continue
            ux = work[0, 0, i]
            d[_FLUX] = ux * uy
            d[_X], d[_Y] = flux * work[0, 1, i] * uy, flux * ux * sy
            d[_LOG_SIGMA] = flux * (work[0, 2, i] * uy + ux * wy)
            rest = cutout[0, j, i] - flux * ux * uy - p[_LEVEL]
            cost += weight * rest * rest
            for a in range(5):
                wd = weight * d[a]
                slope[a] += wd * rest
                for b in range(a + 1):
                    matrix[a, b] += wd * d[b]
    tight = 1.0 / _LOG_WIDTH_ERROR**2
    off = log_sigma - p[_LOG_SIGMA]
    matrix[_LOG_SIGMA, _LOG_SIGMA] += tight
    slope[_LOG_SIGMA] += tight * off
    chi_squared: float = cost + tight * off * off
    return chi_squared


@njit(nogil=True, cache=True)
def _axis(centre: float, log_sigma: float, out: Floats) -> None:
    """Shares of a Gaussian in each pixel of a row, their slopes by centre and log of sigma."""
    sigma = math.exp(log_sigma)
    norm = 1.0 / (sigma * math.sqrt(2.0 * math.pi))
    t = -0.5 - centre
    area, height = (
        0.5 * math.erf(t / (sigma * math.sqrt(2.0))),
        norm * math.exp(-0.5 * (t / sigma) ** 2),
    )
    for i in range(SIDE):
        t1 = t + 1.0
        area1 = 0.5 * math.erf(t1 / (sigma * math.sqrt(2.0)))
        height1 = norm * math.exp(-0.5 * (t1 / sigma) ** 2)
        out[0, i], out[1, i], out[2, i] = area1 - area, height - height1, t * height - t1 * height1
        t, area, height = t1, area1, height1


@njit(nogil=True, cache=True)
def _solve(matrix: Floats, slope: Floats, damping: float) -> Floats:
    """Step of the damped normal equations, by Cholesky; NaN where they are singular."""
    lower, step = np.zeros((5, 5)), np.empty(5)
    for a in range(5):
        for b in range(a + 1):
            total = matrix[a, b] * (1.0 + damping) if a == b else matrix[a, b]
            for k in range(b):
                total -= lower[a, k] * lower[b, k]
            if a > b:
                lower[a, b] = total / lower[b, b]
            elif total > 0.0:
                lower[a, a] = math.sqrt(total)
            else:
                return np.full(5, np.nan)
    for a in range(5):
        total = slope[a]
        for k in range(a):
            total -= lower[a, k] * step[k]
        step[a] = total / lower[a, a]
    for a in range(4, -1, -1):
        total = step[a]
        for k in range(a + 1, 5):
            total -= lower[k, a] * step[k]
        step[a] = total / lower[a, a]
    return step


@njit(nogil=True, cache=True)
def _significance(p: Floats, left: int, low: int, cutout: Floats, work: Floats) -> float:
    """Flux over its error, were all else known."""
    _axis(p[_X] - left, p[_LOG_SIGMA], work[0])
    _axis(p[_Y] - low, p[_LOG_SIGMA], work[1])
    total = 0.0
    for j in range(SIDE):
        for i in range(SIDE):
            total += cutout[1, j, i] * (work[0, 0, i] * work[1, 0, j]) ** 2
    significance: float = math.sqrt(total) * p[_FLUX]
    return significance
