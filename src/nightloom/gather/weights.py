"""The comparisons of one aperture: levels, weights and the frame's factor, found together.

Model: f_j(t) = F_j a(t), level times the frame's factor. Weights are 1/variance of each star's
own curve against the others (Broeg, Fernandez & Neuhaeuser 2005, AN 326, 134), iterated. Beyond
that paper: levels are solved with the weights, so gaps make no steps; slow drifts count in full;
the noise of the others is taken out of a star's variance; and a star that strays at an epoch
loses its say there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CLEAN = 4.0  # sigma up to which an epoch of a comparison has its full say
_MIN_USABLE = 0.5  # fraction of the epochs in which a comparison must be usable
_NEGLIGIBLE = 1e-3  # of the second-best weight: less is set to 0
_MIN_POOL = 40  # candidates looked at even where few comparisons are wanted
_SAMPLE = 128  # epochs behind the medians that start the iteration
_AGREED = 0.03  # change of variances, relative, and of levels, in their errors, that ends it
_MAX_ROUNDS = 50


@dataclass(frozen=True, slots=True)
class Layout:
    """What holds for every aperture of a field: who may serve, when, and in which blocks."""

    usable: Bools  # [star, time]
    never: Bools  # [star]
    good: Bools  # [time], epochs that set levels, weights and medians
    edges: Ints  # [block + 1], runs of epochs whose means show drifts
    max_comparisons: int


@dataclass(frozen=True, slots=True)
class Solution:
    """The comparisons of one aperture and the sums that any star's comparison follows from."""

    stars: Ints  # [comparison]
    place: Ints  # [star], among the comparisons, -1 for who is none
    weight: Floats  # [comparison], sum 1
    own_total: Floats  # [comparison, time], trust x weight x flux / level
    own_norm: Floats  # [comparison, time], trust x weight
    own_noise: Floats  # [comparison, time], variance of own_total
    total: Floats  # [time], sums of the three over the comparisons
    norm: Floats
    noise: Floats
    count: NDArray[np.int32]  # [time], comparisons at hand


def solve(value: Array, error: Array, layout: Layout) -> Solution:
    """Comparisons, weights and the frame's factor from flux and error [star, time]."""
    stars, floor = _candidates(value, error, layout)
    flux = np.empty((len(stars), value.shape[1]), value.dtype)
    ivar = np.empty(flux.shape)
    _compact(value, error, layout.usable, stars, flux, ivar)
    level, total, spread = _start(flux, ivar, layout.good, np.argsort(floor)[:_MIN_POOL])
    trust, norm, spans = np.zeros(flux.shape), np.ones(len(total)), (layout.good, layout.edges)
    nobody = np.zeros(len(stars))
    scatter, _ = _judge(flux, ivar, level, spread, trust, nobody, total, norm, *spans)
    variance = np.maximum(scatter, floor)
    best = np.argsort(variance, kind="stable")[: layout.max_comparisons]
    best = np.sort(best[np.isfinite(variance[best])])
    flux, ivar, trust, spread = flux[best], ivar[best], trust[best], spread[best]
    level, variance, floor = level[best], variance[best], floor[best]
    _iterate(flux, ivar, level, spread, trust, variance, floor, total, norm, *spans)
    weight = _worthwhile(1.0 / variance)
    own_norm = trust * weight[:, None]
    own_total = own_norm * flux / level[:, None]
    total, norm = own_total.sum(axis=0), own_norm.sum(axis=0)
    scale = _typical(total, norm, layout.good)
    # A comparison with more scatter than its photons explain is that much noisier.
    excess = np.sqrt(np.maximum(1.0, variance / floor)) / (level * scale)
    own_noise = _noise(own_norm * excess[:, None], ivar)
    keep = weight > 0
    stars = stars[best][keep]
    place = np.full(len(value), -1)
    place[stars] = np.arange(len(stars))
    return Solution(
        stars=stars,
        place=place,
        weight=weight[keep],
        own_total=own_total[keep] / scale,
        own_norm=own_norm[keep],
        own_noise=own_noise[keep],
        total=total / scale,
        norm=norm,
        noise=own_noise.sum(axis=0),
        count=(own_norm > 0).sum(axis=0, dtype=np.int32),
    )


def _candidates(value: Array, error: Array, layout: Layout) -> tuple[Ints, Floats]:
    """Stars fit to serve, those with the least photon noise, and that noise squared."""
    n_usable, n_epochs = _count(value, error, layout.usable, layout.good, layout.never)
    step = max(1, value.shape[1] // _SAMPLE)
    few = error[:, ::step].astype(np.float64)
    valid = layout.usable[:, ::step] & layout.good[::step] & (few > 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        snr = row_medians(value[:, ::step] / few, valid)
    fit = (n_usable > 0) & (n_usable >= _MIN_USABLE * n_epochs) & (snr > 0)
    pool = np.flatnonzero(fit)
    best = np.argsort(-snr[pool], kind="stable")[: max(2 * layout.max_comparisons, _MIN_POOL)]
    pool = np.sort(pool[best])
    return pool, snr[pool] ** -2.0


def _start(flux: Array, ivar: Floats, good: Bools, first: Ints) -> tuple[Floats, Floats, Floats]:
    """Levels, the frame's factor from the `first` stars, and spreads in units of the errors.

    All by medians: the first comparison must not follow a star that fades.
    """
    step = max(1, flux.shape[1] // _SAMPLE)
    few, few_ivar = flux[:, ::step].astype(np.float64), ivar[:, ::step]
    valid = (few_ivar > 0) & good[::step]
    with np.errstate(divide="ignore", invalid="ignore"):
        level = row_medians(few, valid)
        part = np.ascontiguousarray((flux[first] / level[first, None]).T)
        total = row_medians(part, np.ascontiguousarray(ivar[first].T) > 0)
        level = row_medians(few / total[::step], valid)
        stray = np.abs(few - level[:, None] * total[::step]) * np.sqrt(few_ivar)
        spread = np.fmax(1.0, 1.4826 * row_medians(stray, valid))
    return level, np.nan_to_num(total), spread


def _worthwhile(weight: Floats) -> Floats:
    """Weights of sum 1, the negligible ones 0.

    Measured by the second-best: beside the best alone, it would be left without company.
    """
    if len(weight) > 1:
        weight = np.where(weight >= _NEGLIGIBLE * np.sort(weight)[-2], weight, 0.0)
    share: Floats = weight / weight.sum()
    return share


def _typical(total: Floats, norm: Floats, good: Bools) -> float:
    seen = good & (norm > 0) & (total > 0)
    return float(np.median(total[seen] / norm[seen])) if seen.any() else 1.0


def row_medians(values: Array, valid: Bools) -> Floats:
    """Median of each row's valid and finite values; NaN where there is none.

    Rows are padded with as many -inf as put every median into the same column: one partition
    of the whole array then finds them all.
    """
    width = values.shape[1] + 1
    middle = (width - 1) // 2
    padded = np.empty((values.shape[0], width), values.dtype)
    count = _pad(values, valid, middle, padded)
    padded.partition(middle, axis=1)
    low = padded[:, middle].astype(np.float64)
    high = padded[:, middle + 1 :].min(axis=1, initial=np.inf)
    with np.errstate(invalid="ignore"):
        median: Floats = np.where(count % 2 == 1, low, 0.5 * (low + high))
    median[count == 0] = np.nan
    return median


@njit(nogil=True, cache=True)
def _pad(values: Array, valid: Bools, middle: int, padded: Array) -> Ints:
    count = np.zeros(values.shape[0], np.int64)
    for i in range(values.shape[0]):
        n = 0
        for j in range(values.shape[1]):
            padded[i, n] = values[i, j]
            n += valid[i, j] & np.isfinite(values[i, j])
        low = middle - (n - 1) // 2
        padded[i, n : n + low] = -np.inf
        padded[i, n + low :] = np.inf
        count[i] = n
    return count


@njit(nogil=True, cache=True)
def _count(
    value: Array, error: Array, usable: Bools, good: Bools, never: Bools
) -> tuple[Ints, int]:
    """Usable epochs of each star, 0 for who may never serve, and epochs with a star that may."""
    n_usable = np.zeros(len(value), np.int64)
    seen = np.zeros(len(good), np.bool_)
    for s in range(len(value)):
        if never[s]:
            continue
        n = 0
        for t in range(len(good)):
            ok = usable[s, t] & good[t] & np.isfinite(value[s, t]) & (error[s, t] > 0)
            seen[t] |= ok
            n += ok
        n_usable[s] = n
    return n_usable, seen.sum()


@njit(nogil=True, cache=True, error_model="numpy")
def _compact(
    value: Array, error: Array, usable: Bools, stars: Ints, flux: Array, ivar: Floats
) -> None:
    """Flux and inverse variance of some stars, both 0 where a star can't be used."""
    for k in range(len(stars)):
        s = stars[k]
        for t in range(value.shape[1]):
            e = np.float64(error[s, t])
            ok = usable[s, t] & np.isfinite(value[s, t]) & (e > 0) & (e < np.inf)
            flux[k, t] = value[s, t] if ok else 0.0
            ivar[k, t] = 1.0 / (e * e) if ok else 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def _noise(part: Floats, ivar: Floats) -> Floats:
    out = np.zeros(ivar.shape)
    for k in range(ivar.shape[0]):
        for t in range(ivar.shape[1]):
            out[k, t] = part[k, t] * part[k, t] / ivar[k, t] if ivar[k, t] > 0.0 else 0.0
    return out


@njit(nogil=True, cache=True)
def _sums(
    flux: Array, trust: Floats, weight: Floats, level: Floats, total: Floats, norm: Floats
) -> None:
    total[:] = 0.0
    norm[:] = 0.0
    for k in range(len(weight)):
        w, share = weight[k], weight[k] / level[k]
        for t in range(len(total)):
            total[t] += share * trust[k, t] * flux[k, t]
            norm[t] += w * trust[k, t]


@njit(nogil=True, cache=True, error_model="numpy")
def _judge(
    flux: Array,
    ivar: Floats,
    level: Floats,
    spread: Floats,
    trust: Floats,
    weight: Floats,
    total: Floats,
    norm: Floats,
    good: Bools,
    edges: Ints,
) -> tuple[Floats, Floats]:
    """Each star against the others: relative variance, shift of level, and trust (in place)."""
    scatter, shift = np.empty(len(flux)), np.empty(len(flux))
    stray, model = np.empty(len(total)), np.empty(len(total))
    for k in range(len(flux)):
        limit = (_CLEAN * spread[k]) ** 2
        _compare(flux[k], ivar[k], trust[k], total, norm, weight[k], level[k], limit, stray, model)
        scatter[k], shift[k] = _moments(stray, model, trust[k], good, edges)
    return scatter, shift


@njit(nogil=True, cache=True, error_model="numpy")
def _compare(
    flux: Array,
    ivar: Floats,
    trust: Floats,
    total: Floats,
    norm: Floats,
    weight: float,
    level: float,
    limit: float,
    stray: Floats,
    model: Floats,
) -> None:
    """One star minus what the others make of it, and how far each epoch is to be trusted.

    Trust is never 0, so where all stray they still have a mean; model 0 where there is no other.
    """
    share = weight / level
    for t in range(len(total)):
        rest = norm[t] - weight * trust[t]
        others = total[t] - share * trust[t] * flux[t]
        alone = (rest <= 1e-9 * norm[t]) | (others <= 0.0) | (ivar[t] == 0.0)
        model[t] = 0.0 if alone else level * others / rest
        stray[t] = 0.0 if alone else flux[t] - model[t]
        say = limit / max(stray[t] * stray[t] * ivar[t], limit)
        trust[t] = 0.0 if ivar[t] == 0.0 else say * say


@njit(nogil=True, cache=True, error_model="numpy")
def _moments(
    stray: Floats, model: Floats, trust: Floats, good: Bools, edges: Ints
) -> tuple[float, float]:
    """Relative variance, of epochs plus of block means, and relative mean of one star.

    A few strays in a block are left to the trust; where more than a quarter of a block strays,
    the star has changed, and the block counts in full. NaN for a star that has no company.
    """
    square, square_model, mean, sum_model, drift, n_all = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for b in range(len(edges) - 1):
        n, trusted, all_stray, all_model, clean, clean_model = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for t in range(edges[b], edges[b + 1]):
            counts = 1.0 if good[t] and model[t] > 0.0 else 0.0
            say, r, m = counts * trust[t], counts * stray[t], counts * model[t]
            n += counts
            trusted += say
            all_stray += r
            all_model += m
            clean += say * r
            clean_model += say * m
            square += say * r * r
            square_model += say * m * m
        if n > 0.0:
            changed = n - trusted > max(1.5, 0.25 * n)
            offset = (all_stray if changed else clean) / all_model
            drift += n * offset * offset
            mean += clean
            sum_model += clean_model
            n_all += n
    if n_all == 0.0:
        return np.nan, 0.0
    return square / square_model + drift / n_all, mean / sum_model


@njit(nogil=True, cache=True, error_model="numpy")
def _iterate(
    flux: Array,
    ivar: Floats,
    level: Floats,
    spread: Floats,
    trust: Floats,
    variance: Floats,
    floor: Floats,
    total: Floats,
    norm: Floats,
    good: Bools,
    edges: Ints,
) -> None:
    """Levels, variances and trust brought to agree, in place.

    The variance found against the others holds the noise of their mean, 1/(sum of weights),
    which is taken out again. The photon error is its floor, so no star runs away.
    """
    n_good = good.sum()
    for _ in range(_MAX_ROUNDS):
        weight = 1.0 / variance
        every = weight.sum()
        _sums(flux, trust, weight, level, total, norm)
        scatter, shift = _judge(flux, ivar, level, spread, trust, weight, total, norm, good, edges)
        change = 0.0
        for k in range(len(level)):
            rest = every - weight[k]
            if np.isnan(scatter[k]) or rest <= 0.0:
                continue
            found = max(floor[k], scatter[k] - 1.0 / rest)
            step = shift[k] * rest / every
            if weight[k] > 1e-3 * every:
                change = max(change, abs(found / variance[k] - 1.0))
                change = max(change, abs(step) * np.sqrt(n_good / variance[k]))
            level[k] *= 1.0 + step
            # The whole step would make two stars alone swap for ever.
            variance[k] += max(0.5, rest / every) * (found - variance[k])
        if change < _AGREED:
            break
