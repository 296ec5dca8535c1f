"""Aperture sums, local background and their errors; what is wrong with a star's pixels."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nightloom.image.calibrate import (
    MASK_BAD,
    MASK_COSMIC,
    MASK_NAN,
    Mask,
    Pixels,
    as_mask,
    as_pixels,
)

Floats = NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)
# Pieces of pixels that circles cut: u, v of the pixel from the star and its value [3, circle,
# piece]; how many [circle]; room for what is computed of those of one circle [3, piece].
Pieces: TypeAlias = tuple[Floats, NDArray[np.int64], Floats]

UNUSABLE = MASK_BAD | MASK_COSMIC | MASK_NAN  # saturated pixels hold most of their star: summed

# Area of a circular segment of chord c: r² u³ g(s²), with u the sine of its angle, s = c / 2r.
# This is the series of g, without asin: off by 1e-9 px² at most in circles that are not small.
_SERIES = (1 / 12, 3 / 20, 29 / 140, 65 / 252, 281 / 924, 595 / 1716)
_SMALL_PX2 = 12.5  # a pixel's diagonal is then 0.4 radii
_SPARE_PIECES = 40  # of pixels on the axes, which are two, and of circles that touch corners


@dataclass(frozen=True, slots=True)
class ApertureSums:
    """Arrays [star, aperture], float64; NaN for a star without a position.

    flux_e: sum of the good pixels, each times w, its part inside the circle; NaN where none is.
    area_px, masked_px, outside_px: what of the circle is summed, masked, and beyond the frame.
    noise_flux_e, noise_area_px: flux and area with w² for w, as variances add up: less than the
    others, as what a circle cuts from a pixel carries less noise than as much of whole pixels;
    within 4 % for radii from 0.7 px.
    """

    flux_e: Floats
    area_px: Floats
    masked_px: Floats
    outside_px: Floats
    noise_flux_e: Floats
    noise_area_px: Floats


def joined(parts: Sequence[ApertureSums]) -> ApertureSums:
    """The apertures of all parts beside each other, for the same stars."""
    names = [field.name for field in fields(ApertureSums)]
    return ApertureSums(*(np.hstack([getattr(part, name) for part in parts]) for name in names))


def frame_arrays(pixels_e: NDArray[Any], mask: NDArray[Any]) -> tuple[Pixels, Mask]:
    """Read-only views of a frame [y, x] as kernels take it, copied only where they must be.

    Raises ValueError: not two dimensions, shapes differ.
    """
    if pixels_e.ndim != 2 or pixels_e.shape != mask.shape:
        raise ValueError(f"pixels and mask must be equal [y, x], not {pixels_e.shape, mask.shape}")
    return read_only(as_pixels(pixels_e)), read_only(as_mask(mask))


def star_vectors(*vectors: ArrayLike) -> tuple[Floats, ...]:
    """Read-only native float64 arrays [star].

    Raises ValueError: not one dimension, lengths differ.
    """
    arrays = [np.ascontiguousarray(vector, dtype=np.float64) for vector in vectors]
    if any(array.ndim != 1 or array.shape != arrays[0].shape for array in arrays):
        raise ValueError(f"needs equal arrays [star], not {[array.shape for array in arrays]}")
    return tuple(read_only(array) for array in arrays)


def read_only(array: NDArray[Number]) -> NDArray[Number]:
    """A view: one compiled version serves arrays that may be written and those that may not."""
    view = array.view()
    view.flags.writeable = False
    return view


def positive(name: str, value: float) -> float:
    """The value. Raises ValueError: not finite or not above zero."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and above zero, not {value}")
    return float(value)


def aperture_sums(
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    x_px: ArrayLike,
    y_px: ArrayLike,
    radii_px: ArrayLike,
) -> ApertureSums:
    """Sums over circles with exact overlap of circle and pixel, all radii in one pass.

    pixels_e, mask: [y, x]; x_px, y_px: [star]; radii_px: [star, aperture] or [aperture], any order.
    Pixels masked as bad, cosmic ray or NaN, or not finite, count as masked_px and are not summed.
    Raises ValueError: shapes differ, a radius is not finite and above zero.
    """
    pixels, flags = frame_arrays(pixels_e, mask)
    x, y = star_vectors(x_px, y_px)
    radii = np.asarray(radii_px, dtype=np.float64)
    if radii.ndim not in (1, 2) or (radii.ndim == 2 and len(radii) != len(x)):
        raise ValueError(f"radii_px must be [aperture] or [star, aperture], not {radii.shape}")
    if not np.all((radii > 0) & (radii < np.inf)):
        raise ValueError("radii_px must be finite and above zero")
    radii = np.broadcast_to(radii, (len(x), radii.shape[-1]))
    order = np.argsort(radii, axis=1, kind="stable")
    rising = np.take_along_axis(radii, order, axis=1)
    sums = np.empty((6, *radii.shape))
    _sum_stars(pixels, flags, x, y, rising, sums)
    back = np.argsort(order, axis=1, kind="stable")[None]
    return ApertureSums(*np.take_along_axis(sums, back, axis=2))


@njit(nogil=True, cache=True)
def _sum_stars(
    pixels: Pixels, mask: Mask, x_px: Floats, y_px: Floats, radii_px: Floats, sums: Floats
) -> None:
    n_stars, n_radii = radii_px.shape
    # Rows: flux, masked area, area in the frame; of pieces also flux and area times w (1 - w).
    # Whole pixels are counted once, at the smallest circle that holds them, and summed up over
    # the circles at the end.
    partial, whole = np.empty((5, n_radii)), np.empty((3, n_radii + 1))
    widest = radii_px[:, -1].max() if radii_px.size else 0.0
    room = int(8 * np.ceil(widest)) + _SPARE_PIECES  # a circle crosses 8 r lines of the grid
    pieces = (
        np.empty((3, n_radii, room)), np.empty(n_radii, dtype=np.int64), np.empty((3, room)),
    )  # fmt: skip
    for star in range(n_stars):
        x, y, radii = x_px[star], y_px[star], radii_px[star]
        if n_radii == 0 or not (math.isfinite(x) and math.isfinite(y)):
            sums[:, star] = np.nan
            continue
        partial[:], whole[:] = 0.0, 0.0
        cut = _sum_star(pixels, mask, x, y, radii, partial, whole, pieces)
        flux = masked = seen = 0.0
        for k in range(n_radii):
            flux, masked, seen = flux + whole[0, k], masked + whole[1, k], seen + whole[2, k]
            circle = math.pi * radii[k] * radii[k]
            out = _of_circle(circle - (seen + partial[2, k]), circle) if cut else 0.0
            bad = masked + partial[1, k]
            good = _of_circle(circle - out - bad, circle)
            total = flux + partial[0, k] if good > 0.0 else np.nan
            sums[0, star, k] = total
            sums[1, star, k], sums[2, star, k], sums[3, star, k] = good, bad, out
            sums[4, star, k] = total - partial[3, k]
            sums[5, star, k] = max(good - partial[4, k], 0.0)


@njit(nogil=True, cache=True)
def _of_circle(area: float, circle: float) -> float:
    """An area found as a difference: nothing where it is less than rounding can tell."""
    return area if area > 1e-9 * circle else 0.0


@njit(nogil=True, cache=True)
def _sum_star(
    pixels: Pixels,
    mask: Mask,
    x: float,
    y: float,
    radii: Floats,
    partial: Floats,
    whole: Floats,
    pieces: Pieces,
) -> bool:
    """Add up one star; true where the frame's edge cuts its largest circle."""
    ny, nx = pixels.shape
    reach = radii[-1]
    left, right = np.floor(x - reach + 0.5), np.floor(x + reach + 0.5)
    low, high = np.floor(y - reach + 0.5), np.floor(y + reach + 0.5)
    if right < 0 or high < 0 or left > nx - 1 or low > ny - 1:
        return True
    rows = int(max(low, 0.0)), int(min(high, ny - 1.0))
    columns = int(max(left, 0.0)), int(min(right, nx - 1.0))
    cut: bool = left < 0 or low < 0 or right > nx - 1 or high > ny - 1
    squares = radii * radii
    pieces[1][:] = 0
    # By quadrants: pixels on the axes through the centre are cut there, so that every piece has
    # a nearest and a farthest corner and the circle falls within it.
    for step_y in (1, -1):
        j = _start(y, rows[0], rows[1], step_y)
        first = 0
        while rows[0] <= j <= rows[1]:
            v = step_y * (j - y)
            near = max(v - 0.5, 0.0)
            while first < squares.size and squares[first] <= near * near:
                first += 1
            if first == squares.size:
                break
            for step_x in (1, -1):
                _half_row(
                    pixels[j], mask[j], x, columns, step_x, v,
                    squares, first, cut, partial, whole, pieces,
                )  # fmt: skip
            j += step_y
    for k in range(squares.size):
        _add_pieces(pieces, k, squares[k], partial)
    return cut


@njit(nogil=True, cache=True)
def _start(centre: float, lowest: int, highest: int, step: int) -> int:
    """The pixel to start from when walking away from the centre, within the frame."""
    here = np.floor(centre + 0.5)
    return int(max(here, lowest) if step > 0 else min(here, highest))


@njit(nogil=True, cache=True, inline="always")  # many arguments: a call costs as much as its work
def _half_row(
    row: Pixels,
    flags: Mask,
    x: float,
    columns: tuple[int, int],
    step: int,
    v: float,
    squares: Floats,
    first: int,
    cut: bool,
    partial: Floats,
    whole: Floats,
    pieces: Pieces,
) -> None:
    """Add up one side of a row; the pieces that circles cut wait, to be added circle by circle."""
    numbers, counts, _ = pieces
    y0, y1 = max(v - 0.5, 0.0), v + 0.5
    n_radii = squares.size
    some = every = first  # the smallest circles that reach the pixel, and that hold all of it
    i = _start(x, columns[0], columns[1], step)
    while columns[0] <= i <= columns[1]:
        u = step * (i - x)
        x0, x1 = max(u - 0.5, 0.0), u + 0.5
        while some < n_radii and squares[some] <= x0 * x0 + y0 * y0:
            some += 1
        if some == n_radii:
            return
        every = max(every, some)
        while every < n_radii and squares[every] < x1 * x1 + y1 * y1:
            every += 1
        area = (x1 - x0) * (y1 - y0)
        if (flags[i] & UNUSABLE) == 0 and abs(row[i]) < np.inf:
            value = np.float64(row[i])
            whole[0, every] += value * area
            for k in range(some, every):
                n = counts[k]
                numbers[0, k, n], numbers[1, k, n], numbers[2, k, n] = u, v, value
                counts[k] = n + 1
        else:
            whole[1, every] += area
            for k in range(some, every):
                partial[1, k] += _overlap_small(x0, x1, y0, y1, squares[k], 1.0 / squares[k])
        if cut:
            whole[2, every] += area
            for k in range(some, every):
                partial[2, k] += _overlap_small(x0, x1, y0, y1, squares[k], 1.0 / squares[k])
        i += step


@njit(nogil=True, cache=True)
def _add_pieces(pieces: Pieces, k: int, square: float, partial: Floats) -> None:
    """Add the pieces of circle k: their flux, and flux and area times w (1 - w)."""
    numbers, counts, room = pieces
    n, inverse = counts[k], 1.0 / square
    us, vs, values = numbers[0, k, :n], numbers[1, k, :n], numbers[2, k, :n]
    inside, flux, spared = room[0, :n], room[1, :n], room[2, :n]
    if square < _SMALL_PX2:
        for i in range(n):
            x0, y0 = max(us[i] - 0.5, 0.0), max(vs[i] - 0.5, 0.0)
            inside[i] = _overlap_small(x0, us[i] + 0.5, y0, vs[i] + 0.5, square, inverse)
    else:
        # No branch: it runs on whole vectors.
        for i in range(n):
            x0, y0 = max(us[i] - 0.5, 0.0), max(vs[i] - 0.5, 0.0)
            inside[i] = _overlap(x0, us[i] + 0.5, y0, vs[i] + 0.5, square, inverse)
    for i in range(n):
        wide, high = min(us[i] + 0.5, 1.0), min(vs[i] + 0.5, 1.0)
        area = max(wide * high, 1e-300)
        spared[i] = inside[i] - inside[i] * inside[i] / area
        flux[i] = values[i] * inside[i]
        inside[i] = values[i] * spared[i]
    partial[0, k] += _total(flux)
    partial[3, k] += _total(inside)
    partial[4, k] += _total(spared)


@njit(nogil=True, cache=True)
def _total(values: Floats) -> float:
    """Their sum; four of them keep the adders busy."""
    t0 = t1 = t2 = t3 = 0.0
    n = values.size
    for i in range(0, n - 3, 4):
        t0, t1 = t0 + values[i], t1 + values[i + 1]
        t2, t3 = t2 + values[i + 2], t3 + values[i + 3]
    for i in range(n - n % 4, n):
        t0 += values[i]
    return t0 + t1 + t2 + t3


@njit(nogil=True, cache=True)
def _chord(
    x0: float, x1: float, y0: float, y1: float, square: float, inverse: float
) -> tuple[float, float, float]:
    """How a circle crosses a rectangle, 0 <= x0 <= x1 and 0 <= y0 <= y1.

    Area of the rectangle under the chord; (chord / 2r)²; sine of the angle the chord is seen at.
    """
    # The arc enters at p, through the left or the upper side, and leaves at q, through the lower
    # or the right one. Choices of one value each: these compile to selects, not to branches.
    left = square < x0 * x0 + y1 * y1
    lower = square < x1 * x1 + y0 * y0
    p = math.sqrt(square - (x0 * x0 if left else y1 * y1))
    q = math.sqrt(square - (y0 * y0 if lower else x1 * x1))
    px = x0 if left else p
    py = p if left else y1
    qx = q if lower else x1
    qy = y0 if lower else q
    dx, dy = qx - px, qy - py
    polygon = (px - x0) * (y1 - y0) + 0.5 * dx * (py + qy - 2.0 * y0)
    return polygon, 0.25 * (dx * dx + dy * dy) * inverse, (qx * py - qy * px) * inverse


@njit(nogil=True, cache=True)
def _overlap(x0: float, x1: float, y0: float, y1: float, square: float, inverse: float) -> float:
    """Area of a rectangle of at most a pixel inside a circle that crosses it, by the series."""
    polygon, s2, sine = _chord(x0, x1, y0, y1, square, inverse)
    c0, c1, c2, c3, c4, c5 = _SERIES
    g: float = c0 + s2 * (c1 + s2 * (c2 + s2 * (c3 + s2 * (c4 + s2 * c5))))
    area: float = polygon + square * sine * sine * sine * g
    return area


@njit(nogil=True, cache=True)
def _overlap_small(
    x0: float, x1: float, y0: float, y1: float, square: float, inverse: float
) -> float:
    """The same for circles of any size."""
    polygon, s2, _ = _chord(x0, x1, y0, y1, square, inverse)
    s2 = min(s2, 1.0)
    s = math.sqrt(s2)
    area: float = polygon + square * (math.asin(s) - s * math.sqrt(1.0 - s2))
    return area


def flux_errors(
    sums: ApertureSums,
    *,
    background_e: ArrayLike,
    background_err_e: ArrayLike,
    read_noise_e: float,
    gain_e_per_adu: float,
    dark_e: float = 0.0,
    flat_err: ArrayLike = 0.0,
) -> Floats:
    """Errors [star, aperture] of the fluxes above the background, electrons (the CCD equation).

    background_e, its error: [star], of one pixel; dark_e: what was subtracted as dark, of one
    pixel; flat_err: relative, of all or [aperture]. Negative fluxes and backgrounds add no photon
    noise. NaN stays NaN.
    Raises ValueError: shapes differ. Source: Merline & Howell 1995, Exp. Astron. 6, 163.
    """
    sky_e2 = np.maximum(np.asarray(background_e, dtype=np.float64), 0.0)
    rounding_e2 = gain_e_per_adu**2 / 12  # of counts cut to whole numbers
    pixel_e2 = sky_e2 + dark_e + read_noise_e**2 + rounding_e2
    return _total_error(sums, background_e, background_err_e, pixel_e2, flat_err)


def flat_errors(flat_err: ArrayLike, *, fwhm_px: ArrayLike, radii_px: ArrayLike) -> Floats:
    """Relative errors of fluxes in circles, from that of the flat in one pixel; they broadcast.

    Of a Gaussian star as wide, its pixels included: those of the core weigh most, so a small
    circle holds nearly all of the error and less of the flux. With P the part of the flux in a
    pixel it is sqrt(sum P^2) / sum P over the circle.
    """
    variance_px2 = (np.asarray(fwhm_px, dtype=np.float64) / 2.3548) ** 2 + 1 / 12
    beyond = np.exp(-0.5 * np.square(np.asarray(radii_px, dtype=np.float64)) / variance_px2)
    spread = np.sqrt((1 + beyond) / ((1 - beyond) * 4 * np.pi * variance_px2))
    return np.asarray(np.asarray(flat_err, dtype=np.float64) * spread)


def flux_errors_from_rms(
    sums: ApertureSums,
    *,
    background_e: ArrayLike,
    background_err_e: ArrayLike,
    rms_e: ArrayLike,
    flat_err: ArrayLike = 0.0,
) -> Floats:
    """As flux_errors, with the measured noise of a pixel, rms_e [star], for sky, dark and readout.

    For frames whose read noise or gain is unknown; with the gain taken as 1 the photon noise of
    the star itself is then wrong by the square root of the gain.
    Raises ValueError: shapes differ.
    """
    pixel_e2 = np.square(np.asarray(rms_e, dtype=np.float64))
    return _total_error(sums, background_e, background_err_e, pixel_e2, flat_err)


def _total_error(
    sums: ApertureSums,
    background_e: ArrayLike,
    background_err_e: ArrayLike,
    pixel_e2: Floats,
    flat_err: ArrayLike,
) -> Floats:
    level, level_error = star_vectors(background_e, background_err_e)
    if not level.shape == pixel_e2.shape == sums.flux_e.shape[:1]:
        raise ValueError(f"needs [star] of {sums.flux_e.shape[:1]}, not {level.shape}")
    level, level_error, pixel_e2 = level[:, None], level_error[:, None], pixel_e2[:, None]
    photons = np.maximum(sums.noise_flux_e - level * sums.noise_area_px, 0.0)
    variance = photons + sums.noise_area_px * pixel_e2 + (sums.area_px * level_error) ** 2
    variance += (np.asarray(flat_err, dtype=np.float64) * (sums.flux_e - level * sums.area_px)) ** 2
    return np.sqrt(variance)
