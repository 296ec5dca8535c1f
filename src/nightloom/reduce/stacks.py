"""The stack of a night, by bands of rows: for looking at, never measured on.

Where each frame lies, how transparent it was and its sky are in the night's cube: no frame is
looked at again as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightloom.config import Config
from nightloom.engine.recipe import Made, Outline, Recipe
from nightloom.plan.recipes import PlannedCube, inputs_of
from nightloom.reduce.bands import (
    BAND_TILES,
    Placement,
    Planes,
    Rows,
    bands_of,
    stack_band,
)
from nightloom.reduce.cube import calibrated_frames, masters_of
from nightloom.reduce.detection import CalibratedFrame
from nightloom.schema.cube import STACK
from nightloom.schema.flags import BITS
from nightloom.store.encodings import read_arrays, write_store
from nightloom.store.fingerprint import fingerprint as fingerprint_of
from nightloom.store.products import current, published_fingerprint
from nightloom.store.provenance import provenance

STACK_VERSION = 1
MIN_STARS = 3  # for a frame's place
LEFT_OUT = BITS["not_measured"] | BITS["trailed"]


class StackSettings(BaseModel):
    """What the stack of a night depends on besides its frames, masters and cube."""

    model_config = ConfigDict(frozen=True)

    trim_px: int


@dataclass(frozen=True, slots=True)
class StackJob:
    product: str
    frames: tuple[CalibratedFrame, ...] = field(compare=False)  # one a row of the cube
    cube: Path
    stars: Path
    trim_px: int
    attributes: dict[str, Any] = field(compare=False)


@dataclass(frozen=True, slots=True)
class KeptBand:
    """Where a band was put aside, and which frames are in it."""

    file: Path
    frames: tuple[str, ...]


def stack_product(cube: str) -> str:
    """Id of the stack of a cube's night."""
    return cube.replace("cube/", "stack/", 1)


def stack_outline(root: Path, cube: PlannedCube, config: Config) -> Outline:
    """Outline of the recipe of the stack of a night."""
    product = stack_product(cube.product)
    fingerprint = fingerprint_of(
        inputs=_products_in(root, cube),
        settings=StackSettings(trim_px=config.calibration.trim_px),
        version=STACK_VERSION,
        kind="stack",
        begun=cube.frames.begun_with_files,
    )
    write = partial(stack_recipe, root, cube, config)
    return Outline(product, fingerprint, _needs_of(cube), (), write)


def _products_in(root: Path, cube: PlannedCube) -> tuple[tuple[str, str], ...]:
    # The cube's fingerprint covers the masters and the star list.
    return ((cube.product, published_fingerprint(root, cube.product)),)


def _needs_of(cube: PlannedCube) -> tuple[str, ...]:
    return (*masters_of((cube,)), f"stars/{cube.field}", cube.product)


def stack_recipe(
    root: Path, cube: PlannedCube, config: Config, *, band_tiles: int = BAND_TILES
) -> Recipe:
    """Recipe of the stack of a night; its cube must be published to make it."""
    product, stars = stack_product(cube.product), f"stars/{cube.field}"
    items = calibrated_frames(root, cube, config)
    inputs = (*inputs_of(cube.frames), *_products_in(root, cube))
    settings = StackSettings(trim_px=config.calibration.trim_px)
    recipe = Recipe(
        product, inputs, settings, STACK_VERSION, job=None,
        needs=_needs_of(cube),
        items=bands_of(items[0].frame.ny, tiles=band_tiles),
        step=stack_bands, pack=keep_band, finish=make_stack, shard_items=1, chunk_items=1,
    )  # fmt: skip
    paths = current(root, cube.product), current(root, stars)
    if paths[0] is None or paths[1] is None:
        return recipe
    attributes = provenance(
        product, fingerprint=recipe.fingerprint, inputs=inputs, settings=settings,
        algorithm=STACK_VERSION,
    )  # fmt: skip
    attributes |= {"field": cube.field, "night": cube.night, "filter": cube.filter}
    job = StackJob(product, items, paths[0], paths[1], settings.trim_px, attributes)
    return replace(recipe, job=job)


@lru_cache(maxsize=4)
def placements(job: StackJob) -> tuple[Placement, ...]:
    """The frames of a night that are of use, as its cube saw them.

    All are brought to the middle one's transparency: the stack is in electrons of its exposure.
    The weight is that of Zackay & Ofek 2017 (ApJ 836, 187), transparency^2 / sky variance, the
    variance that of photons and reading.
    """
    stars = read_arrays(job.stars, ["x", "y"])
    names = ["x", "y", "flags", "frame_flags", "transparency", "exposure_s", "background_level"]
    rows = read_arrays(job.cube, names)
    gathered = rows["transparency"] * rows["exposure_s"]
    usable = (rows["frame_flags"] & LEFT_OUT == 0) & (gathered > 0)
    middle = float(np.median(gathered[usable])) if usable.any() else 0.0
    found = []
    for k, item in enumerate(job.frames):
        if not usable[k]:
            continue
        sure = (rows["flags"][k] & (BITS["centroid_fallback"] | BITS["edge"])) == 0
        matrix = _affine(stars["x"], stars["y"], rows["x"][k], rows["y"][k], sure)
        if matrix is None:
            continue
        sky_e, read_e = float(rows["background_level"][k]), item.frame.read_noise_e
        variance = max(sky_e, 0.0) + (read_e**2 if np.isfinite(read_e) else 0.0)
        scale = middle / float(gathered[k])
        weight = 1.0 / (max(variance, 1.0) * scale**2)
        found.append(Placement(k, matrix, scale, weight, sky_e))
    return tuple(found)


def _affine(
    x: NDArray[Any], y: NDArray[Any], u: NDArray[Any], v: NDArray[Any], sure: NDArray[np.bool_]
) -> NDArray[np.float64] | None:
    """Least squares of (x, y) -> (u, v), what is 5 median deviations away left out once."""
    good = sure & np.isfinite(u) & np.isfinite(v) & np.isfinite(x) & np.isfinite(y)
    design, target = np.column_stack([x, y, np.ones(len(x))]), np.column_stack([u, v])
    if good.sum() < MIN_STARS:
        return None
    solved, *_ = np.linalg.lstsq(design[good], target[good], rcond=None)
    away = np.hypot(*(design @ solved - target).T)
    near = good & (away <= max(5 * float(np.median(away[good])), 1e-6))
    if near.sum() >= MIN_STARS:
        solved, *_ = np.linalg.lstsq(design[near], target[near], rcond=None)
    return np.ascontiguousarray(solved.T)


def stack_bands(job: StackJob, bands: tuple[Rows, ...]) -> list[tuple[Planes, tuple[str, ...]]]:
    """Mean and weight [2, row, x] of some bands, and the frames in them."""
    places = placements(job)
    return [stack_band(job.frames, places, band, trim_px=job.trim_px) for band in bands]


def keep_band(
    job: StackJob, work: Path, start: int, bands: list[tuple[Planes, tuple[str, ...]]]
) -> KeptBand:
    """Put a band aside in the working folder; where, and its frames, go on to the finish."""
    ((planes, names),) = bands
    file = work / f"band-{start:06d}.npy"
    np.save(file, planes)
    return KeptBand(file, names)


def make_stack(job: StackJob, work: Path, bands: list[KeptBand]) -> Made:
    """Join the bands and write `stack.zarr`; empty where no frame of the night can be placed."""
    names = tuple(dict.fromkeys(name for band in bands for name in band.frames))
    if not names:
        return Made(outcome="empty", reason="no frame of the night can be placed")
    mean, weight = np.concatenate([np.load(band.file) for band in bands], axis=1)
    frames = np.array(names, dtype=object)
    attributes = job.attributes | {"n_frames": len(names)}
    arrays = {"stack": mean, "weight": weight, "frame": frames}
    write_store(work / "stack.zarr", STACK, arrays, attributes=attributes)
    lost = len(job.frames) - len(names)
    return Made(caveats=(f"{lost} of {len(job.frames)} frames are not in it",) if lost else ())
