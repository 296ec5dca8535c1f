"""Pixels cut out of a frame, squares and runs of rows; what to do where one is no good."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nightloom.image.aperture import UNUSABLE
from nightloom.image.calibrate import Mask, Pixels


@njit(nogil=True, cache=True)
def starts(x: float, y: float, level: float, ny: int, nx: int) -> bool:
    """Whether there is a level, and a place within the frame."""
    return math.isfinite(level) and -0.5 <= x <= nx - 0.5 and -0.5 <= y <= ny - 0.5


@njit(nogil=True, cache=True)
def corner(x: float, half: int) -> int:
    """First column (or row) of a square of 2 half + 1 pixels whose middle one holds x."""
    return int(np.floor(x + 0.5)) - half


@njit(nogil=True, cache=True)
def cut(
    pixels: Pixels, mask: Mask, left: int, low: int, level: float, out: NDArray[Any]
) -> int:  # fmt: skip
    """Pixels less a level from (left, low) on, into out [y, x]; how many of them are good.

    NaN where a pixel is masked, not finite or off the frame.
    """
    ny, nx = pixels.shape
    rows, columns = out.shape
    n = 0
    for j in range(rows):
        for i in range(columns):
            row, column = low + j, left + i
            if 0 <= row < ny and 0 <= column < nx and good(pixels, mask, row, column):
                out[j, i] = pixels[row, column] - level
                n += 1
            else:
                out[j, i] = np.nan
    return n


@njit(nogil=True, cache=True)
def copy_good(
    pixels: Pixels, mask: Mask, y: int, start: int, stop: int, unusable: int, out: Pixels,
    place: int,
) -> None:  # fmt: skip
    """Copy pixels of a row from start to stop to a place in out [pixel], infinity for no good.

    unusable: mask bits of those that are none. By places, not by slices: each slice would be
    counted in and out as an owner of the memory, which takes as long as the copy.
    """
    row, source, to, bits = np.uint64(y), np.uint64(start), np.uint64(place), np.uint8(unusable)
    for k in range(np.uint64(max(stop - start, 0))):
        value = pixels[row, source + k]
        good = ((mask[row, source + k] & bits) == 0) & (abs(value) < np.float32(np.inf))
        out[to + k] = value if good else np.float32(np.inf)


@njit(nogil=True, cache=True)
def good(pixels: Pixels, mask: Mask, j: int, i: int) -> bool:
    """Whether a pixel of the frame is finite and not masked."""
    good: bool = (mask[j, i] & UNUSABLE) == 0 and abs(pixels[j, i]) < np.inf
    return good


@njit(nogil=True, cache=True)
def mirrored(pixels: Pixels, mask: Mask, x: float, y: float) -> float:
    """Bilinear value at a place between pixels; NaN where one of the four is no good."""
    ny, nx = pixels.shape
    i, j = int(np.floor(x)), int(np.floor(y))
    if not (0 <= i < nx - 1 and 0 <= j < ny - 1):
        return np.nan
    fx, fy = x - i, y - j
    value = 0.0
    for dj in range(2):
        for di in range(2):
            if not good(pixels, mask, j + dj, i + di):
                return np.nan
            weight = (fx if di else 1.0 - fx) * (fy if dj else 1.0 - fy)
            value += weight * pixels[j + dj, i + di]
    return value
