"""The best aperture of each star, by the scatter between neighbouring epochs of a night.

A transit lasts many epochs, so it hardly enters the difference of two neighbours: the choice
does not see it. One rule for all: from the centre of the range outwards, an aperture is taken
when its scatter is clearly below that of the one held, so chance alone does not move the choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nightloom.gather.ensemble import curves, lay_out, levels, ratios, unpack, weights
from nightloom.gather.weights import row_medians, solve

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CLEARLY = 0.98  # of the scatter held: what is not below is no better
_MIN_PAIRS = 3
_OUTLIER = 4.0  # sigma
_MIN_SHARE = 0.5  # of the pairs of the star's fullest aperture so far


@dataclass(frozen=True, slots=True)
class BestCurves:
    """Every star in its own best aperture: raw flux = flux x level x comparison."""

    aperture: Ints  # [star], -1 where none is eligible: its curves are NaN
    scatter: Floats  # [star, aperture], relative, of one epoch, NaN where not known
    flux: Floats  # [time, star], relative, median 1 over the star's usable epochs
    flux_err: Floats  # [time, star]
    comparison: Floats  # [time, star]
    level: Floats  # [star]
    weight: Floats  # [aperture, star], global, sum 1; `ensemble.weights_for` gives one star's


@dataclass(frozen=True, slots=True)
class _Held:
    """The choice so far, and the most pairs seen in any aperture; changed in place."""

    aperture: Ints  # [star]
    scatter: Floats  # [star]
    pairs: Ints  # [star]
    most: Ints  # [star]


def best_curves(
    flux: ArrayLike,
    flux_err: ArrayLike,
    usable: ArrayLike,
    *,
    never: ArrayLike,
    night: ArrayLike,
    good_frame: ArrayLike | None = None,
    max_comparisons: int = 50,
) -> BestCurves:
    """Differential photometry in all apertures, kept for each star in its best one.

    flux, flux_err: [time, star, aperture]; the rest as for `ensemble.differential`. Besides the
    result, a few apertures are in memory at a time. Raises ValueError: shapes differ.
    """
    flux, flux_err = np.asarray(flux), np.asarray(flux_err)
    layout = lay_out(
        usable, never=never, night=night, good_frame=good_frame, max_comparisons=max_comparisons
    )
    n_stars, n_times = layout.usable.shape
    n_apertures = flux.shape[-1]
    night_index = _night_index(np.asarray(night))
    held = _nothing_held(n_stars)
    kept = np.full((3, n_stars, n_times), np.nan)
    level = np.full(n_stars, np.nan)
    scatter = np.full((n_stars, n_apertures), np.nan)
    weight = np.zeros((n_apertures, n_stars))
    for k, value, error in unpack(flux, flux_err, layout, order=_from_centre(n_apertures)):
        solution = solve(value, error, layout)
        weight[k] = weights(solution, n_stars)
        ratio = ratios(value, solution)
        ratio_level = levels(ratio, layout)
        spread, pairs = _scatter(ratio, layout.usable & layout.good, night_index)
        scatter[:, k] = spread / ratio_level
        stars = _take(held, k, scatter[:, k], pairs)
        level[stars] = ratio_level[stars]
        kept[:, stars] = curves(value, error, solution, stars)
    kept[:2] /= level[:, None]
    return BestCurves(
        aperture=held.aperture,
        scatter=scatter,
        flux=kept[0].T,
        flux_err=kept[1].T,
        comparison=kept[2].T,
        level=level,
        weight=weight,
    )


def best_aperture(
    flux: ArrayLike, usable: ArrayLike, night: ArrayLike, *, good_frame: ArrayLike | None = None
) -> tuple[Ints, Floats]:
    """Index [star] of each star's best aperture, -1 for none, and scatter [star, aperture].

    flux: [time, star, aperture], relative (median 1), times in order; usable: [time, star];
    night: [time]; good_frame: [time], False where an epoch does not count.
    Raises ValueError: shapes differ.
    """
    flux, usable, night = np.asarray(flux), np.asarray(usable, dtype=bool), np.asarray(night)
    if flux.ndim != 3 or flux.shape[:2] != usable.shape or night.shape != usable.shape[:1]:
        raise ValueError(f"flux {flux.shape}, usable {usable.shape}, night {night.shape} differ")
    n_stars, n_apertures = flux.shape[1:]
    counts = usable if good_frame is None else usable & np.asarray(good_frame, dtype=bool)[:, None]
    counts = np.ascontiguousarray(counts.T)
    night_index = _night_index(night)
    held = _nothing_held(n_stars)
    scatter = np.full((n_stars, n_apertures), np.nan)
    for k in _from_centre(n_apertures):
        curve = np.ascontiguousarray(flux[:, :, k].T, dtype=np.float64)
        scatter[:, k], pairs = _scatter(curve, counts, night_index)
        _take(held, k, scatter[:, k], pairs)
    return held.aperture, scatter


def step_scatter(flux: ArrayLike, counts: ArrayLike, night: ArrayLike) -> float:
    """Scatter of one epoch of a curve [time], as apertures are chosen by it; NaN without steps.

    counts: [time], which epochs do; night: [time]. In the unit of the flux.
    """
    curve = np.asarray(flux, dtype=np.float64)[None]
    spread, _ = _scatter(curve, np.asarray(counts, bool)[None], _night_index(np.asarray(night)))
    return float(spread[0])


def _nothing_held(n_stars: int) -> _Held:
    return _Held(
        aperture=np.full(n_stars, -1),
        scatter=np.full(n_stars, np.inf),
        pairs=np.zeros(n_stars, np.int64),
        most=np.zeros(n_stars, np.int64),
    )


def _take(held: _Held, aperture: int, scatter: Floats, pairs: Ints) -> Ints:
    """Stars that take this aperture; `held` follows.

    Scatter from few pairs is luck, so it competes only with at least half of the pairs of the
    fullest aperture. A scatter of 0 is no measurement.
    """
    np.maximum(held.most, pairs, out=held.most)
    enough = (pairs >= _MIN_PAIRS) & (pairs >= _MIN_SHARE * held.most) & (scatter > 0)
    sparse = held.pairs < _MIN_SHARE * held.most
    stars = np.flatnonzero(enough & (sparse | (scatter < _CLEARLY * held.scatter)))
    held.aperture[stars] = aperture
    held.scatter[stars] = scatter[stars]
    held.pairs[stars] = pairs[stars]
    return stars


def _from_centre(n: int) -> list[int]:
    """Indices 0 to n - 1, the central one first, then by distance, the lower before the upper."""
    return sorted(range(n), key=lambda k: (abs(2 * k - (n - 1)), k))


def _night_index(night: Array) -> Ints:
    return np.unique(night, return_inverse=True)[1].astype(np.int64)


def _scatter(curve: Floats, counts: Bools, night: Ints) -> tuple[Floats, Ints]:
    """Scatter of one epoch from the differences of neighbours, and how many there are.

    Their rms over sqrt(2), outliers beyond 4 sigma (1.4826 medians of absolute values) left out.
    The median alone uses a third of what the steps tell, and over a night's hundred of them its
    luck (a tenth) would choose among apertures that differ by less.
    """
    steps, pairs = _steps(curve, counts, night)
    reach = _OUTLIER * 1.4826 * row_medians(steps, steps >= 0)
    return _rms_within(steps, reach) / np.sqrt(2.0), pairs


@njit(nogil=True, cache=True, error_model="numpy")
def _rms_within(steps: NDArray[np.float32], reach: Floats) -> Floats:
    """Root mean square of each row's values up to its reach; NaN where there is none."""
    out = np.full(len(steps), np.nan)
    for s in range(len(steps)):
        total, n = 0.0, 0
        for t in range(steps.shape[1]):
            value = np.float64(steps[s, t])
            if value <= reach[s]:
                total += value * value
                n += 1
        if n:
            out[s] = math.sqrt(total / n)
    return out


@njit(nogil=True, cache=True)
def _steps(curve: Floats, counts: Bools, night: Ints) -> tuple[NDArray[np.float32], Ints]:
    """|difference| of each epoch from the one before that counts in the same night, else NaN."""
    out = np.full(curve.shape, np.nan, np.float32)
    pairs = np.zeros(len(curve), np.int64)
    for s in range(len(curve)):
        last, last_night = np.nan, -1
        for t in range(len(night)):
            if counts[s, t] and np.isfinite(curve[s, t]):
                if night[t] == last_night:
                    out[s, t] = abs(curve[s, t] - last)
                    pairs[s] += 1
                last, last_night = curve[s, t], night[t]
    return out, pairs
