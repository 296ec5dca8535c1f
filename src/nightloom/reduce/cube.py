"""The cube of one field, night and filter: frames measured in a bag, rows packed into shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from nightloom.config import Config, Instrument, PhotometrySection
from nightloom.engine.recipe import Made, Outline, Recipe
from nightloom.errors import ProductError
from nightloom.plan.calibrations import Choice
from nightloom.plan.recipes import PlannedCube, PlannedFrame, inputs_of, numbers_of
from nightloom.reduce.detection import CalibratedFrame
from nightloom.reduce.masters import MasterPaths
from nightloom.reduce.measure import Row, StarList, lost_row, measure_frame, star_list
from nightloom.reduce.networks import digest_of_weights
from nightloom.reduce.stars import positions_of
from nightloom.schema.cube import CUBE, ROW_VARIABLES
from nightloom.schema.flags import BITS, FLAG_DTYPE, cf_attributes
from nightloom.store.encodings import (
    create_store,
    read_arrays,
    seal,
    shard_times,
    write_rows,
    write_whole,
)
from nightloom.store.fingerprint import fingerprint as fingerprint_of
from nightloom.store.products import current, published_fingerprint
from nightloom.store.provenance import provenance

CUBE_VERSION = 12
CLOUDY = 10 ** (-0.4 * 0.5)  # of the night's best transparency: 0.5 mag
BEST_PERCENTILE = 90
_NO_PROFILE = Instrument()
PIXELS_A_SECOND = 60e6  # measured on one core; only cuts partitions to about a second of work


class CubeSettings(BaseModel):
    """What a cube depends on besides its frames, masters and star list."""

    model_config = ConfigDict(frozen=True)

    radii_fwhm: tuple[float, ...]
    radii_px: tuple[float, ...]
    optimal: bool
    background: str
    annulus_fwhm: tuple[float, float]
    centroid: str
    ballet_weights: str  # their digest, where they are used
    detection_sigma: float
    max_elongation: float
    min_matched: int
    trim_px: int
    cosmic_rays: bool
    nonlinear_adu: float | None


@dataclass(frozen=True, slots=True)
class CubeJob:
    product: str
    stars: Path
    photometry: PhotometrySection
    trim_px: int
    cosmic_rays: bool
    n_frames: int


def cube_settings(config: Config, instrument: Instrument) -> CubeSettings:
    """The part of the configuration that a cube depends on."""
    photometry = config.photometry
    return CubeSettings(
        radii_fwhm=photometry.radii_fwhm,
        radii_px=photometry.radii_px,
        optimal=photometry.optimal,
        background=photometry.background,
        annulus_fwhm=photometry.annulus_fwhm,
        centroid=photometry.centroid,
        ballet_weights=digest_of_weights(photometry),
        detection_sigma=photometry.detection_sigma,
        max_elongation=photometry.max_elongation,
        min_matched=photometry.min_matched,
        trim_px=config.calibration.trim_px,
        cosmic_rays=config.calibration.cosmic_rays,
        nonlinear_adu=instrument.nonlinear_adu,
    )


def calibrated_frames(root: Path, cube: PlannedCube, config: Config) -> tuple[CalibratedFrame, ...]:
    """The frames of a cube with the paths of their masters, as far as these are published."""
    paths = [paths_of(root, choice) for choice in cube.choices]
    names = dict.fromkeys(cube.frames.column("instrument"))
    profiles = {name: instrument_of(config, name) for name in names}
    return tuple(
        CalibratedFrame(frame, paths[choice], profiles[frame.instrument])
        for frame, choice in zip(cube.frames, cube.choice_of.tolist(), strict=True)
    )


@lru_cache(maxsize=4096)
def _path(root: Path, product: str, fingerprint: str) -> Path | None:
    return current(root, product)


def paths_of(root: Path, choice: Choice) -> MasterPaths:
    """Where the chosen masters lie; one that could not be made is as one that is missing."""
    bias, dark, flat, lights = (
        _path(root, product, published_fingerprint(root, product)) if product else None
        for product in (choice.bias, choice.dark, choice.flat, choice.lights)
    )
    return MasterPaths(bias, dark, flat, calibrated=choice.calibrated, lights=lights)


def masters_of(cubes: Iterable[PlannedCube]) -> tuple[str, ...]:
    """Every bias, dark and flat that some cubes use, in order of name."""
    names = {name for cube in cubes for c in cube.choices for name in (c.bias, c.dark, c.flat)}
    return tuple(sorted(names - {""}))


def instrument_of(config: Config, instrument: str) -> Instrument:
    """The profile of an instrument; an empty one where the configuration has none."""
    return config.instrument.get(instrument, _NO_PROFILE)


def cube_outline(root: Path, cube: PlannedCube, config: Config) -> Outline:
    """Outline of the recipe of a cube."""
    needs, uses = _needs_of(cube)
    fingerprint = fingerprint_of(
        inputs=_products_in(root, cube),
        settings=cube_settings(config, _profile_of(cube, config)),
        version=CUBE_VERSION,
        kind="cube",
        begun=cube.frames.begun,
    )
    return Outline(cube.product, fingerprint, needs, uses, partial(cube_recipe, root, cube, config))


def _products_in(root: Path, cube: PlannedCube) -> tuple[tuple[str, str], ...]:
    """Inputs of a cube that are products themselves."""
    names = (*masters_of((cube,)), *((cube.lights,) if cube.lights else ()))
    positions = positions_of(root, cube.field)
    inputs = tuple((name, published_fingerprint(root, name)) for name in names)
    return inputs if positions is None else (*inputs, positions)


def _needs_of(cube: PlannedCube) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a cube can't be made without, and what it does without."""
    needs = (*masters_of((cube,)), f"stars/{cube.field}")
    return needs, (cube.lights,) if cube.lights else ()


def _profile_of(cube: PlannedCube, config: Config) -> Instrument:
    return instrument_of(config, cube.frames.column("instrument")[0])


def cube_recipe(root: Path, cube: PlannedCube, config: Config) -> Recipe:
    """Recipe of a cube; the field's star list must be published to make it."""
    items = calibrated_frames(root, cube, config)
    inputs = (*inputs_of(cube.frames), *numbers_of(cube.frames), *_products_in(root, cube))
    settings = cube_settings(config, items[0].instrument)
    first = items[0].frame
    needs, uses = _needs_of(cube)
    recipe = Recipe(
        product=cube.product,
        inputs=inputs,
        settings=settings,
        version=CUBE_VERSION,
        job=None,
        needs=needs,
        uses=uses,
        items=items,
        step=measure_frames,
        pack=pack_rows,
        finish=finish_cube,
        lost=lost_frame,
        chunk_items=max(1, round(PIXELS_A_SECOND / (first.ny * first.nx))),
    )
    stars = current(root, f"stars/{cube.field}")
    if stars is None:
        return recipe
    attributes = provenance(
        cube.product,
        fingerprint=recipe.fingerprint,
        inputs=inputs,
        settings=settings,
        algorithm=CUBE_VERSION,
    )
    attributes |= {
        "field": cube.field,
        "night": cube.night,
        "filter": cube.filter,
        "instrument": first.instrument,
        "site": list(site_of(first)),
        "shape": [first.ny, first.nx],
    }
    n_stars = len(_stars(stars).x_px)
    n_apertures = len(config.photometry.aperture_kinds)
    job = CubeJob(
        cube.product, stars, config.photometry, settings.trim_px, settings.cosmic_rays, len(items)
    )  # fmt: skip
    # The names of all frames are in the attributes: they go to one task, not with every part.
    return replace(
        recipe,
        job=job,
        begin=partial(begin_cube, attributes=attributes),
        shard_items=shard_times(n_stars, n_apertures),
    )


@lru_cache(maxsize=8)
def _stars(path: Path) -> StarList:
    return star_list(path)


def site_of(frame: PlannedFrame) -> tuple[float | None, float | None, float | None]:
    """Latitude, longitude (deg) and height (m) of the site, None where unknown."""
    values = (frame.site_lat_deg, frame.site_lon_deg, frame.site_height_m)
    lat, lon, height = (value if np.isfinite(value) else None for value in values)
    return lat, lon, height


def begin_cube(job: CubeJob, work: Path, *, attributes: dict[str, Any]) -> None:
    """Lay out the cube: a row for every planned frame."""
    n_stars = len(_stars(job.stars).x_px)
    photometry = job.photometry
    kinds = photometry.aperture_kinds
    n_apertures = len(kinds)
    sizes = {"time": job.n_frames, "star": n_stars, "aperture": n_apertures}
    extra = {"flags": cf_attributes("star"), "frame_flags": cf_attributes("frame")}
    store = work / "cube.zarr"
    create_store(
        store, CUBE, sizes, attributes=attributes, extra=extra,
        time_shard=shard_times(n_stars, n_apertures),
    )  # fmt: skip
    radii = np.full((2, n_apertures), np.nan)
    radii[0, np.array(kinds) == "fwhm"] = photometry.radii_fwhm
    radii[1, np.array(kinds) == "px"] = photometry.radii_px
    write_whole(
        store,
        {
            "star_id": np.arange(n_stars, dtype=np.int32),
            "radius_fwhm": radii[0],
            "radius_px": radii[1],
            "aperture_kind": np.array(kinds, dtype=object),
        },
    )


def measure_frames(job: CubeJob, items: tuple[CalibratedFrame, ...]) -> list[Row]:
    """Rows of some frames."""
    stars = _stars(job.stars)
    return [
        measure_frame(item, stars, job.photometry, trim_px=job.trim_px, cosmic_rays=job.cosmic_rays)
        for item in items
    ]


def lost_frame(job: CubeJob, item: CalibratedFrame, reason: str) -> Row:
    """The row of a frame that no worker survives."""
    return lost_row(item, len(_stars(job.stars).x_px), job.photometry, reason)


def pack_rows(job: CubeJob, work: Path, start: int, rows: list[Row]) -> int:
    """Write one whole shard of rows."""
    arrays = {}
    for variable in ROW_VARIABLES:
        values = [row[variable.name] for row in rows]
        dtype = object if variable.dtype == "str" else variable.dtype
        arrays[variable.name] = np.array(values, dtype=dtype)
    write_rows(work / "cube.zarr", start, arrays)
    return len(rows)


def finish_cube(job: CubeJob, work: Path, packed: list[int]) -> Made:
    """Flag clouds, which only the whole night shows; check the cube; seal it."""
    store = work / "cube.zarr"
    if sum(packed) != job.n_frames:
        raise ProductError(
            where=job.product, why=f"{sum(packed)} rows written of {job.n_frames} planned"
        )
    names = ["frame_flags", "transparency", "jd_utc", "flux"]
    arrays = read_arrays(store, names)
    flags = arrays["frame_flags"].astype(FLAG_DTYPE)
    measured = flags & BITS["not_measured"] == 0
    n_lost = int(np.count_nonzero(~measured))
    if not measured.any():
        reasons = read_arrays(store, ["reason"])["reason"]
        return Made(
            outcome="empty",
            reason=f"no frame could be measured: {reasons[0]}",
            n_quarantined=n_lost,
        )
    _check(job, arrays, measured)
    seen = arrays["transparency"][measured]
    if np.isfinite(seen).any():
        best = np.nanpercentile(seen, BEST_PERCENTILE)
        cloudy = measured & (arrays["transparency"] < CLOUDY * best)
        flags[cloudy] |= BITS["cloudy"]
        write_whole(store, {"frame_flags": flags})
    seal(store)
    caveats = [
        name
        for name in ("calibration_missing", "gain_assumed", "gain_estimated")
        if (flags & BITS[name]).all()
    ]
    n_guessed = int(np.count_nonzero(flags & BITS["saturation_guessed"]))
    if n_guessed:
        caveats.append(f"saturation guessed in {n_guessed} of {job.n_frames} frames")
    if n_lost:
        caveats.append(f"{n_lost} of {job.n_frames} frames quarantined")
    return Made(caveats=tuple(caveats), n_quarantined=n_lost)


def _check(job: CubeJob, arrays: dict[str, Any], measured: Any) -> None:
    """What a cube must hold, read back from disk.

    Raises ProductError: times are not in order, or a measured frame has no flux at all.
    """
    if np.any(np.diff(arrays["jd_utc"]) < 0):
        raise ProductError(where=job.product, why="times are not in order")
    dark = measured & ~np.isfinite(arrays["flux"]).any(axis=(1, 2))
    if dark.any():
        first = int(np.flatnonzero(dark)[0])
        raise ProductError(where=job.product, why=f"row {first} is measured but has no flux")
