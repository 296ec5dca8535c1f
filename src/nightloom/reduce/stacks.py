"""The stack of a night, by bands of rows: for looking at, never measured on.

Where each frame lies, how transparent it was and its sky are in the night's cube, so that a band
needs only its own rows of the frames: memory does not grow with them. A band is made of tiles of
fixed height whose sums do not know of the band, so that its height changes no bit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightloom.config import Config
from nightloom.engine.recipe import Made, Outline, Recipe
from nightloom.errors import FrameError
from nightloom.image.calibrate import MASK_BAD, calibrate
from nightloom.image.stack import Stack, add_frame, empty_stack
from nightloom.plan.recipes import PlannedCube, inputs_of
from nightloom.reduce.cube import calibrated_frames, masters_of
from nightloom.reduce.detection import gain_of
from nightloom.reduce.masters import calibration_of, saturation_of
from nightloom.reduce.overscan import data_of, offset_with_levels
from nightloom.reduce.pixels import pixels_of
from nightloom.reduce.reference import CLIP_SIGMA, CLIP_SLOPE, MIN_CLIPPED, CalibratedFrame
from nightloom.schema.cube import STACK
from nightloom.schema.flags import BITS
from nightloom.store.encodings import read_arrays, write_store
from nightloom.store.fingerprint import fingerprint as fingerprint_of
from nightloom.store.products import current, published_fingerprint
from nightloom.store.provenance import provenance

STACK_VERSION = 1
TILE_ROWS = 32
BAND_TILES = 8
MIN_STARS = 3  # for a frame's place
LEFT_OUT = BITS["not_measured"] | BITS["trailed"]

log = logging.getLogger("nightloom")
Rows = tuple[int, int]


class StackSettings(BaseModel):
    """What the stack of a night depends on besides its frames, masters and cube."""

    model_config = ConfigDict(frozen=True)

    trim_px: int


@dataclass(frozen=True, slots=True)
class Placement:
    """A frame as it enters the stack; matrix [2, 3]: reference -> frame."""

    row: int  # of the cube, and so of the job's frames
    matrix: NDArray[np.float64]
    scale: float  # makes its stars as bright as in the night's middle frame
    weight: float
    background_e: float


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
    rows, ny = band_tiles * TILE_ROWS, items[0].frame.ny
    recipe = Recipe(
        product, inputs, settings, STACK_VERSION, job=None,
        needs=_needs_of(cube),
        items=tuple((a, min(a + rows, ny)) for a in range(0, ny, rows)),
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


def stack_bands(job: StackJob, bands: tuple[Rows, ...]) -> list[tuple[NDArray[Any], list[str]]]:
    """Mean and weight [2, row, x] of some bands, and the frames in them."""
    return [stack_band(job, placements(job), band) for band in bands]


def stack_band(
    job: StackJob, places: Sequence[Placement], band: Rows
) -> tuple[NDArray[Any], list[str]]:
    """Mean and weight [2, row, x] of a band that begins with a tile, and the frames in it."""
    nx = job.frames[0].frame.nx
    tiles = [(a, min(a + TILE_ROWS, band[1])) for a in range(band[0], band[1], TILE_ROWS)]
    plain = [empty_stack(b - a, nx) for a, b in tiles]
    used = [p for p in places if _add(job, p, band, tiles, plain, None)]
    sums = plain
    if len(used) >= MIN_CLIPPED:
        sums = [empty_stack(b - a, nx) for a, b in tiles]
        for placed in used:
            _add(job, placed, band, tiles, sums, plain)
    mean = np.vstack([stack.mean for stack in sums])
    weight = np.vstack([stack.weight for stack in sums])
    names = [job.frames[placed.row].frame.path for placed in used]
    return np.stack([mean, weight]).astype(np.float32), names


def _add(
    job: StackJob, placed: Placement, band: Rows, tiles: list[Rows], sums: list[Stack],
    against: list[Stack] | None,
) -> bool:  # fmt: skip
    """Add a frame's rows to the sums of a band's tiles; false where it can't be read."""
    item = job.frames[placed.row]
    rows = _rows_of(placed.matrix, band, item)
    try:
        pixels, mask = _calibrated_rows(item, rows, trim_px=job.trim_px)
    except FrameError as error:
        log.warning("not stacked: %s", error)
        return False
    pixels -= np.float32(placed.background_e)
    for k, tile in enumerate(tiles):
        first, stop = _rows_of(placed.matrix, tile, item)
        cut = slice(first - rows[0], stop - rows[0])
        moved = placed.matrix.copy()  # from rows of the tile to rows of its cut
        moved[:, 2] += moved[:, 1] * tile[0]
        moved[1, 2] -= first
        add_frame(
            sums[k], pixels[cut], mask[cut], moved, weight=placed.weight, scale=placed.scale,
            against=None if against is None else against[k], sigma=CLIP_SIGMA, slope=CLIP_SLOPE,
        )  # fmt: skip
    return True


def _rows_of(matrix: NDArray[np.float64], rows: Rows, item: CalibratedFrame) -> Rows:
    """Rows of a frame that some rows of the reference are interpolated from."""
    x, y = np.meshgrid([0, item.frame.nx - 1], [rows[0], rows[1] - 1])
    v = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    first = int(np.clip(np.floor(v.min()) - 1, 0, item.frame.ny))
    return first, int(np.clip(np.floor(v.max()) + 3, first, item.frame.ny))


def _calibrated_rows(
    item: CalibratedFrame, rows: Rows, *, trim_px: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Electrons and mask of some rows of a frame, as `expose` makes them of all."""
    frame, cut = item.frame, slice(*rows)
    calibration = calibration_of(item.paths, frame.exposure_s)
    raw = pixels_of(frame, rows=cut)
    gain = gain_of(frame, calibration)
    offset = None if calibration.offset is None else calibration.offset[cut]
    pixels, mask = calibrate(
        raw,
        offset=offset_with_levels(raw, frame, offset, first_row=rows[0]),
        inverse_flat=None if calibration.inverse_flat is None else calibration.inverse_flat[cut],
        bad=None if calibration.bad is None else calibration.bad[cut],
        gain_e_per_adu=gain if np.isfinite(gain) else 1.0,
        saturation_adu=saturation_of(frame, raw.dtype),
        nonlinear_adu=item.instrument.nonlinear_adu,
    )
    data = data_of(frame)
    y = np.arange(*rows)
    x = np.arange(frame.nx)
    inside_y = (y >= data.y0 + trim_px) & (y < data.y1 - trim_px)
    inside_x = (x >= data.x0 + trim_px) & (x < data.x1 - trim_px)
    mask[~(inside_y[:, None] & inside_x)] |= np.uint8(MASK_BAD)
    return pixels, mask


def keep_band(
    job: StackJob, work: Path, start: int, bands: list[tuple[NDArray[Any], list[str]]]
) -> KeptBand:
    """Put a band aside in the working folder; where, and its frames, go on to the finish."""
    ((planes, names),) = bands
    file = work / f"band-{start:06d}.npy"
    np.save(file, planes)
    return KeptBand(file, tuple(names))


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
