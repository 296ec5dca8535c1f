"""Positions of stars by a convolutional network after Ballet, trained on simulated stars.

`scripts/train_ballet.py` makes the weights in data/ballet; the figures of the training lie beside.
A position that can't be had is the one given, with `ok` false: the caller flags it.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from functools import lru_cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nightloom.image.aperture import Floats, frame_arrays, positive, star_vectors
from nightloom.image.calibrate import Mask, Pixels
from nightloom.image.centroid import Centroids
from nightloom.image.cutout import corner, cut, mirrored
from nightloom.image.network import HALF, SIDE, Floats32, Network, load_weights, predict

SHIPPED = files("nightloom") / "data" / "ballet" / "weights.npz"
_NEAR_PX = 0.7  # farther from the middle of the cutout the network is less exact: cut again
_MAX_TURNS = 4
_PEAK_HALF = 4  # scaled by the maximum of the inner 9x9
_MAX_REPLACED = SIDE * SIDE // 2
_MAX_LOST = SIDE * SIDE // 8
_MIN_SIGNIFICANCE = 3.0
_BROAD_PX = 5.0  # the core that must stand out is 3x3, of broader stars 5x5 pixels
_MAX_RIM = 0.7  # of the peak: flatter is no star
# Variance of the sky over that of the peak's photons: the least that it was trained on, and one
# so large that more makes no difference.
_SKY_TO_PEAK = (0.003, 1e4)


def ballet(
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    x_px: ArrayLike,
    y_px: ArrayLike,
    *,
    background_e: ArrayLike,
    fwhm_px: float,
    max_shift_px: float,
    rms_e: ArrayLike | None = None,
    network: Network | None = None,
) -> Centroids:
    """Centroids by the network, on 15x15 pixels cut again until the star is in their middle.

    pixels_e, mask: [y, x]; x_px, y_px, background_e, rms_e: [star]; rms_e is the noise of a pixel
    of the sky, where there is none that of the background's photons. A pixel that is masked or
    off the frame is replaced by its mirror image about the star. Not ok: too many pixels lost,
    flat, below three sigma, fwhm_px outside what the network knows, strayed beyond max_shift_px,
    no start within the frame. Raises ValueError: shapes differ, a length not finite and above zero.
    """
    pixels, flags = frame_arrays(pixels_e, mask)
    x0, y0, level, rms = star_vectors(
        x_px, y_px, background_e, np.full(np.shape(x_px), np.nan) if rms_e is None else rms_e
    )
    sky = np.where((rms > 0) & (rms < np.inf), np.square(rms), level)  # its variance
    fwhm, reach = positive("fwhm_px", fwhm_px), positive("max_shift_px", max_shift_px)
    network = network or shipped()
    core_half = 1 if fwhm < _BROAD_PX else 2
    ny, nx = pixels.shape
    inside = (x0 >= -0.5) & (x0 <= nx - 0.5) & (y0 >= -0.5) & (y0 <= ny - 0.5)
    low, high = network.fwhm_px
    alive = inside & np.isfinite(level) & (low <= fwhm <= high)
    x, y, waiting = x0.copy(), y0.copy(), np.flatnonzero(alive)
    for _ in range(_MAX_TURNS):
        if not waiting.size:
            break
        again = _locate(network, pixels, flags, waiting, x, y, level, sky, core_half)
        moved = np.hypot(x[waiting] - x0[waiting], y[waiting] - y0[waiting])
        alive[waiting] = moved <= reach
        waiting = waiting[again & alive[waiting]]
    return Centroids(x_px=np.where(alive, x, x0), y_px=np.where(alive, y, y0), ok=alive)


@lru_cache(maxsize=1)
def shipped() -> Network:
    """The network that comes with nightloom, read once a process."""
    with as_file(SHIPPED) as path:
        return load_weights(path)


def _locate(
    network: Network, pixels: Pixels, mask: Mask, stars: NDArray[np.intp], x: Floats, y: Floats,
    level: Floats, sky: Floats, core_half: int,
) -> NDArray[np.bool_]:  # fmt: skip
    """Moves x, y [star] of the given stars, to NaN if lost; which of them should be cut again."""
    cutouts = np.empty((len(stars), SIDE, SIDE), dtype=np.float32)
    left, low, replaced = np.empty((3, len(stars)), dtype=np.int64)
    peak = np.empty(len(stars))
    _cut(
        pixels, mask, x[stars], y[stars], level[stars], left, low, core_half, cutouts, peak,
        replaced,
    )  # fmt: skip
    usable = replaced >= 0
    if network.scale == "range":
        _to_range(cutouts)
    elif network.scale == "even_noise":
        _to_even_noise(cutouts, sky[stars] / peak)
    place = predict(network, cutouts).astype(np.float64)  # row and column within the cutout
    off = np.abs(place - HALF).max(axis=1)
    # As published: rows first, 0 at the centre of the first pixel of the cutout.
    x[stars] = np.where(usable, left + place[:, 1], np.nan)
    y[stars] = np.where(usable, low + place[:, 0], np.nan)
    again: NDArray[np.bool_] = usable & ((off > _NEAR_PX) | (replaced > 0))
    return again


def _to_range(cutouts: Floats32) -> None:
    cutouts -= cutouts.min(axis=(1, 2), keepdims=True)
    cutouts /= np.maximum(cutouts.max(axis=(1, 2), keepdims=True), np.float32(1e-30))


def _to_even_noise(cutouts: Floats32, sky_to_peak: Floats) -> None:
    """Takes the root of the pixels' variance, that of the sky subtracted; 1 remains 1.

    Noise is then as strong in every pixel, be it the sky's or the star's own: the network need
    not find out which, to know how much each pixel is worth.
    """
    sky = np.clip(sky_to_peak, *_SKY_TO_PEAK).astype(np.float32)[:, None, None]
    root = np.sqrt(sky)
    # sqrt(v + sky) - sqrt(sky) without cancellation
    rooted = np.sqrt(np.maximum(cutouts + sky, np.float32(0.0))) + root
    cutouts *= (np.sqrt(1 + sky) + root) / rooted


@njit(nogil=True, cache=True)
def _cut(
    pixels: Pixels,
    mask: Mask,
    x_px: Floats,
    y_px: Floats,
    levels: Floats,
    left: NDArray[np.int64],
    low: NDArray[np.int64],
    core_half: int,
    cutouts: Floats32,
    peaks: Floats,
    replaced: NDArray[np.int64],
) -> None:
    """Cutouts less their level over their inner maximum; that maximum; how many were replaced.

    Without a star: zeros, 1 and -1.
    """
    for star in range(x_px.size):
        cutout = cutouts[star]
        left[star], low[star] = corner(x_px[star], HALF), corner(y_px[star], HALF)
        n_replaced = SIDE * SIDE - cut(pixels, mask, left[star], low[star], levels[star], cutout)
        n_lost = 0
        if n_replaced:
            u, v = 2.0 * x_px[star] - left[star], 2.0 * y_px[star] - low[star]
            n_lost = _replace(pixels, mask, u, v, levels[star], cutout)
        row, column = _peak(cutout)
        peak = cutout[row, column]
        known = n_replaced <= _MAX_REPLACED and n_lost <= _MAX_LOST and 0.0 < peak < np.inf
        if known and _stands_out(cutout, row, column, core_half):
            replaced[star], peaks[star] = n_replaced, peak
            cutout /= peak
        else:
            replaced[star], peaks[star] = -1, 1.0
            cutout[:] = 0.0


@njit(nogil=True, cache=True)
def _replace(
    pixels: Pixels, mask: Mask, u: float, v: float, level: float, cutout: Floats32
) -> int:  # fmt: skip
    """Mirror images in place of NaN, the one of (i, j) at (u - i, v - j); how many have none.

    One that is needed for the peak counts as a whole cutout.
    """
    n_lost = 0
    for j in range(SIDE):
        for i in range(SIDE):
            if not math.isnan(cutout[j, i]):
                continue
            value = mirrored(pixels, mask, u - i, v - j)
            if math.isnan(value):
                n_lost += 1 if max(abs(i - HALF), abs(j - HALF)) > _PEAK_HALF else SIDE * SIDE
                value = level
            cutout[j, i] = value - level
    return n_lost


@njit(nogil=True, cache=True)
def _peak(cutout: Floats32) -> tuple[int, int]:
    """Row and column of the maximum of the inner pixels."""
    row = column = HALF
    for j in range(HALF - _PEAK_HALF, HALF + _PEAK_HALF + 1):
        for i in range(HALF - _PEAK_HALF, HALF + _PEAK_HALF + 1):
            if cutout[j, i] > cutout[row, column]:
                row, column = j, i
    return row, column


@njit(nogil=True, cache=True)
def _stands_out(cutout: Floats32, row: int, column: int, half: int) -> bool:
    """Whether the core about the peak is above the scatter of the rim, and the rim below it."""
    total = squares = core = 0.0
    for k in range(SIDE - 1):
        for value in (cutout[0, k], cutout[k, -1], cutout[-1, k + 1], cutout[k + 1, 0]):
            total += value
            squares += np.float64(value) * value
    n = 4 * (SIDE - 1)
    rim = total / n
    scatter = math.sqrt(max(squares / n - rim * rim, 0.0))
    for j in range(row - half, row + half + 1):
        for i in range(column - half, column + half + 1):
            core += cutout[j, i]
    side = 2 * half + 1
    above: bool = core / side**2 - rim > _MIN_SIGNIFICANCE * scatter / side
    return above and rim < _MAX_RIM * cutout[row, column]
