"""Circles over pixels: what of each pixel lies within, exactly, for many circles in one pass."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nightloom.image.calibrate import Mask, Pixels
from nightloom.image.peaks import UNUSABLE, Floats
from nightloom.image.prefetch import prefetch

# Halves of rows about a star, above and below it, right and left of it, each outwards; pixels on
# the axes through the star are cut there. Values, 0 of what is no good, the sum of all before each,
# and the area of those no good before each: [3, half, pixel]. V of the middle, of the nearer and of
# the farther edge, u and width of the first pixel [5, half], by rising V; number of pixels [half].
Halves: TypeAlias = tuple[NDArray[np.float64], Floats, NDArray[np.int64]]

# Area of a circular segment of chord c: r² u³ g(s²), with u the sine of its angle, s = c / 2r.
# This is the series of g, without asin: off by 1e-9 px² at most in circles that are not small.
_SERIES = (1 / 12, 3 / 20, 29 / 140, 65 / 252, 281 / 924, 595 / 1716)
_SMALL_PX2 = 12.5  # a pixel's diagonal is then 0.4 radii
_SPARE_PIECES = 48  # of pixels on the axes, which are two, and of circles that touch corners
_LANES = np.uint64(4)  # unsigned, as no index counted from the end need be thought of then;
# pieces of half a row that are stored together, however many there are

FLUX, MASKED, SEEN, FLUX_SPARED, AREA_SPARED = range(5)  # rows of what is summed for each circle


@njit(nogil=True, cache=True)
def sum_stars(
    pixels: Pixels, mask: Mask, x_px: Floats, y_px: Floats, radii_px: Floats, sums: Floats
) -> None:
    """Fill sums [6, star, circle], as ApertureSums names them, from rising radii."""
    n_stars, n_radii = radii_px.shape
    parts = np.empty((5, n_radii))
    ny, nx = pixels.shape
    widest = radii_px[:, -1].max() if radii_px.size else 0.0
    tall, wide = int(min(2 * widest + 4, ny + 1.0)), int(min(widest + 3, np.float64(nx)))
    halves = (
        np.empty((3, 2 * tall, wide + 1 + int(_LANES))), np.empty((5, 2 * tall)),
        np.empty(2 * tall, dtype=np.int64),
    )  # fmt: skip
    room = 8 * int(np.ceil(min(widest, np.float64(max(ny, nx))))) + _SPARE_PIECES
    pieces = np.empty((4, room))
    for star in range(n_stars):
        x, y, radii = x_px[star], y_px[star], radii_px[star]
        if n_radii == 0 or not (math.isfinite(x) and math.isfinite(y)):
            sums[:, star] = np.nan
            continue
        parts[:] = 0.0
        after = min(star + 1, n_stars - 1)
        ahead = x_px[after], y_px[after], radii_px[after, -1]
        cut = _sum_star(pixels, mask, x, y, radii, ahead, parts, pieces, halves)
        for k in range(n_radii):
            circle = math.pi * radii[k] * radii[k]
            out = _of_circle(circle - parts[SEEN, k], circle) if cut else 0.0
            bad = parts[MASKED, k]
            good = _of_circle(circle - out - bad, circle)
            total = parts[FLUX, k] if good > 0.0 else np.nan
            sums[0, star, k] = total
            sums[1, star, k], sums[2, star, k], sums[3, star, k] = good, bad, out
            sums[4, star, k] = total - parts[FLUX_SPARED, k]
            sums[5, star, k] = max(good - parts[AREA_SPARED, k], 0.0)


@njit(nogil=True, cache=True)
def _of_circle(area: float, circle: float) -> float:
    """An area found as a difference: nothing where it is less than rounding can tell."""
    return area if area > 1e-9 * circle else 0.0


@njit(nogil=True, cache=True)
def _sum_star(
    pixels: Pixels,
    mask: Mask,
    x: float,
    y: float,
    radii: Floats,
    ahead: tuple[float, float, float],
    parts: Floats,
    pieces: Floats,
    halves: Halves,
) -> bool:
    """Add up one star; true where the frame's edge cuts its largest circle.

    ahead: place and reach of the star that comes next.
    """
    ny, nx = pixels.shape
    reach = radii[-1]
    left, right = np.floor(x - reach + 0.5), np.floor(x + reach + 0.5)
    low, high = np.floor(y - reach + 0.5), np.floor(y + reach + 0.5)
    if right < 0 or high < 0 or left > nx - 1 or low > ny - 1:
        return True
    rows = int(max(low, 0.0)), int(min(high, ny - 1.0))
    columns = int(max(left, 0.0)), int(min(right, nx - 1.0))
    n, clean = _fill_halves(pixels, mask, x, y, rows, columns, halves)
    planes, edges, counts = halves
    starts, stops = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    reached = 0
    for k in range(radii.size):
        prefetch(pixels, mask, ahead[0], ahead[1], ahead[2], k, radii.size)
        square, n_pieces = radii[k] * radii[k], 0
        while reached < n and edges[1, reached] < radii[k]:
            reached += 1
        _find_spans(square, reached, edges, counts, starts, stops)
        if clean:
            n_pieces = _store(planes, edges, starts, stops, reached, parts, k, pieces)
        else:
            n_pieces = _store_good(planes, edges, starts, stops, reached, square, parts, k, pieces)
        _add_pieces(pieces, n_pieces, square, parts, k)
    return bool(left < 0 or low < 0 or right > nx - 1 or high > ny - 1)


@njit(nogil=True, cache=True)
def _start(centre: float, lowest: int, highest: int, step: int) -> int:
    """The pixel to start from when walking away from the centre, within the frame."""
    here = np.floor(centre + 0.5)
    return int(max(here, lowest) if step > 0 else min(here, highest))


@njit(nogil=True, cache=True)
def _fill_halves(
    pixels: Pixels,
    mask: Mask,
    x: float,
    y: float,
    rows: tuple[int, int],
    columns: tuple[int, int],
    halves: Halves,
) -> tuple[int, bool]:
    """Fill the halves of rows about a star, the nearest first; how many, and whether all are good.

    By quadrants, the axes cut: every piece of a pixel then has a nearest and a farthest corner,
    and a circle falls within it.
    """
    planes, edges, counts = halves
    n, clean = 0, True
    up, down = _start(y, rows[0], rows[1], 1), _start(y, rows[0], rows[1], -1)
    right, left = _start(x, columns[0], columns[1], 1), _start(x, columns[0], columns[1], -1)
    while up <= rows[1] or down >= rows[0]:
        above = down < rows[0] or (up <= rows[1] and max(up - y, 0.5) <= max(y - down, 0.5))
        j, v = (up, up - y) if above else (down, y - down)
        up, down = (up + 1, down) if above else (up, down - 1)
        for step in (1, -1):
            i, u = (right, right - x) if step > 0 else (left, x - left)
            counts[n] = max(columns[1] - i + 1 if step > 0 else i - columns[0] + 1, 0)
            width = min(u + 0.5, 1.0)
            edges[0, n], edges[1, n], edges[2, n] = v, max(v - 0.5, 0.0), v + 0.5
            edges[3, n], edges[4, n] = u, width
            if not _copy_outwards(pixels, mask, j, i, step, counts[n], planes, n):
                clean = False
                _find_lost(mask, j, i, step, width, counts[n], planes, n)
            else:
                for m in range(planes.shape[2]):
                    planes[2, n, m] = 0.0
            total = 0.0
            for m in range(counts[n]):
                planes[1, n, m] = total
                total += planes[0, n, m] * width
                width = 1.0
            planes[1, n, counts[n]] = total
            n += 1
    return n, clean


@njit(nogil=True, cache=True)
def _copy_outwards(
    pixels: Pixels, mask: Mask, j: int, i: int, step: int, n: int, planes: NDArray[np.float64],
    h: int,
) -> bool:  # fmt: skip
    """Copy n pixels from i on to half h; whether all are good.

    By places, not by slices: each slice is counted in and out as an owner of the memory.
    """
    seen, strange = np.uint8(0), False
    for m in range(n):
        value = pixels[j, i + step * m]
        planes[0, h, m] = value
        seen |= mask[j, i + step * m]
        strange |= not abs(value) < np.inf
    return (seen & UNUSABLE) == 0 and not strange


@njit(nogil=True, cache=True)
def _find_lost(
    mask: Mask, j: int, i: int, step: int, width: float, n: int, planes: NDArray[np.float64],
    h: int,
) -> None:  # fmt: skip
    """Take out of half h what is no good of n pixels from i on, and note its area."""
    bad = 0.0
    for m in range(n):
        planes[2, h, m] = bad
        if (mask[j, i + step * m] & UNUSABLE) != 0 or not abs(planes[0, h, m]) < np.inf:
            planes[0, h, m] = 0.0
            bad += width
        width = 1.0
    planes[2, h, n] = bad


@njit(nogil=True, cache=True)
def _find_spans(
    square: float,
    n: int,
    edges: Floats,
    counts: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
) -> None:
    """Which pixels of the first n halves a circle cuts, from one to before another.

    It holds those before. It crosses the farther edge nearer to the star than the nearer one.
    """
    for h in range(n):
        y0, y1, u = edges[1, h], edges[2, h], edges[3, h]
        inner, outer = math.sqrt(max(square - y1 * y1, 0.0)), math.sqrt(max(square - y0 * y0, 0.0))
        stops[h] = int(min(max(np.ceil(outer - u + 0.5), 0.0), np.float64(counts[h])))
        starts[h] = min(int(max(inner - u + 0.5, 0.0)), stops[h])


@njit(nogil=True, cache=True)
def _store(
    planes: NDArray[np.float64],
    edges: Floats,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    n_halves: int,
    parts: Floats,
    k: int,
    pieces: Floats,
) -> int:
    """Add what circle k holds of halves of rows and store what it cuts, as pieces; how many."""
    flux, seen, n = 0.0, 0.0, 0
    for h in range(n_halves):
        first, v, width = starts[h], edges[0, h], edges[4, h]
        high, cut = edges[2, h] - edges[1, h], stops[h] - first
        place, m, u = np.uint64(n), np.uint64(first), edges[3, h] + first
        flux += high * planes[1, h, m]
        seen += high * (first - 1 + width) if first > 0 else 0.0
        # Always some of them, which the next ones overwrite: rarely are there more.
        for i in range(_LANES):
            pieces[0, place + i] = u + np.float64(i)
            pieces[1, place + i] = v
            pieces[2, place + i] = planes[0, h, m + i]
        for i in range(_LANES, np.uint64(cut)):
            pieces[0, place + i] = u + np.float64(i)
            pieces[1, place + i] = v
            pieces[2, place + i] = planes[0, h, m + i]
        n += cut
    parts[FLUX, k] += flux
    parts[SEEN, k] += seen
    return n


@njit(nogil=True, cache=True)
def _store_good(
    planes: NDArray[np.float64],
    edges: Floats,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    n_halves: int,
    square: float,
    parts: Floats,
    k: int,
    pieces: Floats,
) -> int:
    """The same where some of the pixels are no good: what it holds of those is masked area."""
    n = 0
    for h in range(n_halves):
        first, v, y0, y1 = starts[h], edges[0, h], edges[1, h], edges[2, h]
        parts[FLUX, k] += (y1 - y0) * planes[1, h, first]
        parts[MASKED, k] += (y1 - y0) * planes[2, h, first]
        parts[SEEN, k] += (y1 - y0) * (first - 1 + edges[4, h]) if first > 0 else 0.0
        for m in range(first, stops[h]):
            u = edges[3, h] + m
            if planes[2, h, m + 1] == planes[2, h, m]:
                pieces[0, n], pieces[1, n], pieces[2, n] = u, v, planes[0, h, m]
                n += 1
            else:
                area = _overlap_small(max(u - 0.5, 0.0), u + 0.5, y0, y1, square, 1.0 / square)
                parts[MASKED, k] += area
                parts[SEEN, k] += area
    return n


@njit(nogil=True, cache=True)
def _add_pieces(pieces: Floats, n: int, square: float, parts: Floats, k: int) -> None:
    """Add the n pieces of circle k: flux and area, and both times w (1 - w)."""
    inverse = 1.0 / square
    if square < _SMALL_PX2:
        for i in range(n):
            u, v = pieces[0, i], pieces[1, i]
            x0, y0 = max(u - 0.5, 0.0), max(v - 0.5, 0.0)
            pieces[3, i] = _overlap_small(x0, u + 0.5, y0, v + 0.5, square, inverse)
    else:
        # No branch: it runs on whole vectors.
        for i in range(n):
            u, v = pieces[0, i], pieces[1, i]
            x0, y0 = max(u - 0.5, 0.0), max(v - 0.5, 0.0)
            pieces[3, i] = _overlap(x0, u + 0.5, y0, v + 0.5, square, inverse)
    for i in range(n):
        inside, value = pieces[3, i], pieces[2, i]
        area = max(min(pieces[0, i] + 0.5, 1.0) * min(pieces[1, i] + 0.5, 1.0), 1e-300)
        spared = inside - inside * inside / area
        pieces[0, i], pieces[1, i] = value * inside, value * spared
        pieces[2, i] = spared
    # Two sums of each keep the adders busy.
    a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = 0.0
    for pair in range(n // 2):
        i = 2 * pair
        a0, a1 = a0 + pieces[0, i], a1 + pieces[0, i + 1]
        b0, b1 = b0 + pieces[1, i], b1 + pieces[1, i + 1]
        c0, c1 = c0 + pieces[2, i], c1 + pieces[2, i + 1]
        d0, d1 = d0 + pieces[3, i], d1 + pieces[3, i + 1]
    for i in range(2 * (n // 2), n):
        a0, b0 = a0 + pieces[0, i], b0 + pieces[1, i]
        c0, d0 = c0 + pieces[2, i], d0 + pieces[3, i]
    parts[FLUX, k] += a0 + a1
    parts[SEEN, k] += d0 + d1
    parts[FLUX_SPARED, k] += b0 + b1
    parts[AREA_SPARED, k] += c0 + c1


@njit(nogil=True, cache=True)
def _chord(
    x0: float, x1: float, y0: float, y1: float, square: float, inverse: float
) -> tuple[float, float, float]:
    """How a circle crosses a rectangle, 0 <= x0 <= x1 and 0 <= y0 <= y1.

    Area of the rectangle under the chord; (chord / 2r)²; sine of the angle the chord is seen at.
    """
    # The arc enters at p, through the left or the upper side, and leaves at q, through the lower
    # or the right one. Choices of one value each: these compile to selects, not to branches.
    left = square < x0 * x0 + y1 * y1
    lower = square < x1 * x1 + y0 * y0
    # A circle that only touches a corner may be taken to cross it: less than nothing is rounding.
    p = math.sqrt(max(square - (x0 * x0 if left else y1 * y1), 0.0))
    q = math.sqrt(max(square - (y0 * y0 if lower else x1 * x1), 0.0))
    px = x0 if left else p
    py = p if left else y1
    qx = q if lower else x1
    qy = y0 if lower else q
    dx, dy = qx - px, qy - py
    polygon = (px - x0) * (y1 - y0) + 0.5 * dx * (py + qy - 2.0 * y0)
    return polygon, 0.25 * (dx * dx + dy * dy) * inverse, (qx * py - qy * px) * inverse


@njit(nogil=True, cache=True)
def _overlap(x0: float, x1: float, y0: float, y1: float, square: float, inverse: float) -> float:
    """Area of a rectangle of at most a pixel inside a circle that crosses it, by the series."""
    polygon, s2, sine = _chord(x0, x1, y0, y1, square, inverse)
    c0, c1, c2, c3, c4, c5 = _SERIES
    g: float = c0 + s2 * (c1 + s2 * (c2 + s2 * (c3 + s2 * (c4 + s2 * c5))))
    area: float = polygon + square * sine * sine * sine * g
    return area


@njit(nogil=True, cache=True)
def _overlap_small(
    x0: float, x1: float, y0: float, y1: float, square: float, inverse: float
) -> float:
    """The same for circles of any size."""
    polygon, s2, _ = _chord(x0, x1, y0, y1, square, inverse)
    s2 = min(s2, 1.0)
    s = math.sqrt(s2)
    area: float = polygon + square * (math.asin(s) - s * math.sqrt(1.0 - s2))
    return area
