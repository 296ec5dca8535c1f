"""A sky that is known: the instrument, the stars, their light curves and where they fall.

Pure numbers, no image. Refraction, parallax, aberration and scintillation are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Literal

import astropy.units as u
import numpy as np
from astropy.coordinates import EarthLocation, SkyCoord
from astropy.time import Time
from astropy.utils import iers
from numpy.typing import NDArray

from nightloom.errors import ConfigError

Dialect = Literal["maxim", "nina"]
Floats = NDArray[np.float64]

UNIX_EPOCH_JD = 2440587.5
MS_PER_DAY = 86_400_000
MOFFAT_BETA = 3.0
CATALOGUE_EPOCH = 2016.0  # Julian year of the stars' places
TRANSIT, VARIABLE, QUICK_VARIABLE = 0, 1, 2  # indices of a field's stars of interest


@dataclass(frozen=True, slots=True)
class Site:
    """Where the telescope stands, and the zone of the computer's clock (WET, WEST)."""

    lat_deg: float = 28.3
    lon_deg: float = -16.51
    height_m: float = 2390.0

    @property
    def location(self) -> EarthLocation:
        return EarthLocation.from_geodetic(
            self.lon_deg * u.deg, self.lat_deg * u.deg, self.height_m * u.m
        )


@dataclass(frozen=True, slots=True)
class Instrument:
    """Telescope and camera: what the headers say, and what they leave out."""

    telescope: str = "Synthetic 0.4 m"
    camera: str = "Synthetic CCD"
    aperture_mm: float = 400.0
    focal_mm: float = 1550.0
    pixel_um: float = 9.0
    temp_c: float = -20.0
    gain_e_per_adu: float = 1.4
    read_noise_e: float = 8.0
    full_well_e: float = 75_000.0
    bias_adu: float = 1000.0
    dark_e_per_s: float = 0.05

    @property
    def pixel_scale_arcsec(self) -> float:
        return math.degrees(math.atan(self.pixel_um / 1000 / self.focal_mm)) * 3600

    @property
    def saturation_adu(self) -> float:
        """Level that a full pixel surpasses in spite of read noise and bias structure."""
        margin_adu = 6 * self.read_noise_e / self.gain_e_per_adu + 10
        return math.floor(self.bias_adu + self.full_well_e / self.gain_e_per_adu - margin_adu)


@dataclass(frozen=True, slots=True)
class Band:
    zero_mag: float  # gives one electron a second above the atmosphere
    extinction_mag: float  # for each airmass
    colour_mag: float  # magnitude minus R, for each magnitude of the star's colour
    sky_mag: float  # of a square arcsec at the zenith


BANDS: dict[str, Band] = {
    "B": Band(21.1, 0.25, 1.57, 21.6),
    "V": Band(21.5, 0.18, 0.57, 20.9),
    "R": Band(21.7, 0.15, 0.0, 20.3),
    "I": Band(21.2, 0.10, -0.5, 19.2),
}


@dataclass(frozen=True, slots=True)
class SynthSpec:
    """What archive to make; the same spec gives the same bytes. Raises ConfigError."""

    n_fields: int = 1
    filters: tuple[str, ...] = ("R",)
    n_nights: int = 3
    frames_per_night: int = 60  # science frames of each field and filter
    hours_per_night: float = 5.0  # over which they are spread
    exposure_s: float = 60.0
    ny: int = 400
    nx: int = 500
    n_stars: int = 120  # within the frame, on average
    n_bias: int = 9  # these three every night, flats for each filter
    n_dark: int = 7
    n_flat: int = 7
    dialects: tuple[Dialect, ...] = ("maxim", "nina")  # in turn, night by night
    fwhm_px: float = 2.8  # at the zenith
    drift_px: float = 30.0  # in the course of a night
    rotation_deg: float = 0.8  # in the course of a night
    trailed: bool = True  # one frame of the first night
    flip: bool = True  # at the meridian, in the second night
    cloud: bool = True  # the last hour of the third night
    cosmic_rays: bool = True
    hot_pixels: bool = True
    seed: int = 1
    instrument: Instrument = field(default_factory=Instrument)
    site: Site = field(default_factory=Site)

    def __post_init__(self) -> None:
        least = {"n_fields": 1, "n_nights": 1, "frames_per_night": 1, "n_stars": 10, "seed": 0}
        least |= {"ny": 64, "nx": 64, "n_bias": 0, "n_dark": 0, "n_flat": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(where=f"synth: {name}", why=f"must be at least {value}")
        for name in ("exposure_s", "hours_per_night", "fwhm_px"):
            if not getattr(self, name) > 0:
                raise ConfigError(where=f"synth: {name}", why="must be above zero")
        unknown = [name for name in self.filters if name not in BANDS]
        if unknown or not self.filters or len(set(self.filters)) < len(self.filters):
            why = f"{self.filters} must be some of {', '.join(BANDS)}, each once"
            raise ConfigError(where="synth: filters", why=why)
        if not self.dialects or set(self.dialects) - {"maxim", "nina"}:
            raise ConfigError(where="synth: dialects", why="must be some of maxim, nina")

    @property
    def pixel_scale_arcsec(self) -> float:
        return self.instrument.pixel_scale_arcsec


@dataclass(frozen=True, slots=True)
class Stars:
    """Arrays [star]: ICRS at CATALOGUE_EPOCH, light curves; NaN where a kind has no such number."""

    star_id: NDArray[np.int32]
    ra_deg: Floats
    dec_deg: Floats
    mag: Floats  # R
    colour: Floats
    pmra_mas_yr: Floats  # with cos(dec)
    pmdec_mas_yr: Floats
    kind: NDArray[np.str_]  # constant, transit, variable
    depth: Floats
    epoch_bjd: Floats  # mid-transit, or rising through the mean
    period_d: Floats
    duration_d: Floats  # first to last contact
    ingress_d: Floats
    amplitude: Floats

    def __len__(self) -> int:
        return len(self.star_id)


@dataclass(frozen=True, slots=True)
class Field:
    """A place on the sky and its stars."""

    name: str
    ra_deg: float
    dec_deg: float
    stars: Stars


def field_centre(index: int) -> tuple[float, float]:
    """RA and Dec, deg; the second field lies across RA 0."""
    side = (index + 1) // 2 * (-1 if index % 2 else 1)
    return (11.0 + 11.0 * side) % 360, 28.3 + 1.5 * side


def make_field(spec: SynthSpec, index: int, *, epoch_bjd: float) -> Field:
    """The stars of a field, in and around the frame; its transit is centred on `epoch_bjd`.

    Star 0 transits, 1 and 2 vary, all three without neighbours; 3 saturates; 4 to 6 move fast.
    """
    rng = np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(0, index)))
    ra_deg, dec_deg = field_centre(index)
    margin = 45 + spec.drift_px + 0.01 * max(spec.nx, spec.ny)
    width, height = spec.nx + 2 * margin, spec.ny + 2 * margin
    n = round(spec.n_stars * width * height / (spec.nx * spec.ny))
    x, y = _places(spec, n, margin_px=margin, rng=rng)
    slope, bright, faint = 0.22, 10.0, 17.0  # stars a magnitude go with 10^(0.22 mag)
    share = rng.uniform(10 ** (slope * (bright - faint)), 1, n)
    mag = faint + np.log10(share) / slope
    mag[:7] = 12.2, 12.8, 13.3, 10.0, 12.5, 13.0, 13.5
    motion = rng.normal(0, 8, (2, n))
    turn = rng.uniform(0, 2 * math.pi, 3)
    motion[:, 4:7] = 400 * np.array([np.cos(turn), np.sin(turn)])
    colour = np.clip(rng.normal(0.7, 0.3, n), -0.2, 1.8)
    ra, dec = pixel_to_sky(x, y, spec=spec, ra_deg=ra_deg, dec_deg=dec_deg)
    stars = Stars(
        star_id=np.arange(n, dtype=np.int32),
        ra_deg=np.round(ra, 8) % 360,
        dec_deg=np.round(dec, 8),
        mag=np.round(mag, 3),
        colour=np.round(colour, 3),
        pmra_mas_yr=np.round(motion[0], 2),
        pmdec_mas_yr=np.round(motion[1], 2),
        kind=_kinds(n),
        **_light_curves(n, index, epoch_bjd=epoch_bjd),
    )
    return Field(f"Synth-{index + 1}", ra_deg, dec_deg, stars)


def _places(
    spec: SynthSpec, n: int, *, margin_px: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    fixed_x = np.array([0.56, 0.38, 0.47, 0.78]) * spec.nx
    fixed_y = np.array([0.46, 0.61, 0.31, 0.33]) * spec.ny
    x = rng.uniform(-margin_px, spec.nx + margin_px, 2 * n)
    y = rng.uniform(-margin_px, spec.ny + margin_px, 2 * n)
    apart = min(30.0, 0.08 * min(spec.ny, spec.nx))
    alone = np.hypot(x[:, None] - fixed_x[:3], y[:, None] - fixed_y[:3]).min(axis=1) > apart
    x, y = x[alone][: n - 4], y[alone][: n - 4]
    return np.append(fixed_x, x), np.append(fixed_y, y)


def _kinds(n: int) -> NDArray[np.str_]:
    kind = np.full(n, "constant", dtype="U8")
    kind[[TRANSIT, VARIABLE, QUICK_VARIABLE]] = "transit", "variable", "variable"
    return kind


def _light_curves(n: int, index: int, *, epoch_bjd: float) -> dict[str, Floats]:
    depth, epoch, period, duration, ingress, amplitude = np.full((6, n), np.nan)
    depth[TRANSIT] = (0.020, 0.017, 0.024)[index % 3]
    # a little more than a sidereal day: nearly the same hour angle night after night
    period[TRANSIT] = 0.9980 + 0.0002 * index
    duration[TRANSIT], ingress[TRANSIT] = 2.0 / 24, 0.25 / 24
    period[VARIABLE], amplitude[VARIABLE] = 0.31, 0.05
    period[QUICK_VARIABLE], amplitude[QUICK_VARIABLE] = 0.113, 0.03
    epoch[: QUICK_VARIABLE + 1] = np.round(epoch_bjd + np.array([0.0, 0.07, 0.03]), 4)
    return {
        "depth": depth,
        "epoch_bjd": epoch,
        "period_d": period,
        "duration_d": duration,
        "ingress_d": ingress,
        "amplitude": amplitude,
    }


def transit_flux(
    bjd_tdb: Floats,
    *,
    depth: float,
    epoch_bjd: float,
    period_d: float,
    duration_d: float,
    ingress_d: float,
) -> Floats:
    """Relative flux of a trapezoid, at the instants given, not averaged over an exposure."""
    from_mid_d = np.abs((bjd_tdb - epoch_bjd + period_d / 2) % period_d - period_d / 2)
    return 1 - depth * np.clip((duration_d / 2 - from_mid_d) / ingress_d, 0, 1)


def relative_flux(stars: Stars, star: int, bjd_tdb: Floats) -> Floats:
    """Flux of one star over its mean (out of transit), at instants [time]."""
    if stars.kind[star] == "transit":
        return transit_flux(
            bjd_tdb,
            depth=stars.depth[star],
            epoch_bjd=stars.epoch_bjd[star],
            period_d=stars.period_d[star],
            duration_d=stars.duration_d[star],
            ingress_d=stars.ingress_d[star],
        )
    if stars.kind[star] == "variable":
        phase = (bjd_tdb - stars.epoch_bjd[star]) / stars.period_d[star]
        swing: Floats = stars.amplitude[star] * np.sin(2 * math.pi * phase)
        return 1 + swing
    return np.ones_like(bjd_tdb)


def electrons_per_s(stars: Stars, *, filter_name: str, airmass: Floats) -> Floats:
    """Mean electrons a second [time, star] through the atmosphere, whole aperture, flat 1."""
    band = BANDS[filter_name]
    mag = stars.mag + band.colour_mag * stars.colour
    seen_mag: Floats = mag + band.extinction_mag * airmass[:, None] - band.zero_mag
    rate: Floats = np.exp(-0.4 * math.log(10) * seen_mag)
    return rate


def places_at(stars: Stars, jd_utc: float) -> tuple[Floats, Floats]:
    """RA and Dec, deg, [star], with proper motion since CATALOGUE_EPOCH."""
    years = 2000 + (jd_utc - 2451545.0) / 365.25 - CATALOGUE_EPOCH
    dec = stars.dec_deg + stars.pmdec_mas_yr * years / 3.6e6
    ra = stars.ra_deg + stars.pmra_mas_yr * years / 3.6e6 / np.cos(np.radians(stars.dec_deg))
    return ra, dec


def sky_to_pixel(
    ra_deg: Floats,
    dec_deg: Floats,
    *,
    spec: SynthSpec,
    centre_deg: tuple[float, float],
    shift_px: tuple[float, float] = (0.0, 0.0),
    rotation_deg: float = 0.0,
) -> tuple[Floats, Floats]:
    """x, y of a TAN projection: east to -x, north to +y, turned from x to y, then shifted.

    Source: Calabretta & Greisen 2002, section 5.1.3.
    """
    ra, dec = np.radians(ra_deg - centre_deg[0]), np.radians(dec_deg)
    dec0 = math.radians(centre_deg[1])
    depth = math.sin(dec0) * np.sin(dec) + math.cos(dec0) * np.cos(dec) * np.cos(ra)
    east = np.cos(dec) * np.sin(ra) / depth
    north = (math.cos(dec0) * np.sin(dec) - math.sin(dec0) * np.cos(dec) * np.cos(ra)) / depth
    scale = math.radians(spec.pixel_scale_arcsec / 3600)
    cosine, sine = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    x = (-east * cosine - north * sine) / scale + (spec.nx - 1) / 2 + shift_px[0]
    y = (-east * sine + north * cosine) / scale + (spec.ny - 1) / 2 + shift_px[1]
    return x, y


def pixel_to_sky(
    x_px: Floats, y_px: Floats, *, spec: SynthSpec, ra_deg: float, dec_deg: float
) -> tuple[Floats, Floats]:
    """RA and Dec, deg, of pixels of an unshifted, unturned frame."""
    scale = math.radians(spec.pixel_scale_arcsec / 3600)
    east, north = -(x_px - (spec.nx - 1) / 2) * scale, (y_px - (spec.ny - 1) / 2) * scale
    dec0 = math.radians(dec_deg)
    depth = math.cos(dec0) - north * math.sin(dec0)
    ra = np.degrees(np.arctan2(east, depth)) + ra_deg
    height = math.sin(dec0) + north * math.cos(dec0)
    return ra % 360, np.degrees(np.arctan2(height, np.hypot(east, depth)))


@contextmanager
def offline() -> Iterator[None]:
    """astropy uses the earth rotation tables it came with and asks no server."""
    with (
        iers.conf.set_temp("auto_download", False),
        iers.conf.set_temp("iers_degraded_accuracy", "warn"),
    ):
        yield


def utc(unix_ms: NDArray[np.int64] | int, *, site: Site) -> Time:
    """astropy Time of milliseconds since 1970, UTC, at the site."""
    days = np.asarray(unix_ms) / MS_PER_DAY
    return Time(UNIX_EPOCH_JD, days, format="jd", scale="utc", location=site.location)


def bjd_tdb(times: Time, *, ra_deg: float, dec_deg: float) -> Floats:
    """Barycentric Julian date, TDB, of UTC times at a site, for one direction."""
    with offline():
        place = SkyCoord(ra_deg, dec_deg, unit="deg")
        later = times.light_travel_time(place, kind="barycentric")
        return np.asarray((times.tdb + later).jd, dtype=np.float64)


def star_columns(stars: Stars) -> dict[str, NDArray[np.generic]]:
    """Columns of a table of the stars, by name."""
    return {entry.name: getattr(stars, entry.name) for entry in fields(stars)}
