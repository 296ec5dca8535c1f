"""Stored numbers of an image to physical ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightloom.frames.cards import Cards, value_of
from nightloom.image.calibrate import swap_and_offset

Pixels = NDArray[Any]


def scaled(raw: Pixels, cards: Cards, bitpix: int) -> Pixels:
    """Stored numbers to physical ones. Source: FITS standard 4.0, sections 4.4.2.5 and 5.2.5."""
    scale, zero = _number(cards, "BSCALE", 1.0), _number(cards, "BZERO", 0.0)
    plain = scale == 1.0 and zero == 0.0
    blank = value_of(cards, "BLANK")
    if blank is None:
        blank = value_of(cards, "ZBLANK")
    swapped = not raw.dtype.isnative
    if swapped and bitpix == 16 and scale == 1.0 and zero == 2.0**15 and blank is None:
        words = raw.view(np.uint16)  # what nearly all cameras write, in one pass
        swap_and_offset(words.reshape(-1))
        return words
    if swapped:
        raw = raw.byteswap(inplace=True).view(raw.dtype.newbyteorder())
    if bitpix < 0:
        return raw.astype(np.float32, copy=False) if plain else _affine(raw, scale, zero)
    bits = abs(bitpix)
    if isinstance(blank, int):
        pixels = _affine(raw, scale, zero)
        pixels[raw == blank] = np.nan
        return pixels
    if plain:
        return raw
    if scale == 1.0 and bitpix > 8 and zero == 2.0 ** (bits - 1):
        unsigned = raw.view(np.dtype(f"u{bits // 8}"))
        np.bitwise_xor(unsigned, unsigned.dtype.type(1 << (bits - 1)), out=unsigned)
        return unsigned
    if scale == 1.0 and bitpix == 8 and zero == -128.0:
        return (raw ^ np.uint8(128)).view(np.int8)
    return _affine(raw, scale, zero)


def _affine(raw: Pixels, scale: float, zero: float) -> Pixels:
    physical: Pixels = (raw * np.float64(scale) + np.float64(zero)).astype(np.float32)
    return physical


def _number(raw: Cards, keyword: str, default: float) -> float:
    value = value_of(raw, keyword)
    return float(value) if isinstance(value, int | float) else default
