"""Which products the archive wants, from what, and what it lacks: the plan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nightloom.config import CalibrationSection, Config
from nightloom.frames.checks import CALIBRATED
from nightloom.plan.calibrations import Choice, choose, in_groups, kits, wanted_of
from nightloom.plan.columns import FrameColumns, Rows, columns_of
from nightloom.plan.fields import assign_fields, slug
from nightloom.plan.shelves import Kit, Shelves, Wanted, shelves_of
from nightloom.schema.frames import QUARANTINE, SUSPECT_BITS
from nightloom.store.fingerprint import Begun, begin, digest_of_bytes

NO_FILTER = "nofilter"
LEAST_LIGHTS = 15  # frames of a night for a map of its hot pixels
NUMBERS = (
    "dec_deg", "exposure_s", "gain_e_per_adu", "jd_utc", "pixel_scale_arcsec", "ra_deg",
    "read_noise_e", "saturation_adu", "site_height_m", "site_lat_deg", "site_lon_deg",
)  # fmt: skip
_numbers_of = attrgetter(*NUMBERS)
_NUMBERS_TEXT = "{" + "".join(f'"{name}":"%r",' for name in NUMBERS) + '"time_suspect":%s}'

Inputs = list[tuple[str, str]]


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


@dataclass(frozen=True, eq=False)
class PlannedFrames(Sequence[PlannedFrame]):
    """Frames as rows of the frame table; one is an object only while it is looked at."""

    columns: FrameColumns
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> PlannedFrame: ...
    @overload
    def __getitem__(self, index: slice) -> PlannedFrames: ...
    def __getitem__(self, index: int | slice) -> PlannedFrame | PlannedFrames:
        if isinstance(index, slice):
            return PlannedFrames(self.columns, self.rows[index])
        return _planned(self.columns, self.rows[[index]])[0]

    def __iter__(self) -> Iterator[PlannedFrame]:
        return iter(_planned(self.columns, self.rows))

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("the whole frame table would go with them: hand on tuple(frames)")

    def column(self, name: str) -> NDArray[Any]:
        """Values of a column of the frame table."""
        return self.columns.array(name, self.rows)

    # Fingerprints are asked for more often than frames change: what enters them of the frames
    # is taken in once a plan.
    @cached_property
    def begun(self) -> Begun:
        """A fingerprint that has taken in their files and numbers."""
        return begin([*inputs_of(self), *numbers_of(self)])

    @cached_property
    def begun_with_files(self) -> Begun:
        """A fingerprint that has taken in their files."""
        return begin(inputs_of(self))


@dataclass(frozen=True, slots=True)
class PlannedMaster:
    """A master, its frames and the masters that these need themselves."""

    kit: Kit
    frames: Sequence[PlannedFrame]
    choice: Choice

    @property
    def product(self) -> str:
        return self.kit.product


@dataclass(frozen=True, slots=True, eq=False)
class PlannedCube:
    """The frames of one field, night and filter in order of time, and the masters they use."""

    field: str
    night: str
    filter: str
    frames: PlannedFrames
    choices: tuple[Choice, ...]  # different ones, in order of the first frame of each
    choice_of: NDArray[np.intp]  # a frame's in `choices`

    @property
    def product(self) -> str:
        return f"cube/{self.field}/{self.night}/{filter_slug(self.filter)}"

    def some(self, places: Sequence[int]) -> PlannedCube:
        """The cube with some of its frames only."""
        frames = PlannedFrames(self.frames.columns, self.frames.rows[list(places)])
        return replace(self, frames=frames, choice_of=self.choice_of[list(places)])

    @property
    def lights(self) -> str:
        """The map of hot pixels that its own frames give, empty where none is wanted."""
        return next((choice.lights for choice in self.choices if choice.lights), "")

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(sorted({name for choice in self.choices for name in choice.missing}))


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be made; `frames` is the frame table with its fields filled in."""

    frames: pd.DataFrame
    masters: tuple[PlannedMaster, ...]
    cubes: tuple[PlannedCube, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self._by_field)

    def cubes_of(self, field: str, filter_name: str | None = None) -> tuple[PlannedCube, ...]:
        """Cubes of a field, in order of night."""
        mine = self._by_field.get(field, ())
        return tuple([c for c in mine if filter_name is None or c.filter == filter_name])

    def filters_of(self, field: str) -> tuple[str, ...]:
        return tuple(sorted({cube.filter for cube in self.cubes_of(field)}))

    @cached_property
    def masters_used(self) -> frozenset[str]:
        """Masters that some cube needs, itself or through a flat."""
        by_name = {master.product: master for master in self.masters}
        used: set[str] = set()
        for cube in self.cubes:
            for choice in cube.choices:
                used |= {choice.bias, choice.dark, choice.flat}
        for name in sorted(used & set(by_name)):
            choice = by_name[name].choice
            used |= {choice.bias, choice.dark}
        return frozenset(used - {""})

    @cached_property
    def _by_field(self) -> dict[str, tuple[PlannedCube, ...]]:
        ordered = sorted(self.cubes, key=lambda cube: (cube.field, cube.night, cube.filter))
        groups = itertools.groupby(ordered, key=lambda cube: cube.field)
        return {field: tuple(cubes) for field, cubes in groups}


def filter_slug(name: str) -> str:
    """A filter's name as a part of a path."""
    return slug(name) or NO_FILTER


def make_plan(frames: pd.DataFrame, config: Config) -> Plan:
    """The plan of an archive; changes nothing on disk.

    frames: the frame table of the scan.
    """
    frames = frames.reset_index(drop=True)
    frames = frames.assign(field=assign_fields(frames))
    columns = columns_of(frames)
    available = kits(frames)
    others = shelves_of([kit for kit in available if kit.image_type != "flat"])
    masters = tuple([_master(kit, frames, columns, others, config) for kit in available])
    cubes = tuple(_cubes(frames, columns, shelves_of(available), config))
    return Plan(frames, masters, cubes)


def _master(
    kit: Kit, frames: pd.DataFrame, columns: FrameColumns, others: Shelves, config: Config
) -> PlannedMaster:
    choice = Choice()
    if kit.image_type == "flat":
        # A flat is not made of flats: only its bias and dark are asked for.
        choice = choose(wanted_of(frames.iloc[kit.rows[0]]), others, config.calibration)
    return PlannedMaster(kit, PlannedFrames(columns, np.array(kit.rows, np.int32)), choice)


def _cubes(
    frames: pd.DataFrame, columns: FrameColumns, available: Shelves, config: Config
) -> Iterator[PlannedCube]:
    """A cube a field, night and filter, in this order; its frames in order of time, then path."""
    keys = ("field", "night", "filter")
    science = frames.loc[frames["field"] != "", [*keys, "jd_utc", "path"]]
    order, starts = in_groups(science, keys)
    rows = science.index.to_numpy()[order].astype(np.int32)
    like = _likeness(columns)
    for start, stop in itertools.pairwise([*starts.tolist(), len(rows)]):
        mine = PlannedFrames(columns, rows[start:stop])
        field, night, name = (columns.array(key, mine.rows[:1])[0] for key in keys)
        choices, choice_of = _choices(mine, like[mine.rows], available, config)
        cube = PlannedCube(field, night, name, mine, choices, choice_of)
        yield _with_lights(cube, config.calibration)


def _likeness(columns: FrameColumns) -> NDArray[np.int64]:
    """A number a frame; those that share it share what decides on their masters in a night."""
    exposures = pd.factorize(columns.numbers["exposure_s"])[0]
    parts: list[NDArray[Any]] = [columns.codes["reason"], exposures, columns.codes["read_mode"]]
    like = np.zeros(len(exposures), dtype=np.int64)
    for part in parts:
        like = pd.factorize(like * (int(part.max(initial=0)) + 2) + part + 1)[0]
    return like


def _choices(
    frames: PlannedFrames, like: NDArray[np.int64], available: Shelves, config: Config
) -> tuple[tuple[Choice, ...], NDArray[np.intp]]:
    """The masters that frames of a cube use, and which of them each frame does."""
    _, first, kind_of = np.unique(like, return_index=True, return_inverse=True)
    known: dict[tuple[float, str], Choice] = {}
    number_of: dict[Choice, int] = {}
    numbers = np.zeros(len(first), dtype=np.intp)
    for kind in np.argsort(first).tolist():
        row = frames.rows[first[kind] : first[kind] + 1]
        reason = frames.columns.array("reason", row)[0]
        if CALIBRATED in reason:
            choice = Choice(reasons=(reason,), calibrated=True)
        else:
            # The temperature is that of the night's frames, so that choices are few and stable.
            wanted = _wanted(frames.columns, row)
            key = wanted.exposure_s, wanted.read_mode
            choice = known.get(key) or choose(wanted, available, config.calibration)
            known[key] = choice
        numbers[kind] = number_of.setdefault(choice, len(number_of))
    return tuple(number_of), numbers[kind_of]


def _with_lights(cube: PlannedCube, settings: CalibrationSection) -> PlannedCube:
    """The cube with a map of hot pixels from its own frames, where it is wanted and can be."""
    if settings.lights_map is False or len(cube.frames) < LEAST_LIGHTS:
        return cube
    name = cube.product.replace("cube/", "lights/", 1)
    why = "hot pixels from the night's own frames, if stars drift"
    choices = [
        replace(choice, lights=name, reasons=(*choice.reasons, why))
        if not choice.calibrated and (settings.lights_map or not choice.dark)
        else choice
        for choice in cube.choices
    ]
    return replace(cube, choices=tuple(choices))


def _wanted(columns: FrameColumns, row: Rows) -> Wanted:
    return Wanted(**{name: _plain(columns, name, row)[0] for name in Wanted.__dataclass_fields__})


def _plain(columns: FrameColumns, name: str, rows: Rows) -> list[Any]:
    values: list[Any] = columns.array(name, rows).tolist()
    return values


def _planned(columns: FrameColumns, rows: Rows) -> list[PlannedFrame]:
    """Rows of the frame table as a worker needs them."""
    ready: list[list[Any]] = []
    for name in PlannedFrame.__dataclass_fields__:
        if name == "root":
            roots = columns.array(name, rows)
            folders = {text: Path(text) for text in dict.fromkeys(roots)}
            ready.append([folders[text] for text in roots])
        elif name == "time_suspect":
            bits = columns.array("suspect", rows) & SUSPECT_BITS["time_suspect"]
            ready.append((bits != 0).tolist())
        else:
            ready.append(_plain(columns, name, rows))
    return list(itertools.starmap(PlannedFrame, zip(*ready, strict=True)))


def inputs_of(frames: Sequence[PlannedFrame]) -> Inputs:
    """What PlannedFrame.inputs says of each of these, in their order, at a part of its cost."""
    if not isinstance(frames, PlannedFrames) or frames.column("data_section").any():
        return [part for frame in frames for part in frame.inputs]
    columns = (frames.column(name).tolist() for name in ("path", "size_bytes", "digest"))
    return [(path, f"{size}-{digest}") for path, size, digest in zip(*columns, strict=True)]


def frame_paths(frames: Sequence[PlannedFrame]) -> Sequence[str]:
    """Their paths, in their order."""
    if isinstance(frames, PlannedFrames):
        return frames.column("path").tolist()  # type: ignore[no-any-return]
    return [frame.path for frame in frames]


def said_of(frames: Sequence[PlannedFrame], *names: str) -> Inputs:
    """What PlannedFrame.said says of each of these, in their order, at a part of its cost."""
    if not isinstance(frames, PlannedFrames):
        return [frame.said(*names) for frame in frames]
    values = zip(*(frames.column(name).tolist() for name in names), strict=True)
    texts = [" ".join(map(repr, some)) for some in values]
    digests = {text: digest_of_bytes(text.encode()) for text in dict.fromkeys(texts)}
    end = " ".join(names)
    return [
        (f"{path} {end}", digests[text])
        for path, text in zip(frames.column("path"), texts, strict=True)
    ]


def numbers_of(frames: PlannedFrames) -> Inputs:
    """What PlannedFrame.numbers says of each of these, in their order, at a part of its cost."""
    suspect = frames.column("suspect") & SUSPECT_BITS["time_suspect"]
    changing: list[list[Any]] = []
    parts: list[str] = []
    for name in NUMBERS:
        values = frames.column(name)
        bits = values.view(np.int64)  # 0 and -0 are equal, their texts are not
        if (bits == bits[0]).all():  # as most are all night
            parts.append(f'"{name}":"{values[0].item()!r}"')
        else:
            parts.append(f'"{name}":"%r"')
            changing.append(values.tolist())
    changing.append(np.where(suspect != 0, "true", "false").tolist())
    text = "{" + ",".join(parts) + ',"time_suspect":%s}'
    return [
        (f"{path} numbers", digest_of_bytes((text % values).encode()))
        for path, values in zip(frames.column("path"), zip(*changing, strict=True), strict=True)
    ]


def quarantined(frames: pd.DataFrame) -> pd.DataFrame:
    """Rows that the plan leaves out, each with its reason."""
    return frames[frames["suspect"] & QUARANTINE != 0]
