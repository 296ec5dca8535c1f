"""Frames warped onto a reference's grid and summed: for looking and detecting, never measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nightloom.image.calibrate import MASK_BAD, MASK_COSMIC, MASK_NAN, as_mask, as_pixels

Sums = NDArray[np.float64]
_LEFT_OUT = MASK_BAD | MASK_COSMIC | MASK_NAN


@dataclass(frozen=True, slots=True)
class Stack:
    """Running sums [y, x] over frames: weighted pixels, their squares, weights."""

    total: Sums
    squares: Sums
    weight: Sums

    @property
    def mean(self) -> Sums:
        """Weighted mean, NaN where no frame has a pixel."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.total / self.weight)


def empty_stack(ny: int, nx: int) -> Stack:
    """A stack of no frame."""
    return Stack(np.zeros((ny, nx)), np.zeros((ny, nx)), np.zeros((ny, nx)))


def add_frame(
    stack: Stack,
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    matrix: NDArray[np.float64],
    *,
    weight: float,
    scale: float = 1.0,
    against: Stack | None = None,
    sigma: float = 4.0,
    slope: float = 0.3,
) -> None:
    """Add one frame to the sums, bilinear between its four nearest pixels.

    matrix [2, 3]: reference -> frame. pixels_e: above the sky; they count scale times; a masked
    neighbour leaves one out. weight: 1 / (variance of the sky then). against: the stack of all
    frames, this one among them: what lies further than sigma scatters from what the others give
    is left out; the scatter is at least the sky's. slope: of the mean, is allowed besides, so
    that the flanks of stars are kept where the seeing varies.
    """
    nothing = np.zeros((0, 0))
    all_of_them = Stack(nothing, nothing, nothing) if against is None else against
    _add(
        stack.total, stack.squares, stack.weight, as_pixels(pixels_e), as_mask(mask),
        np.ascontiguousarray(matrix, dtype=np.float64), weight, scale,
        all_of_them.total, all_of_them.squares, all_of_them.weight, sigma, slope,
    )  # fmt: skip


@njit(nogil=True, cache=True)
def _is_outlier(
    value: float, weight: float, total: float, squares: float, weights: float, sigma: float,
    slope: float,
) -> bool:  # fmt: skip
    """Whether a value does not fit the other values of the sums that it is part of.

    Against a scatter that holds the value itself, none of n stands out by more than
    (n - 1) / sqrt(n) of it: at four sigma nothing would ever be clipped of 17 frames.
    """
    rest = weights - weight
    if rest < 1.5 * weight:  # of two that differ neither is known to be right
        return False
    mean = (total - weight * value) / rest
    variance = (squares - weight * value * value) / rest - mean * mean
    reach = sigma * np.sqrt(max(variance, 1.0 / weight)) + slope * abs(mean)
    return bool(abs(value - mean) > reach)


@njit(nogil=True, cache=True)
def _add(
    total: Sums, squares: Sums, weights: Sums, pixels: NDArray[np.float32],
    mask: NDArray[np.uint8], matrix: NDArray[np.float64], weight: float, scale: float,
    all_total: Sums, all_squares: Sums, all_weights: Sums, sigma: float, slope: float,
) -> None:  # fmt: skip
    ny, nx = total.shape
    rows, columns = pixels.shape
    for y in range(ny):
        for x in range(nx):
            u = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
            v = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
            i, j = int(np.floor(u)), int(np.floor(v))
            if i < 0 or j < 0 or i + 1 >= columns or j + 1 >= rows:
                continue
            around = mask[j, i] | mask[j, i + 1] | mask[j + 1, i] | mask[j + 1, i + 1]
            if around & _LEFT_OUT:
                continue
            a, b = u - i, v - j
            value = (
                (1 - b) * ((1 - a) * pixels[j, i] + a * pixels[j, i + 1])
                + b * ((1 - a) * pixels[j + 1, i] + a * pixels[j + 1, i + 1])
            )  # fmt: skip
            value *= scale
            if not np.isfinite(value):
                continue
            if all_total.size and _is_outlier(
                value, weight, all_total[y, x], all_squares[y, x], all_weights[y, x], sigma, slope
            ):
                continue
            total[y, x] += weight * value
            squares[y, x] += weight * value * value
            weights[y, x] += weight
