"""Times against astropy, nights against the places where the usual cuts go wrong."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import AltAz, EarthLocation, SkyCoord, get_sun
from astropy.time import Time
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from nightloom.sky.times import (
    airmass,
    altitude_deg,
    bjd_tdb,
    night_of,
    set_offline,
    sun_altitude_deg,
)

HAWAII, CHILE, CANARIES, AUSTRALIA, ARIZONA = -155.47, -70.81, -17.88, 149.07, -110.88
N = 60


@pytest.fixture(autouse=True)
def offline():
    set_offline()


def jd_of(text: str) -> float:
    return float(Time(text, scale="utc").jd)


def this_day() -> float:
    return 2440587.5 + time.time() / 86400.0


@pytest.fixture(params=["1994", "2016", "last week", "next year"])
def start_jd(request) -> float:
    return {
        "1994": 2449500.0,
        "2016": 2457500.0,
        "last week": this_day() - 8.0,
        "next year": this_day() + 400.0,
    }[request.param]


@pytest.fixture
def sample(start_jd):
    """Times, directions and sites all over the sky and the earth."""
    rng = np.random.default_rng(7)
    return {
        "jd_utc": start_jd + rng.uniform(0.0, 7.0, N),
        "ra_deg": rng.uniform(0.0, 360.0, N),
        "dec_deg": np.degrees(np.arcsin(rng.uniform(-1.0, 1.0, N))),
        "lat_deg": rng.uniform(-80.0, 80.0, N),
        "lon_deg": rng.uniform(-180.0, 180.0, N),
        "height_m": rng.uniform(0.0, 4200.0, N),
    }


def place(sample) -> tuple[Time, SkyCoord, EarthLocation]:
    site = EarthLocation.from_geodetic(
        sample["lon_deg"] * u.deg, sample["lat_deg"] * u.deg, sample["height_m"] * u.m
    )
    when = Time(sample["jd_utc"], format="jd", scale="utc", location=site)
    return when, SkyCoord(sample["ra_deg"] * u.deg, sample["dec_deg"] * u.deg), site


@pytest.fixture
def oracle_bjd(sample) -> Time:
    when, star, _ = place(sample)
    with warnings.catch_warnings():
        # astropy says so of every time after its tables, whatever its settings.
        warnings.filterwarnings("ignore", message="Tried to get polar motions")
        return when.tdb + when.light_travel_time(star, ephemeris="builtin")


def test_bjd_is_astropys_to_the_resolution_of_a_float(sample, oracle_bjd):
    ours = Time(bjd_tdb(**sample), format="jd", scale="tdb")
    error_us = (ours - oracle_bjd).to_value("us")
    assert np.abs(error_us).max() < 30.0
    assert abs(error_us.mean()) < 10.0


def test_bjd_without_a_site_is_the_geocentres(sample, oracle_bjd):
    ours = Time(bjd_tdb(**sample | {"lat_deg": np.nan}), format="jd", scale="tdb")
    error_ms = np.abs((ours - oracle_bjd).to_value("ms"))
    assert error_ms.max() < 21.5
    assert error_ms.max() > 1.0


def test_bjd_of_one_time_and_of_many_targets_is_that_of_each():
    jd = 2457500.3 + np.arange(5) * 0.1
    ra, dec = np.array([10.0, 200.0, 300.0]), np.array([-80.0, 0.0, 45.0])
    block = bjd_tdb(jd, ra[:, None], dec[:, None], -30.2, CHILE, 2200.0)
    assert block.shape == (3, 5)
    for s in range(3):
        for t in range(5):
            assert block[s, t] == bjd_tdb(jd[t], ra[s], dec[s], -30.2, CHILE, 2200.0)


def test_bjd_of_no_time_or_one_beyond_the_ephemeris_is_nan():
    bjd = bjd_tdb([np.nan, np.inf, 0.0, 2.6e6, 2457500.5], 10.0, 20.0, 30.0, 40.0, np.nan)
    assert_array_equal(np.isfinite(bjd), [False, False, False, False, True])


def test_leap_seconds_are_counted_on_both_sides():
    before, after = 2457754.0, 2457755.0  # noon of 2016-12-31 and of the day after
    pole = {"ra_deg": 270.0, "dec_deg": 66.56, "lat_deg": np.nan, "lon_deg": 0.0, "height_m": 0.0}
    step_s = (bjd_tdb(after, **pole) - bjd_tdb(before, **pole) - 1.0) * 86400.0
    # Towards the pole of the ecliptic a day changes nothing but the leap second.
    assert_allclose(step_s, 1.0, atol=0.1)


def test_altitudes_are_astropys(sample):
    when, star, site = place(sample)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tried to get polar motions")
        frame = AltAz(obstime=when, location=site)
        star_altitude = star.transform_to(frame).alt.deg
        sun_altitude = get_sun(when).transform_to(frame).alt.deg
    site_time = {key: sample[key] for key in ("jd_utc", "lat_deg", "lon_deg")}
    at_star = site_time | {key: sample[key] for key in ("ra_deg", "dec_deg")}
    assert_allclose(altitude_deg(**at_star), star_altitude, atol=0.011)
    assert_allclose(sun_altitude_deg(**site_time), sun_altitude, atol=0.03)
    mass = airmass(**at_star)
    assert_array_equal(
        np.isnan(mass[np.abs(star_altitude) > 0.1]),
        star_altitude[np.abs(star_altitude) > 0.1] < 0.0,
    )
    high = star_altitude > 20.0
    assert_allclose(mass[high], 1.0 / np.sin(np.radians(star_altitude[high])), rtol=0.012)


def test_airmass_at_the_zenith_is_one_and_at_the_horizon_some_32():
    assert_allclose(airmass(2451545.0, 0.0, 90.0, [90.0, 0.05], 0.0), [1.0, 31.0], rtol=0.04)
    assert np.isnan(airmass(2451545.0, 0.0, 90.0, -20.0, 0.0))


def test_unknown_site_or_time_gives_no_altitude():
    assert np.isnan(airmass(2457500.5, 10.0, 20.0, np.nan, 40.0))
    assert np.isnan(airmass(np.nan, 10.0, 20.0, 30.0, 40.0))
    assert np.isnan(sun_altitude_deg([2457500.5, np.nan], [np.nan, 10.0], 40.0)).all()


@pytest.mark.parametrize(
    ("lon_deg", "utc", "evening"),
    [
        (HAWAII, "2020-01-02T04:30", "2020-01-01"),
        (HAWAII, "2020-01-02T15:59", "2020-01-01"),
        (HAWAII + 360.0, "2020-01-02T15:59", "2020-01-01"),
        (CHILE, "2020-01-01T23:30", "2020-01-01"),
        (CHILE, "2020-01-02T10:00", "2020-01-01"),
        (CANARIES, "2020-01-01T19:30", "2020-01-01"),
        (CANARIES, "2020-01-02T07:30", "2020-01-01"),
        (AUSTRALIA, "2020-01-01T09:30", "2020-01-01"),
        (AUSTRALIA, "2020-01-01T19:00", "2020-01-01"),
        (AUSTRALIA, "2020-01-02T01:55", "2020-01-01"),
        (AUSTRALIA, "2020-01-02T02:10", "2020-01-02"),
        (np.nan, "2020-03-01T11:59", "2020-02-29"),
        (np.nan, "2020-03-01T12:01", "2020-03-01"),
    ],
)
def test_a_night_has_the_date_of_its_evening(lon_deg, utc, evening):
    assert night_of([jd_of(utc)], lon_deg)[0] == evening


@given(
    lon_deg=st.floats(-179.9, 179.9),
    day=st.integers(2440000, 2465000),
    hours=st.lists(st.floats(0.01, 23.99), min_size=2, max_size=6),
)
def test_noon_to_noon_is_one_night_wherever(lon_deg, day, hours):
    noon = day - lon_deg / 360.0
    names = night_of(noon + np.array(hours) / 24.0, lon_deg)
    assert set(names) == {str(np.datetime64("2000-01-01") + (day - 2451545))}


def test_nights_of_a_million_frames_are_quick_and_of_no_time_empty():
    jd = 2450000.0 + np.arange(1_000_000) * 0.005
    jd[3] = np.nan
    before = time.process_time()
    names = night_of(jd, ARIZONA)
    assert time.process_time() - before < 2.0
    assert names[3] == ""
    assert len(set(names)) == 5001 + 1


def test_no_network_no_warning_whatever_the_date():
    script = """
import socket, time
class Refused(socket.socket):
    def __init__(self, *args, **kwargs):
        raise AssertionError("the network was asked")
socket.socket = Refused
import numpy as np
from nightloom.sky.times import airmass, bjd_tdb, set_offline
set_offline()
set_offline()
today = 2440587.5 + time.time() / 86400.0
jd = np.array([2457500.5, today - 7.0, today, today + 365.0])
assert np.isfinite(bjd_tdb(jd, 31.0, 46.7, 31.7, -110.9, 1268.0)).all()
assert np.isfinite(airmass(jd, 31.0, 89.0, 31.7, -110.9)).all()
from astropy.time import Time
assert np.isfinite(Time(jd, format="jd", scale="utc").ut1.jd).all()
assert np.isfinite(Time(jd, format="jd", scale="utc").tdb.jd).all()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
