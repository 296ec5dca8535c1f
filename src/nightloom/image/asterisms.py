"""Candidate similarities between two lists of points, from triangles of equal shape."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nightloom.image.matching import Floats, Ints, fit_similarity

_CELLS = 100  # of the hash, along each of the two ratios of sides
_THINNEST = 0.1  # least ratio of the shortest side to the longest
_LEAST_SIDE = 0.1  # of the extent: shorter triangles give no direction worth having
_FEW_POINTS = 12  # with fewer than these, short triangles are needed too
_GRID = 512  # cells of the map of the target, along each axis at most
_MOST_CANDIDATES = 16


def asterism_candidates(
    source_xy: Floats,
    target_xy: Floats,
    *,
    n_brightest: int,
    scale_range: tuple[float, float],
    allow_mirror: bool,
    tolerance: float,
    least_matches: int,
) -> Floats:
    """Similarities source -> target worth a closer look: [candidate, 2, 3], best first.

    Points [n, 2], brightest first, some 50 at most; triangles are those of the `n_brightest`.
    A candidate maps one triangle on another of the same shape and brings `least_matches` of all
    points roughly (2 to 3 tolerances) onto target points. The search goes from bright triangles
    to faint ones and ends with 16 candidates: its result depends on nothing but the lists.
    Source of the hash: ratios of sides, as in Valdes et al. 1995.
    """
    if min(len(source_xy), len(target_xy)) < 3:
        return np.empty((0, 2, 3))
    extent = float(np.max(np.ptp(target_xy, axis=0)))
    if not extent > 0:
        return np.empty((0, 2, 3))
    few = min(len(source_xy), len(target_xy)) < _FEW_POINTS
    least_side = 2.0 * tolerance if few else _LEAST_SIDE * extent
    theirs = _triangles(target_xy[:n_brightest], least_side)
    ours = _triangles(source_xy[:n_brightest], least_side / scale_range[1])
    cell, radius = max(tolerance, extent / _GRID), 2.0 * tolerance
    x0, y0 = (target_xy.min(axis=0) - radius).tolist()
    found, count = _search(
        source_xy,
        target_xy,
        ours,
        theirs,
        _hash(theirs[1]),
        (scale_range[0], scale_range[1], tolerance, float(allow_mirror)),
        (x0, y0, cell),
        _map_of(target_xy, radius, x0, y0, cell),
        least_matches,
    )
    return np.asarray(found[np.argsort(-count, kind="stable")])


@njit(nogil=True, cache=True)
def _triangles(xy: Floats, least_side: float) -> tuple[Ints, Floats]:
    """Triangles by their faintest corner: corners [triangle, 3], and [triangle, 4] of shape.

    Corners lie opposite the longest, the middle and the shortest side. Shape: middle and
    shortest side over the longest, the longest, and the sense of turning (+1 or -1).
    """
    n = len(xy)
    corners = np.empty((n * (n - 1) * (n - 2) // 6, 3), dtype=np.int64)
    shapes = np.empty((len(corners), 4))
    kept = 0
    for k in range(2, n):
        for j in range(1, k):
            for i in range(j):
                p, q, r = i, j, k
                a, b, c = _distance(xy, j, k), _distance(xy, i, k), _distance(xy, i, j)
                if a < b:
                    a, b, p, q = b, a, q, p
                if b < c:
                    b, c, q, r = c, b, r, q
                if a < b:
                    a, b, p, q = b, a, q, p
                if a < least_side or not c > _THINNEST * a:
                    continue
                cross = (xy[q, 0] - xy[p, 0]) * (xy[r, 1] - xy[p, 1])
                cross -= (xy[q, 1] - xy[p, 1]) * (xy[r, 0] - xy[p, 0])
                corners[kept, 0], corners[kept, 1], corners[kept, 2] = p, q, r
                shapes[kept, 0], shapes[kept, 1], shapes[kept, 2] = b / a, c / a, a
                shapes[kept, 3] = 1.0 if cross > 0 else -1.0
                kept += 1
    return corners[:kept], shapes[:kept]


@njit(nogil=True, cache=True)
def _distance(xy: Floats, i: int, j: int) -> float:
    far: float = np.hypot(xy[i, 0] - xy[j, 0], xy[i, 1] - xy[j, 1])
    return far


@njit(nogil=True, cache=True)
def _cell_of(ratio: float) -> int:
    return min(max(int(ratio * _CELLS), 0), _CELLS - 1)


@njit(nogil=True, cache=True)
def _hash(shapes: Floats) -> tuple[Ints, Ints]:
    """Triangles sorted by cell of their two ratios, and where each cell starts."""
    starts = np.zeros(_CELLS * _CELLS + 1, dtype=np.int64)
    for k in range(len(shapes)):
        starts[_cell_of(shapes[k, 0]) * _CELLS + _cell_of(shapes[k, 1]) + 1] += 1
    for cell in range(len(starts) - 1):
        starts[cell + 1] += starts[cell]
    order = np.empty(len(shapes), dtype=np.int64)
    filled = starts[:-1].copy()
    for k in range(len(shapes)):
        cell = _cell_of(shapes[k, 0]) * _CELLS + _cell_of(shapes[k, 1])
        order[filled[cell]] = k
        filled[cell] += 1
    return order, starts


@njit(nogil=True, cache=True)
def _map_of(xy: Floats, radius: float, x0: float, y0: float, cell: float) -> NDArray[np.bool_]:
    """Cells [y, x] that a point is near to; the first starts at (x0, y0)."""
    ny, nx = 1, 1
    for k in range(len(xy)):
        nx = max(nx, int((xy[k, 0] + radius - x0) / cell) + 1)
        ny = max(ny, int((xy[k, 1] + radius - y0) / cell) + 1)
    near = np.zeros((ny, nx), dtype=np.bool_)
    for k in range(len(xy)):
        x, y = xy[k, 0] - x0, xy[k, 1] - y0
        first_y, first_x = max(0, int((y - radius) / cell)), max(0, int((x - radius) / cell))
        last_y, last_x = int((y + radius) / cell), int((x + radius) / cell)
        for row in range(first_y, min(ny, last_y + 1)):
            for column in range(first_x, min(nx, last_x + 1)):
                near[row, column] = True
    return near


@njit(nogil=True, cache=True)
def _near_count(
    source_xy: Floats, matrix: Floats, x0: float, y0: float, cell: float, near: NDArray[np.bool_]
) -> int:
    """How many source points fall on marked cells of the map."""
    ny, nx = near.shape
    count = 0
    for k in range(len(source_xy)):
        x, y = source_xy[k, 0], source_xy[k, 1]
        column = (matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] - x0) / cell
        row = (matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] - y0) / cell
        if 0 <= column < nx and 0 <= row < ny:
            count += near[int(row), int(column)]
    return count


@njit(nogil=True, cache=True)
def _search(
    source_xy: Floats,
    target_xy: Floats,
    ours: tuple[Ints, Floats],
    theirs: tuple[Ints, Floats],
    hashed: tuple[Ints, Ints],
    limits: tuple[float, float, float, float],
    grid: tuple[float, float, float],
    near: NDArray[np.bool_],
    least_matches: int,
) -> tuple[Floats, Ints]:
    order, starts = hashed
    low, high, tolerance, allow_mirror = limits
    x0, y0, cell = grid
    found = np.empty((_MOST_CANDIDATES, 2, 3))
    count = np.zeros(_MOST_CANDIDATES, dtype=np.int64)
    n = 0
    for i in range(len(ours[1])):
        middle, shortest, longest = ours[1][i, 0], ours[1][i, 1], ours[1][i, 2]
        # A side's two ends may each be off by a tolerance at most; usually by far less.
        slack = 2.0 * tolerance / (longest * low)
        first, last = _cell_of(shortest - slack), _cell_of(shortest + slack)
        for column in range(_cell_of(middle - slack), _cell_of(middle + slack) + 1):
            for place in range(starts[column * _CELLS + first], starts[column * _CELLS + last + 1]):
                j = order[place]
                other = theirs[1][j]
                ratio = other[2] / longest
                mirror = ours[1][i, 3] * other[3]
                if ratio < low or ratio > high or (mirror < 0 and allow_mirror == 0.0):
                    continue
                if abs(other[0] - middle) > slack or abs(other[1] - shortest) > slack:
                    continue
                matrix = found[n]
                fit_similarity(source_xy, target_xy, ours[0][i], theirs[0][j], mirror, matrix)
                count[n] = _near_count(source_xy, matrix, x0, y0, cell, near)
                if count[n] >= least_matches:
                    n += 1
                    if n == _MOST_CANDIDATES:
                        return found, count
    return found[:n], count[:n]
