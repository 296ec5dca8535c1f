"""Groups of saturated pixels: one star each, however many peaks its plateau has."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import njit

from nightloom.image.calibrate import MASK_SATURATED, Mask, Pixels
from nightloom.image.mesh import Mesh, level_at
from nightloom.image.peaks import UNUSABLE, Floats, Ints
from nightloom.image.repair import any_of

# Saturated pixels as sorted y * nx + x, the group of each; x, y, size and light of each group.
Groups: TypeAlias = tuple[Ints, Ints, Floats, Floats, Ints, Floats]


@njit(nogil=True, cache=True)
def saturated_groups(frame: Pixels, flags: Mask, mesh: Mesh) -> Groups:
    """Saturated pixels that touch, also at corners, are one group (union by the first pixel)."""
    ny, nx = frame.shape
    keys = np.empty(_count_saturated(flags), dtype=np.int64)
    n = 0
    for y in range(ny):
        marks = flags[y]
        for x in range(nx):
            if marks[x] & MASK_SATURATED and not marks[x] & UNUSABLE:
                keys[n] = y * nx + x
                n += 1
        if n == len(keys):
            break
    keys = keys[:n]
    parent = np.arange(n)
    behind = 0
    for k in range(n):
        if k > 0 and keys[k - 1] == keys[k] - 1 and keys[k] % nx:
            _unite(parent, k - 1, k)
        while keys[behind] < keys[k] - nx - 1:
            behind += 1
        other = behind
        while other < k and keys[other] <= keys[k] - nx + 1:
            if abs(keys[other] % nx - keys[k] % nx) <= 1:
                _unite(parent, other, k)
            other += 1
    groups: Groups = _group_sums(frame, mesh, keys, parent)
    return groups


@njit(nogil=True, cache=True)
def _count_saturated(flags: Mask) -> int:
    total = 0
    for y in range(len(flags)):
        if any_of(flags, y, 0, flags.shape[1]) & MASK_SATURATED:
            marks = flags[y]
            for x in range(len(marks)):
                total += (marks[x] & MASK_SATURATED) != 0
    return total


@njit(nogil=True, cache=True)
def _root(parent: Ints, k: int) -> int:
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = parent[k]
    return k


@njit(nogil=True, cache=True)
def _unite(parent: Ints, a: int, b: int) -> None:
    first, second = _root(parent, a), _root(parent, b)
    parent[max(first, second)] = min(first, second)


@njit(nogil=True, cache=True)
def _group_sums(frame: Pixels, mesh: Mesh, keys: Ints, parent: Ints) -> Groups:
    n, nx = len(keys), frame.shape[1]
    group = np.empty(n, dtype=np.int64)
    x, y, light = np.zeros(n), np.zeros(n), np.zeros(n)
    size = np.zeros(n, dtype=np.int64)
    for k in range(n):
        root = _root(parent, k)
        group[k] = root
        size[root] += 1
        x[root] += keys[k] % nx
        y[root] += keys[k] // nx
        light[root] += frame[keys[k] // nx, keys[k] % nx] - level_at(
            mesh, np.float64(keys[k] % nx), np.float64(keys[k] // nx)
        )
    for k in range(n):
        if size[k]:
            x[k] /= size[k]
            y[k] /= size[k]
    return keys, group, x, y, size, light


@njit(nogil=True, cache=True)
def nearest_group(flags: Mask, groups: Groups, x0: int, y0: int, radius_px: float) -> int:
    """Group of the saturated pixel nearest to (x0, y0) within the radius; -1: none."""
    keys, group = groups[0], groups[1]
    ny, nx = flags.shape
    reach = int(radius_px)
    nearest, least = -1, radius_px * radius_px
    if len(keys) == 0:
        return -1
    for y in range(max(0, y0 - reach), min(ny, y0 + reach + 1)):
        for x in range(max(0, x0 - reach), min(nx, x0 + reach + 1)):
            far = (x - x0) ** 2 + (y - y0) ** 2
            marks = flags[y, x]
            if marks & MASK_SATURATED and not marks & UNUSABLE and far <= least:
                least = far - 1e-9
                nearest = group[np.searchsorted(keys, y * nx + x)]
    return nearest
