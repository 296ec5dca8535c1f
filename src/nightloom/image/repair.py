"""Single masked pixels filled from their neighbours, so that no wide aperture is given up."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from nightloom.image.aperture import UNUSABLE, Floats, positive, star_vectors
from nightloom.image.calibrate import (
    MASK_BAD,
    MASK_COSMIC,
    MASK_FILLED,
    MASK_NAN,
    Mask,
    Pixels,
)

_MIN_PAIRS = 2
_RUN_PX = 128  # pixels whose flags are looked at together: nearly all runs are clean


def repair(pixels_e: Pixels, mask: Mask) -> None:
    """Fill masked pixels in place; their flags become those of MASK_FILLED (`flags_before`).

    A pixel is filled by the mean of opposite neighbours, which is exact on a plane, where at
    least two of the four pairs are clean; what can't be filled stays masked. In the wings of a
    star the error is a small part of the little flux there; who measures near a core looks at
    the flags as they were. Raises ValueError: not native float32 [y, x] with its mask.
    """
    _check(pixels_e, mask)
    _repair(pixels_e, mask, (0, mask.shape[0]), (0, mask.shape[1]))


def repair_near(
    pixels_e: Pixels, mask: Mask, x_px: ArrayLike, y_px: ArrayLike, *, reach_px: float
) -> None:
    """As repair, in squares about stars alone, which reach so far: most of a frame is never read.

    x_px, y_px: [star]; those without a position are left out.
    Raises ValueError: as repair; shapes differ, reach_px not finite and above zero.
    """
    x, y = star_vectors(x_px, y_px)
    reach = positive("reach_px", reach_px)
    if len(x) * (2 * reach + 1) ** 2 > mask.size:
        repair(pixels_e, mask)
    else:
        _check(pixels_e, mask)
        _repair_squares(pixels_e, mask, x, y, reach)


@njit(nogil=True, cache=True)
def _flags_of_filled(flags: int) -> int:
    moved = (flags & MASK_BAD) << 5 | (flags & (MASK_COSMIC | MASK_NAN)) << 3
    return flags & ~UNUSABLE | moved


@njit(nogil=True, cache=True)
def flags_before(flags: int) -> int:
    """A pixel's flags as they were before it was filled."""
    as_they_were = flags >> 5 & MASK_BAD | flags >> 3 & (MASK_COSMIC | MASK_NAN)
    return flags & ~MASK_FILLED | as_they_were


def _check(pixels_e: Pixels, mask: Mask) -> None:
    if pixels_e.dtype != np.float32 or pixels_e.shape != mask.shape or pixels_e.ndim != 2:
        raise ValueError(f"needs float32 [y, x] and its mask, not {pixels_e.dtype, mask.shape}")


@njit(nogil=True, cache=True)
def _repair_squares(pixels: Pixels, mask: Mask, x_px: Floats, y_px: Floats, reach: float) -> None:
    ny, nx = mask.shape
    for star in range(len(x_px)):
        x, y = x_px[star], y_px[star]
        near = -reach < x < nx + reach and -reach < y < ny + reach  # and a number
        if near:
            _repair(
                pixels, mask, (max(int(y - reach), 0), min(int(y + reach) + 2, ny)),
                (max(int(x - reach), 0), min(int(x + reach) + 2, nx)),
            )  # fmt: skip


@njit(nogil=True, cache=True)
def _repair(pixels: Pixels, mask: Mask, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    ny, nx = pixels.shape
    for y in range(max(rows[0], 1), min(rows[1], ny - 1)):
        for start in range(columns[0], columns[1], _RUN_PX):
            stop = min(start + _RUN_PX, columns[1])
            if not any_of(mask, y, start, stop) & UNUSABLE:
                continue
            for x in range(max(start, 1), min(stop, nx - 1)):
                if mask[y, x] & UNUSABLE:
                    _fill(pixels, mask, y, x)


@njit(nogil=True, cache=True)
def any_of(mask: Mask, y: int, start: int, stop: int) -> np.uint8:
    """All flags of a row from start to stop together: nearly all rows are without any."""
    row, first, flags = np.uint64(y), np.uint64(start), np.uint8(0)
    for k in range(np.uint64(stop - start)):
        flags |= mask[row, first + k]
    return flags


@njit(nogil=True, cache=True)
def _fill(pixels: Pixels, mask: Mask, y: int, x: int) -> None:
    # What was filled is flagged still: it fills no other, so in any order it is the same.
    total, count = 0.0, 0
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        if mask[y + dy, x + dx] == 0 and mask[y - dy, x - dx] == 0:
            total += pixels[y + dy, x + dx] + pixels[y - dy, x - dx]
            count += 2
    if count >= 2 * _MIN_PAIRS:
        pixels[y, x] = total / count
        mask[y, x] = _flags_of_filled(mask[y, x])
