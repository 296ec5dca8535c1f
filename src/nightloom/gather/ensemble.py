"""Differential photometry: every star against the weighted mean of the others, gaps allowed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nightloom.gather.weights import Layout, Solution, row_medians, solve

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_GROUP_BYTES = 16 << 20  # of apertures unpacked at once,
_GROUPS = 15  # or this fraction of a large cube


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Curves of all stars in one aperture: raw flux = flux x level x comparison."""

    flux: Floats  # [time, star], relative, median 1 over the star's usable epochs
    flux_err: Floats  # [time, star], of the star itself and of its comparison
    comparison: Floats  # [time, star], the frame's factor as the other stars show it
    level: Floats  # [star], flux in a typical frame, as raw
    weight: Floats  # [star], global, sum 1 or all 0; `weights_for` gives one star's
    n_comparisons: NDArray[np.int32]  # [time], comparisons at hand


def lay_out(
    usable: ArrayLike,
    *,
    never: ArrayLike,
    night: ArrayLike,
    good_frame: ArrayLike | None = None,
    max_comparisons: int = 50,
) -> Layout:
    """What all apertures of a field share.

    usable: [time, star]; never: [star], who serves nobody and chooses nothing; night: [time];
    good_frame: [time], False where an epoch sets no level, weight or median.
    Raises ValueError: shapes differ, or max_comparisons is below 1.
    """
    usable = np.asarray(usable, dtype=bool)
    never, night = np.array(never, dtype=bool), np.asarray(night)
    good = np.ones(len(night), bool) if good_frame is None else np.array(good_frame, dtype=bool)
    if usable.shape != (*night.shape, *never.shape) or good.shape != night.shape:
        raise ValueError(
            f"usable {usable.shape} does not go with never {never.shape}, "
            f"night {night.shape}, good_frame {good.shape}"
        )
    if max_comparisons < 1:
        raise ValueError(f"max_comparisons is {max_comparisons}, below 1")
    return Layout(
        usable=np.ascontiguousarray(usable.T),
        never=never,
        good=good,
        edges=_block_edges(night),
        max_comparisons=max_comparisons,
    )


def _block_edges(night: Array) -> Ints:
    """Bounds of runs of some 5 to 32 epochs, cut at the ends of nights that are not shorter."""
    n = len(night)
    length = min(32, max(5, n // 32))
    ends = [*(np.flatnonzero(night[1:] != night[:-1]) + 1).tolist(), n]
    edges = [0]
    for end in ends:
        if end - edges[-1] >= 5 or end == n:
            pieces = max(1, round((end - edges[-1]) / length))
            steps = np.linspace(edges[-1], end, pieces + 1).round().astype(int)
            edges.extend(steps[1:].tolist())
    return np.array(edges, dtype=np.int64)


def differential(
    flux: ArrayLike,
    flux_err: ArrayLike,
    usable: ArrayLike,
    *,
    never: ArrayLike,
    night: ArrayLike,
    good_frame: ArrayLike | None = None,
    max_comparisons: int = 50,
) -> Ensemble:
    """Differential curves of every star in one aperture.

    flux, flux_err: [time, star], times in order; usable: [time, star]; never: [star], who serves
    nobody and chooses nothing; night: [time], equal within a night; good_frame: [time], False
    where an epoch gets values but sets no level, weight or median.
    NaN where a star has no flux, or nobody to compare with. Raises ValueError: shapes differ.
    """
    flux, flux_err = np.asarray(flux)[..., None], np.asarray(flux_err)[..., None]
    layout = lay_out(
        usable, never=never, night=night, good_frame=good_frame, max_comparisons=max_comparisons
    )
    return next(differential_all(flux, flux_err, layout))


def differential_all(flux: ArrayLike, flux_err: ArrayLike, layout: Layout) -> Iterator[Ensemble]:
    """`differential` of each aperture in turn; one aperture's curves are held at a time.

    flux, flux_err: [time, star, aperture]. Raises ValueError: shapes differ.
    """
    flux, flux_err = np.asarray(flux), np.asarray(flux_err)
    everyone = np.arange(len(layout.never))
    for _, value, error in unpack(flux, flux_err, layout, order=range(flux.shape[-1])):
        solution = solve(value, error, layout)
        ratio, ratio_err, comparison = curves(value, error, solution, everyone)
        level = levels(ratio, layout)
        yield Ensemble(
            flux=(ratio / level[:, None]).T,
            flux_err=(ratio_err / level[:, None]).T,
            comparison=comparison.T,
            level=level,
            weight=weights(solution, len(everyone)),
            n_comparisons=solution.count,
        )


def weights(solution: Solution, n_stars: int) -> Floats:
    """Weights [star] of a solution, 0 for who is no comparison."""
    weight = np.zeros(n_stars)
    weight[solution.stars] = solution.weight
    return weight


def weights_for(weight: Floats, star: int) -> Floats:
    """Weights [star] of the comparisons of one star: its own is 0; sum 1, or all 0 for none."""
    others = weight.copy()
    others[star] = 0.0
    total = others.sum()
    return others / total if total > 0 else others


def unpack(
    flux: Array, flux_err: Array, layout: Layout, *, order: ArrayLike
) -> Iterator[tuple[int, Array, Array]]:
    """Aperture, and its flux and error [star, time], good until the next is asked for.

    Apertures are copied in groups: they are the last axis, so that one of them alone reads as
    much memory as sixteen. Raises ValueError: shapes differ.
    """
    n_stars, n_times = layout.usable.shape
    if flux.shape != flux_err.shape or flux.ndim != 3 or flux.shape[:2] != (n_times, n_stars):
        raise ValueError(
            f"flux {flux.shape}, flux_err {flux_err.shape}, usable {(n_times, n_stars)} differ"
        )
    flux, flux_err = _native(flux), _native(flux_err)
    order = np.asarray(order, dtype=np.int64)
    each = max(1, n_times * n_stars * (flux.itemsize + flux_err.itemsize))
    size = max(1, _GROUP_BYTES // each, len(order) // _GROUPS)
    values = np.empty((min(size, len(order)), n_stars, n_times), flux.dtype)
    errors = np.empty(values.shape, flux_err.dtype)
    for first in range(0, len(order), size):
        group = order[first : first + size]
        _pick(flux, group, values)
        _pick(flux_err, group, errors)
        for k, aperture in enumerate(group.tolist()):
            yield aperture, values[k], errors[k]


def _native(values: Array) -> Array:
    single = values.dtype.kind == "f" and values.dtype.itemsize <= 4
    return values.astype(np.float32 if single else np.float64, copy=False)


def curves(
    value: Array, error: Array, solution: Solution, stars: Ints
) -> tuple[Floats, Floats, Floats]:
    """Flux over comparison, its error, and the comparison, each [star, time], of some stars."""
    factor, noise = _others(solution, stars)
    with np.errstate(over="ignore", invalid="ignore"):  # a star may hold anything, even infinity
        ratio = value[stars] / factor
        own = np.square(error[stars], dtype=np.float64)
        return ratio, np.sqrt(own + np.square(ratio) * noise) / factor, factor


def ratios(value: Array, solution: Solution) -> Floats:
    """Flux over comparison [star, time] of all stars."""
    factor, _ = _others(solution, np.arange(len(value)))
    return np.divide(value, factor, out=factor)


def _others(solution: Solution, stars: Ints) -> tuple[Floats, Floats]:
    own = solution.place[stars]
    factor = np.empty((len(stars), len(solution.total)))
    noise = np.empty(factor.shape)
    parts = (solution.own_total, solution.own_norm, solution.own_noise)
    sums = (solution.total, solution.norm, solution.noise, solution.count)
    _leave_out(own, *parts, *sums, factor, noise)
    return factor, noise


def levels(ratio: Floats, layout: Layout) -> Floats:
    """Median of each curve over the star's usable epochs; NaN where it is not above zero."""
    level = row_medians(ratio, layout.usable & layout.good)
    return np.where(level > 0, level, np.nan)


@njit(nogil=True, cache=True)
def _pick(cube: Array, apertures: Ints, out: Array) -> None:
    """[aperture, star, time] from [time, star, aperture], 16 times at once: a cache line."""
    n_times, n_stars = cube.shape[0], cube.shape[1]
    for first in range(0, n_times, 16):
        last = min(first + 16, n_times)
        for star in range(n_stars):
            for k in range(len(apertures)):
                aperture = apertures[k]
                for t in range(first, last):
                    out[k, star, t] = cube[t, star, aperture]


@njit(nogil=True, cache=True, error_model="numpy")
def _leave_out(
    own: Ints,
    own_total: Floats,
    own_norm: Floats,
    own_noise: Floats,
    total: Floats,
    norm: Floats,
    noise: Floats,
    count: NDArray[np.int32],
    factor: Floats,
    factor_var: Floats,
) -> None:
    """Sum of all minus one's own, over its weights; and the variance of the sum.

    Added up anew where one's own is nearly all there is: the difference would be rounding.
    """
    for i in range(len(own)):
        k = own[i]
        for t in range(len(total)):
            top, base, var, n = total[t], norm[t], noise[t], count[t]
            if k >= 0 and own_norm[k, t] > 0.0:
                n -= 1
                top, base, var = top - own_total[k, t], base - own_norm[k, t], var - own_noise[k, t]
                if base < 1e-4 * norm[t]:
                    top, base, var = 0.0, 0.0, 0.0
                    for j in range(len(own_total)):
                        if j != k:
                            top += own_total[j, t]
                            base += own_norm[j, t]
                            var += own_noise[j, t]
            alone = n == 0 or base <= 0.0 or top <= 0.0
            factor[i, t] = np.nan if alone else top / base
            factor_var[i, t] = max(var, 0.0) / (base * base)
