"""The reference of a field: candidates measured, the best chosen, stacked, its stars listed.

It is pinned: once published it stays until its settings or version change, or what is known of
its frames, whatever new nights bring, so that old cubes stay valid. Candidates are measured on
all workers; the best of them are stacked in one task, band by band.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightloom.config import Config, PhotometrySection
from nightloom.engine.recipe import Made, Recipe
from nightloom.errors import ProductError
from nightloom.image.calibrate import MASK_BAD
from nightloom.image.centroid import windowed
from nightloom.image.detect import Detections, background_at, background_mesh, detect
from nightloom.image.psf import measure_psf
from nightloom.plan.recipes import PlannedFrame, frame_paths
from nightloom.reduce.bands import stacked
from nightloom.reduce.candidates import (
    Candidate,
    choose_frames,
    measure_candidate,
    placements,
)
from nightloom.reduce.detection import CalibratedFrame
from nightloom.schema.cube import STACK, STARS
from nightloom.store.encodings import read_attributes, write_store
from nightloom.store.products import current
from nightloom.store.provenance import provenance

REFERENCE_VERSION = 7
MIN_DEPTH = 0.3  # of the deepest pixel's weight, for stars to be listed there
SCALE = ("exposure_s", "gain_e_per_adu", "saturation_adu")  # of a frame: what its electrons are

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
    root: Path, product: str, settings: ReferenceSettings, frames: Iterable[Sequence[PlannedFrame]]
) -> tuple[tuple[str, str], ...] | None:
    """Inputs of the published reference where it still holds, else None.

    frames: of each cube of the field as it is planned now. One that the reference was made of and
    that is no longer among them speaks neither for nor against it.
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
    end = " ".join(SCALE)
    for some in frames:
        mine = [k for k, path in enumerate(frame_paths(some)) if f"{path} {end}" in inputs]
        if any(inputs[name] != said for name, said in (some[k].said(*SCALE) for k in mine)):
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
    return [
        measure_candidate(item, photometry=job.photometry, trim_px=job.settings.trim_px)
        for item in items
    ]


def lost_candidate(job: ReferenceJob, item: CalibratedFrame, reason: str) -> Candidate:
    """A frame that no worker survives."""
    return Candidate(item, 0.0, reason=f"{item.frame.path}: {reason}")


def make_reference(
    job: ReferenceJob, work: Path, parts: list[list[Candidate]], *, attributes: dict[str, Any]
) -> Made:
    """Choose and stack frames, list the stars and write `reference.zarr`.

    Raises ProductError: no candidate is usable, the stack shows no stars.
    """
    candidates = [candidate for part in parts for candidate in part]
    chosen = choose_frames(
        candidates,
        min_matched=job.settings.min_matched,
        max_frames=job.settings.max_frames,
        product=job.product,
    )
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
