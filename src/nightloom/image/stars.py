"""What the raw values and the mask say about each star, and which stars lie close together."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nightloom.image.aperture import UNUSABLE, Floats, positive, read_only, star_vectors
from nightloom.image.calibrate import MASK_FILLED, Mask, as_mask
from nightloom.image.repair import any_of, flags_before

_NO_PEAK = UNUSABLE | MASK_FILLED


@dataclass(frozen=True, slots=True)
class StarPixels:
    """Arrays [star]: what is known of a star from its pixels' raw values and mask.

    peak_adu: float32, highest raw value; mask_bits: uint8, all bits set among its pixels;
    clean_radius_px: float32, the largest circle without edge or masked pixel. NaN, 0 and 0 for a
    star off the frame, NaN, 0 and NaN for one without a position.
    """

    peak_adu: NDArray[np.float32]
    mask_bits: NDArray[np.uint8]
    clean_radius_px: NDArray[np.float32]


def peaks_and_clean_radius(
    raw: NDArray[Any],
    mask: NDArray[Any],
    x_px: ArrayLike,
    y_px: ArrayLike,
    *,
    fwhm_px: float,
    flag_radius_px: float,
    max_radius_px: float,
) -> StarPixels:
    """Peak of the raw pixels, mask bits and clean radius of each star.

    raw, mask: [y, x]; x_px, y_px: [star]. The peak is over centres within 1.5 FWHM, hot pixels
    and cosmic rays left out; bits are of pixels that a circle of flag_radius_px touches; both as
    before any repair. The clean radius ends at filled and saturated pixels no more than aperture
    sums do, and at max_radius_px.
    Raises ValueError: shapes differ, a length is not finite and above zero.
    """
    if raw.ndim != 2 or raw.shape != mask.shape:
        raise ValueError(f"raw and mask must be equal [y, x], not {raw.shape, mask.shape}")
    native = read_only(np.ascontiguousarray(raw, dtype=raw.dtype.newbyteorder("=")))
    flags = read_only(as_mask(mask))
    x, y = star_vectors(x_px, y_px)
    peak_px = 1.5 * positive("fwhm_px", fwhm_px)
    flag_px = positive("flag_radius_px", flag_radius_px)
    reach = positive("max_radius_px", max_radius_px)
    found = StarPixels(
        peak_adu=np.full(len(x), np.nan, dtype=np.float32),
        mask_bits=np.zeros(len(x), dtype=np.uint8),
        clean_radius_px=np.full(len(x), np.nan, dtype=np.float32),
    )
    _look(native, flags, x, y, (peak_px, flag_px, reach),
          found.peak_adu, found.mask_bits, found.clean_radius_px)  # fmt: skip
    return found


@njit(nogil=True, cache=True)
def _look(
    raw: NDArray[Any],
    mask: Mask,
    x_px: Floats,
    y_px: Floats,
    radii: tuple[float, float, float],
    peaks: NDArray[np.float32],
    bits: NDArray[np.uint8],
    clean: NDArray[np.float32],
) -> None:
    ny, nx = raw.shape
    peak_px, flag_px, reach = radii
    widest = max(peak_px, flag_px, reach) + 0.5
    for star in range(x_px.size):
        x, y = x_px[star], y_px[star]
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        edge = min(x, nx - 1 - x, y, ny - 1 - y) + 0.5
        nearest = min(max(edge, 0.0), reach) ** 2
        peak, seen = -np.inf, 0
        low, high = max(np.floor(y - widest), 0.0), min(np.ceil(y + widest), ny - 1.0)
        left, right = max(np.floor(x - widest), 0.0), min(np.ceil(x + widest), nx - 1.0)
        if low > high or left > right:
            clean[star] = 0.0
            continue
        first, last = int(left), int(right) + 1
        for j in range(int(low), int(high) + 1):
            dy = abs(j - y)
            if any_of(mask, j, first, last):
                bit, nearest = _marks_of_row(
                    mask[j, first:last], first - x, max(dy - 0.5, 0.0) ** 2, flag_px, nearest
                )
                seen |= bit
            if dy <= peak_px:
                start = max(first, int(np.floor(x - peak_px)))
                stop = min(last, int(np.ceil(x + peak_px)) + 1)
                for i in range(start, stop):
                    dx = i - x
                    if dx * dx + dy * dy <= peak_px * peak_px and not mask[j, i] & _NO_PEAK:
                        value = np.float64(raw[j, i])
                        peak = value if value > peak else peak  # a NaN is never above
        peaks[star] = peak if peak > -np.inf else np.nan
        bits[star], clean[star] = seen, math.sqrt(nearest)


@njit(nogil=True, cache=True)
def _marks_of_row(
    flags: Mask, first: float, near_y: float, flag_px: float, nearest: float
) -> tuple[int, float]:
    """Bits of a row's pixels within reach, and the nearest (squared) of those left unusable.

    first: of the row's pixels from the star, in x; near_y: squared, in y.
    """
    seen = 0
    for i in range(len(flags)):
        if flags[i]:
            near = max(abs(first + i) - 0.5, 0.0) ** 2 + near_y
            seen |= flags_before(flags[i]) if near < flag_px * flag_px else 0
            nearest = min(nearest, near) if flags[i] & UNUSABLE else nearest
    return seen, nearest


def blended(x_px: ArrayLike, y_px: ArrayLike, *, radius_px: float) -> NDArray[np.bool_]:
    """Whether another star of the list lies within radius_px, for each star; never without place.

    Raises ValueError: lengths differ, radius_px is not finite and above zero.
    """
    x, y = star_vectors(x_px, y_px)
    radius = positive("radius_px", radius_px)
    found: NDArray[np.bool_] = _close(x, y, np.argsort(x, kind="stable"), radius)
    return found


@njit(nogil=True, cache=True)
def _close(
    x_px: Floats, y_px: Floats, order: NDArray[np.int64], radius: float
) -> NDArray[np.bool_]:
    found = np.zeros(x_px.size, dtype=np.bool_)
    for a in range(order.size):
        for b in range(a + 1, order.size):
            i, j = order[a], order[b]
            dx, dy = x_px[j] - x_px[i], y_px[j] - y_px[i]
            if not dx <= radius:
                break
            if dx * dx + dy * dy <= radius * radius:
                found[i] = found[j] = True
    return found
