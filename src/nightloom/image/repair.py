"""Single masked pixels filled from their neighbours, so that no wide aperture is given up."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from nightloom.image.aperture import Floats, positive, star_vectors
from nightloom.image.calibrate import MASK_BAD, MASK_COSMIC, MASK_NAN, Mask, Pixels

_FILLED = MASK_BAD | MASK_COSMIC | MASK_NAN
_MIN_PAIRS = 2
_RUN_PX = 128  # pixels whose flags are looked at together: nearly all runs are clean


def repair(pixels_e: Pixels, mask: Mask) -> Mask:
    """Fill masked pixels in place; returns the mask without the bits of those that were filled.

    A pixel is filled by the mean of opposite neighbours, which is exact on a plane, where at
    least two of the four pairs are clean; what can't be filled stays masked. In the wings of a
    star the error is a small part of the little flux there; who measures near a core looks at
    the mask as it was. Raises ValueError: not native float32 [y, x] with its mask.
    """
    left = _left_of(pixels_e, mask)
    _repair(pixels_e, mask, left, (0, mask.shape[0]), (0, mask.shape[1]))
    return left


def repair_near(
    pixels_e: Pixels, mask: Mask, x_px: ArrayLike, y_px: ArrayLike, *, reach_px: float
) -> Mask:
    """As repair, in squares about stars alone, which reach so far: most of a frame is never read.

    x_px, y_px: [star]; those without a position are left out.
    Raises ValueError: as repair; shapes differ, reach_px not finite and above zero.
    """
    x, y = star_vectors(x_px, y_px)
    reach = positive("reach_px", reach_px)
    if len(x) * (2 * reach + 1) ** 2 > mask.size:
        return repair(pixels_e, mask)
    left = _left_of(pixels_e, mask)
    _repair_squares(pixels_e, mask, left, x, y, reach)
    return left


def _left_of(pixels_e: Pixels, mask: Mask) -> Mask:
    if pixels_e.dtype != np.float32 or pixels_e.shape != mask.shape or pixels_e.ndim != 2:
        raise ValueError(f"needs float32 [y, x] and its mask, not {pixels_e.dtype, mask.shape}")
    return mask.copy()


@njit(nogil=True, cache=True)
def _repair_squares(
    pixels: Pixels, mask: Mask, left: Mask, x_px: Floats, y_px: Floats, reach: float
) -> None:
    ny, nx = mask.shape
    for star in range(len(x_px)):
        x, y = x_px[star], y_px[star]
        near = -reach < x < nx + reach and -reach < y < ny + reach  # and a number
        if near:
            # A pixel of two squares is filled twice, with the same: what fills it is never filled.
            _repair(
                pixels, mask, left, (max(int(y - reach), 0), min(int(y + reach) + 2, ny)),
                (max(int(x - reach), 0), min(int(x + reach) + 2, nx)),
            )  # fmt: skip


@njit(nogil=True, cache=True)
def _repair(
    pixels: Pixels, mask: Mask, left: Mask, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    ny, nx = pixels.shape
    for y in range(max(rows[0], 1), min(rows[1], ny - 1)):
        row = mask[y]
        for start in range(columns[0], columns[1], _RUN_PX):
            stop = min(start + _RUN_PX, columns[1])
            run = row[start:stop]
            marks = np.uint8(0)
            for k in range(len(run)):
                marks |= run[k]
            if marks & _FILLED == 0:
                continue
            for x in range(max(start, 1), min(stop, nx - 1)):
                if row[x] & _FILLED:
                    _fill(pixels, mask, left, y, x)


@njit(nogil=True, cache=True)
def _fill(pixels: Pixels, mask: Mask, left: Mask, y: int, x: int) -> None:
    total, count = 0.0, 0
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        if mask[y + dy, x + dx] == 0 and mask[y - dy, x - dx] == 0:
            total += pixels[y + dy, x + dx] + pixels[y - dy, x - dx]
            count += 2
    if count >= 2 * _MIN_PAIRS:
        pixels[y, x] = total / count
        left[y, x] = mask[y, x] & ~_FILLED
