"""When each frame of the synthetic archive is exposed, and under which sky."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from astropy.coordinates import AltAz, SkyCoord, get_sun
from numpy.typing import NDArray

from nightloom.errors import ConfigError
from nightloom.schema.frames import ImageType
from nightloom.synth.truth import (
    BANDS,
    MOFFAT_BETA,
    MS_PER_DAY,
    UNIX_EPOCH_JD,
    Dialect,
    Field,
    Floats,
    SynthSpec,
    bjd_tdb,
    electrons_per_s,
    field_centre,
    make_field,
    offline,
    places_at,
    relative_flux,
    sky_to_pixel,
    utc,
)

Kind = Literal["good", "cloudy", "trailed", "flipped"]
MIDDLE_NIGHT = np.datetime64("2024-10-02")  # new moon; the fields culminate near midnight
OVERHEAD_S = 6.0  # from shutter to shutter
FLAT_S = 4.0
GRID_MS = 600_000
CLOUDY_BELOW = 10 ** (-0.4 * 0.5)  # transmission of a cloud of half a magnitude


@dataclass(frozen=True, slots=True)
class Scene:
    """What the sky and the telescope do during one science frame."""

    field: int
    bjd_tdb: float  # of the field's transiting star, mid-exposure
    airmass: float  # of the field's centre, secant of the zenith distance
    dx_px: float
    dy_px: float
    rotation_deg: float
    fwhm_px: float  # geometric mean of both axes, before trailing
    elongation: float
    angle_deg: float  # of the long axis, from x to y
    trail_px: float
    transparency: float
    sky_e: float  # of a pixel at the centre, flat 1
    sky_slope_x: float  # relative, from the left edge to the right one
    sky_slope_y: float
    pier_side: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Frame:
    """One file: `index` is its own over the archive and seeds its noise."""

    index: int
    path: str  # relative to the folder of frames
    night: str
    image_type: ImageType
    filter: str  # the active one, also where the shutter stays closed
    dialect: Dialect
    exposure_s: float
    start_ms: int  # since 1970, UTC
    flat_e: float = 0.0  # expected level of a flat
    scene: Scene | None = None

    @property
    def jd_utc(self) -> float:
        """Julian date, UTC, of mid-exposure."""
        return UNIX_EPOCH_JD + (self.start_ms + self.exposure_s * 500) / MS_PER_DAY


@dataclass(frozen=True, slots=True)
class Starlight:
    """Arrays [frame, star] of the science frames of one field, in the order of their times."""

    frames: tuple[Frame, ...]
    flux_e: Floats  # expected in the exposure, whole aperture, flat 1
    x_px: Floats
    y_px: Floats


@dataclass(frozen=True, slots=True)
class World:
    """The whole truth of an archive. `starlight` goes by field."""

    fields: tuple[Field, ...]
    frames: tuple[Frame, ...]
    starlight: tuple[Starlight, ...]


def make_world(spec: SynthSpec) -> World:
    """Fields, frames in time order, and the stars' light. Raises ConfigError: no such nights."""
    starts = _night_starts(spec)
    middle = starts[len(starts) // 2] + round(spec.hours_per_night * 1_800_000)
    epoch_bjd = UNIX_EPOCH_JD + middle / MS_PER_DAY + 0.006
    fields = tuple(
        make_field(spec, index, epoch_bjd=epoch_bjd + 0.01 * index)
        for index in range(spec.n_fields)
    )
    frames: list[Frame] = []
    for night, start_ms in enumerate(starts):
        frames += _calibration_frames(spec, night, start_ms=start_ms, first=len(frames))
        frames += _science_frames(spec, fields, night, start_ms=start_ms, first=len(frames))
    light = tuple(_starlight(spec, fields, index, frames) for index in range(spec.n_fields))
    return World(fields=fields, frames=tuple(frames), starlight=light)


def night_name(spec: SynthSpec, night: int) -> str:
    """Date of the evening."""
    return str(MIDDLE_NIGHT + night - spec.n_nights // 2)


def _slot_ms(spec: SynthSpec) -> int:
    """From one science frame to the next."""
    n = spec.frames_per_night * spec.n_fields * len(spec.filters)
    return round(max(spec.hours_per_night * 3.6e6 / n, (spec.exposure_s + OVERHEAD_S) * 1000))


def _night_starts(spec: SynthSpec) -> list[int]:
    """Start of each night's science, ms: dark, all fields above airmass 2, as high as can be."""
    need_ms = _slot_ms(spec) * spec.frames_per_night * spec.n_fields * len(spec.filters)
    names = np.array([night_name(spec, night) for night in range(spec.n_nights)])
    noon_ms = names.astype("datetime64[ms]").astype(np.int64) + MS_PER_DAY // 2
    grid_ms = noon_ms[:, None] + np.arange(MS_PER_DAY // GRID_MS) * GRID_MS
    height = np.min(_altitudes_deg(spec, grid_ms), axis=0)
    with offline():
        times = utc(grid_ms.ravel(), site=spec.site)
        sun = get_sun(times).transform_to(AltAz(obstime=times, location=spec.site.location))
    usable = (sun.alt.deg.reshape(grid_ms.shape) < -18) & (height > 30)
    starts = []
    for name, ms, good, alt in zip(names, grid_ms, usable, height, strict=True):
        begin, end = ms[good].min(initial=2**62), ms[good].max(initial=0)
        if end - begin < need_ms:
            hours = max(0, end - begin) / 3.6e6
            why = f"{need_ms / 3.6e6:.1f} h of frames do not fit into its {hours:.1f} usable hours"
            raise ConfigError(
                where=f"synth: night {name}", why=why, do="ask for fewer or shorter frames"
            )
        ideal = int(ms[np.argmax(alt)]) - need_ms // 2
        starts.append(int(min(max(ideal, begin), end - need_ms)))
    return starts


def _altitudes_deg(spec: SynthSpec, unix_ms: NDArray[np.int64]) -> Floats:
    """[field, ...] of the fields' centres, without refraction."""
    with offline():
        times = utc(unix_ms.ravel(), site=spec.site)
        frame = AltAz(obstime=times, location=spec.site.location)
        rows = [
            SkyCoord(*field_centre(index), unit="deg").transform_to(frame).alt.deg
            for index in range(spec.n_fields)
        ]
    return np.array(rows).reshape(spec.n_fields, *unix_ms.shape)


def _calibration_frames(spec: SynthSpec, night: int, *, start_ms: int, first: int) -> list[Frame]:
    """Bias, dark and flat frames, ending a quarter of an hour before the science."""
    rng = np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(1, night)))
    name = night_name(spec, night)
    plan: list[tuple[ImageType, str, float, str]] = []
    plan += [("flat", f, FLAT_S, f"flat_{f}_{k + 1:03d}") for f in spec.filters
             for k in range(spec.n_flat)]  # fmt: skip
    plan += [("bias", spec.filters[0], 0.0, f"bias_{k + 1:03d}") for k in range(spec.n_bias)]
    plan += [
        ("dark", spec.filters[0], spec.exposure_s, f"dark_{k + 1:03d}") for k in range(spec.n_dark)
    ]
    clock_ms = start_ms - 900_000
    clock_ms -= sum(round((exposure_s + OVERHEAD_S) * 1000) for _, _, exposure_s, _ in plan)
    frames = []
    for number, (image_type, filter_name, exposure_s, stem) in enumerate(plan):
        # the lamp fades: flats differ in level by up to a third
        flat_e = 0.35 * spec.instrument.full_well_e * rng.uniform(0.85, 1.15)
        frames.append(
            Frame(
                index=first + number,
                path=f"{name}/{image_type}/{stem}.fits",
                night=name,
                image_type=image_type,
                filter=filter_name,
                dialect=spec.dialects[night % len(spec.dialects)],
                exposure_s=exposure_s,
                start_ms=clock_ms,
                flat_e=flat_e if image_type == "flat" else 0.0,
            )
        )
        clock_ms += round((exposure_s + OVERHEAD_S) * 1000)
    return frames


def _science_frames(
    spec: SynthSpec, fields: tuple[Field, ...], night: int, *, start_ms: int, first: int
) -> list[Frame]:
    combos = list(product(range(spec.n_fields), spec.filters))
    n = spec.frames_per_night * len(combos)
    rng = np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(2, night)))
    # the mount's clock is no metronome
    starts_ms = start_ms + _slot_ms(spec) * np.arange(n) + rng.integers(0, 1000, n)
    mid_ms = starts_ms + round(spec.exposure_s * 500)
    altitude = _altitudes_deg(spec, mid_ms)
    times = utc(mid_ms, site=spec.site)
    bjd = [
        bjd_tdb(times, ra_deg=field.stars.ra_deg[0], dec_deg=field.stars.dec_deg[0])
        for field in fields
    ]
    # a frame belongs to the east pier side from the moment its field culminates
    past = np.array([np.arange(n) > np.argmax(row) for row in altitude])
    sky = _weather(spec, night, n=n, rng=rng)
    frames = []
    for k in range(n):
        field, filter_name = combos[k % len(combos)]
        flipped = bool(past[field, k]) and spec.flip and night == 1 % spec.n_nights
        scene = _scene(
            spec,
            sky,
            k,
            field=field,
            filter_name=filter_name,
            airmass=1 / math.sin(math.radians(altitude[field, k])),
            bjd=float(bjd[field][k]),
            flipped=flipped,
        )
        stem = f"{fields[field].name}_{filter_name}_{k // len(combos) + 1:04d}"
        frames.append(
            Frame(
                index=first + k,
                path=f"{night_name(spec, night)}/light/{stem}.fits",
                night=night_name(spec, night),
                image_type="science",
                filter=filter_name,
                dialect=spec.dialects[night % len(spec.dialects)],
                exposure_s=spec.exposure_s,
                start_ms=int(starts_ms[k]),
                scene=scene,
            )
        )
    return frames


@dataclass(frozen=True, slots=True)
class _Weather:
    """Arrays [frame] of a night, in time order, whatever the field; pointings [field]."""

    dx_px: Floats
    dy_px: Floats
    rotation_deg: Floats
    seeing: Floats
    elongation: Floats
    angle_deg: float
    haze: Floats
    cloud: Floats
    trail: Floats  # in FWHM
    glow: Floats
    pointing_px: Floats  # [field, 2]
    slope: Floats  # [2]


def _weather(spec: SynthSpec, night: int, *, n: int, rng: np.random.Generator) -> _Weather:
    t = (np.arange(n) + 0.5) / n
    phases = rng.uniform(0, 2 * math.pi, 4)
    toward = rng.uniform(0, 2 * math.pi)
    drift = spec.drift_px * (t - 0.5) + 0.08 * spec.drift_px * np.sin(9 * t + phases[0])
    jitter = rng.normal(0, 0.4, (2, n))
    trail = np.zeros(n)
    if spec.trailed and night == 0:
        trail[n // 5] = 5.5
    cloud = np.ones(n)
    if spec.cloud and night == 2 % spec.n_nights:
        # two banks of cloud in the last fifth of the night, the thicker one down to 0.3
        for centre, width, part in ((0.88, 0.02, 0.7), (0.95, 0.012, 0.5)):
            cloud *= 1 - part * np.exp(-0.5 * ((t - centre) / width) ** 2)
    return _Weather(
        dx_px=drift * math.cos(toward) + jitter[0],
        dy_px=drift * math.sin(toward) + jitter[1],
        rotation_deg=spec.rotation_deg * (t - 0.5) + rng.normal(0, 0.1),
        seeing=(1 + 0.08 * np.sin(5 * t + phases[1])) * np.exp(rng.normal(0, 0.03, n)),
        elongation=1 + np.abs(rng.normal(0, 0.04, n)),
        angle_deg=rng.uniform(0, 180),
        haze=0.97 + 0.02 * np.sin(4 * t + phases[2]) + rng.normal(0, 0.002, n),
        cloud=cloud,
        trail=trail,
        glow=1 + 0.05 * np.sin(3 * t + phases[3]),
        pointing_px=rng.normal(0, 0.15 * spec.drift_px, (spec.n_fields, 2)),
        slope=rng.uniform(-0.04, 0.04, 2),
    )


def _scene(
    spec: SynthSpec,
    sky: _Weather,
    k: int,
    *,
    field: int,
    filter_name: str,
    airmass: float,
    bjd: float,
    flipped: bool,
) -> Scene:
    band = BANDS[filter_name]
    fwhm_px = spec.fwhm_px * airmass**0.6 * sky.seeing[k]
    sky_e_s = 10 ** (-0.4 * (band.sky_mag - band.zero_mag)) * spec.pixel_scale_arcsec**2
    trail_px = sky.trail[k] * fwhm_px
    kind: Kind = "flipped" if flipped else "good"
    if sky.cloud[k] < CLOUDY_BELOW:
        kind = "cloudy"
    if trail_px > 0:
        kind = "trailed"
    # the tube's axis and the mount's are not square: the field lands elsewhere after the flip
    moved_x, moved_y = (0.4 * spec.drift_px, -0.5 * spec.drift_px) if flipped else (0.0, 0.0)
    return Scene(
        field=field,
        bjd_tdb=bjd,
        airmass=airmass,
        dx_px=float(sky.dx_px[k] + sky.pointing_px[field, 0] + moved_x),
        dy_px=float(sky.dy_px[k] + sky.pointing_px[field, 1] + moved_y),
        rotation_deg=float(sky.rotation_deg[k]) + (180.0 if flipped else 0.0),
        fwhm_px=float(fwhm_px),
        elongation=_moment_elongation(trail_px, fwhm_px) if trail_px else float(sky.elongation[k]),
        angle_deg=sky.angle_deg,
        trail_px=float(trail_px),
        transparency=float(sky.haze[k] * sky.cloud[k]),
        sky_e=float(sky_e_s * spec.exposure_s * sky.glow[k] * (1 + 0.3 * (airmass - 1))),
        sky_slope_x=float(sky.slope[0]),
        sky_slope_y=float(sky.slope[1]),
        pier_side="East" if flipped else "West",
        kind=kind,
    )


def _moment_elongation(trail_px: float, fwhm_px: float) -> float:
    """Ratio of second moments along and across a trailed round Moffat of beta 3."""
    gamma_px = fwhm_px / (2 * math.sqrt(2 ** (1 / MOFFAT_BETA) - 1))
    return math.sqrt(1 + trail_px**2 / 12 / (gamma_px**2 / (2 * (MOFFAT_BETA - 2))))


def _starlight(
    spec: SynthSpec, fields: tuple[Field, ...], index: int, frames: list[Frame]
) -> Starlight:
    field = fields[index]
    chosen = tuple(f for f in frames if f.scene is not None and f.scene.field == index)
    scenes = [f.scene for f in chosen if f.scene is not None]
    shape = (len(chosen), len(field.stars))
    flux_e, x_px, y_px = np.empty(shape), np.empty(shape), np.empty(shape)
    airmass = np.array([scene.airmass for scene in scenes])
    clear = np.array([scene.transparency for scene in scenes]) * spec.exposure_s
    for filter_name in spec.filters:
        rows = np.array([f.filter == filter_name for f in chosen])
        rate = electrons_per_s(field.stars, filter_name=filter_name, airmass=airmass[rows])
        flux_e[rows] = rate * clear[rows, None]
    mid_ms = np.array([f.start_ms for f in chosen]) + round(spec.exposure_s * 500)
    times = utc(mid_ms, site=spec.site)
    for star in np.flatnonzero(field.stars.kind != "constant"):
        ra, dec = field.stars.ra_deg[star], field.stars.dec_deg[star]
        bjd = bjd_tdb(times, ra_deg=float(ra), dec_deg=float(dec))
        flux_e[:, star] *= relative_flux(field.stars, int(star), bjd)
    for row, (frame, scene) in enumerate(zip(chosen, scenes, strict=True)):
        ra_deg, dec_deg = places_at(field.stars, frame.jd_utc)
        x_px[row], y_px[row] = sky_to_pixel(
            ra_deg,
            dec_deg,
            spec=spec,
            centre_deg=(field.ra_deg, field.dec_deg),
            shift_px=(scene.dx_px, scene.dy_px),
            rotation_deg=scene.rotation_deg,
        )
    return Starlight(frames=chosen, flux_e=flux_e, x_px=x_px, y_px=y_px)
