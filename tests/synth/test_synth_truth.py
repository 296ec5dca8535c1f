"""The known sky against closed forms and astropy."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.coordinates import EarthLocation, SkyCoord
from astropy.time import Time
from astropy.wcs import WCS
from numpy.testing import assert_allclose

from nightloom.errors import ConfigError
from nightloom.synth.truth import (
    MS_PER_DAY,
    Site,
    SynthSpec,
    bjd_tdb,
    field_centre,
    make_field,
    offline,
    pixel_to_sky,
    places_at,
    relative_flux,
    sky_to_pixel,
    transit_flux,
    utc,
)

SPEC = SynthSpec()


def test_transit_is_a_trapezoid_of_the_given_depth_and_durations() -> None:
    minutes = np.arange(-90, 91)
    bjd = 2460585.5 + 3 * 0.998 + minutes / 1440
    flux = transit_flux(
        bjd,
        depth=0.02,
        epoch_bjd=2460585.5,
        period_d=0.998,
        duration_d=120 / 1440,
        ingress_d=15 / 1440,
    )
    knots = [-90, -60, -45, 45, 60, 90]
    expected = np.interp(minutes, knots, [1, 1, 0.98, 0.98, 1, 1])
    assert_allclose(flux, expected, atol=1e-6)  # BJD resolves 40 us


def test_variables_swing_by_their_amplitude_and_return_after_a_period() -> None:
    stars = make_field(SPEC, 0, epoch_bjd=2460585.5).stars
    bjd = stars.epoch_bjd[1] + np.array([0, 0.25, 0.75, 3]) * stars.period_d[1]
    assert_allclose(relative_flux(stars, 1, bjd), [1, 1.05, 0.95, 1], atol=1e-6)
    assert stars.kind[7] == "constant"
    assert_allclose(relative_flux(stars, 7, bjd), 1)


@pytest.mark.parametrize("dec_deg", [28.3, -80.0, 89.0])
@pytest.mark.parametrize("rotation_deg", [0.0, 181.3])
def test_projection_is_astropys_tan(dec_deg: float, rotation_deg: float) -> None:
    ra_deg = 359.99
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra_deg, dec_deg]
    wcs.wcs.crpix = [(SPEC.nx + 1) / 2 + 12.5, (SPEC.ny + 1) / 2 - 7.25]
    angle = np.radians(rotation_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = SPEC.pixel_scale_arcsec / 3600
    wcs.wcs.cd = np.linalg.inv(turn @ np.diag([-1, 1]) / scale)
    x, y = np.meshgrid(np.linspace(-50, 549, 7), np.linspace(-50, 449, 7))
    ra, dec = wcs.all_pix2world(x, y, 0)
    got = sky_to_pixel(
        ra,
        dec,
        spec=SPEC,
        centre_deg=(ra_deg, dec_deg),
        shift_px=(12.5, -7.25),
        rotation_deg=rotation_deg,
    )
    assert_allclose(got, (x, y), atol=1e-6)


def test_pixels_and_sky_go_round() -> None:
    x, y = np.array([-60.0, 0, 250, 560]), np.array([-60.0, 399, 200, 460])
    ra, dec = pixel_to_sky(x, y, spec=SPEC, ra_deg=0.0, dec_deg=80.0)
    got = sky_to_pixel(ra, dec, spec=SPEC, centre_deg=(0.0, 80.0))
    assert_allclose(got, (x, y), atol=1e-7)


def test_bjd_tdb_is_astropys() -> None:
    with offline():
        site = EarthLocation.from_geodetic(-16.51, 28.3, 2390)
        time = Time("2024-10-02T01:02:03.456", scale="utc", location=site)
        later = time.light_travel_time(SkyCoord("0h44m +28d18m"), kind="barycentric")
        expected = (time.tdb + later).jd
        unix_ms = int(np.datetime64("2024-10-02T01:02:03.456", "ms").astype(np.int64))
        times = utc(np.array([unix_ms]), site=Site())
    got = bjd_tdb(times, ra_deg=11.0, dec_deg=28.3)
    assert_allclose((got - expected) * 86400, 0, atol=1e-4)
    assert 300 < (got[0] - unix_ms / MS_PER_DAY - 2440587.5) * 86400 < 600


def test_proper_motion_moves_a_star_by_its_arcseconds() -> None:
    stars = make_field(SPEC, 0, epoch_bjd=2460585.5).stars
    jd = 2451545.0 + 365.25 * 24.75  # 2024.75
    ra, dec = places_at(stars, jd)
    then = SkyCoord(stars.ra_deg, stars.dec_deg, unit="deg")
    moved = then.separation(SkyCoord(ra, dec, unit="deg")).arcsec
    assert_allclose(moved[4:7], 0.4 * 8.75, rtol=1e-4)
    assert moved[7:].max() < 0.5


def test_stars_of_interest_are_alone_and_one_field_lies_across_zero() -> None:
    for index in range(3):
        field = make_field(SPEC, index, epoch_bjd=2460585.5)
        x, y = sky_to_pixel(
            field.stars.ra_deg,
            field.stars.dec_deg,
            spec=SPEC,
            centre_deg=(field.ra_deg, field.dec_deg),
        )
        gaps = np.hypot(x[:, None] - x[:3], y[:, None] - y[:3])
        gaps[np.arange(3), np.arange(3)] = np.inf
        assert gaps.min() > 25
        inside = (x > 0) & (x < SPEC.nx - 1) & (y > 0) & (y < SPEC.ny - 1)
        assert 85 < inside.sum() < 155
    ra = make_field(SPEC, 1, epoch_bjd=2460585.5).stars.ra_deg
    assert field_centre(1)[0] == 0.0
    assert (ra < 1).any()
    assert (ra > 359).any()
    assert ((ra < 1) | (ra > 359)).all()


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"n_nights": 0}, "n_nights"),
        ({"filters": ("R", "Z")}, "filters"),
        ({"filters": ()}, "filters"),
        ({"exposure_s": 0.0}, "exposure_s"),
        ({"dialects": ("iraf",)}, "dialects"),
        ({"nx": 8}, "nx"),
    ],
)
def test_specs_that_make_no_archive_are_refused_by_name(wrong: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=f"synth: {key}"):
        SynthSpec(**wrong)
