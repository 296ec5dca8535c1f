"""What a pixel steadily shows above its neighbourhood in frames whose stars drift; their noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from nightloom.image.calibrate import Pixels, levels_by_tiles

_TILE_PX = 64  # columns over which the sky of a band of rows is one level
_BOX_PX = 7  # neighbourhood of a pixel in the finished map
_CHUNK_BYTES = 32 << 20
_BRIGHT_SIGMA = 5.0  # above it and near it there is a star
_NEAR_PX = 3
_CLIP_SIGMA = 3.5
_CLIPPED_STD = 0.9965  # of a normal law cut at 3.5 sigma, in sigma
_ROUNDS = 5
_LEAST_CALM = 0.1  # of a band's pixels, else it shows no sky

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SkyNoise:
    """Sky of neighbouring frames, [pair]: level and variance of one frame's pixel; NaN: none."""

    level: Floats
    variance: Floats
    n_pixels: Floats


def frame_excess(stack: Pixels) -> Pixels:
    """Each frame of [frame, row, x] less its sky: the median of every 64 columns of the band."""
    out = np.empty_like(stack)
    for x in range(0, stack.shape[2], _TILE_PX):
        tile = stack[:, :, x : x + _TILE_PX]
        out[:, :, x : x + _TILE_PX] = tile - np.median(tile, axis=(1, 2), keepdims=True)
    return out


def steady_excess(level: Pixels, noise: Pixels, *, n_frames: int, sigma: float) -> Pixels:
    """The part of a map [y, x] that is certain: its excess over the pixels around, elsewhere 0.

    level: mean over frames; noise: of one frame. Certain is what stands `sigma` of the mean's
    error, and of the map's own scatter in the square around, from the median of 7 x 7 pixels.
    """
    excess = level - _running_median(level)
    _, scatter = levels_by_tiles(excess)
    with np.errstate(invalid="ignore"):
        reach = sigma * np.maximum(scatter, noise / np.sqrt(n_frames))
        return np.where(np.abs(excess) > reach, excess, np.float32(0)).astype(np.float32)


def _running_median(plane: Pixels) -> Pixels:
    """Median of the 7 x 7 pixels around each, mirrored at the edges."""
    half = _BOX_PX // 2
    wide = np.pad(plane, half, mode="reflect")
    out = np.empty_like(plane)
    rows = max(1, _CHUNK_BYTES // (plane.shape[1] * _BOX_PX**2 * 4))
    for y in range(0, len(plane), rows):
        boxes = sliding_window_view(wide[y : y + rows + 2 * half], (_BOX_PX, _BOX_PX))
        out[y : y + rows] = np.median(boxes.reshape(*boxes.shape[:2], -1)[: len(plane) - y], axis=2)
    return out


def sky_noise(stack: Pixels, excess: Pixels, *, lag: int) -> SkyNoise:
    """Level and variance of the sky between frames of a band [frame, row, x] `lag` apart.

    The difference of two frames holds no pattern of the pixels. Pixels on or near a star in
    either frame are left out, outliers clipped.
    """
    n_pairs = max(len(stack) - lag, 0)
    found = np.full((3, n_pairs), np.nan)
    near = [_near_bright(frame) for frame in excess]
    for k in range(n_pairs):
        calm = ~(near[k] | near[k + lag])
        if np.count_nonzero(calm) < _LEAST_CALM * calm.size:
            continue
        first, second = (stack[j][calm].astype(np.float64) for j in (k, k + lag))
        apart = second - first
        kept = np.isfinite(apart)
        for _ in range(_ROUNDS):
            middle, spread = float(apart[kept].mean()), float(apart[kept].std())
            kept = np.abs(apart - middle) <= _CLIP_SIGMA * spread / _CLIPPED_STD
        variance = 0.5 * float(apart[kept].var()) / _CLIPPED_STD**2
        found[:, k] = 0.5 * (first[kept] + second[kept]).mean(), variance, np.count_nonzero(kept)
    return SkyNoise(*found)


def _near_bright(excess: Pixels) -> NDArray[np.bool_]:
    spread = max(1.4826 * float(np.median(np.abs(excess))), 1.0)
    near = excess > _BRIGHT_SIGMA * spread
    for axis in (0, 1):
        grown = near.copy()
        for shift in range(1, _NEAR_PX + 1):
            low = (slice(None),) * axis + (slice(None, -shift),)
            high = (slice(None),) * axis + (slice(shift, None),)
            grown[low] |= near[high]
            grown[high] |= near[low]
        near = grown
    return near


def gain_of_sky(bands: list[SkyNoise]) -> tuple[float, float]:
    """Gain in e-/ADU and its error, from how the sky's variance rises with its level in a night.

    Each band of rows has an intercept of its own: bias and read noise, which need not be known.
    NaN where the sky did not change. Source: the mean-variance method, Janesick 2001,
    Scientific CCDs, ch. 2.
    """
    levels: list[Floats] = []
    variances: list[Floats] = []
    weights: list[Floats] = []
    for band in bands:
        good = np.isfinite(band.level) & np.isfinite(band.variance)
        if np.count_nonzero(good) < 3:
            continue
        n = band.n_pixels[good]
        levels.append(band.level[good] - np.average(band.level[good], weights=n))
        variances.append(band.variance[good] - np.average(band.variance[good], weights=n))
        weights.append(n)
    if not levels:
        return float("nan"), float("nan")
    x, y, w = (np.concatenate(parts) for parts in (levels, variances, weights))
    square = float(np.sum(w * x * x))
    freedom = len(x) - len(levels) - 1
    if square <= 0 or freedom < 1:
        return float("nan"), float("nan")
    slope = float(np.sum(w * x * y)) / square
    left = y - slope * x
    error = float(np.sqrt(np.sum((w * x * left) ** 2))) / square
    if slope <= 0:
        return float("nan"), float("nan")
    return 1 / slope, error / slope**2


def gain_by_lags(near: list[SkyNoise], far: list[SkyNoise]) -> tuple[float, float]:
    """Gain in e-/ADU of neighbouring frames, and its error with what frames further apart differ.

    What is neither photons nor readout, such as stars too faint to be left out that drift, makes
    the variance depend on how far frames are apart: 1 / gain errs by about what it differs.
    """
    (gain, error), (further, _) = gain_of_sky(near), gain_of_sky(far)
    return gain, float(np.hypot(error, gain * (gain / further - 1)))


def most_covered(places_px: NDArray[Any], *, reach_px: float) -> float:
    """Largest share of the frames in which a star lies within reach of where it lies in one.

    places_px: [frame, star, 2]; the median over stars. 1 for stars that stay.
    """
    shares = []
    for star in range(places_px.shape[1]):
        xy = places_px[:, star]
        apart = np.hypot(*(xy[:, None, :] - xy[None, :, :]).transpose(2, 0, 1))
        shares.append(float((apart <= reach_px).mean(axis=1).max()))
    return float(np.median(shares)) if shares else 1.0
