"""The reference of a field: candidates measured, the best chosen, stacked, its stars listed.

It is pinned: once published it stays until its settings or version change, whatever new nights
bring, so that old cubes stay valid.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightloom.config import Config, Instrument, PhotometrySection
from nightloom.engine.recipe import Made, Recipe
from nightloom.errors import FrameError, ProductError
from nightloom.image.align import Alignment, align
from nightloom.image.calibrate import MASK_BAD, MASK_SATURATED
from nightloom.image.centroid import windowed
from nightloom.image.detect import (
    Detections,
    background_at,
    background_image,
    background_mesh,
    detect,
)
from nightloom.image.psf import measure_psf
from nightloom.image.stack import Stack, add_frame, empty_stack
from nightloom.plan.recipes import PlannedFrame
from nightloom.reduce.detection import ALIGN_STARS, START_FWHM_PX, Exposure, expose, look, place
from nightloom.reduce.masters import MasterPaths, calibration_of
from nightloom.schema.cube import STACK, STARS
from nightloom.store.encodings import read_attributes, write_store
from nightloom.store.products import current
from nightloom.store.provenance import provenance

REFERENCE_VERSION = 6
MIN_QUALITY = 0.4  # of the best frame's, to enter the stack
TRIED_AS_REFERENCE = 5
CLIP_SIGMA = 4.0
CLIP_SLOPE = 0.3  # of the mean: what seeing may change on the flank of a star
MIN_CLIPPED = 3
MIN_DEPTH = 0.3  # of the deepest pixel's weight, for stars to be listed there

log = logging.getLogger("nightloom")


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
class CalibratedFrame:
    """A planned frame with the masters it uses."""

    frame: PlannedFrame
    paths: MasterPaths
    instrument: Instrument


@dataclass(frozen=True, slots=True)
class Candidate:
    """How good a frame is as a reference; xy: its brightest stars [star, 2]."""

    item: CalibratedFrame
    quality: float
    fwhm_px: float
    xy: NDArray[np.float64]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ReferenceJob:
    product: str
    frames: tuple[CalibratedFrame, ...]  # the first is the grid
    photometry: PhotometrySection
    settings: ReferenceSettings
    attributes: dict[str, Any]


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
    root: Path, product: str, settings: ReferenceSettings
) -> tuple[tuple[str, str], ...] | None:
    """Inputs of the published reference where it still holds, else None."""
    path = current(root, product)
    if path is None:
        return None
    attributes = read_attributes(path)
    holds = (
        attributes["settings"] == settings.model_dump(mode="json")
        and attributes["algorithm_version"] == REFERENCE_VERSION
    )
    return tuple((name, digest) for name, digest in attributes["inputs"]) if holds else None


def spread(items: Sequence[CalibratedFrame], most: int) -> tuple[CalibratedFrame, ...]:
    """At most `most` frames, evenly over all of them in order."""
    if len(items) <= most:
        return tuple(items)
    picks = np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))
    return tuple(items[int(k)] for k in picks)


def measure_candidate(
    item: CalibratedFrame, *, photometry: PhotometrySection, trim_px: int
) -> Candidate:
    """Quality of one frame: stars seen, over their longer width; none where it is unusable."""
    nothing = np.zeros((0, 2))
    try:
        exposure = expose(
            item.frame,
            calibration_of(item.paths, item.frame.exposure_s),
            item.instrument,
            trim_px=trim_px,
        )
    except FrameError as error:
        return Candidate(item, 0.0, float("nan"), nothing, str(error))
    sight = look(exposure, fwhm_px=START_FWHM_PX, settings=photometry)
    xy = np.column_stack([sight.stars.x_px, sight.stars.y_px])[:ALIGN_STARS]
    if not sight.psf.n_stars:
        return Candidate(item, 0.0, float("nan"), xy, f"{item.frame.path}: no star is usable")
    if sight.psf.elongation > photometry.max_elongation:
        why = f"{item.frame.path}: elongation {sight.psf.elongation:.2f}"
        return Candidate(item, 0.0, sight.psf.fwhm_px, xy, why)
    quality = len(sight.stars.x_px) / (sight.psf.fwhm_px * sight.psf.elongation)
    return Candidate(item, quality, sight.psf.fwhm_px, xy)


def choose_frames(
    candidates: Sequence[Candidate], *, settings: ReferenceSettings, product: str
) -> tuple[CalibratedFrame, ...]:
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
    best: list[CalibratedFrame] = []
    for first in ranked[:TRIED_AS_REFERENCE]:
        enough = MIN_QUALITY * first.quality
        chosen = [first.item]
        for other in ranked:
            if other is first or other.quality < enough:
                continue
            found = align(first.xy, other.xy, min_matched=settings.min_matched)
            if isinstance(found, Alignment):
                chosen.append(other.item)
        if len(chosen) > 1.5 * len(best):
            best = chosen
    return tuple(best[: settings.max_frames])


def reference_recipe(
    product: str,
    frames: tuple[CalibratedFrame, ...],
    config: Config,
    *,
    inputs: tuple[tuple[str, str], ...] | None = None,
) -> Recipe:
    """Recipe of the reference made of these frames; `inputs` where they are known without."""
    settings = reference_settings(config)
    if inputs is None:
        inputs = tuple(part for item in frames for part in item.frame.inputs)
    recipe = Recipe(product, inputs, settings, REFERENCE_VERSION, job=None, finish=make_reference)
    attributes = provenance(
        product,
        fingerprint=recipe.fingerprint,
        inputs=inputs,
        settings=settings,
        algorithm=REFERENCE_VERSION,
    )
    job = ReferenceJob(product, frames, config.photometry, settings, attributes)
    return replace(recipe, job=job)


def make_reference(job: ReferenceJob, work: Path, _: list[Any]) -> Made:
    """Stack the frames, list the stars and write `reference.zarr`.

    Raises ProductError: the stack shows no stars.
    """
    stack, used, scale_e = _stack(job)
    first = job.frames[0]
    mean = stack.mean.astype(np.float32)
    # Where few frames reach, the noise is not that of the stack around it.
    deep = np.isfinite(mean) & (stack.weight >= MIN_DEPTH * stack.weight.max())
    mask = np.where(deep, 0, MASK_BAD).astype(np.uint8)
    background = background_mesh(mean, mask)
    stars = detect(
        mean,
        mask,
        background,
        fwhm_px=scale_e["fwhm_px"],
        threshold_sigma=job.settings.detection_sigma,
        max_stars=job.settings.max_stars,
    )
    if not len(stars.x_px):
        raise ProductError(where=job.product, why="no stars in the stack")
    level, _noise = background_at(background, stars.x_px, stars.y_px)
    psf = measure_psf(
        mean, mask, stars.x_px, stars.y_px, background_e=level, saturated=stars.saturated,
        blended=stars.blended, guess_fwhm_px=scale_e["fwhm_px"],
    )  # fmt: skip
    fwhm_px = psf.fwhm_px if psf.n_stars else scale_e["fwhm_px"]
    arrays = _star_list(mean, mask, stars, level, fwhm_px, scale_e["saturation_e"])
    arrays |= {
        "stack": mean,
        "weight": stack.weight.astype(np.float32),
        "frame": np.array([item.frame.path for item in used], dtype=object),
    }
    attributes = job.attributes | {
        "fwhm_px": fwhm_px,
        "psf_beta": psf.beta,
        "exposure_s": first.frame.exposure_s,
        "grid_of": first.frame.path,
        "jd_utc": first.frame.jd_utc,
        "n_frames": len(used),
    }
    write_store(work / "reference.zarr", (*STACK, *STARS), arrays, attributes=attributes)
    lost = len(job.frames) - len(used)
    return Made(caveats=(f"{lost} of the chosen frames could not be stacked",) if lost else ())


@dataclass(frozen=True, slots=True)
class Placed:
    """A frame as it enters the stack: scale makes its stars as bright as the first frame's."""

    exposure: Exposure
    matrix: NDArray[np.float64]
    background_e: NDArray[np.float32]
    weight: float
    scale: float


def _stack(job: ReferenceJob) -> tuple[Stack, list[CalibratedFrame], dict[str, float]]:
    """Weighted mean of the frames on the grid of the first, outliers clipped in a second pass."""
    first, facts, stars = _grid(job)
    plain = empty_stack(*first.pixels_e.shape)
    used: list[CalibratedFrame] = []
    for item in job.frames:
        placed = _placed(item, job, stars, facts["fwhm_px"])
        if placed is not None:
            _add_placed(plain, placed, against=None)
            used.append(item)
    if len(used) < MIN_CLIPPED:
        return plain, used, facts
    clipped = empty_stack(*first.pixels_e.shape)
    for item in used:
        placed = _placed(item, job, stars, facts["fwhm_px"])
        if placed is not None:
            _add_placed(clipped, placed, against=plain)
    return clipped, used, facts


def _add_placed(stack: Stack, placed: Placed, *, against: Stack | None) -> None:
    add_frame(
        stack, placed.exposure.pixels_e, placed.exposure.mask, placed.matrix, weight=placed.weight,
        scale=placed.scale, background_e=placed.background_e, against=against, sigma=CLIP_SIGMA,
        slope=CLIP_SLOPE,
    )  # fmt: skip


def _grid(job: ReferenceJob) -> tuple[Exposure, dict[str, float], Detections]:
    item = job.frames[0]
    first = expose(
        item.frame,
        calibration_of(item.paths, item.frame.exposure_s),
        item.instrument,
        trim_px=job.settings.trim_px,
    )
    sight = look(first, fwhm_px=START_FWHM_PX, settings=job.photometry)
    if not sight.psf.n_stars:
        raise ProductError(where=job.product, why=f"{item.frame.path} shows no usable star")
    saturated = (first.mask & MASK_SATURATED) != 0
    lowest = float(first.pixels_e[saturated].min()) if saturated.any() else float("inf")
    return first, {"fwhm_px": sight.psf.fwhm_px, "saturation_e": lowest}, sight.stars


def _placed(
    item: CalibratedFrame, job: ReferenceJob, stars: Detections, fwhm_px: float
) -> Placed | None:
    """The frame against the stars of the first; None, and a line in the log, where it is no use.

    The weight is that of Zackay & Ofek 2017 (ApJ 836, 187), transparency^2 / sky variance: the
    inverse variance of the sky once the frame is scaled.
    """
    try:
        exposure = expose(
            item.frame,
            calibration_of(item.paths, item.frame.exposure_s),
            item.instrument,
            trim_px=job.settings.trim_px,
        )
    except FrameError as error:
        log.warning("not stacked: %s", error)
        return None
    sight = look(exposure, fwhm_px=fwhm_px, settings=job.photometry)
    found = place(np.column_stack([stars.x_px, stars.y_px]), sight, settings=job.photometry)
    if not isinstance(found, Alignment):
        log.warning("not stacked: %s: %s", item.frame.path, found.reason)
        return None
    transparency = _transparency(stars, sight.stars, found.matrix, fwhm_px)
    if not transparency > 0:
        log.warning("not stacked: %s: no star tells its transparency", item.frame.path)
        return None
    background = background_image(sight.background, *exposure.pixels_e.shape)
    noise = float(np.median(sight.background.noise)) / transparency
    weight = 1.0 / max(noise, 1e-6) ** 2
    return Placed(exposure, found.matrix, background, weight, 1.0 / transparency)


def _transparency(
    stars: Detections, seen: Detections, matrix: NDArray[np.float64], fwhm_px: float
) -> float:
    """Median of the fluxes in a frame over those in the first, of the same clean stars."""
    clean = np.flatnonzero(~(stars.saturated | stars.blended) & (stars.flux_e > 0))
    other = np.flatnonzero(~(seen.saturated | seen.blended) & (seen.flux_e > 0))
    if not len(clean) or not len(other):
        return float("nan")
    x = matrix @ np.stack([stars.x_px[clean], stars.y_px[clean], np.ones(len(clean))])
    far = np.hypot(x[0][:, None] - seen.x_px[other], x[1][:, None] - seen.y_px[other])
    nearest = far.argmin(axis=1)
    same = far[np.arange(len(clean)), nearest] < 0.5 * fwhm_px
    if not same.any():
        return float("nan")
    return float(np.median(seen.flux_e[other[nearest[same]]] / stars.flux_e[clean[same]]))


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
