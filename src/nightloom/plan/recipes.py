"""Which products the archive wants, from what, and what it lacks: the plan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nightloom.config import CalibrationSection, Config
from nightloom.frames.checks import CALIBRATED
from nightloom.plan.calibrations import Choice, Kit, Wanted, choose, kits, wanted_of
from nightloom.plan.fields import assign_fields, slug
from nightloom.schema.frames import QUARANTINE, SUSPECT_BITS
from nightloom.store.fingerprint import digest_of_bytes

NO_FILTER = "nofilter"
LEAST_LIGHTS = 15  # frames of a night for a map of its hot pixels
NUMBERS = (
    "dec_deg", "exposure_s", "gain_e_per_adu", "jd_utc", "pixel_scale_arcsec", "ra_deg",
    "read_noise_e", "saturation_adu", "site_height_m", "site_lat_deg", "site_lon_deg",
)  # fmt: skip
_numbers_of = attrgetter(*NUMBERS)
_NUMBERS_TEXT = "{" + "".join(f'"{name}":"%r",' for name in NUMBERS) + '"time_suspect":%s}'

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class PlannedFrame:
    """A frame as a worker needs it: where its pixels are, and its numbers."""

    root: Path
    path: str  # relative to its root: what identifies it
    hdu: int
    size_bytes: int
    digest: str
    instrument: str
    filter: str
    ny: int
    nx: int
    jd_utc: float
    exposure_s: float
    gain_e_per_adu: float
    read_noise_e: float
    saturation_adu: float
    ra_deg: float
    dec_deg: float
    pixel_scale_arcsec: float
    site_lat_deg: float
    site_lon_deg: float
    site_height_m: float
    time_suspect: bool
    aperture_m: float = float("nan")  # enters light curves only, and so none of `numbers`
    overscan_section: str = ""  # as the frame table has them
    data_section: str = ""

    @property
    def file(self) -> Path:
        return self.root / self.path

    @property
    def identity(self) -> tuple[str, str]:
        """Name and digest under which the file enters a fingerprint."""
        return self.path, f"{self.size_bytes}-{self.digest}"

    @property
    def inputs(self) -> tuple[tuple[str, str], ...]:
        """Its file, and how its border is told where it has one: what its pixels depend on."""
        if not self.data_section:
            return (self.identity,)
        text = f"{self.overscan_section} {self.data_section}"
        return self.identity, (f"{self.path} sections", digest_of_bytes(text.encode()))

    def said(self, *names: str) -> tuple[str, str]:
        """Some of what headers and profile say of the frame, as it enters a fingerprint."""
        text = " ".join(repr(getattr(self, name)) for name in names)
        return self.name_of(*names), digest_of_bytes(text.encode())

    def name_of(self, *names: str) -> str:
        """What an input is called that holds these numbers of the frame."""
        return f"{self.path} {' '.join(names)}"

    @property
    def numbers(self) -> tuple[str, str]:
        """What headers and profile say of the frame, as it enters a fingerprint."""
        suspect = "true" if self.time_suspect else "false"
        # The text that digest_of makes of these values, at a twentieth of its cost.
        text = _NUMBERS_TEXT % (*_numbers_of(self), suspect)
        return f"{self.path} numbers", digest_of_bytes(text.encode())


@dataclass(frozen=True, slots=True)
class PlannedMaster:
    """A master, its frames and the masters that these need themselves."""

    kit: Kit
    frames: tuple[PlannedFrame, ...]
    choice: Choice

    @property
    def product(self) -> str:
        return self.kit.product


@dataclass(frozen=True, slots=True)
class PlannedCube:
    """The frames of one field, night and filter in order of time, and the masters they use."""

    field: str
    night: str
    filter: str
    frames: tuple[PlannedFrame, ...]
    choices: tuple[Choice, ...]  # one a frame

    @property
    def product(self) -> str:
        return f"cube/{self.field}/{self.night}/{filter_slug(self.filter)}"

    @property
    def lights(self) -> str:
        """The map of hot pixels that its own frames give, empty where none is wanted."""
        return next((choice.lights for choice in self.choices if choice.lights), "")

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(sorted({name for choice in self.choices for name in choice.missing}))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be made; `frames` is the frame table with its fields filled in."""

    frames: pd.DataFrame
    masters: tuple[PlannedMaster, ...]
    cubes: tuple[PlannedCube, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(sorted({cube.field for cube in self.cubes}))

    def cubes_of(self, field: str, filter_name: str | None = None) -> tuple[PlannedCube, ...]:
        """Cubes of a field, in order of night."""
        mine = [c for c in self.cubes if c.field == field]
        mine = [c for c in mine if filter_name is None or c.filter == filter_name]
        return tuple(sorted(mine, key=lambda cube: (cube.night, cube.filter)))

    def filters_of(self, field: str) -> tuple[str, ...]:
        return tuple(sorted({cube.filter for cube in self.cubes_of(field)}))

    @property
    def masters_used(self) -> frozenset[str]:
        """Masters that some cube needs, itself or through a flat."""
        by_name = {master.product: master for master in self.masters}
        used: set[str] = set()
        for cube in self.cubes:
            for choice in set(cube.choices):
                used |= {choice.bias, choice.dark, choice.flat}
        for name in sorted(used & set(by_name)):
            choice = by_name[name].choice
            used |= {choice.bias, choice.dark}
        return frozenset(used - {""})


def filter_slug(name: str) -> str:
    """A filter's name as a part of a path."""
    return slug(name) or NO_FILTER


def make_plan(frames: pd.DataFrame, config: Config) -> Plan:
    """The plan of an archive; changes nothing on disk.

    frames: the frame table of the scan.
    """
    frames = frames.reset_index(drop=True)
    frames["field"] = assign_fields(frames)
    available = kits(frames)
    masters = tuple(_master(kit, frames, available, config) for kit in available)
    return Plan(frames, masters, tuple(_cubes(frames, available, config)))


def _master(
    kit: Kit, frames: pd.DataFrame, available: tuple[Kit, ...], config: Config
) -> PlannedMaster:
    rows = frames.loc[list(kit.rows)]
    choice = Choice()
    if kit.image_type == "flat":
        # A flat is not made of flats: only its bias and dark are asked for.
        others = tuple(other for other in available if other.image_type != "flat")
        choice = choose(wanted_of(rows.iloc[0]), others, config.calibration)
    return PlannedMaster(kit, planned(columns_of(rows), slice(None)), choice)


def _cubes(
    frames: pd.DataFrame, available: tuple[Kit, ...], config: Config
) -> Iterator[PlannedCube]:
    """A cube a field, night and filter, in this order; its frames in order of time, then path."""
    science = frames[frames["field"] != ""]
    if science.empty:
        return
    keys = [pd.factorize(science[name], sort=True)[0] for name in ("filter", "night", "field")]
    jd = science["jd_utc"].to_numpy()
    order = np.lexsort((jd, *keys))
    parts = [key[order] for key in keys]
    starts_cube = np.any([np.diff(part, prepend=-1) != 0 for part in parts], axis=0)
    if np.any(~starts_cube[1:] & (np.diff(jd[order]) == 0)):  # ties are rare, text is slow
        order = np.lexsort((pd.factorize(science["path"], sort=True)[0], jd, *keys))
    columns = columns_of(science.iloc[order])
    starts = np.flatnonzero(starts_cube)
    for start, stop in itertools.pairwise([*starts.tolist(), len(science)]):
        rows = slice(start, stop)
        cube = PlannedCube(
            field=columns["field"][start],
            night=columns["night"][start],
            filter=columns["filter"][start],
            frames=planned(columns, rows),
            choices=_choices(columns, rows, available, config),
        )
        yield _with_lights(cube, config.calibration)


def _choices(
    columns: Columns, rows: slice, available: tuple[Kit, ...], config: Config
) -> tuple[Choice, ...]:
    """The masters of each frame of a cube."""
    known: dict[tuple[str, float, str], Choice] = {}
    named = [columns[name][rows].tolist() for name in ("reason", "exposure_s", "read_mode")]
    keys = list(zip(*named, strict=True))
    for number, key in enumerate(keys):
        if key in known:
            continue
        if CALIBRATED in key[0]:
            known[key] = Choice(reasons=(key[0],), calibrated=True)
            continue
        # The temperature is that of the night's frames, so that choices are few and stable.
        same = (known[k] for k in known if k[1:] == key[1:] and not known[k].calibrated)
        known[key] = next(same, None) or choose(
            _wanted(columns, rows.start + number), available, config.calibration
        )
    return tuple([known[key] for key in keys])


def _with_lights(cube: PlannedCube, settings: CalibrationSection) -> PlannedCube:
    """The cube with a map of hot pixels from its own frames, where it is wanted and can be."""
    if settings.lights_map is False or len(cube.choices) < LEAST_LIGHTS:
        return cube
    name = cube.product.replace("cube/", "lights/", 1)
    why = "hot pixels from the night's own frames, if stars drift"
    # Equal choices stay one object: there are a few a night.
    with_lights = {
        choice: replace(choice, lights=name, reasons=(*choice.reasons, why))
        for choice in dict.fromkeys(cube.choices)
        if not choice.calibrated and (settings.lights_map or not choice.dark)
    }
    return replace(cube, choices=tuple([with_lights.get(c, c) for c in cube.choices]))


def _wanted(columns: Columns, row: int) -> Wanted:
    values = {name: columns[name][row] for name in Wanted.__dataclass_fields__}
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
    return Wanted(**plain)


def columns_of(rows: pd.DataFrame) -> Columns:
    """The columns of the frame table as arrays, text as objects."""
    return {
        name: rows[name].to_numpy(dtype=object if rows[name].dtype == "str" else None)
        for name in rows.columns
    }


def planned(columns: Columns, rows: slice) -> tuple[PlannedFrame, ...]:
    """Rows of the frame table as a worker needs them; equal values are one object."""
    same: dict[object, object] = {}
    ready: list[list[Any]] = []
    for name in PlannedFrame.__dataclass_fields__:
        if name == "root":
            roots = columns[name][rows]
            folders = {text: Path(text) for text in dict.fromkeys(roots)}
            ready.append([folders[text] for text in roots])
        elif name == "time_suspect":
            bits = columns["suspect"][rows] & SUSPECT_BITS["time_suspect"]
            ready.append((bits != 0).tolist())
        elif name in ("path", "digest", "jd_utc"):
            ready.append(columns[name][rows].tolist())
        else:
            ready.append([same.setdefault(v, v) for v in columns[name][rows].tolist()])
    return tuple(itertools.starmap(PlannedFrame, zip(*ready, strict=True)))


def quarantined(frames: pd.DataFrame) -> pd.DataFrame:
    """Rows that the plan leaves out, each with its reason."""
    return frames[frames["suspect"] & QUARANTINE != 0]
