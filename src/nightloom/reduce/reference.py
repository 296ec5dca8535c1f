"""The reference of a field: candidates measured, the best chosen, stacked, its stars listed.

It is pinned: once published it stays until its settings or version change, or what is known of
its frames, whatever new nights bring, so that old cubes stay valid. Candidates are measured on
all workers; the best of them are stacked in one task, band by band.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightloom.config import Config, PhotometrySection
from nightloom.engine.recipe import Made, Recipe
from nightloom.errors import FrameError, ProductError
from nightloom.image import align as alignment
from nightloom.image.align import Alignment, align
from nightloom.image.aperture import aperture_sums
from nightloom.image.calibrate import MASK_BAD, MASK_SATURATED
from nightloom.image.centroid import windowed
from nightloom.image.detect import Detections, background_at, background_mesh, detect
from nightloom.image.psf import measure_psf
from nightloom.plan.recipes import PlannedFrame
from nightloom.reduce.bands import Placement, stacked
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
from nightloom.schema.cube import STACK, STARS
from nightloom.store.encodings import read_attributes, write_store
from nightloom.store.products import current
from nightloom.store.provenance import provenance

REFERENCE_VERSION = 6
MIN_QUALITY = 0.4  # of the best frame's, to enter the stack
TRIED_AS_REFERENCE = 5
FLUX_FWHM = 1.5  # radius within which fluxes tell the transparency
MIN_DEPTH = 0.3  # of the deepest pixel's weight, for stars to be listed there
SCALE = ("exposure_s", "gain_e_per_adu", "saturation_adu")  # of a frame: what its electrons are


log = logging.getLogger("nightloom")
T = TypeVar("T")


class ReferenceSettings(BaseModel):
    """What a reference depends on."""

    model_config = ConfigDict(frozen=True)

    max_candidates: int
    max_frames: int
    max_stars: int
    detection_sigma: float
    max_elongation: float
    min_matched: int
    trim_px: int


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


@dataclass(frozen=True, slots=True)
class ReferenceJob:
    product: str
    photometry: PhotometrySection
    settings: ReferenceSettings


def reference_settings(config: Config) -> ReferenceSettings:
    """The part of the configuration that a reference depends on."""
    return ReferenceSettings(
        max_candidates=config.reference.max_candidates,
        max_frames=config.reference.max_frames,
        max_stars=config.photometry.max_stars,
        detection_sigma=config.photometry.detection_sigma,
        max_elongation=config.photometry.max_elongation,
        min_matched=config.photometry.min_matched,
        trim_px=config.calibration.trim_px,
    )


def pinned_inputs(
    root: Path, product: str, settings: ReferenceSettings, frames: Iterable[PlannedFrame]
) -> tuple[tuple[str, str], ...] | None:
    """Inputs of the published reference where it still holds, else None.

    frames: of the field as they are planned now. One that the reference was made of and that is
    no longer among them speaks neither for nor against it.
    """
    path = current(root, product)
    if path is None:
        return None
    attributes = read_attributes(path)
    if (
        attributes["settings"] != settings.model_dump(mode="json")
        or attributes["algorithm_version"] != REFERENCE_VERSION
    ):
        return None
    inputs = {name: digest for name, digest in attributes["inputs"]}
    for frame in frames:
        known = inputs.get(frame.name_of(*SCALE))
        if known is not None and known != frame.said(*SCALE)[1]:
            return None
    return tuple(inputs.items())


def spread(items: Sequence[T], most: int) -> tuple[T, ...]:
    """At most `most` items, evenly over all of them in order."""
    if len(items) <= most:
        return tuple(items)
    picks = np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))
    return tuple(items[int(k)] for k in picks)


def reference_recipe(
    product: str,
    candidates: tuple[CalibratedFrame, ...],
    config: Config,
    *,
    masters: tuple[tuple[str, str], ...] = (),
) -> Recipe:
    """Recipe of the reference made of the best of these frames; `masters` with fingerprints."""
    settings = reference_settings(config)
    inputs = tuple(part for item in candidates for part in item.frame.inputs)
    inputs += tuple(item.frame.said(*SCALE) for item in candidates) + masters
    recipe = pinned_recipe(product, inputs, config)
    attributes = provenance(
        product,
        fingerprint=recipe.fingerprint,
        inputs=inputs,
        settings=settings,
        algorithm=REFERENCE_VERSION,
    )
    return replace(
        recipe,
        job=ReferenceJob(product, config.photometry, settings),
        items=candidates,
        step=measure_candidates,
        lost=lost_candidate,
        finish=partial(make_reference, attributes=attributes),
        chunk_items=1,
    )


def pinned_recipe(product: str, inputs: tuple[tuple[str, str], ...], config: Config) -> Recipe:
    """Recipe of a reference that is there; it tells the fingerprint, and makes nothing."""
    settings = reference_settings(config)
    finish = partial(make_reference, attributes={})
    return Recipe(product, inputs, settings, REFERENCE_VERSION, job=None, finish=finish)


def measure_candidates(job: ReferenceJob, items: tuple[CalibratedFrame, ...]) -> list[Candidate]:
    """Some frames, each with its quality."""
    return [_measured(job, item) for item in items]


def lost_candidate(job: ReferenceJob, item: CalibratedFrame, reason: str) -> Candidate:
    """A frame that no worker survives."""
    return Candidate(item, 0.0, reason=f"{item.frame.path}: {reason}")


def _measured(job: ReferenceJob, item: CalibratedFrame) -> Candidate:
    """Quality of one frame: stars seen, over their longer width; none where it is unusable."""
    try:
        exposure = expose(
            item.frame,
            calibration_of(item.paths, item.frame.exposure_s),
            item.instrument,
            trim_px=job.settings.trim_px,
        )
    except FrameError as error:
        return Candidate(item, 0.0, reason=str(error))
    sight = look(exposure, fwhm_px=START_FWHM_PX, settings=job.photometry)
    if not sight.psf.n_stars:
        return Candidate(item, 0.0, sight, reason=f"{item.frame.path}: no star is usable")
    if sight.psf.elongation > job.settings.max_elongation:
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
    candidates: Sequence[Candidate], *, settings: ReferenceSettings, product: str
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
            found = align(seen[id(first)], seen[id(other)], min_matched=settings.min_matched)
            if isinstance(found, Alignment):
                chosen.append(other)
        if len(chosen) > 1.5 * len(best):
            best = chosen
    return tuple(best[: settings.max_frames])


def _brightest(sight: Sight | None) -> NDArray[np.float64]:
    """Positions [star, 2] of the brightest stars that are seen."""
    if sight is None:
        return np.zeros((0, 2))
    return np.column_stack([sight.stars.x_px, sight.stars.y_px])[:ALIGN_STARS]


def make_reference(
    job: ReferenceJob, work: Path, parts: list[list[Candidate]], *, attributes: dict[str, Any]
) -> Made:
    """Choose and stack frames, list the stars and write `reference.zarr`.

    Raises ProductError: no candidate is usable, the stack shows no stars.
    """
    candidates = [candidate for part in parts for candidate in part]
    chosen = choose_frames(candidates, settings=job.settings, product=job.product)
    first, frames = chosen[0], [candidate.item for candidate in chosen]
    places = placements(chosen, photometry=job.photometry)
    (mean, weight), names = stacked(frames, places, trim_px=job.settings.trim_px)
    columns, facts = _stars_of(job, mean, weight, first)
    arrays = {"stack": mean, "weight": weight, "frame": np.array(names, dtype=object)} | columns
    attributes = attributes | facts
    attributes |= {
        "exposure_s": first.item.frame.exposure_s,
        "grid_of": first.item.frame.path,
        "jd_utc": first.item.frame.jd_utc,
        "n_frames": len(names),
    }
    write_store(work / "reference.zarr", (*STACK, *STARS), arrays, attributes=attributes)
    return Made(caveats=_caveats(candidates, n_chosen=len(chosen), n_used=len(names)))


def _caveats(candidates: Sequence[Candidate], *, n_chosen: int, n_used: int) -> tuple[str, ...]:
    caveats: tuple[str, ...] = ()
    unseen = [candidate.reason for candidate in candidates if candidate.sight is None]
    if unseen:
        caveats += (f"{len(unseen)} of {len(candidates)} candidates quarantined: {unseen[0]}",)
    if n_used < n_chosen:
        caveats += (f"{n_chosen - n_used} of the chosen frames could not be stacked",)
    return caveats


def _stars_of(
    job: ReferenceJob, mean: NDArray[np.float32], weight: NDArray[np.float32], first: Candidate
) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """Columns of the star list, and the shape of the stars.

    Raises ProductError: the stack shows no stars.
    """
    assert first.sight is not None
    # Where few frames reach, the noise is not that of the stack around it.
    deep = np.isfinite(mean) & (weight >= MIN_DEPTH * weight.max())
    mask = np.where(deep, 0, MASK_BAD).astype(np.uint8)
    background = background_mesh(mean, mask)
    fwhm_px, beta = first.sight.psf.fwhm_px, float("nan")
    for _ in range(2):  # the stack's stars are wider than the sharpest frame's
        stars = detect(
            mean,
            mask,
            background,
            fwhm_px=fwhm_px,
            threshold_sigma=job.settings.detection_sigma,
            max_stars=job.settings.max_stars,
        )
        if not len(stars.x_px):
            raise ProductError(where=job.product, why="no stars in the stack")
        level, _noise = background_at(background, stars.x_px, stars.y_px)
        psf = measure_psf(
            mean, mask, stars.x_px, stars.y_px, background_e=level, saturated=stars.saturated,
            blended=stars.blended, guess_fwhm_px=fwhm_px,
        )  # fmt: skip
        if psf.n_stars:
            fwhm_px, beta = psf.fwhm_px, psf.beta
    columns = _star_list(mean, mask, stars, level, fwhm_px, first.saturation_e)
    return columns, {"fwhm_px": fwhm_px, "psf_beta": beta}


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


def _star_list(
    mean: NDArray[np.float32], mask: NDArray[np.uint8], stars: Detections,
    level: NDArray[np.float64], fwhm_px: float, saturation_e: float,
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """Columns of the star list, brightest first, at their windowed centroids."""
    centres = windowed(
        mean, mask, stars.x_px, stars.y_px, background_e=level, fwhm_px=fwhm_px,
        max_shift_px=fwhm_px,
    )  # fmt: skip
    n = len(stars.x_px)
    return {
        "star_id": np.arange(n, dtype=np.int32),
        "x": centres.x_px,
        "y": centres.y_px,
        "flux": stars.flux_e,
        "peak": stars.peak_e,
        "saturated": stars.saturated | (stars.peak_e >= 0.9 * saturation_e),
        "blended": stars.blended,
        "appended": np.zeros(n, dtype=bool),
    }
