"""Which products the archive wants, from what, and what it lacks: the plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from nightloom.config import CalibrationSection, Config
from nightloom.frames.checks import CALIBRATED
from nightloom.plan.calibrations import Choice, Kit, choose, kits, wanted_of
from nightloom.plan.fields import assign_fields, slug
from nightloom.schema.frames import QUARANTINE, SUSPECT_BITS
from nightloom.store.fingerprint import digest_of

NO_FILTER = "nofilter"
LEAST_LIGHTS = 15  # frames of a night for a map of its hot pixels


@dataclass(frozen=True, slots=True)
class PlannedFrame:
    """A frame as a worker needs it: where its pixels are, and its numbers."""

    file: Path
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

    @property
    def identity(self) -> tuple[str, str]:
        """Name and digest under which the file enters a fingerprint."""
        return self.path, f"{self.size_bytes}-{self.digest}"

    @property
    def numbers(self) -> tuple[str, str]:
        """What headers and profile say of the frame, as it enters a fingerprint."""
        values = {k: v for k, v in asdict(self).items() if isinstance(v, float | bool)}
        return f"{self.path} numbers", digest_of(values)


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
    science = frames[frames["field"] != ""]
    cubes = [
        _cube(group, available, config)
        for _, group in science.groupby(["field", "night", "filter"], sort=True)
    ]
    return Plan(frames, masters, tuple(cubes))


def _master(
    kit: Kit, frames: pd.DataFrame, available: tuple[Kit, ...], config: Config
) -> PlannedMaster:
    rows = frames.loc[list(kit.rows)]
    choice = Choice()
    if kit.image_type == "flat":
        # A flat is not made of flats: only its bias and dark are asked for.
        others = tuple(other for other in available if other.image_type != "flat")
        choice = choose(wanted_of(rows.iloc[0]), others, config.calibration)
    return PlannedMaster(kit, tuple(planned(row) for _, row in rows.iterrows()), choice)


def _cube(group: pd.DataFrame, available: tuple[Kit, ...], config: Config) -> PlannedCube:
    group = group.sort_values(["jd_utc", "path"], kind="stable")
    known: dict[object, Choice] = {}
    choices: list[Choice] = []
    for _, row in group.iterrows():
        if CALIBRATED in row["reason"]:
            choices.append(Choice(reasons=(row["reason"],), calibrated=True))
            continue
        wanted = wanted_of(row)
        # The temperature is that of the night's frames, so that choices are few and stable.
        key = (wanted.exposure_s, wanted.read_mode)
        if key not in known:
            known[key] = choose(wanted, available, config.calibration)
        choices.append(known[key])
    first = group.iloc[0]
    cube = PlannedCube(
        field=first["field"],
        night=first["night"],
        filter=first["filter"],
        frames=tuple(planned(row) for _, row in group.iterrows()),
        choices=tuple(choices),
    )
    return _with_lights(cube, config.calibration)


def _with_lights(cube: PlannedCube, settings: CalibrationSection) -> PlannedCube:
    """The cube with a map of hot pixels from its own frames, where it is wanted and can be."""
    name = cube.product.replace("cube/", "lights/", 1)
    why = "hot pixels from the night's own frames, if stars drift"
    choices = tuple(
        replace(choice, lights=name, reasons=(*choice.reasons, why))
        if not choice.calibrated and (settings.lights_map or not choice.dark)
        else choice
        for choice in cube.choices
    )
    if settings.lights_map is False or len(choices) < LEAST_LIGHTS:
        return cube
    return replace(cube, choices=choices)


def planned(row: pd.Series) -> PlannedFrame:
    """A row of the frame table as a worker needs it."""
    return PlannedFrame(
        file=Path(row["root"]) / row["path"],
        path=row["path"],
        hdu=int(row["hdu"]),
        size_bytes=int(row["size_bytes"]),
        digest=row["digest"],
        instrument=row["instrument"],
        filter=row["filter"],
        ny=int(row["ny"]),
        nx=int(row["nx"]),
        jd_utc=float(row["jd_utc"]),
        exposure_s=float(row["exposure_s"]),
        gain_e_per_adu=float(row["gain_e_per_adu"]),
        read_noise_e=float(row["read_noise_e"]),
        saturation_adu=float(row["saturation_adu"]),
        ra_deg=float(row["ra_deg"]),
        dec_deg=float(row["dec_deg"]),
        pixel_scale_arcsec=float(row["pixel_scale_arcsec"]),
        site_lat_deg=float(row["site_lat_deg"]),
        site_lon_deg=float(row["site_lon_deg"]),
        site_height_m=float(row["site_height_m"]),
        time_suspect=bool(row["suspect"] & SUSPECT_BITS["time_suspect"]),
    )


def quarantined(frames: pd.DataFrame) -> pd.DataFrame:
    """Rows that the plan leaves out, each with its reason."""
    return frames[frames["suspect"] & QUARANTINE != 0]
