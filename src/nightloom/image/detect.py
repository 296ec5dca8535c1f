"""Local background and noise of a frame; its stars by a matched filter, brightest first."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nightloom.image import crowding, peaks, sources
from nightloom.image.boxes import box_statistics
from nightloom.image.calibrate import Mask, Pixels, as_mask, as_pixels
from nightloom.image.mesh import Mesh, mesh_image
from nightloom.image.peaks import Floats
from nightloom.image.saturation import saturated_groups

_SAMPLES = 1024  # pixels of a box that are looked at: its median is then good to 0.04 sigma
_CLIPPED_STD = 0.98658  # of a normal law cut at 3 sigma, in sigma
_DEPTH = 1.5  # stars that are measured over those asked for: the ranks of peaks are not exact
_LEAST_NOISE = 1e-6  # of the level: below it a difference is float32's rounding


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

    flux_e: within 1.5 times the filter's FWHM, for ranking; peak_e: above the background; snr:
    in the filter, of sky noise alone. elongation: 1 is round, NaN where it can't be told.
    sharpness: how far the brightest pixel stands above its neighbours, 0 flat to 1 alone.
    saturated: a pixel within one FWHM is; blended: another star, of these or little fainter, lies
    within two.
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
    not. A box with less than a quarter of good pixels is filled from its neighbours, and the
    median of 3 x 3 boxes takes out what one bright galaxy does; a gradient is kept to the edge.
    Raises ValueError: shapes differ, no [y, x], box_px below 8.
    """
    _check(pixels_e, mask)
    if box_px < 8:
        raise ValueError(f"box_px must be at least 8, not {box_px}")
    ny, nx = pixels_e.shape
    edges_y, edges_x = _edges(ny, box_px), _edges(nx, box_px)
    stride = max(1, box_px * box_px // _SAMPLES)
    box_level, scatter = box_statistics(
        as_pixels(pixels_e), as_mask(mask), edges_y, edges_x, stride
    )
    level = _smooth(_fill(box_level), True)
    return Background(
        level=level,
        noise=_smooth(_fill(_without_slope(scatter, level)), False),
        x_px=_centres(nx, len(edges_x) - 1),
        y_px=_centres(ny, len(edges_y) - 1),
        box_px=box_px,
    )


def background_at(
    background: Background, x_px: NDArray[Any], y_px: NDArray[Any]
) -> tuple[Floats, Floats]:
    """Level and noise at positions [star]: linear between the centres of boxes.

    Beyond the outermost centres the level goes on at its slope, by one box at most; the noise
    stays.
    """
    x, y = np.broadcast_arrays(np.asarray(x_px, np.float64), np.asarray(y_px, np.float64))
    column = np.clip(_index(x, background.x_px), -1.0, len(background.x_px))
    row = np.clip(_index(y, background.y_px), -1.0, len(background.y_px))
    level = _interpolate(background.level, row, column)
    column = np.clip(column, 0.0, len(background.x_px) - 1.0)
    row = np.clip(row, 0.0, len(background.y_px) - 1.0)
    return level, _interpolate(background.noise, row, column)


def background_image(background: Background, ny: int, nx: int, *, first_row: int = 0) -> Pixels:
    """The level at every pixel of ny rows from first_row on, [y, x]: the same bits in any cut."""
    image: Pixels = mesh_image(_mesh(background), ny, nx, first_row)
    return image


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
    Raises ValueError: shapes differ; fwhm_px (finite) or threshold_sigma is not above zero.
    """
    _check(pixels_e, mask)
    if not (0 < fwhm_px < np.inf and threshold_sigma > 0):
        raise ValueError(f"fwhm_px {fwhm_px}, threshold_sigma {threshold_sigma}: must be above 0")
    stars = np.empty((0, sources.N_COLUMNS))
    if np.isfinite(background.level).all():
        frame = as_pixels(pixels_e), as_mask(mask), _mesh(background)
        stars = _stars(frame, fwhm_px, threshold_sigma, max_stars)
    blended = crowding.near_another(stars[:, sources.X], stars[:, sources.Y], 2.0 * fwhm_px)
    x, y, flux, peak, snr, elongation, sharpness, group = stars[:max_stars].T.copy()
    return Detections(
        x_px=x,
        y_px=y,
        flux_e=flux,
        peak_e=peak,
        snr=snr,
        elongation=elongation,
        sharpness=sharpness,
        saturated=group >= 0,
        blended=blended[:max_stars],
    )


def _stars(
    frame: tuple[Pixels, Mask, Mesh], fwhm_px: float, threshold_sigma: float, max_stars: int | None
) -> Floats:
    """Stars [star, column], brightest first: at least max_stars, where there are so many.

    Peaks are measured from the highest down, as far as is needed: of thousands on a crowded
    frame most are fainter than any that is asked for.
    """
    taps = peaks.gaussian_taps(fwhm_px)
    found, heights = peaks.find_peaks(*frame, taps, threshold_sigma)
    found = found[np.lexsort((found[:, 0], found[:, 1], -heights))]
    groups = saturated_groups(*frame)
    most = len(found) if max_stars is None else math.ceil(_DEPTH * max_stars)
    while True:
        stars, n_looked = sources.measure(
            *frame, found, taps, fwhm_px=fwhm_px, threshold_sigma=threshold_sigma, groups=groups,
            most=most,
        )  # fmt: skip
        ranked: Floats = stars[np.argsort(-stars[:, sources.FLUX], kind="stable")]
        ranked = ranked[crowding.stand_out(*frame, ranked, taps, fwhm_px, threshold_sigma)]
        if n_looked == len(found) or len(ranked) >= (max_stars or 0):
            return ranked
        most *= 2


def _check(pixels_e: NDArray[Any], mask: NDArray[Any]) -> None:
    if pixels_e.ndim != 2 or pixels_e.size == 0 or mask.shape != pixels_e.shape:
        raise ValueError(f"pixels_e is {pixels_e.shape}, mask {mask.shape}: both must be [y, x]")


def _edges(size_px: int, box_px: int) -> NDArray[np.int64]:
    """First pixels of boxes of equal size to a pixel, and the end of the last."""
    boxes = max(1, round(size_px / box_px))
    return np.round(np.arange(boxes + 1) * (size_px / boxes)).astype(np.int64)


def _centres(size_px: int, boxes: int) -> Floats:
    """Middles of boxes of equal size."""
    return np.asarray((np.arange(boxes) + 0.5) * size_px / boxes - 0.5)


def _mesh(background: Background) -> Mesh:
    """The background as the kernels take it, its noise not below what float32 resolves."""
    level = as_pixels(background.level)
    least = np.float32(_LEAST_NOISE) * np.abs(level) + np.float32(1e-12)
    x, y = background.x_px, background.y_px
    return (
        level,
        np.maximum(as_pixels(background.noise), least),
        float(x[0]),
        float(x[1] - x[0]) if len(x) > 1 else 1.0,
        float(y[0]),
        float(y[1] - y[0]) if len(y) > 1 else 1.0,
    )


@njit(nogil=True, cache=True)
def _without_slope(scatter: Pixels, level: Pixels) -> Pixels:
    """Noise from the clipped scatter in each box: without the level's slope, and unclipped.

    A plane that rises by d across a box scatters by d / sqrt(12).
    """
    ny, nx = level.shape
    noise = np.empty((ny, nx), dtype=np.float32)
    for y in range(ny):
        for x in range(nx):
            y0, y1, x0, x1 = max(y - 1, 0), min(y + 1, ny - 1), max(x - 1, 0), min(x + 1, nx - 1)
            down = (np.float64(level[y1, x]) - level[y0, x]) / max(y1 - y0, 1)
            across = (np.float64(level[y, x1]) - level[y, x0]) / max(x1 - x0, 1)
            variance = np.float64(scatter[y, x]) * scatter[y, x]
            left = variance - (down * down / 12.0 + across * across / 12.0)
            noise[y, x] = np.sqrt(max(left, 0.01 * variance)) / _CLIPPED_STD
    return noise


def _index(position_px: Floats, centres_px: Floats) -> Floats:
    """Fractional index of a box at a position; 0 where there is but one."""
    if len(centres_px) < 2:
        return np.zeros_like(position_px)
    return np.asarray((position_px - centres_px[0]) / (centres_px[1] - centres_px[0]))


def _interpolate(plane: Pixels, row: Floats, column: Floats) -> Floats:
    low_y = np.clip(np.floor(row), 0, max(0, len(plane) - 2)).astype(np.int64)
    low_x = np.clip(np.floor(column), 0, max(0, plane.shape[1] - 2)).astype(np.int64)
    high_y = np.minimum(low_y + 1, len(plane) - 1)
    high_x = np.minimum(low_x + 1, plane.shape[1] - 1)
    values = plane.astype(np.float64)
    part_y, part_x = row - low_y, column - low_x
    upper = values[low_y, low_x] * (1 - part_x) + values[low_y, high_x] * part_x
    lower = values[high_y, low_x] * (1 - part_x) + values[high_y, high_x] * part_x
    return np.asarray(upper * (1 - part_y) + lower * part_y)


def _fill(plane: Pixels) -> Pixels:
    """NaN replaced by the mean of the neighbours that are known, from the rim inwards."""
    filled = plane.copy()
    while np.isnan(filled).any() and np.isfinite(filled).any():
        before = filled.copy()
        for y, x in np.argwhere(np.isnan(before)):
            near = before[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            known = near[np.isfinite(near)]
            if known.size:
                filled[y, x] = known.mean()
    return filled


@njit(nogil=True, cache=True)
def _smooth(plane: Pixels, odd: bool) -> Pixels:
    """Median of 3 x 3 boxes. Beyond the edge: the plane's slope goes on (odd), or its value."""
    ny, nx = plane.shape
    smooth = np.empty((ny, nx), dtype=np.float32)
    near = np.empty(9)
    for y in range(ny):
        for x in range(nx):
            k = 0
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    iy = min(max(y + dy, 0), ny - 1)
                    ix = min(max(x + dx, 0), nx - 1)
                    near[k] = plane[iy, ix]
                    if odd and (iy != y + dy or ix != x + dx):
                        back_y = 2 * iy - (y + dy)
                        back_x = 2 * ix - (x + dx)
                        if 0 <= back_y < ny and 0 <= back_x < nx:
                            near[k] = 2 * near[k] - plane[back_y, back_x]
                    k += 1
            peaks.sort_few(near)
            smooth[y, x] = near[4]
    return smooth
