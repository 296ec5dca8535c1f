"""Raw frame to electrons with a mask; maps of bad pixels from masters.

Negatives stay. The mask says what is wrong with a pixel, its value is kept beside it; only what
is no number (or was divided by nothing) becomes NaN.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

MASK_BAD = 1  # hot, dead or low-flat: never trust the value
MASK_SATURATED = 2
MASK_NONLINEAR = 4
MASK_COSMIC = 8
MASK_NAN = 16
MASK_FILLED = 32 | 64 | 128  # bad, cosmic ray, NaN before `repair` gave it a value

Pixels = NDArray[np.float32]
Mask = NDArray[np.uint8]

_TILE_PX = 64  # side of the squares in which a master is compared with itself
_RAW_KINDS = ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8")


def as_pixels(array: NDArray[Any]) -> Pixels:
    """The array as native, C-contiguous float32; itself where it is that already."""
    return np.ascontiguousarray(array, dtype=np.float32)


def as_mask(array: NDArray[Any]) -> Mask:
    """The array as C-contiguous uint8; itself where it is that already."""
    return np.ascontiguousarray(array, dtype=np.uint8)


@njit(nogil=True, cache=True)
def swap_and_offset(words: NDArray[np.uint16]) -> None:
    """Big-endian signed 16-bit words, in place, to native ones that are 32768 higher."""
    for k in range(words.size):
        word = words[k]
        words[k] = ((word << np.uint16(8)) | (word >> np.uint16(8))) ^ np.uint16(0x8000)


def calibrate(
    raw: NDArray[Any],
    *,
    offset: NDArray[Any] | None,
    inverse_flat: NDArray[Any] | None,
    bad: NDArray[Any] | None,
    gain_e_per_adu: float,
    saturation_adu: float | None,
    nonlinear_adu: float | None,
) -> tuple[Pixels, Mask]:
    """Electrons [y, x] and mask [y, x]: (raw - offset) * inverse_flat * gain in one pass.

    offset (bias and dark, ADU), inverse_flat, bad (not 0: MASK_BAD): [y, x] or None. Levels are
    of the raw value: at or above them MASK_SATURATED, MASK_NONLINEAR; None: not known.
    What is not finite afterwards is NaN with MASK_NAN.
    Raises ValueError: shapes differ, raw is no 2-D array of numbers up to 32 bits or float64.
    """
    if raw.ndim != 2 or raw.dtype.str[1:] not in _RAW_KINDS:
        raise ValueError(f"raw must be [y, x] of 8 to 32 bits or float64, not {raw.dtype}")
    for name, plane in (("offset", offset), ("inverse_flat", inverse_flat), ("bad", bad)):
        if plane is not None and plane.shape != raw.shape:
            raise ValueError(f"{name} is {plane.shape}, raw is {raw.shape}")
    native = np.ascontiguousarray(raw, dtype=raw.dtype.newbyteorder("="))
    nothing = np.empty((0, 0), dtype=np.float32)
    result: tuple[Pixels, Mask] = _calibrate(
        native,
        nothing if offset is None else as_pixels(offset),
        nothing if inverse_flat is None else as_pixels(inverse_flat),
        np.empty((0, 0), dtype=np.uint8) if bad is None else as_mask(bad),
        np.float32(gain_e_per_adu),
        np.float32(np.inf if saturation_adu is None else saturation_adu),
        np.float32(np.inf if nonlinear_adu is None else nonlinear_adu),
    )
    return result


@njit(nogil=True, cache=True)
def _calibrate(
    raw: NDArray[Any],
    offset: Pixels,
    inverse_flat: Pixels,
    bad: Mask,
    gain: np.float32,
    saturation: np.float32,
    nonlinear: np.float32,
) -> tuple[Pixels, Mask]:
    ny, nx = raw.shape
    pixels = np.empty((ny, nx), dtype=np.float32)
    mask = np.empty((ny, nx), dtype=np.uint8)
    zeros = np.zeros(nx, dtype=np.float32)
    ones = np.ones(nx, dtype=np.float32)
    lowest = min(saturation, nonlinear)
    infinite = np.float32(np.inf)
    for y in range(ny):
        source, row, flags = raw[y], pixels[y], mask[y]
        # An absent plane is one row of zeros or ones, so that one fused loop serves all cases.
        dark = offset[y] if offset.size else zeros
        response = inverse_flat[y] if inverse_flat.size else ones
        high = False
        strange = False
        for x in range(nx):
            level = np.float32(source[x])
            value = (level - dark[x]) * response[x] * gain
            row[x] = value
            high |= bool(level >= lowest)
            strange |= not abs(value) < infinite
        if bad.size:
            known = bad[y]
            for x in range(nx):
                flags[x] = np.uint8(known[x] != 0)
        else:
            flags[:] = np.uint8(0)
        if high or strange:
            _mark(source, row, flags, saturation, nonlinear)
    return pixels, mask


@njit(nogil=True, cache=True)
def _mark(
    source: NDArray[Any],
    row: Pixels,
    flags: Mask,
    saturation: np.float32,
    nonlinear: np.float32,
) -> None:
    """Mask bits of one row; kept apart because few rows need it and the plain loop is fast."""
    for x in range(row.size):
        level = np.float32(source[x])
        if level >= saturation and saturation < np.inf:
            flags[x] |= MASK_SATURATED
        if level >= nonlinear and nonlinear < np.inf:
            flags[x] |= MASK_NONLINEAR
        if not abs(row[x]) < np.inf:
            row[x] = np.nan
            flags[x] |= MASK_NAN


def variance(
    pixels_e: NDArray[Any],
    *,
    inverse_flat: NDArray[Any] | None,
    gain_e_per_adu: float,
    read_noise_e: float,
    dark_e: ArrayLike = 0.0,
    offset_err_e: ArrayLike = 0.0,
    flat_err: ArrayLike = 0.0,
) -> Pixels:
    """Variance [y, x] in e-² of calibrated pixels: what calibrate gave, so that none is kept.

    inverse_flat: as for calibrate; dark_e: electrons subtracted as dark; offset_err_e: error of
    bias and dark; flat_err: of the flat, relative; each a number or [y, x]. Photons of the raw
    signal and reading are of the raw pixel, so the flat scales them. Negative signals add no
    photon noise; NaN stays NaN.
    Raises ValueError: shapes differ, gain not above zero. Source: Merline & Howell 1995.
    """
    if not 0 < gain_e_per_adu < np.inf:
        raise ValueError(f"gain_e_per_adu must be finite and above zero, not {gain_e_per_adu}")
    pixels = np.asarray(pixels_e, dtype=np.float64)
    dark, offset_err, relative, response = (
        _plane_of(name, plane, pixels.shape)
        for name, plane in (
            ("dark_e", dark_e), ("offset_err_e", offset_err_e), ("flat_err", flat_err),
            ("inverse_flat", 1.0 if inverse_flat is None else inverse_flat),
        )
    )  # fmt: skip
    constant_e2 = read_noise_e**2 + gain_e_per_adu**2 / 12  # counts are cut to whole numbers
    with np.errstate(invalid="ignore", over="ignore"):  # a flat that is no number gives none
        total = np.maximum(pixels * response, 0.0)
        total += response**2 * (dark + offset_err**2 + constant_e2) + (pixels * relative) ** 2
        return as_pixels(total)


def _plane_of(name: str, plane: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A number, or a plane of the frame's shape, as float64."""
    array = np.asarray(plane, dtype=np.float64)
    if array.shape not in ((), shape):
        raise ValueError(f"{name} is {array.shape}, pixels are {shape}")
    return array


def bad_from_dark(
    dark_level: NDArray[Any], *, noise: NDArray[Any] | None = None, sigma: float = 8.0
) -> Mask:
    """Hot pixels [y, x] of a dark master: MASK_BAD where it stands out of its neighbourhood.

    A pixel is hot where its level lies `sigma` robust scatters (1.4826 MAD) above the median of
    its square of 64 pixels, so that amplifier glow is not; unsteady where its noise in the
    stack does. No number: bad.
    Raises ValueError: shapes differ, no [y, x].
    """
    bad = _outstanding(dark_level, sigma) | ~np.isfinite(dark_level)
    if noise is not None:
        if noise.shape != dark_level.shape:
            raise ValueError(f"noise is {noise.shape}, dark_level is {dark_level.shape}")
        bad |= _outstanding(noise, sigma) | ~np.isfinite(noise)
    return np.where(bad, np.uint8(MASK_BAD), np.uint8(0))


def bad_from_flat(flat: NDArray[Any], *, low: float = 0.5, high: float = 1.5) -> Mask:
    """Dead and low pixels [y, x] of a flat master of any level: MASK_BAD.

    Bad is what is no number, not above zero, or outside `low` to `high` times the median of its
    square of 64 pixels (vignetting is not), or below a tenth of the median of the whole.
    Raises ValueError: no [y, x].
    """
    level, _ = levels_by_tiles(flat)
    with np.errstate(invalid="ignore"):
        good = (flat > 0) & (flat > low * level) & (flat < high * level)
        usable = flat[np.isfinite(flat) & (flat > 0)]
        good &= flat > 0.1 * (np.median(usable) if usable.size else np.inf)
    return np.where(good, np.uint8(0), np.uint8(MASK_BAD))


def _outstanding(plane: NDArray[Any], sigma: float) -> NDArray[np.bool_]:
    level, scatter = levels_by_tiles(plane)
    with np.errstate(invalid="ignore"):
        return np.asarray(plane > level + sigma * scatter)


def levels_by_tiles(plane: NDArray[Any]) -> tuple[Pixels, Pixels]:
    """Median and 1.4826 MAD of the square each pixel lies in, [y, x]; NaN where it is all NaN.

    The scatter is at least that of half the squares: in a square without spread (a master of
    few integers) every other value would stand out.
    """
    if plane.ndim != 2:
        raise ValueError(f"a plane [y, x] is needed, not {plane.shape}")
    level = np.full(plane.shape, np.nan, dtype=np.float32)
    scatter = np.full(plane.shape, np.nan, dtype=np.float32)
    for y in range(0, plane.shape[0], _TILE_PX):
        for x in range(0, plane.shape[1], _TILE_PX):
            square = (slice(y, y + _TILE_PX), slice(x, x + _TILE_PX))
            values = plane[square][np.isfinite(plane[square])].astype(np.float64)
            if values.size:
                median = np.median(values)
                level[square] = median
                scatter[square] = 1.4826 * np.median(np.abs(values - median))
    known = scatter[np.isfinite(scatter)]
    if known.size:
        scatter = np.maximum(scatter, np.median(known))
    return level, scatter


def pair_gain(first_adu: NDArray[Any], second_adu: NDArray[Any], *, read_noise_adu: float) -> float:
    """Gain in e-/ADU from two flats less their offset, NaN where they show none.

    The difference of the two, each over its level, holds no pattern of the pixels: its variance
    is that of photons, 1 / (gain x level) each, and of reading. Source: Janesick 2001,
    Scientific CCDs, ch. 2.
    """
    first, second = float(np.median(first_adu)), float(np.median(second_adu))
    if not min(first, second) > 0:
        return float("nan")
    apart = np.asarray(first_adu) / first - np.asarray(second_adu) / second
    spread = 1.4826 * float(np.median(np.abs(apart - np.median(apart))))
    photons = spread**2 - read_noise_adu**2 * (first**-2 + second**-2)
    return (1 / first + 1 / second) / photons if photons > 0 else float("nan")
