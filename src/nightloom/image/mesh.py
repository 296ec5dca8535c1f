"""Levels in boxes, and what they say between the centres of boxes: of a pixel, a row, an image."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import njit

from nightloom.image.calibrate import Pixels

# Level and noise [box row, box column]; first centre and spacing in x, in y.
Mesh: TypeAlias = tuple[Pixels, Pixels, float, float, float, float]


@njit(nogil=True, cache=True)
def _at(plane: Pixels, row: float, column: float) -> float:
    """Bilinear value at a fractional index of box; beyond the outermost the slope goes on."""
    ny, nx = plane.shape
    y = min(max(int(np.floor(row)), 0), max(0, ny - 2))
    x = min(max(int(np.floor(column)), 0), max(0, nx - 2))
    y1, x1 = min(y + 1, ny - 1), min(x + 1, nx - 1)
    part = column - x if nx > 1 else 0.0
    upper = plane[y, x] + part * (plane[y, x1] - plane[y, x])
    lower = plane[y1, x] + part * (plane[y1, x1] - plane[y1, x])
    value: float = upper + (row - y) * (lower - upper)
    return value


@njit(nogil=True, cache=True)
def level_at(mesh: Mesh, x: float, y: float) -> float:
    level, _, x0, dx, y0, dy = mesh
    value: float = _at(level, (y - y0) / dy, (x - x0) / dx)
    return value


@njit(nogil=True, cache=True)
def noise_at(mesh: Mesh, x: float, y: float) -> float:
    _, noise, x0, dx, y0, dy = mesh
    row = min(max((y - y0) / dy, 0.0), noise.shape[0] - 1.0)
    value: float = _at(noise, row, min(max((x - x0) / dx, 0.0), noise.shape[1] - 1.0))
    return value


@njit(nogil=True, cache=True)
def along_rows(plane: Pixels, x0: float, dx: float, nx: int) -> Pixels:
    """Rows of a plane of boxes at every column of pixels: linear, also past the last centres."""
    lines: Pixels = np.empty((plane.shape[0], nx), dtype=np.float32)
    last = plane.shape[1] - 1
    for k in range(len(lines)):
        boxes, line = plane[k], lines[k]
        start = 0
        for left in range(max(1, last)):
            low = np.float64(boxes[left])
            slope = (boxes[min(left + 1, last)] - low) / dx
            stop = nx if left >= last - 1 else min(nx, int(np.ceil(x0 + (left + 1) * dx)))
            for x in range(start, stop):
                line[x] = low + slope * (x - (x0 + left * dx))
            start = stop
    return lines


@njit(nogil=True, cache=True)
def between(row: float, n_rows: int) -> tuple[int, int, np.float32]:
    """The rows of boxes above and below a fractional one, and how far it is past the first."""
    above = min(max(int(np.floor(row)), 0), max(0, n_rows - 2))
    return above, min(above + 1, n_rows - 1), np.float32(row - above)


@njit(nogil=True, cache=True)
def mesh_image(mesh: Mesh, ny: int, nx: int, first: int) -> Pixels:
    """The level at every pixel [y, x] of ny rows from the first on."""
    level, _, x0, dx, y0, dy = mesh
    image: Pixels = np.empty((ny, nx), dtype=np.float32)
    lines = along_rows(level, x0, dx, nx)
    for y in range(ny):
        above, below, part = between((first + y - y0) / dy, len(lines))
        upper, lower, row = lines[above], lines[below], image[y]
        for x in range(nx):
            row[x] = upper[x] + part * (lower[x] - upper[x])
    return image
