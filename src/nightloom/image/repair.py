"""Single masked pixels filled from their neighbours, so that no wide aperture is given up."""

from __future__ import annotations

import numpy as np
from numba import njit

from nightloom.image.calibrate import MASK_BAD, MASK_COSMIC, MASK_NAN, Mask, Pixels

_FILLED = MASK_BAD | MASK_COSMIC | MASK_NAN
_MIN_PAIRS = 2
_RUN_PX = 64  # pixels whose flags are looked at together: nearly all runs are clean


def repair(pixels_e: Pixels, mask: Mask) -> Mask:
    """Fill masked pixels in place; returns the mask without the bits of those that were filled.

    A pixel is filled by the mean of opposite neighbours, which is exact on a plane, where at
    least two of the four pairs are clean; what can't be filled stays masked. In the wings of a
    star the error is a small part of the little flux there; who measures near a core looks at
    the mask as it was. Raises ValueError: not native float32 [y, x] with its mask.
    """
    if pixels_e.dtype != np.float32 or pixels_e.shape != mask.shape or pixels_e.ndim != 2:
        raise ValueError(f"needs float32 [y, x] and its mask, not {pixels_e.dtype, mask.shape}")
    left = mask.copy()
    _repair(pixels_e, mask, left)
    return left


@njit(nogil=True, cache=True)
def _repair(pixels: Pixels, mask: Mask, left: Mask) -> None:
    ny, nx = pixels.shape
    for y in range(1, ny - 1):
        row = mask[y]
        for start in range(0, nx, _RUN_PX):
            run = row[start : start + _RUN_PX]
            marks = np.uint8(0)
            for k in range(len(run)):
                marks |= run[k]
            if marks & _FILLED == 0:
                continue
            for x in range(max(start, 1), min(start + _RUN_PX, nx - 1)):
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
