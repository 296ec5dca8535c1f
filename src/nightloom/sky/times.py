"""Times and altitudes without a network: UTC to BJD_TDB, the night, the sun, the airmass.

Arrays broadcast against each other; longitudes are east positive, directions ICRS. What can't
be computed (no site, no time, a time outside 1972 to 2100) is NaN, or "" for a night. A day of
a Julian date has 86400 s, the one with a leap second too.
"""

from __future__ import annotations

import erfa  # pyerfa, which astropy is built on
import numpy as np
from astropy.utils.data import conf as data_conf
from astropy.utils.iers import conf as iers_conf
from numpy.typing import ArrayLike, NDArray

_J2000 = 2451545.0
_UNIX_EPOCH_NOON = 2440588  # JD of 1970-01-01 12:00
_FIRST_JD = 2441317.5  # 1972-01-01: leap seconds begin
_LAST_JD = 2488069.5  # 2100-01-01: the ephemeris ends
_AU_S = 149_597_870_700.0 / 299_792_458.0
_AU_M = 149_597_870_700.0
_TT_MINUS_TAI_S = 32.184
_DAY_S = 86400.0
_KNOT_DAY = 0.5

Floats = NDArray[np.float64]


def set_offline() -> None:
    """Keep astropy from the network for the life of this process; before its first Time.

    Earth orientation then comes from the tables shipped with it, of whatever age: below a
    second of UT1, or 0.004 degrees of altitude. Harmless when called again.
    """
    iers_conf.auto_download = False
    iers_conf.auto_max_age = None
    iers_conf.iers_degraded_accuracy = "ignore"
    data_conf.allow_internet = False


def night_of(jd_utc: ArrayLike, lon_deg: ArrayLike) -> NDArray[np.object_]:
    """Date 'YYYY-MM-DD' of the evening: local mean solar noon to noon.

    An unknown longitude cuts at noon UTC; an unknown time gives ''.
    """
    jd, lon = np.broadcast_arrays(
        np.asarray(jd_utc, dtype=np.float64), np.asarray(lon_deg, dtype=np.float64)
    )
    # Longitude 204 and -156 are one place and must be one night.
    east = np.where(np.isfinite(lon), (lon + 180.0) % 360.0 - 180.0, 0.0)
    local = jd + east / 360.0
    known = np.isfinite(local)
    nights = np.full(jd.shape, "", dtype=object)
    noon = np.floor(local[known]).astype(np.int64) - _UNIX_EPOCH_NOON
    days, which = np.unique(noon, return_inverse=True)
    names = np.array([str(day) for day in days.astype("datetime64[D]")], dtype=object)
    nights[known] = names[which]
    return nights


def sun_altitude_deg(jd_utc: ArrayLike, lat_deg: ArrayLike, lon_deg: ArrayLike) -> Floats:
    """Altitude of the sun's centre in degrees, refraction left out, good to 0.03 degrees.

    Source: Astronomical Almanac, low-precision formulas for the sun (page C5).
    """
    jd = np.asarray(jd_utc, dtype=np.float64)
    days = jd - _J2000
    mean_longitude = 280.460 + 0.9856474 * days
    anomaly = np.radians(357.528 + 0.9856003 * days)
    longitude = np.radians(mean_longitude + 1.915 * np.sin(anomaly) + 0.020 * np.sin(2.0 * anomaly))
    obliquity = np.radians(23.439 - 4e-7 * days)
    ra = np.arctan2(np.cos(obliquity) * np.sin(longitude), np.cos(longitude))
    sin_dec = np.sin(obliquity) * np.sin(longitude)
    hour_angle = np.radians(280.46061837 + 360.98564736629 * days) + np.radians(lon_deg) - ra
    lat = np.radians(lat_deg)
    cos_dec = np.sqrt(1.0 - sin_dec**2)
    sine = np.sin(lat) * sin_dec + np.cos(lat) * cos_dec * np.cos(hour_angle)
    return np.asarray(np.degrees(np.arcsin(np.clip(sine, -1.0, 1.0))))


def altitude_deg(
    jd_utc: ArrayLike,
    ra_deg: ArrayLike,
    dec_deg: ArrayLike,
    lat_deg: ArrayLike,
    lon_deg: ArrayLike,
) -> Floats:
    """Altitude in degrees of ICRS directions, refraction left out, good to 0.01 degrees.

    Precession and sidereal time are IAU 2006; nutation and aberration are what is left out.
    """
    jd = np.asarray(jd_utc, dtype=np.float64)
    known = np.isfinite(jd)
    safe = np.where(known, jd, _J2000)
    of_date = np.einsum("...ij,...j->...i", erfa.pmat06(safe, 0.0), _unit(ra_deg, dec_deg))
    sidereal = erfa.gmst06(safe, 0.0, safe, 0.0) + np.radians(lon_deg)
    lat = np.radians(lat_deg)
    along = of_date[..., 0] * np.cos(sidereal) + of_date[..., 1] * np.sin(sidereal)
    sine = np.sin(lat) * of_date[..., 2] + np.cos(lat) * along
    altitude = np.degrees(np.arcsin(np.clip(sine, -1.0, 1.0)))
    return np.asarray(np.where(known, altitude, np.nan))


def airmass(
    jd_utc: ArrayLike,
    ra_deg: ArrayLike,
    dec_deg: ArrayLike,
    lat_deg: ArrayLike,
    lon_deg: ArrayLike,
) -> Floats:
    """Relative airmass at ICRS directions; NaN below the horizon.

    Source: Young 1994 (Applied Optics 33, 1108), which takes the true altitude, the one there
    is without pressure and temperature; within 0.004 of the full integral.
    """
    altitude = altitude_deg(jd_utc, ra_deg, dec_deg, lat_deg, lon_deg)
    c = np.sin(np.radians(np.where(altitude >= 0.0, altitude, np.nan)))
    above = (1.002432 * c + 0.148386) * c + 0.0096467
    below = ((c + 0.149864) * c + 0.0102963) * c + 0.000303978
    return np.asarray(above / below)


def bjd_tdb(
    jd_utc: ArrayLike,
    ra_deg: ArrayLike,
    dec_deg: ArrayLike,
    lat_deg: ArrayLike,
    lon_deg: ArrayLike,
    height_m: ArrayLike,
) -> Floats:
    """Barycentric Julian date, TDB, at which light seen at `jd_utc` passes the barycentre.

    Times of shape [t] and directions of [s, 1] give [s, t]. Within 0.03 ms of astropy's light
    travel time to a source at infinity. An unknown site is taken as the centre of the earth
    (wrong by up to 21 ms), an unknown height as sea level. NaN outside 1972 to 2100.
    Sources: Eastman et al. 2010; ERFA epv00 and dtdb.
    """
    jd = np.asarray(jd_utc, dtype=np.float64)
    known = (jd >= _FIRST_JD) & (jd < _LAST_JD)
    safe = np.where(known, jd, _J2000)
    tt_minus_utc_s = _tai_minus_utc_s(safe) + _TT_MINUS_TAI_S
    tt = safe + tt_minus_utc_s / _DAY_S
    earth_au, tdb_minus_tt_s = _earth(tt)
    star = _unit(ra_deg, dec_deg)
    roemer_s = _AU_S * (
        _dot(earth_au, star) + _dot(_site_au(safe, tt, lat_deg, lon_deg, height_m), star)
    )
    # One sum: a float64 JD rounds by 20 us, and rounding twice by the same seconds is a bias.
    bjd = safe + (tt_minus_utc_s + tdb_minus_tt_s + roemer_s) / _DAY_S
    return np.asarray(np.where(known, bjd, np.nan))


def _unit(ra_deg: ArrayLike, dec_deg: ArrayLike) -> Floats:
    """Unit vectors [..., 3]."""
    ra, dec = np.broadcast_arrays(np.radians(ra_deg), np.radians(dec_deg))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def _dot(a: Floats, b: Floats) -> Floats:
    return np.asarray(a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2])


def _tai_minus_utc_s(jd_utc: Floats) -> Floats:
    # The table itself, not erfa.dat: that one warns about years it finds too far ahead.
    table = erfa.leap_seconds.get()
    table = table[table["year"] >= 1972]
    mjd_start = np.array(
        [np.datetime64(f"{row['year']:04d}-{row['month']:02d}-01") for row in table],
        dtype="datetime64[D]",
    )
    jd_start = mjd_start.astype(np.int64) + _UNIX_EPOCH_NOON - 0.5
    index = np.searchsorted(jd_start, jd_utc, side="right") - 1
    return np.asarray(table["tai_utc"][index], dtype=np.float64)


def _earth(jd_tt: Floats) -> tuple[Floats, Floats]:
    """Barycentric place of the earth in au [..., 3], and TDB minus TT in s.

    Evaluated at knots half a day apart and joined by cubics through place and velocity:
    a night costs a few evaluations, not one a frame, and the error is below 0.1 us.
    """
    scaled = jd_tt / _KNOT_DAY
    low = np.floor(scaled)
    knots, which = np.unique(np.concatenate([low.ravel(), low.ravel() + 1]), return_inverse=True)
    _, earth = erfa.epv00(knots * _KNOT_DAY, 0.0)
    tdb_minus_tt = erfa.dtdb(knots * _KNOT_DAY, 0.0, 0.0, 0.0, 0.0, 0.0)
    left = which[: low.size].reshape(low.shape)
    right = which[low.size :].reshape(low.shape)
    u = scaled - low
    place, velocity = earth["p"], earth["v"] * _KNOT_DAY
    t = u[..., np.newaxis]
    joined = (
        (1 + 2 * t) * (1 - t) ** 2 * place[left]
        + t * (1 - t) ** 2 * velocity[left]
        + t**2 * (3 - 2 * t) * place[right]
        + t**2 * (t - 1) * velocity[right]
    )
    return joined, (1 - u) * tdb_minus_tt[left] + u * tdb_minus_tt[right]


def _site_au(
    jd_utc: Floats, jd_tt: Floats, lat_deg: ArrayLike, lon_deg: ArrayLike, height_m: ArrayLike
) -> Floats:
    """Geocentric place of the site along ICRS axes in au [..., 3]; zero where unknown."""
    lat, lon, height = np.broadcast_arrays(
        np.asarray(lat_deg, dtype=np.float64),
        np.asarray(lon_deg, dtype=np.float64),
        np.asarray(height_m, dtype=np.float64),
    )
    known = np.isfinite(lat) & np.isfinite(lon)
    earth_fixed = erfa.gd2gc(
        1,
        np.radians(np.where(known, lon, 0.0)),
        np.radians(np.where(known, lat, 0.0)),
        np.where(np.isfinite(height), height, 0.0),
    )
    earth_fixed = np.where(known[..., np.newaxis], earth_fixed, 0.0) / _AU_M
    # UT1 is within 0.9 s of UTC, nutation within 20 arcsec: 2 us of light together.
    angle = erfa.gmst06(jd_utc, 0.0, jd_tt, 0.0)
    x, y, z = earth_fixed[..., 0], earth_fixed[..., 1], earth_fixed[..., 2]
    east, north = np.cos(angle), np.sin(angle)
    turned = np.stack(np.broadcast_arrays(x * east - y * north, x * north + y * east, z), axis=-1)
    return np.asarray(np.einsum("...ji,...j->...i", erfa.pmat06(jd_tt, 0.0), turned))
