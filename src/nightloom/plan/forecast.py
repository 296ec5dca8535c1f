"""What a run would cost before it starts: products, bytes, files and core-hours, each by kind.

Bytes are those of the arrays' shapes times how far products of this archive were compressed; core
time is what its traces say of a frame. Where there is nothing to measure yet, stated defaults.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from nightloom.config import Config
from nightloom.errors import ArchiveError, RunError
from nightloom.plan.recipes import Plan, filter_slug
from nightloom.schema.cube import CUBE, ENSEMBLE, FIELD, LIGHTCURVE, MASTER, STACK, Variable
from nightloom.store.encodings import shard_times
from nightloom.store.products import kind_of
from nightloom.store.trace import read_trace

DEFAULT_COMPRESSION = 0.75  # noise in float32 hardly shrinks
PIXELS_A_CORE_SECOND = 60e6  # reading, detecting, aligning
APERTURES_A_CORE_SECOND = 0.5e6  # of one star each
PRODUCT_CORE_S = 2.0  # of a product without frames of its own
PAGE_BYTES, SMALL_BYTES, TEXT_BYTES = 1 << 20, 1 << 16, 40
FILES_BESIDE = 6  # folders, symlink, manifest, record
LOOKED_AT = 20  # products of a kind whose compression is measured
CERTAIN = 0.5  # of the estimate: where not even this fits, a run is refused


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is due of one kind of product."""

    kind: str
    n_products: int
    n_frames: int
    n_bytes: int
    n_files: int
    core_hours: float


@dataclass(frozen=True, slots=True)
class Room:
    """What the products' file system has left."""

    n_bytes: int
    n_files: int | None  # None where it has no limit, or does not tell


@dataclass(frozen=True, slots=True)
class _Size:
    n_frames: int
    raw_bytes: int
    n_files: int
    core_s: float


def forecast(root: Path, plan: Plan, due: Iterable[str], config: Config) -> list[Forecast]:
    """Each kind of the products that are due, in their order.

    due: ids of products to be made, of which those that can't be made are no part.
    """
    size_of = _sizes(root, plan, config)
    by_kind: dict[str, list[_Size]] = {}
    for product in due:
        by_kind.setdefault(kind_of(product), []).append(size_of(product))
    lines = []
    for kind, sizes in by_kind.items():
        ratio = _compression(root, kind)
        lines.append(
            Forecast(
                kind, len(sizes),
                n_frames=sum(size.n_frames for size in sizes),
                n_bytes=round(ratio * sum(size.raw_bytes for size in sizes)),
                n_files=sum(size.n_files + FILES_BESIDE for size in sizes),
                core_hours=sum(size.core_s for size in sizes) / 3600,
            )
        )  # fmt: skip
    return lines


def room_at(folder: Path) -> Room:
    """What is free where a folder lies, or would lie."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    system = os.statvfs(there)
    return Room(shutil.disk_usage(there).free, system.f_favail if system.f_files else None)


def check_room(lines: Sequence[Forecast], room: Room, *, where: str) -> str:
    """A warning where it may not fit, else an empty text.

    Raises RunError: it can't fit, half of the estimate already fills what is free.
    """
    n_bytes, n_files = sum(f.n_bytes for f in lines), sum(f.n_files for f in lines)
    said = f"{n_bytes / 1e9:.2f} GB are to be written, {room.n_bytes / 1e9:.2f} GB are free"
    few = room.n_files is not None and n_files > room.n_files
    if few:
        said = f"{n_files} files are to be written, {room.n_files} can be"
    if CERTAIN * n_bytes > room.n_bytes or few:
        raise RunError(where=where, why=said, do="free space, or set archive.products elsewhere")
    return said if n_bytes > room.n_bytes else ""


def _sizes(root: Path, plan: Plan, config: Config) -> Callable[[str], _Size]:
    """A function that tells the size of a product of this plan."""
    photometry = config.photometry
    n_apertures = len(photometry.radii_fwhm) + len(photometry.radii_px)
    n_stars = photometry.max_stars + len(config.target)
    cubes = {cube.product: cube for cube in plan.cubes}
    masters = {master.product: master for master in plan.masters}
    shapes = {cube.field: (cube.frames[0].ny, cube.frames[0].nx) for cube in plan.cubes}
    times: dict[str, int] = {}
    for cube in plan.cubes:
        for name in (f"{cube.field}/{filter_slug(cube.filter)}", filter_slug(cube.filter)):
            times[name] = times.get(name, 0) + len(cube.frames)
    frame_s = _seconds_a_frame(root)

    def size(product: str) -> _Size:
        kind, _, rest = product.partition("/")
        if product in cubes:
            n = len(cubes[product].frames)
            ny, nx = shapes[cubes[product].field]
            guess_s = ny * nx / PIXELS_A_CORE_SECOND
            guess_s += n_stars * n_apertures / APERTURES_A_CORE_SECOND
            return _stored(CUBE, n, n_stars, n_apertures, core_s=n * (frame_s or guess_s))
        if product in masters:
            frame = masters[product].frames[0]
            n, raw = len(masters[product].frames), _bytes_of(MASTER, y=frame.ny, x=frame.nx)
            core_s = n * frame.ny * frame.nx / PIXELS_A_CORE_SECOND
            return _Size(n, raw, 2 * len(MASTER) + 1, core_s)
        if kind in ("reference", "stack"):
            ny, nx = shapes.get(rest.partition("/")[0], (0, 0))
            return _Size(0, _bytes_of(STACK, y=ny, x=nx), 24, PRODUCT_CORE_S)
        n = times.get(rest, times.get(rest.rpartition("/")[2], 0))
        if kind in ("field", "ensemble", "lightcurve"):
            variables = {"field": FIELD, "ensemble": ENSEMBLE, "lightcurve": LIGHTCURVE}[kind]
            stored = _stored(variables, n, n_stars, n_apertures, core_s=PRODUCT_CORE_S)
            return _Size(0, stored.raw_bytes, stored.n_files, stored.core_s)
        return _Size(0, PAGE_BYTES if kind == "report" else SMALL_BYTES, 4, PRODUCT_CORE_S)

    return size


def _stored(
    variables: Sequence[Variable], n_times: int, n_stars: int, n_apertures: int, *, core_s: float
) -> _Size:
    raw = _bytes_of(variables, time=n_times, star=n_stars, aperture=n_apertures)
    n_shards = math.ceil(n_times / shard_times(n_stars, n_apertures))
    return _Size(n_times, raw, len(variables) * (1 + n_shards) + 1, core_s)


def _bytes_of(variables: Sequence[Variable], **sizes: int) -> int:
    return sum(
        math.prod(sizes.get(dim, 1) for dim in v.dims)
        * (TEXT_BYTES if v.dtype == "str" else np.dtype(v.dtype).itemsize)
        for v in variables
    )


def _compression(root: Path, kind: str) -> float:
    """Bytes on disk over bytes of arrays, of the archive's own products of a kind."""
    if kind == "report":
        return 1.0
    raw = stored = 0
    for link in islice(sorted((root / kind).rglob(f"{kind}.zarr")), LOOKED_AT):
        path = link.resolve()
        try:
            text = (path / "zarr.json").read_bytes()
            arrays = json.loads(text)["consolidated_metadata"]["metadata"]
        except (OSError, ValueError, KeyError):
            continue  # damaged: verify's business
        for array in arrays.values():
            is_text = array["data_type"] == "string"
            width = TEXT_BYTES if is_text else np.dtype(array["data_type"]).itemsize
            raw += math.prod(array["shape"]) * width
        stored += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return stored / raw if raw else DEFAULT_COMPRESSION


def _seconds_a_frame(root: Path) -> float:
    """Core seconds of a frame in the last run's trace; 0 where it measured none."""
    try:
        trace: pd.DataFrame = read_trace(root)
    except (ArchiveError, OSError):
        return 0.0
    steps = trace[(trace["kind"] == "step") & (trace["outcome"] == "done")]
    n_frames = int(steps["n_frames"].sum())
    return float(steps["cpu_s"].sum()) / n_frames if n_frames else 0.0
