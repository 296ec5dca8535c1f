"""Masters: bias, dark and flat from row sections; and what a frame's calibration comes to."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightloom.config import CalibrationSection
from nightloom.engine.recipe import Made, Recipe
from nightloom.errors import FrameError, ProductError
from nightloom.frames.fits import read_pixels
from nightloom.image.calibrate import bad_from_dark, bad_from_flat, pair_gain
from nightloom.image.combine import median_combine, stack_noise
from nightloom.plan.recipes import PlannedFrame, PlannedMaster
from nightloom.schema.cube import MASTER
from nightloom.store.encodings import read_arrays, read_attributes, write_store
from nightloom.store.products import current, published_fingerprint
from nightloom.store.provenance import provenance

MASTER_VERSION = 4
SECTION_BYTES = 32 << 20
MIN_FRAMES = 3  # with fewer, a cosmic ray stays in the median: said as a caveat
FLAT_LOW, FLAT_HIGH = 0.02, 0.85  # usable level of a flat, as a fraction of saturation
CACHE = 6
UNSTEADY = 10.0  # scatter of a hot pixel over that of the others
HOTTEST_ADU = 10000.0  # dark signal above the others': a sixth of 16 bits is gone

log = logging.getLogger("nightloom")
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a frame of one exposure time is calibrated with; ADU, None where there is nothing."""

    offset: Floats | None
    inverse_flat: Floats | None
    bad: NDArray[np.uint8] | None
    dark_adu: float  # median dark signal in the exposure, for the noise
    flat_err: float  # relative error of the flat
    gain_e_per_adu: float = float("nan")  # as pairs of flats show it
    read_noise_adu: float = float("nan")  # as the bias frames show it
    gain_from_lights: bool = False  # the gain is that of the sky of the night


@dataclass(frozen=True, slots=True)
class MasterPaths:
    """Where the masters of a frame lie; their paths hold their fingerprints."""

    bias: Path | None = None
    dark: Path | None = None
    flat: Path | None = None
    calibrated: bool = False  # the frame came calibrated: none of them is missing
    lights: Path | None = None  # hot pixels as the frames themselves show them


@dataclass(frozen=True, slots=True)
class MasterJob:
    image_type: str
    product: str
    frames: tuple[PlannedFrame, ...]
    paths: MasterPaths
    settings: CalibrationSection
    attributes: dict[str, Any]


def master_recipe(root: Path, master: PlannedMaster, settings: CalibrationSection) -> Recipe:
    """Recipe of a master; the masters that it needs must be published."""
    upstream = [name for name in (master.choice.bias, master.choice.dark) if name]
    inputs = tuple(frame.identity for frame in master.frames)
    inputs += tuple((name, published_fingerprint(root, name)) for name in upstream)
    # Which master is nearest is part of the inputs; what a median does has no settings.
    recipe = Recipe(
        master.product, inputs, None, MASTER_VERSION, job=None, finish=make_master,
        needs=tuple(upstream),
    )  # fmt: skip
    attributes = provenance(
        master.product,
        fingerprint=recipe.fingerprint,
        inputs=inputs,
        settings=None,
        algorithm=MASTER_VERSION,
    )
    paths = MasterPaths(
        bias=current(root, master.choice.bias) if master.choice.bias else None,
        dark=current(root, master.choice.dark) if master.choice.dark else None,
    )
    job = MasterJob(
        master.kit.image_type, master.product, master.frames, paths, settings, attributes
    )
    return replace(recipe, job=job)


def make_master(job: MasterJob, work: Path, _: list[Any]) -> Made:
    """Combine the frames and write `master.zarr`.

    A frame that can't be read is left out with a caveat; without any, the product fails.
    """
    frames, caveats = _readable(job.frames)
    if not frames:
        raise ProductError(where=job.product, why=f"none of {len(job.frames)} frames is usable")
    measured: dict[str, float] = {}
    if job.image_type == "flat":
        level, noise, frames, more = _flat(job, frames)
        measured["gain_e_per_adu"] = _measured_gain(job, frames)
        caveats += more
        bad = bad_from_flat(level)
    else:
        level, noise = _median(frames)
        bad = np.zeros(level.shape, np.uint8)
        if job.image_type == "dark":
            bad = _harmful(level, noise, bad_from_dark(level, noise=noise))
    if len(frames) < MIN_FRAMES:
        caveats += (f"of {len(frames)} frames only",)
    attributes = job.attributes | {k: v for k, v in measured.items() if np.isfinite(v)}
    attributes |= {
        "image_type": job.image_type,
        "units": "1" if job.image_type == "flat" else "adu",
        "exposure_s": frames[0].exposure_s,
        "n_frames": len(frames),
        "frames": [frame.path for frame in frames],
    }
    arrays: dict[str, NDArray[Any]] = {"level": level, "noise": noise, "bad": bad}
    write_store(work / "master.zarr", MASTER, arrays, attributes=attributes)
    return Made(caveats=caveats)


def _harmful(level: Floats, noise: Floats, hot: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of the hot pixels those that a dark does not mend.

    A steady hot pixel is subtracted like any other and adds little noise to a star; filling it
    from its neighbours near a star's core would be worse. What flickers, or has little of its
    range left, is lost.
    """
    middle = float(np.median(level))
    flickers = noise > UNSTEADY * np.median(noise)
    return np.where(flickers | (level - middle > HOTTEST_ADU), hot, np.uint8(0))


def _readable(
    frames: tuple[PlannedFrame, ...],
) -> tuple[tuple[PlannedFrame, ...], tuple[str, ...]]:
    good: list[PlannedFrame] = []
    caveats: tuple[str, ...] = ()
    for frame in frames:
        try:
            read_pixels(frame.file, frame.hdu, rows=slice(frame.ny - 1, frame.ny))
            good.append(frame)
        except FrameError as error:
            log.warning("left out of the master: %s", error)
            caveats += (f"{frame.path} left out: {error.why}",)
    return tuple(good), caveats


def _sections(frames: tuple[PlannedFrame, ...], bytes_a_pixel: int) -> list[slice]:
    ny, nx = frames[0].ny, frames[0].nx
    rows = max(1, SECTION_BYTES // (bytes_a_pixel * nx * len(frames)))
    return [slice(a, min(a + rows, ny)) for a in range(0, ny, rows)]


def _median(frames: tuple[PlannedFrame, ...]) -> tuple[Floats, Floats]:
    """Exact median and scatter of raw frames, section by section."""
    level = np.empty((frames[0].ny, frames[0].nx), np.float32)
    noise = np.empty_like(level)
    for rows in _sections(frames, 2):
        stack = np.stack([read_pixels(frame.file, frame.hdu, rows=rows) for frame in frames])
        level[rows] = median_combine(stack)
        noise[rows] = stack_noise(stack, level[rows])
    return level, noise


def _flat(
    job: MasterJob, frames: tuple[PlannedFrame, ...]
) -> tuple[Floats, Floats, tuple[PlannedFrame, ...], tuple[str, ...]]:
    """Flats less their offset, each over its own level before the median is taken."""
    offsets = [calibration_of(job.paths, frame.exposure_s).offset for frame in frames]
    caveats: tuple[str, ...] = ()
    levels: list[float] = []
    used: list[int] = []
    for k, frame in enumerate(frames):
        raw = read_pixels(frame.file, frame.hdu)
        full = saturation_of(frame, raw.dtype)
        middle = float(np.median(_less(raw, offsets[k], slice(None))))
        raw_middle = float(np.median(raw))
        if not FLAT_LOW * full < raw_middle < FLAT_HIGH * full or middle <= 0:
            caveats += (f"{frame.path} left out: level {raw_middle:.0f} adu",)
            continue
        levels.append(middle)
        used.append(k)
    if not used:
        raise ProductError(where=job.product, why="no flat has a usable level: " + caveats[0])
    level = np.empty((frames[0].ny, frames[0].nx), np.float32)
    noise = np.empty_like(level)
    for rows in _sections(frames, 4):
        stack = np.stack(
            [
                _less(read_pixels(frames[k].file, frames[k].hdu, rows=rows), offsets[k], rows)
                / np.float32(middle)
                for k, middle in zip(used, levels, strict=True)
            ]
        )
        level[rows] = median_combine(stack)
        noise[rows] = stack_noise(stack, level[rows])
    if job.paths.bias is None and job.paths.dark is None:
        caveats += ("no bias or dark taken off the flats",)
    scale = np.float32(np.median(level))
    return level / scale, noise / scale, tuple(frames[k] for k in used), caveats


def _measured_gain(job: MasterJob, frames: tuple[PlannedFrame, ...]) -> float:
    """Median gain over neighbouring pairs of the flats; NaN without a bias, or with one flat."""
    if job.paths.bias is None:
        return float("nan")
    read_noise_adu = float(np.median(read_arrays(job.paths.bias, ["noise"])["noise"]))
    gains = []
    for one, other in itertools.pairwise(frames):
        pair = [
            _less(
                read_pixels(frame.file, frame.hdu),
                calibration_of(job.paths, frame.exposure_s).offset,
                slice(None),
            )
            for frame in (one, other)
        ]
        gains.append(pair_gain(pair[0], pair[1], read_noise_adu=read_noise_adu))
    known = [gain for gain in gains if np.isfinite(gain)]
    return float(np.median(known)) if known else float("nan")


def _less(raw: NDArray[Any], offset: Floats | None, rows: slice) -> Floats:
    pixels = raw.astype(np.float32)
    return pixels if offset is None else pixels - offset[rows]


def saturation_of(frame: PlannedFrame, dtype: np.dtype[Any]) -> float:
    """Level at which a raw pixel saturates: as told, else just below what its type can hold."""
    if np.isfinite(frame.saturation_adu):
        return frame.saturation_adu
    if dtype.kind in "iu":
        return 0.98 * float(np.iinfo(dtype).max)
    return float("inf")


@lru_cache(maxsize=CACHE)
def calibration_of(paths: MasterPaths, exposure_s: float) -> Calibration:
    """Offset, inverse flat and bad pixels for frames of one exposure time.

    A dark of another exposure is scaled about the bias; without a bias it is used only as it
    is. Kept in the worker for the next frames: at most `CACHE` of them.
    """
    bias, read_noise_adu, gain = None, float("nan"), float("nan")
    if paths.bias is not None:
        arrays = read_arrays(paths.bias, ["level", "noise"])
        bias, read_noise_adu = arrays["level"], float(np.median(arrays["noise"]))
    offset, dark_adu, bad = bias, 0.0, None
    if paths.dark is not None:
        arrays = read_arrays(paths.dark, ["level", "bad"])
        dark_s = float(read_attributes(paths.dark)["exposure_s"])
        offset, bad = arrays["level"], arrays["bad"]
        if bias is not None:
            share = np.float32(exposure_s / dark_s if dark_s > 0 else 0.0)
            offset = bias + share * (arrays["level"] - bias)
            dark_adu = max(0.0, float(np.median(offset - bias)))
    inverse_flat, flat_err = None, 0.0
    if paths.flat is not None:
        arrays = read_arrays(paths.flat, ["level", "noise", "bad"])
        facts = read_attributes(paths.flat)
        n_frames, gain = int(facts["n_frames"]), float(facts.get("gain_e_per_adu", "nan"))
        good = arrays["bad"] == 0
        inverse_flat = np.ones_like(arrays["level"])
        inverse_flat[good] = 1 / arrays["level"][good]
        flat_err = float(np.median(arrays["noise"])) / np.sqrt(n_frames)
        bad = arrays["bad"] if bad is None else bad | arrays["bad"]
    calibration = Calibration(offset, inverse_flat, bad, dark_adu, flat_err, gain, read_noise_adu)
    return (
        calibration if paths.lights is None else _with_lights(calibration, paths.lights, exposure_s)
    )


def _with_lights(calibration: Calibration, lights: Path, exposure_s: float) -> Calibration:
    """The hot pixels that the lights show taken off too; their gain where no flats tell it."""
    arrays, facts = read_arrays(lights, ["level", "bad"]), read_attributes(lights)
    level = arrays["level"] * np.float32(exposure_s / float(facts["exposure_s"]))
    offset, bad = calibration.offset, calibration.bad
    gain = calibration.gain_e_per_adu
    told = float(facts.get("gain_e_per_adu", "nan"))
    return replace(
        calibration,
        offset=level if offset is None else offset + level,
        bad=arrays["bad"] if bad is None else bad | arrays["bad"],
        gain_e_per_adu=gain if np.isfinite(gain) else told,
        gain_from_lights=not np.isfinite(gain) and bool(np.isfinite(told)),
    )
