"""Optimal extraction: fluxes as sums weighted by the frame's star profile, one more aperture."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nightloom.image.aperture import UNUSABLE, ApertureSums, Floats, frame_arrays, star_vectors
from nightloom.image.calibrate import MASK_SATURATED, Mask, Pixels
from nightloom.image.psf import PsfShape

REACH_FWHM = 2.0  # pixels beyond carry weight that is lost in the error of the sky
_WHOLE_FWHM = 3.0  # the flux is that of a circle of this radius
_LEFT_OUT = UNUSABLE | MASK_SATURATED
_TABLE = 2048  # squares of radii at which the profile is computed, others lie between
_WIDE_FWHM_PX = 3.5  # of stars whose pixels need no more than two nodes a side
_TWO_NODES = np.array([[-0.5 / math.sqrt(3), 0.5 / math.sqrt(3)], [0.5, 0.5]])
_THREE_NODES = np.array([[-0.5 * math.sqrt(0.6), 0.0, 0.5 * math.sqrt(0.6)], [5, 8, 5]])
_THREE_NODES[1] /= 18


def optimal_sums(
    pixels_e: NDArray[Any],
    mask: NDArray[Any],
    x_px: ArrayLike,
    y_px: ArrayLike,
    *,
    shape: PsfShape,
    min_share: float = 0.5,
) -> ApertureSums:
    """Sums [star, 1] of pixels times P / sum(P^2), P the profile of the frame's stars.

    pixels_e, mask: [y, x]; x_px, y_px: [star]. Weights as for stars fainter than the sky: the
    same for all stars, so that an error of the profile is one factor of the frame. Masked and
    saturated pixels are left out and the others carry their part; NaN where they hold less than
    min_share of the weight, or without a profile. Areas are those of background and noise.
    Raises ValueError: shapes differ. Source: Naylor 1998, MNRAS 296, 339.
    """
    pixels, flags = frame_arrays(pixels_e, mask)
    x, y = star_vectors(x_px, y_px)
    sums = np.full((6, len(x), 1), np.nan)
    if shape.n_stars and math.isfinite(shape.fwhm_px + shape.beta + shape.elongation):
        reach = REACH_FWHM * shape.fwhm_px
        nodes = _TWO_NODES if shape.fwhm_px >= _WIDE_FWHM_PX else _THREE_NODES
        table, per_px2 = _moffat_table(shape, reach)
        _extract(
            pixels, flags, x, y, _form(shape), reach, math.sqrt(shape.elongation),
            table, per_px2, nodes, float(min_share), sums[:, :, 0],
        )  # fmt: skip
    return ApertureSums(*sums)


def _form(shape: PsfShape) -> tuple[float, float, float]:
    """Form of the squared radius (xx, xy, yy) that is one on the mean width's circle."""
    cosine, sine = (f(math.radians(shape.angle_deg)) for f in (math.cos, math.sin))
    major, minor = 1 / shape.elongation, shape.elongation
    return (
        major * cosine**2 + minor * sine**2,
        (major - minor) * sine * cosine,
        major * sine**2 + minor * cosine**2,
    )


def _moffat_table(shape: PsfShape, reach: float) -> tuple[Floats, float]:
    """Moffat of flux 1 within _WHOLE_FWHM at evenly spaced squared radii; how many a px²."""
    beta = shape.beta
    scale = 4 * (2 ** (1 / beta) - 1) / shape.fwhm_px**2
    within = 1 - (1 + scale * (_WHOLE_FWHM * shape.fwhm_px) ** 2) ** (1 - beta)
    # Corners of a pixel lie beyond the centre that is within reach.
    largest = (reach + math.sqrt(shape.elongation)) ** 2
    squares = np.linspace(0.0, largest, _TABLE)
    table = (beta - 1) * scale / math.pi * (1 + scale * squares) ** -beta / within
    return table, (_TABLE - 1) / largest


@njit(nogil=True, cache=True)
def _extract(
    pixels: Pixels,
    mask: Mask,
    x_px: Floats,
    y_px: Floats,
    form: tuple[float, float, float],
    reach: float,
    stretch: float,
    table: Floats,
    per_px2: float,
    nodes: Floats,
    min_share: float,
    sums: Floats,
) -> None:
    ny, nx = pixels.shape
    a, b, c = form
    wide = reach * stretch
    for star in range(x_px.size):
        x, y = x_px[star], y_px[star]
        if not (-1.0 - wide < x < nx + wide and -1.0 - wide < y < ny + wide):
            continue
        off = masked = square = weight = flux = noise = 0.0
        for j in range(int(np.ceil(y - wide)), int(np.floor(y + wide)) + 1):
            for i in range(int(np.ceil(x - wide)), int(np.floor(x + wide)) + 1):
                dx, dy = i - x, j - y
                if a * dx * dx + 2.0 * b * dx * dy + c * dy * dy > reach * reach:
                    continue
                p = _in_pixel(dx, dy, form, table, per_px2, nodes)
                if not (0 <= i < nx and 0 <= j < ny):
                    off += p * p
                    continue
                value = np.float64(pixels[j, i])
                if (mask[j, i] & _LEFT_OUT) != 0 or not abs(value) < np.inf:
                    masked += p * p
                    continue
                square, weight = square + p * p, weight + p
                flux, noise = flux + p * value, noise + p * p * value
        whole = square + masked + off
        if not (square > 0.0 and square >= min_share * whole):
            continue
        sums[0, star], sums[1, star] = flux / square, weight / square
        sums[2, star] = weight / square * masked / whole
        sums[3, star] = weight / square * off / whole
        sums[4, star], sums[5, star] = noise / (square * square), 1.0 / square


@njit(nogil=True, cache=True)
def _in_pixel(
    dx: float,
    dy: float,
    form: tuple[float, float, float],
    table: Floats,
    per_px2: float,
    nodes: Floats,
) -> float:
    """The profile averaged over a pixel, by Gauss's rule."""
    a, b, c = form
    total = 0.0
    for k in range(nodes.shape[1]):
        v = dy + nodes[0, k]
        for m in range(nodes.shape[1]):
            u = dx + nodes[0, m]
            place = (a * u * u + 2.0 * b * u * v + c * v * v) * per_px2
            n = min(int(place), table.size - 2)
            value = table[n] + min(place - n, 1.0) * (table[n + 1] - table[n])
            total += nodes[1, k] * nodes[1, m] * value
    return total
