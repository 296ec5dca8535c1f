"""Pairs of points that belong together, and the transformation fitted to them."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_CLIP_SIGMA = 4.0
_LEAST_CLIP = 0.3  # of the tolerance
_MOST_TURNS = 12


@njit(nogil=True, cache=True)
def fit_similarity(
    source_xy: Floats, target_xy: Floats, ours: Ints, theirs: Ints, mirror: float, matrix: Floats
) -> None:
    """Least-squares similarity of source points on target points, by index, into `matrix`.

    mirror: -1 turns the y of the source around first. Where all source points are one, the
    first element is NaN.
    """
    n = len(ours)
    sx, sy, tx, ty = 0.0, 0.0, 0.0, 0.0
    for k in range(n):
        sx += source_xy[ours[k], 0] / n
        sy += mirror * source_xy[ours[k], 1] / n
        tx += target_xy[theirs[k], 0] / n
        ty += target_xy[theirs[k], 1] / n
    along, across, size = 0.0, 0.0, 0.0
    for k in range(n):
        a, b = source_xy[ours[k], 0] - sx, mirror * source_xy[ours[k], 1] - sy
        u, v = target_xy[theirs[k], 0] - tx, target_xy[theirs[k], 1] - ty
        along += a * u + b * v
        across += a * v - b * u
        size += a * a + b * b
    if not size > 0:
        matrix[0, 0] = np.nan
        return
    along, across = along / size, across / size
    matrix[0, 0], matrix[0, 1] = along, -across * mirror
    matrix[1, 0], matrix[1, 1] = across, along * mirror
    matrix[0, 2] = tx - along * sx + across * sy
    matrix[1, 2] = ty - across * sx - along * sy


@njit(nogil=True, cache=True)
def _nearest(xy: Floats, order: Ints, sorted_x: Floats, x: float, y: float, reach: float) -> int:
    """Index of the point nearest to (x, y) within reach, -1: none; order sorts the points by x."""
    best, least = -1, reach * reach
    k = np.searchsorted(sorted_x, x - reach)
    while k < len(order) and sorted_x[k] <= x + reach:
        j = order[k]
        far = (xy[j, 0] - x) ** 2 + (xy[j, 1] - y) ** 2
        if far < least or (far == least and (best < 0 or j < best)):
            best, least = j, far
        k += 1
    return best


@njit(nogil=True, cache=True)
def _claims(
    moved: Floats, target: Floats, order: Ints, sorted_x: Floats, reach: float
) -> tuple[Ints, Floats]:
    """For each target the nearest of the moved points that have it as their nearest; -1: none."""
    owner = np.full(len(target), -1, dtype=np.int64)
    least = np.full(len(target), np.inf)
    for k in range(len(moved)):
        x, y = moved[k, 0], moved[k, 1]
        j = _nearest(target, order, sorted_x, x, y, reach)
        if j >= 0:
            far = (target[j, 0] - x) ** 2 + (target[j, 1] - y) ** 2
            if far < least[j]:
                owner[j], least[j] = k, far
    return owner, least


@njit(nogil=True, cache=True)
def _fit_affine(source: Floats, target: Floats, pairs: Ints) -> Floats:
    """Least-squares affine transformation; its first element is NaN for pairs on a line."""
    n = len(pairs)
    mean = np.zeros(4)
    for k in range(n):
        for axis in range(2):
            mean[axis] += source[pairs[k, 0], axis] / n
            mean[2 + axis] += target[pairs[k, 1], axis] / n
    square, mixed = np.zeros((2, 2)), np.zeros((2, 2))
    for k in range(n):
        for i in range(2):
            a = source[pairs[k, 0], i] - mean[i]
            for j in range(2):
                square[i, j] += a * (source[pairs[k, 0], j] - mean[j])
                mixed[j, i] += a * (target[pairs[k, 1], j] - mean[2 + j])
    matrix = np.empty((2, 3))
    matrix[0, 0] = np.nan
    det = square[0, 0] * square[1, 1] - square[0, 1] * square[1, 0]
    if det > 1e-12 * square[0, 0] * square[1, 1]:
        for j in range(2):
            first = (mixed[j, 0] * square[1, 1] - mixed[j, 1] * square[0, 1]) / det
            second = (mixed[j, 1] * square[0, 0] - mixed[j, 0] * square[0, 1]) / det
            matrix[j, 0], matrix[j, 1] = first, second
            matrix[j, 2] = mean[2 + j] - first * mean[0] - second * mean[1]
    return matrix


@njit(nogil=True, cache=True)
def voted_shift(
    moved: Floats, target: Floats, reach: float, tolerance: float
) -> tuple[float, float]:
    """The shift in x and y on which most pairs within reach agree; 0 where there is none."""
    shifts = np.empty((len(moved) * len(target), 2))
    n = 0
    for i in range(len(moved)):
        for j in range(len(target)):
            dx, dy = target[j, 0] - moved[i, 0], target[j, 1] - moved[i, 1]
            if dx * dx + dy * dy <= reach * reach:
                shifts[n, 0], shifts[n, 1] = dx, dy
                n += 1
    best, votes = -1, 0
    for i in range(n):
        agree = 0
        for j in range(n):
            dx, dy = shifts[j, 0] - shifts[i, 0], shifts[j, 1] - shifts[i, 1]
            agree += dx * dx + dy * dy <= tolerance * tolerance
        if agree > votes:
            best, votes = i, agree
    if best < 0:
        return 0.0, 0.0
    return shifts[best, 0], shifts[best, 1]


@njit(nogil=True, cache=True)
def moved_by(matrix: Floats, xy: Floats) -> Floats:
    """Points [n, 2] of the source in the target."""
    moved = np.empty((len(xy), 2))
    for k in range(len(xy)):
        for axis in range(2):
            row = matrix[axis]
            moved[k, axis] = row[0] * xy[k, 0] + row[1] * xy[k, 1] + row[2]
    return moved


def pairs(source: Floats, target: Floats, matrix: Floats, reach: float) -> tuple[Ints, Floats]:
    """Indices [pair, 2] of points that belong together, by source, and their distances.

    Each point of the source claims the nearest of the target within reach; of several claims
    the nearest counts.
    """
    order = np.argsort(target[:, 0], kind="stable")
    found: tuple[Ints, Floats] = _pairs(source, target, matrix, reach, order, target[order, 0])
    return found


@njit(nogil=True, cache=True)
def _pairs(
    source: Floats, target: Floats, matrix: Floats, reach: float, order: Ints, sorted_x: Floats
) -> tuple[Ints, Floats]:
    owner, squared = _claims(moved_by(matrix, source), target, order, sorted_x, reach)
    theirs = np.full(len(source), -1, dtype=np.int64)
    n = 0
    for j in range(len(owner)):
        if owner[j] >= 0:
            theirs[owner[j]] = j
            n += 1
    found, apart = np.empty((n, 2), dtype=np.int64), np.empty(n)
    n = 0
    for k in range(len(theirs)):
        if theirs[k] >= 0:
            found[n, 0], found[n, 1], apart[n] = k, theirs[k], np.sqrt(squared[theirs[k]])
            n += 1
    return found, apart


def refine(
    source: Floats, target: Floats, start: Floats, *, tolerance: float, affine: bool
) -> tuple[Floats, int, float]:
    """Match and fit in turn, first within 3 tolerances, at last within 4 robust sigma.

    Returns the matrix, the number of matches it was fitted to and their rms distance.
    """
    order = np.argsort(target[:, 0], kind="stable")
    found: tuple[Floats, int, float] = _refine(
        source, target, start, tolerance, affine, order, target[order, 0]
    )
    return found


@njit(nogil=True, cache=True)
def _refine(
    source: Floats,
    target: Floats,
    start: Floats,
    tolerance: float,
    affine: bool,
    order: Ints,
    sorted_x: Floats,
) -> tuple[Floats, int, float]:
    mirror = np.sign(start[0, 0] * start[1, 1] - start[0, 1] * start[1, 0])
    matrix, n_matched, residual = start, 0, np.nan
    reach = 3.0 * tolerance
    before = np.empty((0, 2), dtype=np.int64)
    for turn in range(_MOST_TURNS):
        found, _ = _pairs(source, target, matrix, reach, order, sorted_x)
        n_matched = len(found)
        if n_matched < 3:
            return matrix, n_matched, np.nan
        steady = turn > 3 and np.array_equal(found, before)
        before = found
        matrix = _fitted(source, target, found, mirror, affine and turn > 1)
        far = _distances(moved_by(matrix, source), target, found)
        residual = np.sqrt(np.mean(far * far))
        if steady or not np.isfinite(residual):
            break
        reach = 2.0 * tolerance if turn == 0 else tolerance
        if turn > 1:
            # The median distance of a Gaussian scatter in two axes is 1.1774 sigma.
            robust = _CLIP_SIGMA * np.median(far) / 1.1774
            reach = min(tolerance, max(robust, _LEAST_CLIP * tolerance))
    return matrix, n_matched, residual


@njit(nogil=True, cache=True)
def _distances(moved: Floats, target: Floats, found: Ints) -> Floats:
    far = np.empty(len(found))
    for n in range(len(found)):
        k, j = found[n, 0], found[n, 1]
        far[n] = np.hypot(moved[k, 0] - target[j, 0], moved[k, 1] - target[j, 1])
    return far


@njit(nogil=True, cache=True)
def _fitted(source: Floats, target: Floats, found: Ints, mirror: float, affine: bool) -> Floats:
    """Least-squares fit of the pairs: affine where asked for and 6 pairs allow it."""
    if affine and len(found) >= 6:
        matrix: Floats = _fit_affine(source, target, found)
        if np.isfinite(matrix[0, 0]):
            return matrix
    similarity = np.empty((2, 3))
    ours, theirs = np.ascontiguousarray(found[:, 0]), np.ascontiguousarray(found[:, 1])
    fit_similarity(source, target, ours, theirs, mirror, similarity)
    return similarity
