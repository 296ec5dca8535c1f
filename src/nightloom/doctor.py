"""Checks before a long run: file system, workers, clocks, space, tables, catalogue."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from nightloom.config import Config
from nightloom.engine.cluster import SERIAL, Engine
from nightloom.engine.probe import WorkerFacts, probe_workers
from nightloom.errors import ConfigError, RunError
from nightloom.plan.recipes import Plan, PlannedCube
from nightloom.sky.catalogue import Catalogue, at_epoch, read_catalogue, within
from nightloom.sky.earth import leap_seconds_until_jd, orientation_until_jd
from nightloom.store.filesystem import NEEDS, try_operations
from nightloom.store.work import WORK_PREFIX

State = Literal["ok", "warn", "fail"]
MAX_CLOCK_S = 1.0
MOST_FILES = 20  # that every worker opens
FEW_STARS = 5  # fewer can't tell a field from another
UNKNOWN_RADIUS_DEG = 0.25
_UNIX_EPOCH_JD = 2440587.5
_JULIAN_YEAR_D = 365.25


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's: what was looked at, how it is, and what to do."""

    name: str
    state: State
    what: str
    do: str = ""


def examine(config: Config, plan: Plan, engine: Engine) -> Iterator[Check]:
    """All checks, one after the other; starts the engine's workers.

    plan: of the frame table of the last scan, empty before there was one.
    """
    root = config.products_path
    errors = try_operations(root)
    for operation, error in errors.items():
        name = f"{operation} in products"
        yield (
            Check(name, "fail", f"{root}: {error}", NEEDS[operation])
            if error
            else Check(name, "ok", str(root))
        )
    if not errors["write"]:
        yield _space(config, plan)
        yield from _workers(config, plan, engine)
    yield from _tables(plan)
    yield from _catalogue(config, plan)


def estimated_bytes(config: Config, plan: Plan) -> int:
    """What the products of a plan come to, cubes and joined stores uncompressed."""
    photometry = config.photometry
    n_frames = sum(len(cube.frames) for cube in plan.cubes)
    n_stars = photometry.max_stars + len(config.target)
    n_radii = len(photometry.radii_fwhm) + len(photometry.radii_px)
    row = n_stars * (8 * n_radii + 40)  # flux and its error, then the star's own numbers
    firsts = [cube.frames[0] for cube in plan.cubes]
    pixels = max((frame.ny * frame.nx for frame in firsts), default=0)
    n_images = len(plan.masters) + len(plan.fields)
    return 3 * n_frames * row + 12 * n_images * pixels  # cube, joined, differential


def _space(config: Config, plan: Plan) -> Check:
    free = shutil.disk_usage(config.products_path).free
    if not plan.cubes:
        why = f"{_size(free)} free; no scan yet, so no estimate"
        return Check("free space", "warn", why, "nightloom scan, then ask again")
    need = estimated_bytes(config, plan)
    what = f"{_size(free)} free, about {_size(need)} needed"
    if free < need:
        return Check("free space", "fail", what, "free some, or name another archive.products")
    state: State = "warn" if free < 2 * need else "ok"
    return Check("free space", state, what, "" if state == "ok" else "old versions need some too")


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _workers(config: Config, plan: Plan, engine: Engine) -> Iterator[Check]:
    if engine.where == SERIAL:
        yield Check("workers", "ok", "none: this process does it all")
        return
    folder = config.products_path / f"{WORK_PREFIX}doctor-0-{uuid.uuid4().hex[:8]}"
    started = time.monotonic()
    try:
        client = engine.connected()
        folder.mkdir()
        facts = probe_workers(client, _sample(config, plan), folder)
    except (RunError, ConfigError, OSError) as error:
        yield Check("workers", "fail", str(error), getattr(error, "do", ""))
        return
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - started
    yield Check("workers", "ok", f"{len(facts)} there after {seconds:.0f} s")
    yield Check("versions", "ok", "the same in all workers")
    yield _reading(config, plan, facts)
    bad = [fact for fact in facts if fact.write_error]
    yield (
        Check("workers write products", "fail", f"{bad[0].address}: {bad[0].write_error}",
              "put archive.products on a file system that all nodes share")
        if bad
        else Check("workers write products", "ok", "all of them, and this process sees it")
    )  # fmt: skip
    worst = max(facts, key=lambda fact: abs(fact.clock_ahead_s))
    offset = f"{worst.clock_ahead_s:+.1f} s at {worst.address}"
    yield (
        Check("clocks", "warn", offset, "set the clocks by NTP: times in logs will not fit")
        if abs(worst.clock_ahead_s) > MAX_CLOCK_S
        else Check("clocks", "ok", f"within {MAX_CLOCK_S:g} s")
    )


def _reading(config: Config, plan: Plan, facts: list[WorkerFacts]) -> Check:
    name = "workers see frames"
    n = len(_sample(config, plan))
    blind = [fact for fact in facts if fact.unseen]
    if blind:
        what = f"{blind[0].address}: {blind[0].unseen[0]}"
        return Check(name, "fail", what, "mount the frames on all nodes at the same path")
    if not n:
        return Check(name, "warn", "no scan yet, so no frames to look at", "nightloom scan")
    return Check(name, "ok", f"{n} files looked at from {len(facts)} workers")


def _sample(config: Config, plan: Plan) -> list[Path]:
    """Some files of the archive, spread over all of it."""
    n_frames = sum(len(cube.frames) for cube in plan.cubes)
    step, start, files = max(1, -(-n_frames // MOST_FILES)), 0, []
    for cube in plan.cubes:
        files += [frame.file for frame in cube.frames[-start % step :: step]]
        start += len(cube.frames)
    return [config.folder / file for file in files]


def _tables(plan: Plan) -> Iterator[Check]:
    """Whether leap seconds and the Earth's orientation are known for the last frame."""
    times = [jd for cube in plan.cubes for jd in cube.frames.column("jd_utc").tolist()]
    now_jd = _UNIX_EPOCH_JD + datetime.now(UTC).timestamp() / 86400
    last_jd = max((jd for jd in times if np.isfinite(jd)), default=now_jd)
    for name, until_jd, harm in (
        ("leap seconds", leap_seconds_until_jd(), "BJD may be wrong by a whole second"),
        ("Earth orientation (IERS)", orientation_until_jd(), "airmass a little less exact"),
    ):
        day = datetime.fromtimestamp((until_jd - _UNIX_EPOCH_JD) * 86400, UTC).date()
        if last_jd <= until_jd:
            yield Check(name, "ok", f"known until {day}, past the last frame")
        else:
            what = f"known until {day}, before the last frame: {harm}"
            yield Check(name, "warn", what, "pip install --upgrade astropy-iers-data")


def _catalogue(config: Config, plan: Plan) -> Iterator[Check]:
    name = "catalogue"
    if not config.catalog.files:
        by_place = [target.name for target in config.target if target.ra is not None]
        state: State = "warn" if by_place else "ok"
        what = "none" + (f", so {', '.join(by_place)} needs a WCS in headers" if by_place else "")
        yield Check(name, state, what, "name one in catalog.files" if by_place else "")
        return
    try:
        catalogue = read_catalogue(config.catalog_paths())
    except ConfigError as error:
        yield Check(name, "fail", f"{error.where}: {error.why}", error.do)
        return
    if not plan.fields:
        what = f"{len(catalogue.ra_deg)} stars; no scan yet, so no fields to compare"
        yield Check(name, "warn", what, "nightloom scan")
    for field in plan.fields:
        yield _covered(plan, field, catalogue)


def _covered(plan: Plan, field: str, catalogue: Catalogue) -> Check:
    name = f"catalogue of {field}"
    placed: list[tuple[PlannedCube, int]] = []
    for cube in plan.cubes_of(field):
        ra_deg, dec_deg = cube.frames.column("ra_deg"), cube.frames.column("dec_deg")
        known = np.flatnonzero(np.isfinite(ra_deg) & np.isfinite(dec_deg))
        placed += [(cube, place) for place in known.tolist()]
    if not placed:
        return Check(name, "warn", "its headers say no place", "name a header key for ra, dec")
    cube, place = placed[len(placed) // 2]
    middle = cube.frames[place]
    radius_deg = 0.5 * np.hypot(middle.ny, middle.nx) * middle.pixel_scale_arcsec / 3600
    if not np.isfinite(radius_deg):
        radius_deg = UNKNOWN_RADIUS_DEG
    year = 2000.0 + (middle.jd_utc - 2451545.0) / _JULIAN_YEAR_D
    there = at_epoch(catalogue, year) if np.isfinite(year) else catalogue
    n = len(within(there, middle.ra_deg, middle.dec_deg, float(radius_deg)).ra_deg)
    what = f"{n} stars within {radius_deg:.2f} deg of {middle.ra_deg:.4f} {middle.dec_deg:+.4f}"
    if n >= FEW_STARS:
        return Check(name, "ok", what)
    return Check(name, "fail" if n == 0 else "warn", what, "add a catalogue that covers it")
