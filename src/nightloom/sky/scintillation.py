"""Scintillation: what the air alone does to the brightness of a star."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

TURBULENCE_HEIGHT_M = 8000.0
_ZENITH_VARIANCE = 1e-5  # of 1 m, 1 s, at sea level; in m^(4/3) s


def scintillation(
    *,
    aperture_m: ArrayLike,
    exposure_s: ArrayLike,
    airmass: ArrayLike,
    height_m: ArrayLike,
    coefficient: ArrayLike,
) -> NDArray[np.float64]:
    """Relative rms of a star's flux by scintillation alone; arguments broadcast.

    aperture_m: diameter of the telescope; height_m: of the site; coefficient: of the site, 1.5 as
    a rule. NaN where one is unknown or not above zero (the height apart). For exposures of at
    least a second or so; stars further apart than some arcseconds scintillate on their own.
    Source: Young 1967 (AJ 72, 747) as Osborn et al. 2015 (MNRAS 452, 1707), eq. 7, write it.
    """
    d, t, x = (np.asarray(value, dtype=np.float64) for value in (aperture_m, exposure_s, airmass))
    c, h = np.asarray(coefficient, dtype=np.float64), np.asarray(height_m, dtype=np.float64)
    known = (d > 0) & (t > 0) & (x > 0) & (c > 0)
    d, t, x = (np.where(known, value, np.nan) for value in (d, t, x))
    variance = _ZENITH_VARIANCE * c**2 * d ** (-4 / 3) / t * x**3
    return np.asarray(np.sqrt(variance) * np.exp(-h / TURBULENCE_HEIGHT_M))
