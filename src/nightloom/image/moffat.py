"""A Moffat profile fitted to the pixels of many stars at once, each with a peak of its own."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math

import numpy as np
from numba import njit

from nightloom.image.aperture import Floats
from nightloom.image.calibrate import Pixels
from nightloom.image.ranks import Keys, fill_keys, middle

_TABLE = 256  # radii at which the profile is computed, others lie between
_GAUSS_POINT = 0.5 / math.sqrt(3)  # two points a side integrate a pixel to third order
_MIN_INVERSE_BETA, _MAX_INVERSE_BETA = 0.02, 0.8
_MAX_FITS = 40
_RESCALED = 3  # fits that renew the stars' scatter; it is settled then
# Of a normal law: its sigma over the median and over the mean of what lies above or below its
# middle, and sigmas between such values about their median, times their number.
_SIGMA_OF_MEDIAN, _SIGMA_OF_MEAN, _SPACING = 1.4826, 1.2533, 1.5735


@njit(nogil=True, cache=True)
def _profiles(fwhm: float, inverse_beta: float, reach: float) -> Floats:
    """Moffat of peak 1 averaged over a pixel, and its slopes in ln(fwhm) and 1/beta [3, radius].

    Rows run over radii from 0 to `reach`, evenly. The pixel lies at 22.5 degrees to the radius,
    where its corners weigh as they do on average.
    """
    table = np.zeros((3, _TABLE + 2))
    power = 2.0**inverse_beta
    scale = 4.0 * (power - 1.0) / (fwhm * fwhm)
    growth = 4.0 * math.log(2.0) * power / (fwhm * fwhm)
    cosine, sine = math.cos(math.pi / 8), math.sin(math.pi / 8)
    for k in range(_TABLE + 2):
        radius = reach * k / _TABLE
        for corner in range(4):
            px = radius * cosine + (_GAUSS_POINT if corner & 1 else -_GAUSS_POINT)
            py = radius * sine + (_GAUSS_POINT if corner & 2 else -_GAUSS_POINT)
            square = px * px + py * py
            q = 1.0 + scale * square
            logarithm = math.log(q)
            value = 0.25 * math.exp(-logarithm / inverse_beta)
            table[0, k] += value
            table[1, k] += value * 2.0 * (q - 1.0) / (q * inverse_beta)
            slope = logarithm / inverse_beta - growth * square / q
            table[2, k] += value * slope / inverse_beta
    return table


@njit(nogil=True, cache=True)
def fit_moffat(
    radii: Floats, values: Floats, fwhm: float, reach: float
) -> tuple[float, float, bool]:
    """FWHM and 1/beta by robust Gauss-Newton, each star with its own peak; whether it settled."""
    inverse_beta = 0.3
    scales = np.full((values.shape[0], 2), np.inf)  # peak and scatter (of the peak) of each star
    scales[:, 0] = 1.0
    room = np.empty(values.shape[1], dtype=np.float32), np.empty(values.shape[1], dtype=np.int32)
    for step in range(_MAX_FITS):
        table = _profiles(fwhm, inverse_beta, reach)
        g0 = g1 = n00 = n01 = n11 = 0.0
        for star in range(values.shape[0]):
            s = _star_equations(radii[star], values[star], table, _TABLE / reach, scales[star])
            if step < _RESCALED:
                scales[star, 1] = _scatter(
                    radii[star], values[star], table, _TABLE / reach, scales[star, 0], room
                )
            g0, g1, n00, n01, n11 = g0 + s[0], g1 + s[1], n00 + s[2], n01 + s[3], n11 + s[4]
        if step == 0:  # gave peaks and scatters only
            continue
        if not (n00 > 0.0 and n11 > 0.0):
            return fwhm, inverse_beta, False
        determinant = n00 * n11 * (1.0 + 1e-6) - n01 * n01
        wider, winged = (n11 * g0 - n01 * g1) / determinant, (n00 * g1 - n01 * g0) / determinant
        target = min(max(inverse_beta + winged, _MIN_INVERSE_BETA), _MAX_INVERSE_BETA)
        if target != inverse_beta + winged:  # at a limit: the best width for that
            wider = (g0 - n01 * (target - inverse_beta)) / n00
        wider = min(max(wider, -0.3), 0.3)
        winged = min(max(target - inverse_beta, -0.15), 0.15)
        fwhm, inverse_beta = fwhm * math.exp(wider), inverse_beta + winged
        if step > 2 and abs(wider) < 2e-4 and abs(winged) < 2e-3:
            return fwhm, inverse_beta, True
    return fwhm, inverse_beta, False


@njit(nogil=True, cache=True)
def _star_equations(
    radii: Floats, values: Floats, table: Floats, per_px: float, scales: Floats
) -> tuple[float, float, float, float, float]:
    """One star's part of the normal equations, its peak solved for and kept in `scales`."""
    inverse, scatter = 1.0 / scales[0], scales[1]
    tt = t0 = t1 = tv = v0 = v1 = j00 = j01 = j11 = 0.0
    for i in range(radii.size):
        if math.isnan(radii[i]):
            break
        place = radii[i] * per_px
        k = int(place)
        part = place - k
        t = table[0, k] + part * (table[0, k + 1] - table[0, k])
        a = table[1, k] + part * (table[1, k + 1] - table[1, k])
        b = table[2, k] + part * (table[2, k + 1] - table[2, k])
        # Hits and neighbours stand out from the scatter and from what the profile may be wrong by.
        limit = 3.0 * (scatter + 0.03 * t) + 1e-9
        excess = values[i] * inverse - t
        near = limit * limit / (limit * limit + excess * excess) if scatter < np.inf else 1.0
        weight = near * near
        ta, tb = weight * a, weight * b
        tt, t0, t1 = tt + weight * t * t, t0 + ta * t, t1 + tb * t
        tv, v0, v1 = tv + weight * t * values[i], v0 + ta * values[i], v1 + tb * values[i]
        j00, j01, j11 = j00 + ta * a, j01 + ta * b, j11 + tb * b
    if not tv > 0.0:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    peak = tv / tt
    scales[0] = peak
    weight = 1.0 / (scatter * scatter + 1e-4)
    return (
        weight * (v0 / peak - t0),
        weight * (v1 / peak - t1),
        weight * (j00 - t0 * t0 / tt),
        weight * (j01 - t0 * t1 / tt),
        weight * (j11 - t1 * t1 / tt),
    )


@njit(nogil=True, cache=True)
def _scatter(
    radii: Floats, values: Floats, table: Floats, per_px: float, peak: float,
    room: tuple[Pixels, Keys],
) -> float:  # fmt: skip
    """Robust deviation of a star's pixels from the profile, in units of its peak."""
    away, keys = room
    n, total = 0, 0.0
    inverse = 1.0 / peak
    for i in range(radii.size):
        if math.isnan(radii[i]):
            break
        place = radii[i] * per_px
        k = int(place)
        t = table[0, k] + (place - k) * (table[0, k + 1] - table[0, k])
        far = abs(values[i] * inverse - t)
        away[n] = far
        total += far
        n += 1
    if n == 0:
        return np.nan
    fill_keys(away[:n], keys[:n])
    sigma = _SIGMA_OF_MEAN * total / n
    low, high = middle(keys[:n], 0, n, sigma / _SIGMA_OF_MEDIAN, _SPACING * sigma / n)
    deviation: float = _SIGMA_OF_MEDIAN * 0.5 * (low + high)
    return deviation
