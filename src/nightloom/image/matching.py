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

    mirror: -1 turns the y of the source around first. NaN where all source points are one.
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
        matrix[:] = np.nan
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
def _moved(xy: Floats, matrix: Floats) -> Floats:
    moved = np.empty_like(xy)
    for k in range(len(xy)):
        for axis in range(2):
            moved[k, axis] = (
                matrix[axis, 0] * xy[k, 0] + matrix[axis, 1] * xy[k, 1] + matrix[axis, 2]
            )
    return moved


@njit(nogil=True, cache=True)
def pairs(source: Floats, target: Floats, matrix: Floats, reach: float) -> Ints:
    """Indices [pair, 2] of points that are each other's nearest within reach, by source."""
    moved = _moved(source, matrix)
    target_order = np.argsort(target[:, 0], kind="mergesort")
    target_x = target[:, 0][target_order]
    moved_order = np.argsort(moved[:, 0], kind="mergesort")
    moved_x = moved[:, 0][moved_order]
    found = np.empty((len(source), 2), dtype=np.int64)
    n = 0
    for k in range(len(source)):
        j = _nearest(target, target_order, target_x, moved[k, 0], moved[k, 1], reach)
        if j < 0:
            continue
        back = _nearest(moved, moved_order, moved_x, target[j, 0], target[j, 1], reach)
        if back == k:
            found[n, 0], found[n, 1] = k, j
            n += 1
    return found[:n]


@njit(nogil=True, cache=True)
def _fit_affine(source: Floats, target: Floats, pairs: Ints) -> Floats:
    """Least-squares affine transformation of the pairs; NaN where they lie on a line."""
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
    matrix = np.full((2, 3), np.nan)
    det = square[0, 0] * square[1, 1] - square[0, 1] * square[1, 0]
    if det > 1e-12 * square[0, 0] * square[1, 1]:
        for j in range(2):
            first = (mixed[j, 0] * square[1, 1] - mixed[j, 1] * square[0, 1]) / det
            second = (mixed[j, 1] * square[0, 0] - mixed[j, 0] * square[0, 1]) / det
            matrix[j, 0], matrix[j, 1] = first, second
            matrix[j, 2] = mean[2 + j] - first * mean[0] - second * mean[1]
    return matrix


@njit(nogil=True, cache=True)
def _distances(source: Floats, target: Floats, pairs: Ints, matrix: Floats) -> Floats:
    moved = _moved(source, matrix)
    far = np.empty(len(pairs))
    for k in range(len(pairs)):
        i, j = pairs[k]
        far[k] = np.hypot(moved[i, 0] - target[j, 0], moved[i, 1] - target[j, 1])
    return far


@njit(nogil=True, cache=True)
def refine(
    source: Floats, target: Floats, start: Floats, tolerance: float, affine: bool
) -> tuple[Floats, int, float]:
    """Match and fit in turn, first within 3 tolerances, at last within 4 robust sigma.

    Returns the matrix, the number of matches it was fitted to and their rms distance.
    """
    mirror = np.sign(start[0, 0] * start[1, 1] - start[0, 1] * start[1, 0])
    matrix = start.copy()
    n_matched, residual = 0, np.nan
    reach = 3.0 * tolerance
    for turn in range(_MOST_TURNS):
        found = pairs(source, target, matrix, reach)
        if len(found) < 3:
            return matrix, len(found), np.nan
        fitted = np.full((2, 3), np.nan)
        if affine and turn > 1 and len(found) >= 6:
            fitted = _fit_affine(source, target, found)
        if np.isnan(fitted[0, 0]):
            fit_similarity(source, target, found[:, 0], found[:, 1], mirror, fitted)
        steady = turn > 2 and np.array_equal(fitted, matrix)
        matrix = fitted
        far = _distances(source, target, found, matrix)
        n_matched, residual = len(found), np.sqrt(np.mean(far * far))
        if steady:
            break
        # The median distance of a Gaussian scatter in two axes is 1.1774 sigma.
        robust = max(_CLIP_SIGMA * np.median(far) / 1.1774, _LEAST_CLIP * tolerance)
        reach = 2.0 * tolerance if turn == 0 else tolerance
        if turn > 1:
            reach = min(tolerance, robust)
    return matrix, n_matched, residual


@njit(nogil=True, cache=True)
def voted_shift(
    source: Floats, target: Floats, matrix: Floats, reach: float, tolerance: float
) -> Floats:
    """The matrix with the shift added on which most pairs within reach agree."""
    moved = _moved(source, matrix)
    shifts = np.empty((len(source) * len(target), 2))
    n = 0
    for i in range(len(source)):
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
    voted = matrix.copy()
    if best >= 0:
        voted[0, 2] += shifts[best, 0]
        voted[1, 2] += shifts[best, 1]
    return voted
