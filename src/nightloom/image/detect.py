"""Local background and noise; stars by a matched filter, brightest first.

A star is a local maximum of the frame filtered with a Gaussian, above a threshold in units of
the filtered noise there. The background is taken off on the fly: the frame is read once.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nightloom.image.calibrate import (
    MASK_BAD,
    MASK_COSMIC,
    MASK_NAN,
    MASK_SATURATED,
    Mask,
    Pixels,
    as_mask,
    as_pixels,
)

Floats = NDArray[np.float64]

_UNUSABLE = MASK_BAD | MASK_COSMIC | MASK_NAN
_SAMPLES = 1024  # pixels of a box that are looked at: its median is then good to 0.04 sigma
_LEAST_GOOD = 0.25  # of a box's pixels, else it is filled from its neighbours
_CLIP_SIGMA = 3.0
_CLIPPED_STD = 0.98658  # of a normal law cut at 3 sigma, in sigma
_SHARP = 0.16  # neighbours of the brightest pixel, of a centred star of FWHM 1.1 px and up
_LEAST_NOISE = 1e-6  # of the level: below it a difference is float32's rounding
_WINDOW_ROUNDS = 8
_MIN_PROMINENCE = 0.05  # of the light of the brighter star that a fainter one stands on


@dataclass(frozen=True, slots=True)
class Background:
    """Sky level and noise of one pixel, in electrons, in boxes of about `box_px` squared.

    level, noise: float32 [box row, box column]; NaN throughout where a frame holds no good pixel.
    x_px, y_px: float64, evenly spaced centres of the columns and rows of boxes.
    """

    level: Pixels
    noise: Pixels
    x_px: Floats
    y_px: Floats
    box_px: int


@dataclass(frozen=True, slots=True)
class Detections:
    """Stars of one frame, arrays [star], brightest first.

    flux_e: within 1.5 times the filter's FWHM, for ranking; peak_e above the background; snr in
    the filter, sky noise alone. elongation: 1 is round, NaN where it can't be told. sharpness:
    how far the brightest pixel stands above its neighbours, 0 flat to 1 alone. saturated: a
    pixel within one FWHM is; blended: another star within two.
    """

    x_px: Floats
    y_px: Floats
    flux_e: Floats
    peak_e: Floats
    snr: Floats
    elongation: Floats
    sharpness: Floats
    saturated: NDArray[np.bool_]
    blended: NDArray[np.bool_]


def background_mesh(pixels_e: NDArray[Any], mask: NDArray[Any], *, box_px: int = 64) -> Background:
    """Level and noise in boxes: median and scatter after clipping at 3 sigma, smoothed 3 x 3.

    pixels_e, mask: [y, x]. Sigma for the clipping is taken below the median, where stars are
    not. A box with a quarter of its pixels good or less is filled from its neighbours, and the
    median of 3 x 3 boxes takes out what one bright galaxy does; a gradient is kept to the edge.
    Raises ValueError: shapes differ, no [y, x], box_px below 8.
    """
    _check(pixels_e, mask)
    if box_px < 8:
        raise ValueError(f"box_px must be at least 8, not {box_px}")
    ny, nx = pixels_e.shape
    edges_y, edges_x = _edges(ny, box_px), _edges(nx, box_px)
    stride = max(1, box_px * box_px // _SAMPLES)
    samples = _sample(as_pixels(pixels_e), as_mask(mask), edges_y, edges_x, stride)
    samples.sort(axis=1)
    shape = (len(edges_y) - 1, len(edges_x) - 1)
    level, noise = (part.reshape(shape) for part in _box_statistics(samples))
    return Background(
        level=_smooth(_fill(level), odd=True),
        noise=_smooth(_fill(noise), odd=False),
        x_px=(np.arange(shape[1]) + 0.5) * nx / shape[1] - 0.5,
        y_px=(np.arange(shape[0]) + 0.5) * ny / shape[0] - 0.5,
        box_px=box_px,
    )


def background_at(
    background: Background, x_px: NDArray[Any], y_px: NDArray[Any]
) -> tuple[Floats, Floats]:
    """Level and noise at positions [star]: linear between the centres of boxes.

    Beyond the outermost centres the level goes on at its slope, by one box at most, and the
    noise stays.
    """
    x, y = np.broadcast_arrays(np.float64(x_px), np.float64(y_px))
    column = np.clip(_index(x, background.x_px), -1.0, len(background.x_px))
    row = np.clip(_index(y, background.y_px), -1.0, len(background.y_px))
    level = _interpolate(background.level, row, column)
    row = np.clip(row, 0.0, len(background.y_px) - 1.0)
    column = np.clip(column, 0.0, len(background.x_px) - 1.0)
    return level, _interpolate(background.noise, row, column)


def background_image(background: Background, ny: int, nx: int) -> Pixels:
    """The level at every pixel, [y, x]."""
    column = _index(np.arange(nx), background.x_px)
    row = _index(np.arange(ny), background.y_px)
    across = np.stack([_interpolate(line[None, :], np.zeros(nx), column) for line in background.level])
    low, part = _split(row, len(background.y_px))
    high = np.minimum(low + 1, len(background.y_px) - 1)
    image = across[low] + part[:, None] * (across[high] - across[low])
    return image.astype(np.float32)


def detect(
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    background: Background,
    *,
    fwhm_px: float = 3.5,
    threshold_sigma: float = 5.0,
    max_stars: int | None = None,
) -> Detections:
    """Stars of a frame [y, x], ranked by flux; none in a frame without any good pixel.

    Bad, cosmic and NaN pixels count as background, saturated ones as they are: a saturated star
    is found, once, and known. Hot pixels and hits of cosmic rays are taken out by their
    sharpness (a star of FWHM 1.5 px is not as sharp); what stands on the light of a brighter
    star must stand out of the noise of that light too.
    Raises ValueError: shapes differ, fwhm_px or threshold_sigma is not above zero.
    """
    _check(pixels_e, mask)
    if not (fwhm_px > 0 and threshold_sigma > 0):
        raise ValueError(f"fwhm_px {fwhm_px}, threshold_sigma {threshold_sigma}: must be above 0")
    frame, flags = as_pixels(pixels_e), as_mask(mask)
    mesh = _mesh(background)
    taps = _taps(fwhm_px)
    peaks = _find_peaks(frame, flags, *mesh, taps, threshold_sigma)
    saturated = _saturated_groups(flags)
    stars = _measure(frame, flags, *mesh, peaks, taps, fwhm_px, threshold_sigma, *saturated)
    stars = stars[np.argsort(-stars[:, _FLUX], kind="stable")]
    stars = stars[_distinct(frame, flags, *mesh, stars, taps, fwhm_px, threshold_sigma)]
    blended = _near_another(stars, 2.0 * fwhm_px)[:max_stars]
    stars = stars[:max_stars]
    return Detections(
        x_px=stars[:, _X].copy(),
        y_px=stars[:, _Y].copy(),
        flux_e=stars[:, _FLUX].copy(),
        peak_e=stars[:, _PEAK].copy(),
        snr=stars[:, _SNR].copy(),
        elongation=stars[:, _ELONGATION].copy(),
        sharpness=stars[:, _SHARPNESS].copy(),
        saturated=stars[:, _GROUP] >= 0,
        blended=blended,
    )
