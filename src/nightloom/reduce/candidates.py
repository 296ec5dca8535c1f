"""Frames as candidates for a reference: how good each is, which are chosen, where those lie.

What is kept of a candidate is what was seen in it, some ten kilobytes, and never its pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nightloom.config import PhotometrySection
from nightloom.errors import FrameError, ProductError
from nightloom.image import align as alignment
from nightloom.image.align import Alignment, align
from nightloom.image.aperture import aperture_sums
from nightloom.image.calibrate import MASK_SATURATED
from nightloom.image.detect import background_at
from nightloom.reduce.bands import Placement
from nightloom.reduce.detection import (
    ALIGN_STARS,
    START_FWHM_PX,
    CalibratedFrame,
    Exposure,
    Sight,
    expose,
    look,
    place,
)
from nightloom.reduce.masters import calibration_of

MIN_QUALITY = 0.4  # of the best frame's, to enter the stack
TRIED_AS_REFERENCE = 5
FLUX_FWHM = 1.5  # radius within which fluxes tell the transparency

log = logging.getLogger("nightloom")


@dataclass(frozen=True, slots=True)
class Candidate:
    """How good a frame is as a reference, and what is seen in it: nothing where it is unusable.

    flux_e: of the stars that are seen, within 1.5 times their own FWHM, so that frames of unlike
    seeing compare. saturation_e: its faintest saturated pixel, infinite where none is.
    """

    item: CalibratedFrame
    quality: float
    sight: Sight | None = None
    flux_e: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    saturation_e: float = float("inf")
    reason: str = ""


def measure_candidate(
    item: CalibratedFrame, *, photometry: PhotometrySection, trim_px: int
) -> Candidate:
    """Quality of one frame: stars seen, over their longer width; none where it is unusable."""
    try:
        exposure = expose(
            item.frame,
            calibration_of(item.paths, item.frame.exposure_s),
            item.instrument,
            trim_px=trim_px,
        )
    except FrameError as error:
        return Candidate(item, 0.0, reason=str(error))
    sight = look(exposure, fwhm_px=START_FWHM_PX, settings=photometry)
    if not sight.psf.n_stars:
        return Candidate(item, 0.0, sight, reason=f"{item.frame.path}: no star is usable")
    if sight.psf.elongation > photometry.max_elongation:
        why = f"{item.frame.path}: elongation {sight.psf.elongation:.2f}"
        return Candidate(item, 0.0, sight, reason=why)
    quality = len(sight.stars.x_px) / (sight.psf.fwhm_px * sight.psf.elongation)
    return Candidate(item, quality, sight, _fluxes(exposure, sight), _lowest_saturated(exposure))


def _fluxes(exposure: Exposure, sight: Sight) -> NDArray[np.float64]:
    """Electrons of the stars that are seen, within FLUX_FWHM of the frame."""
    x, y = sight.stars.x_px, sight.stars.y_px
    radius_px = np.array([FLUX_FWHM * sight.psf.fwhm_px])
    sums = aperture_sums(exposure.pixels_e, exposure.mask, x, y, radius_px)
    level, _ = background_at(sight.background, x, y)
    return np.asarray(sums.flux_e[:, 0] - sums.area_px[:, 0] * level)


def _lowest_saturated(exposure: Exposure) -> float:
    saturated = (exposure.mask & MASK_SATURATED) != 0
    return float(exposure.pixels_e[saturated].min()) if saturated.any() else float("inf")


def choose_frames(
    candidates: Sequence[Candidate], *, min_matched: int, max_frames: int, product: str
) -> tuple[Candidate, ...]:
    """The frames of the reference, best first: all align with the first of them.

    Of the best few the one that most others align with comes first, so that a stray frame of
    another field can't become the reference.
    Raises ProductError: no candidate shows stars.
    """
    ranked = sorted(
        (c for c in candidates if c.quality > 0), key=lambda c: (-c.quality, c.item.frame.path)
    )
    if not ranked:
        reasons = {c.reason for c in candidates if c.reason}
        why = sorted(reasons)[0] if reasons else "there are no frames"
        raise ProductError(
            where=product, why=f"none of {len(candidates)} candidate frames is usable: {why}"
        )
    seen = {id(c): _brightest(c.sight) for c in ranked}
    best: list[Candidate] = []
    for first in ranked[:TRIED_AS_REFERENCE]:
        enough = MIN_QUALITY * first.quality
        chosen = [first]
        for other in ranked:
            if other is first or other.quality < enough:
                continue
            found = align(seen[id(first)], seen[id(other)], min_matched=min_matched)
            if isinstance(found, Alignment):
                chosen.append(other)
        if len(chosen) > 1.5 * len(best):
            best = chosen
    return tuple(best[:max_frames])


def _brightest(sight: Sight | None) -> NDArray[np.float64]:
    """Positions [star, 2] of the brightest stars that are seen."""
    if sight is None:
        return np.zeros((0, 2))
    return np.column_stack([sight.stars.x_px, sight.stars.y_px])[:ALIGN_STARS]


def placements(
    chosen: Sequence[Candidate], *, photometry: PhotometrySection
) -> tuple[Placement, ...]:
    """Where the frames lie on the grid of the first; a line in the log where one is no use.

    Stars are made as bright as in the first. The weight is that of Zackay & Ofek 2017 (ApJ 836,
    187), transparency^2 / sky variance: the inverse variance of the sky once the frame is scaled.
    """
    places = []
    for k, candidate in enumerate(chosen):
        placed = _placed(candidate, k, chosen[0], photometry)
        if isinstance(placed, Placement):
            places.append(placed)
        else:
            log.warning("not stacked: %s: %s", candidate.item.frame.path, placed)
    return tuple(places)


def _placed(
    candidate: Candidate, index: int, first: Candidate, photometry: PhotometrySection
) -> Placement | str:
    """A frame against the first, which lies on itself; in words why it can't be placed."""
    assert candidate.sight is not None
    matrix, transparency = np.eye(2, 3), 1.0
    if candidate is not first:
        found = place(_brightest(first.sight), candidate.sight, settings=photometry)
        if not isinstance(found, Alignment):
            return found.reason
        matrix = found.matrix
        transparency = _transparency(first, candidate, matrix)
        if not transparency > 0:
            return "no star tells its transparency"
    sky = candidate.sight.background
    noise = float(np.median(sky.noise)) / transparency
    return Placement(index, matrix, 1.0 / transparency, 1.0 / max(noise, 1e-6) ** 2, sky)


def _transparency(first: Candidate, other: Candidate, matrix: NDArray[np.float64]) -> float:
    """Median of the fluxes in a frame over those in the first, of the same clean stars."""
    assert first.sight is not None
    assert other.sight is not None
    stars, seen = first.sight.stars, other.sight.stars
    one = np.flatnonzero(~(stars.saturated | stars.blended) & (first.flux_e > 0))
    two = np.flatnonzero(~(seen.saturated | seen.blended) & (other.flux_e > 0))
    if not len(one) or not len(two):
        return float("nan")
    x, y = alignment.apply(matrix, stars.x_px[one], stars.y_px[one])
    far = np.hypot(x[:, None] - seen.x_px[two], y[:, None] - seen.y_px[two])
    nearest = far.argmin(axis=1)
    same = far[np.arange(len(one)), nearest] < 0.5 * first.sight.psf.fwhm_px
    if not same.any():
        return float("nan")
    return float(np.median(other.flux_e[two[nearest[same]]] / first.flux_e[one[same]]))
