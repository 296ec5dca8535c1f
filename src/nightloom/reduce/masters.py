"""Masters: bias, dark and flat from row sections; and what a frame's calibration comes to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightloom.config import CalibrationSection
from nightloom.engine.recipe import Made, Outline, Recipe
from nightloom.errors import ProductError
from nightloom.frames.fits import pixel_dtype, read_pixels
from nightloom.image.calibrate import MASK_BAD, bad_from_dark, bad_from_flat, pair_gain
from nightloom.image.combine import combine, median_variance
from nightloom.plan.recipes import Inputs, PlannedFrame, PlannedMaster, inputs_of, said_of
from nightloom.reduce.overscan import data_of, less_overscan
from nightloom.reduce.sections import RowStack, Source, levelled, located, sections
from nightloom.schema.cube import MASTER
from nightloom.store.encodings import read_arrays, read_attributes, write_store
from nightloom.store.fingerprint import fingerprint as fingerprint_of
from nightloom.store.products import current, published_fingerprint
from nightloom.store.provenance import provenance

MASTER_VERSION = 6
CLIP_SIGMA = 5.0
LEVELS = ("exposure_s", "saturation_adu")  # of a frame: what its numbers are, and up to where
MIN_FRAMES = 3  # with fewer, a cosmic ray stays in the median: said as a caveat
FLAT_LOW, FLAT_HIGH = 0.02, 0.85  # usable level of a flat, as a fraction of saturation
CACHE = 6
UNSTEADY = 10.0  # scatter of a hot pixel over that of the others
HOTTEST_ADU = 10000.0  # dark signal above the others': a sixth of 16 bits is gone

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
class Offset:
    """Bias and dark [y, x], ADU, as far as there are; what a frame holds of them goes by time."""

    bias: Floats | None
    dark: Floats | None
    dark_s: float

    def within(self, exposure_s: float, rows: slice = slice(None)) -> Floats | None:
        """What is to be subtracted from some rows of a frame, None where there is nothing."""
        if self.dark is None:
            return None if self.bias is None else self.bias[rows]
        if self.bias is None:
            return self.dark[rows]
        share = np.float32(exposure_s / self.dark_s if self.dark_s > 0 else 0.0)
        scaled: Floats = self.bias[rows] + share * (self.dark[rows] - self.bias[rows])
        return scaled


@dataclass(frozen=True, slots=True)
class Planes:
    """A master [y, x]: its level, the noise of one frame about it, the variance of the level."""

    level: Floats
    noise: Floats
    variance: Floats


class MasterSettings(BaseModel):
    """What a master depends on besides its frames: which frames those are is in its inputs."""

    model_config = ConfigDict(frozen=True)

    combine: str


@dataclass(frozen=True, slots=True)
class MasterJob:
    image_type: str
    product: str
    frames: tuple[PlannedFrame, ...]
    paths: MasterPaths
    settings: MasterSettings
    attributes: dict[str, Any]


def master_outline(root: Path, master: PlannedMaster, settings: CalibrationSection) -> Outline:
    """Outline of the recipe of a master."""
    upstream = _upstream(root, master)
    fingerprint = fingerprint_of(
        inputs=(*_of_frames(master.frames), *upstream),
        settings=MasterSettings(combine=settings.combine), version=MASTER_VERSION, kind="master",
    )  # fmt: skip
    needs, write = tuple(dict(upstream)), partial(master_recipe, root, master, settings)
    return Outline(master.product, fingerprint, needs, (), write)


def _of_frames(frames: Sequence[PlannedFrame]) -> Inputs:
    return inputs_of(frames) + said_of(frames, *LEVELS)


def _upstream(root: Path, master: PlannedMaster) -> tuple[tuple[str, str], ...]:
    names = [name for name in (master.choice.bias, master.choice.dark) if name]
    return tuple((name, published_fingerprint(root, name)) for name in names)


def master_recipe(root: Path, master: PlannedMaster, settings: CalibrationSection) -> Recipe:
    """Recipe of a master; the masters that it needs must be published."""
    upstream = _upstream(root, master)
    inputs = (*_of_frames(master.frames), *upstream)
    chosen = MasterSettings(combine=settings.combine)
    recipe = Recipe(
        master.product, inputs, chosen, MASTER_VERSION, job=None, finish=make_master,
        needs=tuple(dict(upstream)),
    )  # fmt: skip
    attributes = provenance(
        master.product,
        fingerprint=recipe.fingerprint,
        inputs=inputs,
        settings=chosen,
        algorithm=MASTER_VERSION,
    )
    paths = MasterPaths(
        bias=current(root, master.choice.bias) if master.choice.bias else None,
        dark=current(root, master.choice.dark) if master.choice.dark else None,
    )
    frames = tuple(master.frames)
    job = MasterJob(master.kit.image_type, master.product, frames, paths, chosen, attributes)
    return replace(recipe, job=job)


def make_master(job: MasterJob, work: Path, _: list[Any]) -> Made:
    """Combine the frames and write `master.zarr`.

    A frame that can't be read is left out with a caveat; without any, the product fails.
    """
    sources, caveats = located(job.frames, work)
    if not sources:
        raise ProductError(where=job.product, why=f"none of {len(job.frames)} frames is usable")
    measured: dict[str, float] = {}
    if job.image_type == "flat":
        planes, sources, level_adu, more = _flat(job, sources)
        measured["gain_e_per_adu"] = _measured_gain(job, sources)
        caveats += more
        bad = bad_from_flat(planes.level)
    else:
        parts = sections(sources)
        if sources[0].frame.data_section:  # the frames of a master share their sections
            parts = levelled(parts, sources)
        planes = _combined(parts, sources, job.settings)
        level_adu = _typical(planes.level)
        bad = _unusable(job.image_type, planes, sources)
    if len(sources) < MIN_FRAMES:
        caveats += (f"of {len(sources)} frames only",)
    attributes = job.attributes | {k: v for k, v in measured.items() if np.isfinite(v)}
    attributes |= {
        "image_type": job.image_type,
        "units": "1" if job.image_type == "flat" else "adu",
        "exposure_s": sources[0].frame.exposure_s,
        "n_frames": len(sources),
        "frames": [source.frame.path for source in sources],
        # In one number each, so that years of masters can be compared without their pixels.
        "level_adu": level_adu,
        "median_noise": _typical(planes.noise),
        "n_bad": int(np.count_nonzero(_inner(bad, sources[0].frame))),
    }
    arrays: dict[str, NDArray[Any]] = {
        "level": planes.level, "noise": planes.noise, "variance": planes.variance, "bad": bad
    }  # fmt: skip
    write_store(work / "master.zarr", MASTER, arrays, attributes=attributes)
    return Made(caveats=caveats)


def _combined(
    parts: Iterable[RowStack], sources: Sequence[Source], settings: MasterSettings
) -> Planes:
    """Level, noise and variance of a stack that comes section by section."""
    shape = (sources[0].frame.ny, sources[0].frame.nx)
    planes = Planes(*(np.empty(shape, np.float32) for _ in range(3)))
    for part in parts:
        rows, made = part.rows, combine(part.stored, sigma=CLIP_SIGMA, zero=part.zero)
        planes.noise[rows] = made.noise
        if settings.combine == "median":
            planes.level[rows] = made.median
            planes.variance[rows] = median_variance(made.noise, made.used)
        else:
            planes.level[rows] = made.mean
            planes.variance[rows] = made.noise**2 / np.maximum(made.used, 1)
    return planes


def _unusable(image_type: str, planes: Planes, sources: Sequence[Source]) -> NDArray[np.uint8]:
    """Pixels of a bias or dark whose number is none, or whose light no subtraction gives back."""
    bad = np.where(np.isfinite(planes.level), np.uint8(0), np.uint8(MASK_BAD))
    if image_type == "dark":
        full = min(saturation_of(s.frame, pixel_dtype(s.hdu)) for s in sources)
        bad[planes.level >= full] = MASK_BAD
        bad |= _harmful(planes.level, planes.noise, bad_from_dark(planes.level, noise=planes.noise))
    return bad


def _harmful(level: Floats, noise: Floats, hot: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of the hot pixels those that a dark does not mend.

    A steady hot pixel is subtracted like any other and adds little noise to a star; filling it
    from its neighbours near a star's core would be worse. What flickers, or has little of its
    range left, is lost.
    """
    middle = _typical(level)
    flickers = noise > UNSTEADY * _typical(noise)
    return np.where(flickers | (level - middle > HOTTEST_ADU), hot, np.uint8(0))


def _flat(
    job: MasterJob, sources: tuple[Source, ...]
) -> tuple[Planes, tuple[Source, ...], float, tuple[str, ...]]:
    """Flats less their offset, each over its own level before they are combined.

    Returns the planes, the frames used, the median of their levels in ADU, and caveats.
    """
    offset = offset_of(job.paths)
    caveats: tuple[str, ...] = ()
    levels: list[float] = []
    used: list[Source] = []
    for source in sources:
        raw = read_pixels(source.file, source.hdu.index)
        full = saturation_of(source.frame, raw.dtype)
        middle = float(np.median(_inner(_corrected(raw, source, offset), source.frame)))
        raw_middle = float(np.median(_inner(raw, source.frame)))
        if not FLAT_LOW * full < raw_middle < FLAT_HIGH * full or not middle > 0:
            caveats += (f"{source.frame.path} left out: level {raw_middle:.0f} adu",)
            continue
        levels.append(middle)
        used.append(source)
    if not used:
        raise ProductError(where=job.product, why="no flat has a usable level: " + caveats[0])
    planes = _combined(_normalised(used, levels, offset), used, job.settings)
    if job.paths.bias is None and job.paths.dark is None:
        caveats += ("no bias or dark taken off the flats",)
    scale = np.float32(np.nanmedian(planes.level))
    planes = Planes(planes.level / scale, planes.noise / scale, planes.variance / scale**2)
    return planes, tuple(used), float(np.median(levels)), caveats


def _normalised(
    sources: Sequence[Source], levels: Sequence[float], offset: Offset
) -> Iterator[RowStack]:
    """Sections of flats less their offset and over their level; NaN where one is saturated."""
    for part in sections(sources):
        values = np.empty(part.stored.shape, np.float32)
        for k, (source, level) in enumerate(zip(sources, levels, strict=True)):
            raw = part.pixels(k)
            values[k] = _corrected(raw, source, offset, part.rows)
            values[k] /= np.float32(level)
            values[k][raw >= saturation_of(source.frame, raw.dtype)] = np.nan
        yield RowStack(part.rows, values, 0)


def _measured_gain(job: MasterJob, sources: tuple[Source, ...]) -> float:
    """Median gain over neighbouring pairs of the flats; NaN without a bias, or with one flat."""
    if job.paths.bias is None:
        return float("nan")
    read_noise_adu = _typical(read_arrays(job.paths.bias, ["noise"])["noise"])
    offset = offset_of(job.paths)
    gains = []
    for one, other in itertools.pairwise(sources):
        pair = [
            _inner(
                _corrected(read_pixels(source.file, source.hdu.index), source, offset),
                source.frame,
            )
            for source in (one, other)
        ]
        gains.append(pair_gain(pair[0], pair[1], read_noise_adu=read_noise_adu))
    known = [gain for gain in gains if np.isfinite(gain)]
    return float(np.median(known)) if known else float("nan")


def _corrected(
    raw: NDArray[Any], source: Source, offset: Offset, rows: slice = slice(None)
) -> Floats:
    """Some rows of a frame less its overscan, bias and dark."""
    pixels = less_overscan(raw, source.frame, first_row=rows.start or 0)
    plane = offset.within(source.frame.exposure_s, rows)
    return pixels if plane is None else pixels - plane


def _inner(plane: NDArray[Any], frame: PlannedFrame) -> NDArray[Any]:
    """The part of a plane [y, x] that holds data."""
    data = data_of(frame)
    return plane[data.rows, data.columns]


def _typical(plane: Floats) -> float:
    """Median of what is a number, NaN where nothing is."""
    known = plane[np.isfinite(plane)]
    return float(np.median(known)) if known.size else float("nan")


def saturation_of(frame: PlannedFrame, dtype: np.dtype[Any]) -> float:
    """Level at which a raw pixel saturates: as told, else just below what its type can hold."""
    if np.isfinite(frame.saturation_adu):
        return frame.saturation_adu
    if dtype.kind in "iu":
        return 0.98 * float(np.iinfo(dtype).max)
    return float("inf")


def offset_of(paths: MasterPaths) -> Offset:
    """Bias and dark of some masters."""
    bias, dark, dark_s = None, None, 0.0
    if paths.bias is not None:
        bias = read_arrays(paths.bias, ["level"])["level"]
    if paths.dark is not None:
        dark = read_arrays(paths.dark, ["level"])["level"]
        dark_s = float(read_attributes(paths.dark)["exposure_s"])
    return Offset(bias, dark, dark_s)


@lru_cache(maxsize=CACHE)
def calibration_of(paths: MasterPaths, exposure_s: float) -> Calibration:
    """Offset, inverse flat and bad pixels for frames of one exposure time.

    A dark of another exposure is scaled about the bias; without a bias it is used only as it
    is. Kept in the worker for the next frames: at most `CACHE` of them.
    """
    parts = offset_of(paths)
    offset = parts.within(exposure_s)
    read_noise_adu, gain, dark_adu, bad = float("nan"), float("nan"), 0.0, None
    if paths.bias is not None:
        read_noise_adu = _typical(read_arrays(paths.bias, ["noise"])["noise"])
    if paths.dark is not None:
        bad = read_arrays(paths.dark, ["bad"])["bad"]
        if parts.bias is not None and offset is not None:
            dark_adu = max(0.0, _typical(offset - parts.bias))
    inverse_flat, flat_err = None, 0.0
    if paths.flat is not None:
        arrays = read_arrays(paths.flat, ["level", "variance", "bad"])
        gain = float(read_attributes(paths.flat).get("gain_e_per_adu", "nan"))
        good = arrays["bad"] == 0
        inverse_flat = np.ones_like(arrays["level"])
        inverse_flat[good] = 1 / arrays["level"][good]
        flat_err = float(np.sqrt(np.nan_to_num(_typical(arrays["variance"]))))
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
