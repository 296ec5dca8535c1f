"""Which position of a star is used: its centroid, or its place by the alignment alone.

A faint star's centroid follows the noise and scatters by tenths of a pixel; the alignment, which
all stars make together, by hundredths. How much each scatters is known in the frame itself.
A centroid that follows the noise also finds light that is not the star's: 3 % of 600 electrons
within 0.75 FWHM. The flux scatters as much, which only looks like less against a mean too high.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nightloom.image.annulus import Annuli
from nightloom.image.aperture import aperture_sums
from nightloom.image.centroid import SIGMA_PER_FWHM, Centroids
from nightloom.reduce.detection import Exposure

FLUX_FWHM = 1.5  # radius within which a star's light tells how well its centroid is known
TELLING_STARS = 20  # the best centred: how far they lie from their aligned places
LEAST_TELLING = 5  # with fewer nothing is known of the alignment
PARAMETERS = 3  # of an alignment along an axis: what so many stars fix is no better than they are
MOVED_SIGMA = 5.0  # further from its aligned place a star has moved

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Positions:
    """Where the stars are in a frame [star].

    fallback: the centroid failed or strayed, the aligned place stands in; forced: the aligned
    place was preferred.
    """

    x_px: Floats
    y_px: Floats
    fallback: NDArray[np.bool_]
    forced: NDArray[np.bool_]


def steadiest(
    exposure: Exposure, x_px: Floats, y_px: Floats, found: Centroids, annuli: Annuli, *,
    fwhm_px: float,
) -> Positions:  # fmt: skip
    """Centroids, but aligned places x_px, y_px where these scatter less.

    The alignment's scatter is what the best centred stars show beyond that of their centroids,
    so what the model of the alignment lacks is in it. A star that lies further from its aligned
    place than both explain has moved, and keeps its centroid.
    """
    aligned = np.asarray(x_px, np.float64), np.asarray(y_px, np.float64)
    variance = centroid_variance(exposure, *aligned, annuli, fwhm_px=fwhm_px)
    away2 = (found.x_px - aligned[0]) ** 2 + (found.y_px - aligned[1]) ** 2
    known = np.flatnonzero(found.ok & np.isfinite(variance))
    forced = np.zeros(len(found.ok), dtype=np.bool_)
    if len(known) >= LEAST_TELLING:
        best = known[np.argsort(variance[known], kind="stable")[:TELLING_STARS]]
        # Half of the squared distances in a plane lie below 2 ln 2 of the variance along an axis.
        beyond = float(np.median(away2[best] / (2 * np.log(2)) - variance[best]))
        least = PARAMETERS / len(best) * float(np.median(variance[best]))
        of_alignment = max(beyond, least)
        moved = found.ok & (away2 > MOVED_SIGMA**2 * (variance + of_alignment))
        forced = (variance > of_alignment) & ~moved
    used = found.ok & ~forced
    return Positions(
        np.where(used, found.x_px, aligned[0]),
        np.where(used, found.y_px, aligned[1]),
        fallback=~found.ok & ~forced,
        forced=forced,
    )


def centroid_variance(
    exposure: Exposure, x_px: Floats, y_px: Floats, annuli: Annuli, *, fwhm_px: float
) -> Floats:
    """Variance of a centroid along one axis [star], px²: infinite without light, NaN if unknown.

    That of a Gaussian star of known width: s²/F of its own photons, 8 pi s⁴ B/F² of a sky of
    variance B a pixel. Source: Winick 1986 (JOSA A 3, 1809), for pixels below the width.
    """
    sigma_px = fwhm_px * SIGMA_PER_FWHM
    radius_px = np.array([FLUX_FWHM * fwhm_px])
    sums = aperture_sums(exposure.pixels_e, exposure.mask, x_px, y_px, radius_px)
    flux = sums.flux_e[:, 0] - sums.area_px[:, 0] * annuli.level_e
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = sigma_px**2 / flux + 8 * np.pi * sigma_px**4 * annuli.rms_e**2 / flux**2
    return np.asarray(np.where(flux <= 0, np.inf, variance))
