"""Positions of stars from their pixels: windowed, and quadratic about the smoothed peak.

A position that can't be had is the one given, with `ok` false: the caller flags it.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nightloom.image.aperture import Floats, frame_arrays, positive, star_vectors
from nightloom.image.calibrate import Mask, Pixels
from nightloom.image.cutout import corner, cut, good, mirrored, starts

SIGMA_PER_FWHM = 1 / (2 * math.sqrt(2 * math.log(2)))

_WINDOW_SIGMAS = 4.0
_MIN_SIGMA_PX = 0.9  # narrower windows are sampled too coarsely: 0.02 px of bias at FWHM 1.8
_MAX_STEPS = 30
_STEP_PX = 1e-4
_KERNEL_SIGMAS = 2.5


@dataclass(frozen=True, slots=True)
class Centroids:
    """Arrays [star]: float64 positions, and whether they were measured (else the start)."""

    x_px: Floats
    y_px: Floats
    ok: NDArray[np.bool_]


def windowed(
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    x_px: ArrayLike,
    y_px: ArrayLike,
    *,
    background_e: ArrayLike,
    fwhm_px: float,
    max_shift_px: float,
) -> Centroids:
    """Centroids under a Gaussian window of fwhm_px, at least 2.1 px, iterated to 1e-4 px.

    pixels_e, mask: [y, x]; x_px, y_px, background_e: [star]. A pixel that is masked or off the
    frame is replaced by its mirror image about the centre, or left out where that is lost too.
    Not ok: no flux, strayed beyond max_shift_px, did not settle, no start within the frame.
    Raises ValueError: shapes differ, a length is not finite and above zero.
    Source: XWIN_IMAGE of SExtractor (Bertin & Arnouts 1996 and its manual).
    """
    return _measure(_window_all, pixels_e, mask, x_px, y_px, background_e, fwhm_px, max_shift_px)


def quadratic(
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    x_px: ArrayLike,
    y_px: ArrayLike,
    *,
    background_e: ArrayLike,
    fwhm_px: float,
    max_shift_px: float,
) -> Centroids:
    """Peaks of a quadratic through the logarithm of 3x3 pixels about the smoothed maximum.

    As windowed; smoothed with a Gaussian of fwhm_px, whose logarithm is a quadratic: without it
    narrow stars are pulled towards the centres of pixels. Masked pixels are left out.
    Not ok: no flux, maximum beyond max_shift_px, no start within the frame.
    Raises ValueError: shapes differ, a length is not finite and above zero.
    """
    return _measure(_fit_all, pixels_e, mask, x_px, y_px, background_e, fwhm_px, max_shift_px)


def _measure(
    kernel: Any,
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    x_px: ArrayLike,
    y_px: ArrayLike,
    background_e: ArrayLike,
    fwhm_px: float,
    max_shift_px: float,
) -> Centroids:
    pixels, flags = frame_arrays(pixels_e, mask)
    x, y, level = star_vectors(x_px, y_px, background_e)
    sigma_px = positive("fwhm_px", fwhm_px) * SIGMA_PER_FWHM
    reach = positive("max_shift_px", max_shift_px)
    found = Centroids(x_px=x.copy(), y_px=y.copy(), ok=np.zeros(len(x), dtype=np.bool_))
    kernel(pixels, flags, x, y, level, sigma_px, reach, found.x_px, found.y_px, found.ok)
    return found


@njit(nogil=True, cache=True)
def _window_all(
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
    sigma = max(sigma, _MIN_SIGMA_PX)
    weights = np.empty(2 * int(_WINDOW_SIGMAS * sigma) + 4)
    for star in range(x_px.size):
        x, y = x_px[star], y_px[star]
        if not starts(x, y, levels[star], pixels.shape[0], pixels.shape[1]):
            continue
        for _ in range(_MAX_STEPS):
            flux, dx, dy = _first_moments(pixels, mask, x, y, levels[star], sigma, weights)
            if not flux > 0.0:
                break
            dx, dy = dx / flux, dy / flux
            # The window pulls the moment of a star of its own width back by half: twice the step.
            x, y = x + 2.0 * dx, y + 2.0 * dy
            if not math.hypot(x - x_px[star], y - y_px[star]) <= max_shift:
                break
            if 4.0 * (dx * dx + dy * dy) < _STEP_PX * _STEP_PX:
                found_x[star], found_y[star], ok[star] = x, y, True
                break


@njit(nogil=True, cache=True)
def _first_moments(
    pixels: Pixels,
    mask: Mask,
    x: float,
    y: float,
    level: float,
    sigma: float,
    weights: Floats,
) -> tuple[float, float, float]:
    """Flux and first moments under the window, read from the frame: it moves at every step."""
    ny, nx = pixels.shape
    reach, scale = _WINDOW_SIGMAS * sigma, -0.5 / (sigma * sigma)
    left, right = int(np.floor(x - reach + 0.5)), int(np.floor(x + reach + 0.5))
    low, high = int(np.floor(y - reach + 0.5)), int(np.floor(y + reach + 0.5))
    for i in range(left, right + 1):
        weights[i - left] = math.exp(scale * (i - x) ** 2)
    inner, outer = max(reach - 0.5, 0.0) ** 2, (reach + 0.5) ** 2
    flux = moment_x = moment_y = 0.0
    for j in range(low, high + 1):
        dy = j - y
        row = row_x = 0.0
        for i in range(left, right + 1):
            dx = i - x
            d2 = dx * dx + dy * dy
            if d2 >= outer:
                continue
            if 0 <= i < nx and 0 <= j < ny and good(pixels, mask, j, i):
                value = np.float64(pixels[j, i])
            else:
                value = mirrored(pixels, mask, 2.0 * x - i, 2.0 * y - j)
                if math.isnan(value):
                    continue
            value = (value - level) * weights[i - left]
            if d2 > inner:  # pixels on the rim count by about what of them lies inside
                value *= reach + 0.5 - math.sqrt(d2)
            row += value
            row_x += value * dx
        weight = math.exp(scale * dy * dy)
        flux += weight * row
        moment_x += weight * row_x
        moment_y += weight * row * dy
    return flux, moment_x, moment_y


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
    # The peak is sought within `wide` pixels of the one at the start, no wider than the frame.
    wide = int(min(np.ceil(max_shift), max(ny, nx)))
    half = max(1, int(np.ceil(_KERNEL_SIGMAS * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    side = 2 * wide + 3
    cutout = np.empty((side + 2 * half, side + 2 * half))
    rows = np.empty((2, side + 2 * half, side))
    smooth = np.empty((side, side))
    for star in range(x_px.size):
        x, y = x_px[star], y_px[star]
        if not starts(x, y, levels[star], ny, nx):
            continue
        left, low = corner(x, wide + 1), corner(y, wide + 1)
        cut(pixels, mask, left - half, low - half, levels[star], cutout)
        _smooth(cutout, kernel, rows, smooth)
        peak_j, peak_i = _highest(smooth)
        if not smooth[peak_j, peak_i] > 0.0:
            continue
        dx, dy = _vertex(smooth[peak_j - 1 : peak_j + 2, peak_i - 1 : peak_i + 2])
        x, y = left + peak_i + dx, low + peak_j + dy
        if math.hypot(x - x_px[star], y - y_px[star]) <= max_shift:
            found_x[star], found_y[star], ok[star] = x, y, True


@njit(nogil=True, cache=True)
def _smooth(cutout: Floats, kernel: Floats, rows: Floats, smooth: Floats) -> None:
    """Weighted mean of the good pixels under the kernel, for all but the rim of a cutout."""
    half, side = kernel.size // 2, smooth.shape[0]
    rows[:] = 0.0
    for j in range(side + 2 * half):
        for column in range(side + 2 * half):
            value = cutout[j, column]
            if math.isnan(value):
                continue
            start = column - 2 * half  # the first place whose kernel reaches this pixel
            for i in range(max(start, 0), min(start + 2 * half + 1, side)):
                rows[0, j, i] += kernel[i - start] * value
                rows[1, j, i] += kernel[i - start]
    for j in range(side):
        for i in range(side):
            value = weight = 0.0
            for k in range(kernel.size):
                value += kernel[k] * rows[0, j + k, i]
                weight += kernel[k] * rows[1, j + k, i]
            smooth[j, i] = value / weight if weight > 0.0 else 0.0


@njit(nogil=True, cache=True)
def _highest(smooth: Floats) -> tuple[int, int]:
    """Row and column of the maximum, the rim apart."""
    best_j = best_i = 1
    for j in range(1, smooth.shape[0] - 1):
        for i in range(1, smooth.shape[1] - 1):
            if smooth[j, i] > smooth[best_j, best_i]:
                best_j, best_i = j, i
    return best_j, best_i


@njit(nogil=True, cache=True)
def _vertex(values: Floats) -> tuple[float, float]:
    """Offset of the maximum of a quadratic fitted to the logarithm of 3x3; NaN without one."""
    bx = by = cxx = cyy = cxy = 0.0
    for j in range(-1, 2):
        for i in range(-1, 2):
            if not values[j + 1, i + 1] > 0.0:
                return np.nan, np.nan
            z = math.log(values[j + 1, i + 1])
            bx, by = bx + z * i / 6.0, by + z * j / 6.0
            cxx, cyy = cxx + z * (3 * i * i - 2) / 6.0, cyy + z * (3 * j * j - 2) / 6.0
            cxy += z * i * j / 4.0
    curvature = 4.0 * cxx * cyy - cxy * cxy
    if not (cxx < 0.0 and curvature > 0.0):
        return np.nan, np.nan
    dx = (cxy * by - 2.0 * cyy * bx) / curvature
    dy = (cxy * bx - 2.0 * cxx * by) / curvature
    return (dx, dy) if max(abs(dx), abs(dy)) <= 1.0 else (np.nan, np.nan)
