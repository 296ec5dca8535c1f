"""Peaks: local maxima of the frame filtered with a Gaussian, above a threshold.

The threshold is in units of the filtered noise there. The background is taken off on the fly,
row by row, so the frame is read once.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nightloom.image.calibrate import MASK_BAD, MASK_COSMIC, MASK_NAN, Mask, Pixels

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
# Level and noise [box row, box column]; first centre and spacing in x, in y.
Mesh: TypeAlias = tuple[Pixels, Pixels, float, float, float, float]

UNUSABLE = MASK_BAD | MASK_COSMIC | MASK_NAN


def gaussian_taps(fwhm_px: float) -> Pixels:
    """Half of a Gaussian of unit sum from its centre to 2.5 sigma, float32."""
    sigma_px = fwhm_px / 2.3548
    steps = np.arange(max(1, int(np.ceil(2.5 * sigma_px))) + 1)
    taps = np.exp(-0.5 * (steps / sigma_px) ** 2)
    half: Pixels = (taps / (2.0 * taps.sum() - taps[0])).astype(np.float32)
    return half


@njit(nogil=True, cache=True)
def sort_few(values: Floats) -> None:
    """Sort some ten values in place, by insertion."""
    for k in range(1, len(values)):
        value, place = values[k], k
        while place > 0 and values[place - 1] > value:
            values[place] = values[place - 1]
            place -= 1
        values[place] = value


@njit(nogil=True, cache=True)
def filter_gain(taps: Pixels) -> float:
    """Noise of the filtered frame over that of a pixel."""
    total = 0.0
    for k in range(len(taps)):
        total += (1.0 if k == 0 else 2.0) * taps[k] * taps[k]
    return total


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
def _mesh_row(plane: Pixels, row: float, x0: float, dx: float, ramp: Pixels, line: Pixels) -> None:
    """The plane along one row of pixels; linear between the centres of boxes and beyond."""
    boxes = plane.shape[1]
    start = 0
    for k in range(max(1, boxes - 1)):
        last = k >= boxes - 2
        stop = len(line) if last else min(len(line), int(np.ceil(x0 + (k + 1) * dx)))
        left = _at(plane, row, np.float64(k))
        slope = (_at(plane, row, k + 1.0) - left) / dx if boxes > 1 else 0.0
        first = np.float32(left + slope * (start - (x0 + k * dx)))
        step = np.float32(slope)
        piece = line[start:stop]
        for x in range(len(piece)):
            piece[x] = first + step * ramp[x]
        start = stop


@njit(nogil=True, cache=True)
def _ramp(n: int) -> Pixels:
    ramp = np.empty(n, dtype=np.float32)
    for x in range(n):
        ramp[x] = x
    return ramp


@njit(nogil=True, cache=True)
def mesh_image(mesh: Mesh, ny: int, nx: int) -> Pixels:
    """The level at every pixel [y, x]."""
    level, _, x0, dx, y0, dy = mesh
    image = np.empty((ny, nx), dtype=np.float32)
    ramp = _ramp(nx)
    for y in range(ny):
        _mesh_row(level, (y - y0) / dy, x0, dx, ramp, image[y])
    return image


@njit(nogil=True, cache=True)
def _set(line: Pixels, value: float) -> None:
    for x in range(len(line)):
        line[x] = value


@njit(nogil=True, cache=True)
def _threshold_row(mesh: Mesh, y: int, factor: float, ramp: Pixels, line: Pixels) -> None:
    """Noise along row y times a factor; beyond the outermost centres it stays."""
    _, noise, x0, dx, y0, dy = mesh
    row = min(max((y - y0) / dy, 0.0), noise.shape[0] - 1.0)
    _mesh_row(noise, row, x0, dx, ramp, line)
    last = noise.shape[1] - 1
    _set(line[: int(np.ceil(x0))], _at(noise, row, 0.0))
    _set(line[int(np.floor(x0 + last * dx)) + 1 :], _at(noise, row, np.float64(last)))
    for x in range(len(line)):
        line[x] *= np.float32(factor)


@njit(nogil=True, cache=True)
def _residual_row(row: Pixels, marks: Mask, sky: Pixels, out: Pixels) -> None:
    """Pixels above the sky; 0 where there is no usable value."""
    for x in range(len(out)):
        value = row[x] - sky[x]
        good = ((marks[x] & UNUSABLE) == 0) & (abs(value) < np.float32(np.inf))
        out[x] = value if good else np.float32(0.0)


@njit(nogil=True, cache=True)
def _add_pair(a: Pixels, b: Pixels, tap: np.float32, out: Pixels) -> None:
    for x in range(len(out)):
        out[x] += tap * (a[x] + b[x])


@njit(nogil=True, cache=True)
def _filtered_row(ring: Pixels, y: int, taps: Pixels, padded: Pixels, out: Pixels) -> None:
    """Row y filtered with the taps down and then across; ring[y % len] are rows around it."""
    reach, n = len(taps) - 1, ring.shape[1]
    down = padded[reach : reach + n]
    centre = ring[y % len(ring)]
    for x in range(n):
        down[x] = taps[0] * centre[x]
    for k in range(1, reach + 1):
        _add_pair(ring[(y - k) % len(ring)], ring[(y + k) % len(ring)], taps[k], down)
    for x in range(n):
        out[x] = taps[0] * down[x]
    for k in range(1, reach + 1):
        left = padded[reach - k : reach - k + n]
        _add_pair(left, padded[reach + k : reach + k + n], taps[k], out)


@njit(nogil=True, cache=True)
def find_peaks(
    frame: Pixels, flags: Mask, mesh: Mesh, taps: Pixels, threshold_sigma: float
) -> Ints:
    """Pixels [peak, (x, y)] that are local maxima of the filtered frame above the threshold."""
    level, _, x0, dx, y0, dy = mesh
    ny, nx = frame.shape
    reach = len(taps) - 1
    ramp = _ramp(nx)
    sky, limit = np.empty(nx, dtype=np.float32), np.empty(nx, dtype=np.float32)
    ring = np.zeros((2 * reach + 1, nx), dtype=np.float32)
    padded = np.zeros(nx + 2 * reach, dtype=np.float32)
    # Filtered rows with a rim lower than anything, so that the edge needs no case of its own.
    lines = np.full((3, nx + 2), -np.inf, dtype=np.float32)
    factor = threshold_sigma * filter_gain(taps)
    columns = np.empty(nx, dtype=np.int64)
    found = np.empty((64, 2), dtype=np.int64)
    n = 0
    for ahead in range(ny + reach + 1):
        slot = ring[ahead % len(ring)]
        if ahead < ny:
            _mesh_row(level, (ahead - y0) / dy, x0, dx, ramp, sky)
            _residual_row(frame[ahead], flags[ahead], sky, slot)
        else:
            _set(slot, 0.0)
        y = ahead - reach
        if 0 <= y < ny:
            _filtered_row(ring, y, taps, padded, lines[y % 3, 1 : nx + 1])
        elif y == ny:
            _set(lines[y % 3], -np.inf)
        if y >= 1:
            _threshold_row(mesh, y - 1, factor, ramp, limit)
            more = _maxima(lines, y - 1, limit, columns)
            if n + more > len(found):
                found = _longer(found, n, 2 * (n + more))
            for k in range(more):
                found[n + k, 0], found[n + k, 1] = columns[k], y - 1
            n += more
    return found[:n]


@njit(nogil=True, cache=True)
def _longer(rows: Ints, used: int, size: int) -> Ints:
    longer = np.empty((size, 2), dtype=np.int64)
    for k in range(used):
        longer[k, 0], longer[k, 1] = rows[k, 0], rows[k, 1]
    return longer


@njit(nogil=True, cache=True)
def _maxima(lines: Pixels, y: int, limit: Pixels, columns: Ints) -> int:
    """Columns of the local maxima of row y above the limit; of equal neighbours the first."""
    above, here, below = lines[(y - 1) % 3], lines[y % 3], lines[(y + 1) % 3]
    n = 0
    for x in range(len(limit)):
        value = here[x + 1]
        if value > limit[x] and value > here[x] and value >= here[x + 2]:
            before = max(above[x], above[x + 1], above[x + 2])
            after = max(below[x], below[x + 1], below[x + 2])
            if value > before and value >= after:
                columns[n] = x
                n += 1
    return n
