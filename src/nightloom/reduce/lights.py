"""Hot pixels from the frames of a night themselves, where stars drift and there is no dark.

A pixel that is hot stays where it is while the stars go by: the clipped mean over the frames of
what it shows above the sky is its dark signal. Steady ones are subtracted, as a dark would do it,
and what flickers is masked. The same frames tell the gain, where nothing else does.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightloom.config import Config, PhotometrySection
from nightloom.engine.recipe import Made, Outline, Recipe
from nightloom.errors import FrameError
from nightloom.image import align as alignment
from nightloom.image.align import Alignment
from nightloom.image.calibrate import MASK_BAD
from nightloom.image.combine import combine
from nightloom.image.excess import (
    SkyNoise,
    frame_excess,
    gain_by_lags,
    most_covered,
    sky_noise,
    steady_excess,
)
from nightloom.plan.recipes import Inputs, PlannedCube, PlannedFrame, inputs_of, said_of
from nightloom.reduce.cube import calibrated_frames, masters_of
from nightloom.reduce.detection import (
    ALIGN_STARS,
    START_FWHM_PX,
    CalibratedFrame,
    expose,
    look,
    place,
)
from nightloom.reduce.masters import HOTTEST_ADU, LEVELS, UNSTEADY, calibration_of
from nightloom.reduce.overscan import data_of, less_overscan
from nightloom.reduce.pixels import pixels_of
from nightloom.reduce.reference import spread
from nightloom.schema.cube import MASTER
from nightloom.store.encodings import write_store
from nightloom.store.fingerprint import fingerprint as fingerprint_of
from nightloom.store.products import published_fingerprint
from nightloom.store.provenance import provenance

LIGHTS_VERSION = 3
MOST_FRAMES = 150  # evenly over the night: the mean is then good to a twelfth of the noise
BAND_BYTES = 32 << 20
MOST_ROWS = 128
DRIFT_FRAMES = 21  # whose stars are looked for, to see whether they drift
DRIFT_STARS = 25
COVERED_FWHM = 2.0  # a star covers the pixels within this radius,
MOST_COVERED = 0.25  # and must not cover one in more of the frames: clipping takes that out
STEADY_SIGMA = 5.0
LEAST_USED = 0.5  # of the frames must agree on a pixel
GAIN_ERROR = 0.3  # relative, half of it in the photon noise; a gain less certain is none
FAR_FRAMES = 2  # apart, beside neighbours: how far the gain depends on it is its error
CLIP_SIGMA = 3.0
_SHARED = ("exposure_s", "overscan_section", "data_section")  # by the frames of a map

log = logging.getLogger("nightloom")
Rows = tuple[int, int]


class LightsSettings(BaseModel):
    """What a map depends on besides its frames and masters: how its stars are found."""

    model_config = ConfigDict(frozen=True)

    detection_sigma: float
    min_matched: int


@dataclass(frozen=True, slots=True)
class LightsJob:
    """Equal where archive and fingerprint are: a worker looks for the drift once, not each band."""

    root: Path  # of the frames
    product: str
    fingerprint: str
    frames: tuple[CalibratedFrame, ...] = field(compare=False)  # in order of time
    photometry: PhotometrySection = field(compare=False)
    attributes: dict[str, Any] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Band:
    """Some rows of the map: mean excess, noise of one frame, share of frames that agree."""

    rows: Rows
    level: NDArray[np.float32]
    noise: NDArray[np.float32]
    used: NDArray[np.float32]
    sky: SkyNoise  # of neighbouring frames
    far_sky: SkyNoise


@dataclass(frozen=True, slots=True)
class KeptBand:
    """Where a band was put aside, and its sky."""

    file: Path
    sky: SkyNoise
    far_sky: SkyNoise


@dataclass(frozen=True, slots=True)
class Drift:
    """Whether the stars of a night drift enough, and in words."""

    enough: bool
    reason: str


def lights_settings(config: Config) -> LightsSettings:
    """The part of the configuration that a map depends on."""
    photometry = config.photometry
    return LightsSettings(
        detection_sigma=photometry.detection_sigma, min_matched=photometry.min_matched
    )


def lights_outline(root: Path, cube: PlannedCube, config: Config) -> Outline:
    """Outline of the recipe of the map of a cube's night."""
    masters = _masters_in(root, cube)
    fingerprint = fingerprint_of(
        inputs=(*_of_frames(_seen(cube).frames), *masters), settings=lights_settings(config),
        version=LIGHTS_VERSION, kind="lights",
    )  # fmt: skip
    needs, write = tuple(name for name, _ in masters), partial(lights_recipe, root, cube, config)
    return Outline(cube.lights, fingerprint, needs, (), write)


def _of_frames(frames: Sequence[PlannedFrame]) -> Inputs:
    return inputs_of(frames) + said_of(frames, *LEVELS)


def _masters_in(root: Path, cube: PlannedCube) -> tuple[tuple[str, str], ...]:
    return tuple((name, published_fingerprint(root, name)) for name in masters_of((cube,)))


def _seen(cube: PlannedCube) -> PlannedCube:
    """The cube with the frames that its map is made of, and before there is a map."""
    columns = (cube.frames.column(name).tolist() for name in _SHARED)
    alike = list(zip(*columns, strict=True))
    common = Counter(alike).most_common(1)[0][0]
    few = spread([k for k, values in enumerate(alike) if values == common], MOST_FRAMES)
    return replace(cube.some(few), choices=tuple(replace(c, lights="") for c in cube.choices))


def lights_recipe(root: Path, cube: PlannedCube, config: Config) -> Recipe:
    """Recipe of the map of a cube's night."""
    product, seen, masters = cube.lights, _seen(cube), _masters_in(root, cube)
    chosen = calibrated_frames(root, seen, config)
    inputs = (*_of_frames(seen.frames), *masters)
    first = chosen[0].frame
    rows = BAND_BYTES // (4 * first.nx * len(chosen))
    rows, data = max(1, min(rows, MOST_ROWS, first.ny)), data_of(first)
    settings = lights_settings(config)
    recipe = Recipe(
        product, inputs, settings, LIGHTS_VERSION, job=None,
        needs=tuple(name for name, _ in masters),
        items=tuple((a, min(a + rows, data.y1)) for a in range(data.y0, data.y1, rows)),
        step=measure_bands, pack=keep_bands, finish=make_lights, shard_items=1, chunk_items=1,
    )  # fmt: skip
    attributes = provenance(
        product, fingerprint=recipe.fingerprint, inputs=inputs, settings=settings,
        algorithm=LIGHTS_VERSION,
    )  # fmt: skip
    job = LightsJob(first.root, product, recipe.fingerprint, chosen, config.photometry, attributes)
    return replace(recipe, job=job)


@lru_cache(maxsize=4)
def drift_of(job: LightsJob) -> Drift:
    """Whether stars move on before they burn into a mean over these frames."""
    seen = []
    for item in spread(job.frames, DRIFT_FRAMES):
        try:
            calibration = calibration_of(item.paths, item.frame.exposure_s)
            exposure = expose(item.frame, calibration, item.instrument, trim_px=0)
        except FrameError:
            continue
        sight = look(exposure, fwhm_px=START_FWHM_PX, settings=job.photometry)
        if sight.psf.n_stars:
            seen.append(sight)
    if len(seen) < DRIFT_FRAMES // 2:
        return Drift(False, "too few of its frames show stars")
    first = seen[len(seen) // 2]
    xy = np.column_stack([first.stars.x_px, first.stars.y_px])[:ALIGN_STARS]
    places = []
    for sight in seen:
        placed = place(xy, sight, settings=job.photometry)
        if isinstance(placed, Alignment):
            places.append(np.column_stack(alignment.apply(placed.matrix, *xy[:DRIFT_STARS].T)))
    if len(places) < DRIFT_FRAMES // 2:
        return Drift(False, "too few of its frames align with each other")
    fwhm_px = float(np.median([sight.psf.fwhm_px for sight in seen]))
    share = most_covered(np.array(places), reach_px=COVERED_FWHM * fwhm_px)
    extent = float(np.median(np.hypot(*np.ptp(np.array(places), axis=0).T)))
    words = f"stars drift by {extent:.1f} px ({extent / fwhm_px:.1f} FWHM)"
    if share > MOST_COVERED:
        return Drift(False, f"{words} and cover a pixel in {100 * share:.0f} % of the frames")
    return Drift(True, words)


def measure_bands(job: LightsJob, bands: tuple[Rows, ...]) -> list[Band | None]:
    """Bands of the map; nothing where stars do not drift, so that none is burnt in."""
    if not drift_of(job).enough:
        return [None] * len(bands)
    return [_band(job, rows) for rows in bands]


def _band(job: LightsJob, rows: Rows) -> Band:
    cut, columns = slice(*rows), data_of(job.frames[0].frame).columns
    frames: list[NDArray[np.float32]] = []
    for item in job.frames:
        try:
            raw = pixels_of(item.frame, rows=cut)
        except FrameError as error:
            log.warning("left out of the map of hot pixels: %s", error)
            continue
        calibration = calibration_of(item.paths, item.frame.exposure_s)
        pixels = less_overscan(raw, item.frame, first_row=cut.start)
        if calibration.offset is not None:
            pixels -= calibration.offset[cut]
        if calibration.inverse_flat is not None:
            pixels *= calibration.inverse_flat[cut]
        frames.append(np.nan_to_num(pixels[:, columns], nan=0.0, posinf=0.0, neginf=0.0))
    stack = np.stack(frames)
    excess = frame_excess(stack)
    kept = combine(excess, sigma=CLIP_SIGMA)
    share = (kept.used / len(frames)).astype(np.float32)
    skies = (sky_noise(stack, excess, lag=lag) for lag in (1, FAR_FRAMES))
    return Band(rows, kept.mean, kept.noise, share, *skies)


def keep_bands(job: LightsJob, work: Path, start: int, bands: list[Band | None]) -> KeptBand | None:
    """Put a band aside in the working folder; where, and its sky, go on to the finish."""
    (band,) = bands
    if band is None:
        return None
    file = work / f"band-{start:06d}.npy"
    np.save(file, np.stack([band.level, band.noise, band.used]))
    return KeptBand(file, band.sky, band.far_sky)


def make_lights(job: LightsJob, work: Path, bands: list[KeptBand | None]) -> Made:
    """Join the bands and write `lights.zarr`; an empty product where stars do not drift.

    The bands stay where they are, perhaps not in `work`: a finish that died is done again.
    """
    drift = drift_of(job)
    known = sorted((b for b in bands if b is not None), key=lambda band: band.file)
    if not drift.enough or not known:
        return Made(outcome="empty", reason=f"no map of hot pixels: {drift.reason}")
    level, noise, used = np.concatenate([np.load(band.file) for band in known], axis=1)
    first = job.frames[0].frame
    calibration = calibration_of(job.frames[0].paths, first.exposure_s)
    steady = steady_excess(level, noise, n_frames=len(job.frames), sigma=STEADY_SIGMA)
    flickers = (noise > UNSTEADY * np.median(noise)) | ~np.isfinite(noise)
    variance = noise**2 / np.maximum(used * len(job.frames), np.float32(1))
    lost = flickers | (used < LEAST_USED) | (steady > HOTTEST_ADU)
    data = data_of(first)
    if calibration.inverse_flat is not None:
        # The map was made on flat frames, but is subtracted before the flat.
        flat = calibration.inverse_flat[data.rows, data.columns]
        safe = np.where(flat > 0, flat, np.float32(1))
        steady = (steady / safe).astype(np.float32)
    gain, gain_err = gain_by_lags([b.sky for b in known], [b.far_sky for b in known])
    attributes = job.attributes | {
        "image_type": "lights",
        "units": "adu",
        "exposure_s": first.exposure_s,
        "n_frames": len(job.frames),
        "drift": drift.reason,
        "n_steady": int(np.count_nonzero(steady)),
        "n_flickering": int(np.count_nonzero(lost)),
    }
    caveats = [f"{attributes['n_steady']} pixels subtracted, {attributes['n_flickering']} masked"]
    if gain_err < GAIN_ERROR * gain:
        attributes |= {"gain_e_per_adu": gain, "gain_err": gain_err}
        caveats.append(f"gain estimated from lights: {gain:.2f} +- {gain_err:.2f} e-/ADU")
    bad = np.where(lost, np.uint8(MASK_BAD), np.uint8(0))
    arrays: dict[str, NDArray[Any]] = {
        "level": _on_frame(steady, first, np.float32(0)),
        "noise": _on_frame(noise, first, np.float32(np.nan)),
        "variance": _on_frame(np.where(steady == 0, np.float32(0), variance), first, np.float32(0)),
        "bad": _on_frame(bad, first, np.uint8(MASK_BAD)),
    }
    write_store(work / "lights.zarr", MASTER, arrays, attributes=attributes)
    return Made(caveats=tuple(caveats))


def _on_frame(plane: NDArray[Any], frame: PlannedFrame, beyond: np.generic) -> NDArray[Any]:
    """A plane of the data of a frame on the whole of it; `beyond` where it holds no data."""
    data = data_of(frame)
    whole = np.full((frame.ny, frame.nx), beyond)
    whole[data.rows, data.columns] = plane
    return whole
