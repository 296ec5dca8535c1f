"""Plates of made skies whose truth is known, and of real frames."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import sep
from astropy.io import fits
from astropy.wcs import WCS, Sip
from numpy.testing import assert_allclose

from nightloom.sky.catalogue import Catalogue, at_epoch, read_catalogue
from nightloom.sky.plate import Plate, PlateRefusal, from_header, solve, to_pixels, to_sky

NX, NY, SCALE = 1000, 800, 1.8
UNKNOWN = math.nan


def tan_wcs(ra, dec, rotation_deg, *, mirrored=False, scale=SCALE) -> WCS:
    """Independent of the code under test: astropy's own TAN."""
    turn = np.radians(rotation_deg)
    handed = 1.0 if mirrored else -1.0
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [0.5 * (NX + 1), 0.5 * (NY + 1)]
    cosine, sine = np.cos(turn), np.sin(turn)
    wcs.wcs.cd = scale / 3600 * np.array([[handed * cosine, sine], [-handed * sine, cosine]])
    wcs.wcs.set()
    return wcs


def catalogue_of(ra, dec, mag) -> Catalogue:
    none = np.zeros(len(ra))
    return Catalogue(ra % 360.0, dec, mag, none, none, none + 2020.0, False, "")


def make_sky(wcs, rng, *, n_frame=60) -> Catalogue:
    """Stars over the frame and a degree around it, brighter ones rarer."""
    reach = 3600.0 / SCALE
    area = (NX + 2 * reach) * (NY + 2 * reach)
    n = int(n_frame * area / (NX * NY))
    x, y = rng.uniform(-reach, NX + reach, n), rng.uniform(-reach, NY + reach, n)
    ra, dec = wcs.all_pix2world(x, y, 0)
    return catalogue_of(ra, dec, 14.0 + np.log10(rng.uniform(0.0, 1.0, n)) / 0.6)


def expose(wcs, sky, rng, *, missing=0.3, spurious=0.3, noise_px=0.04):
    """Detections, brightest first: some stars missing, some that are none, places noisy."""
    x, y = wcs.all_world2pix(sky.ra_deg, sky.dec_deg, 0)
    inside = (x > 0) & (x < NX - 1) & (y > 0) & (y < NY - 1)
    seen = inside & (rng.uniform(size=len(x)) > missing)
    x = x[seen] + rng.normal(0.0, noise_px, seen.sum())
    y = y[seen] + rng.normal(0.0, noise_px, seen.sum())
    mag = sky.mag[seen] + rng.normal(0.0, 0.2, seen.sum())
    n = int(spurious * len(x))
    x = np.concatenate([x, rng.uniform(0, NX - 1, n)])
    y = np.concatenate([y, rng.uniform(0, NY - 1, n)])
    order = np.argsort(np.concatenate([mag, rng.choice(mag, n)]))
    return x[order], y[order]


def solve_at(x, y, sky, ra, dec, *, scale=SCALE, header=None, **more) -> Plate | PlateRefusal:
    return solve(
        x, y, sky, ny=NY, nx=NX, ra_deg=ra, dec_deg=dec, scale_arcsec=scale, header_wcs=header,
        **more,
    )  # fmt: skip


def assert_is_truth(plate: Plate | PlateRefusal, wcs: WCS, *, atol_px: float) -> None:
    assert isinstance(plate, Plate), plate
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(0, NX - 1, 5), np.linspace(0, NY - 1, 5)))
    ra, dec = wcs.all_pix2world(x, y, 0)
    got_x, got_y = to_pixels(plate, ra, dec)
    assert np.hypot(got_x - x, got_y - y).max() < atol_px
    back_x, back_y = to_pixels(plate, *to_sky(plate, x, y))
    assert_allclose(back_x, x, atol=1e-6)
    assert_allclose(back_y, y, atol=1e-6)


PLACES = [(359.99, 10.0), (0.01, -45.0), (120.0, 80.0), (250.0, 89.0), (77.0, -89.7)]


@pytest.mark.parametrize(("ra", "dec"), PLACES)
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_frame_is_solved_anywhere(ra, dec, mirrored):
    rng = np.random.default_rng(int(ra + 10 * dec) % 1000)
    rotation = rng.uniform(-180.0, 180.0)
    wcs = tan_wcs(ra, dec, rotation, mirrored=mirrored)
    sky = make_sky(wcs, rng)
    x, y = expose(wcs, sky, rng)
    guess_ra, guess_dec = wcs.all_pix2world(0.5 * NX + 300.0, 0.5 * NY - 200.0, 0)
    plate = solve_at(x, y, sky, float(guess_ra), float(guess_dec), scale=SCALE * 1.01)
    assert_is_truth(plate, wcs, atol_px=0.05)
    assert plate.source == "catalogue"
    assert plate.mirrored == mirrored
    assert_allclose(plate.scale_arcsec, SCALE, rtol=1e-4)
    assert 0.03 * SCALE < plate.rms_arcsec < 0.08 * SCALE
    assert plate.n_matched >= 35


def test_rotation_is_the_position_angle_of_y():
    wcs = tan_wcs(10.0, 20.0, 30.0)
    plate = from_header(wcs.to_header_string(), ny=NY, nx=NX)
    ra, dec = to_sky(plate, [499.5, 499.5], [399.5, 409.5])
    east = (ra[1] - ra[0]) * np.cos(np.radians(dec[0]))
    assert_allclose(plate.rotation_deg, np.degrees(np.arctan2(east, dec[1] - dec[0])), atol=1e-3)
    assert_allclose(abs(plate.rotation_deg), 30.0, atol=1e-6)
    assert not plate.mirrored


@pytest.mark.parametrize("away_deg", [0.5, 1.0])
def test_a_guess_may_be_a_degree_off(away_deg):
    rng = np.random.default_rng(5)
    wcs = tan_wcs(200.0, 60.0, 75.0)
    sky = make_sky(wcs, rng)
    x, y = expose(wcs, sky, rng)
    assert_is_truth(solve_at(x, y, sky, 200.0, 60.0 + away_deg), wcs, atol_px=0.05)


@pytest.mark.parametrize("scale", [2.0 * SCALE, 0.5 * SCALE, UNKNOWN])
def test_scale_and_pointing_may_be_unknown(scale):
    rng = np.random.default_rng(6)
    wcs = tan_wcs(200.0, 60.0, 75.0)
    sky = make_sky(wcs, rng)
    x, y = expose(wcs, sky, rng)
    assert_is_truth(solve_at(x, y, sky, UNKNOWN, UNKNOWN, scale=scale), wcs, atol_px=0.05)


def test_the_catalogue_may_go_deeper_than_the_frame_or_less_deep():
    rng = np.random.default_rng(8)
    wcs = tan_wcs(30.0, 40.0, 10.0)
    sky = make_sky(wcs, rng, n_frame=150)
    x, y = expose(wcs, sky, rng, missing=0.1)
    shallow = sky.mag < np.sort(sky.mag)[len(sky.mag) // 5]
    bright = catalogue_of(sky.ra_deg[shallow], sky.dec_deg[shallow], sky.mag[shallow])
    assert_is_truth(solve_at(x, y, bright, 30.0, 40.1), wcs, atol_px=0.1)
    assert_is_truth(solve_at(x[:30], y[:30], sky, 30.0, 40.1), wcs, atol_px=0.1)


def test_two_runs_and_any_order_of_the_catalogue_agree_to_the_bit():
    rng = np.random.default_rng(9)
    wcs = tan_wcs(0.0, 5.0, 10.0)
    sky = make_sky(wcs, rng)
    x, y = expose(wcs, sky, rng)
    order = rng.permutation(len(sky.mag))
    mixed = catalogue_of(sky.ra_deg[order], sky.dec_deg[order], sky.mag[order])
    first = solve_at(x, y, sky, 0.0, 5.1)
    assert isinstance(first, Plate)
    assert solve_at(x, y, sky, 0.0, 5.1) == first
    assert solve_at(x, y, mixed, 0.0, 5.1) == first


@pytest.mark.parametrize("seed", range(2))
def test_an_unrelated_catalogue_is_refused(seed):
    rng = np.random.default_rng(seed)
    wcs = tan_wcs(50.0, 20.0, 10.0)
    x, y = expose(wcs, make_sky(wcs, rng), rng)
    header = wcs.to_header_string()
    refused = solve_at(x, y, make_sky(wcs, rng), 50.0, 20.0, header=header)
    assert isinstance(refused, PlateRefusal)
    assert "confirmed by the catalogue around ra 50.0000 dec +20.0000" in refused.reason
    assert "header's WCS puts" in refused.reason


def test_too_little_to_go_by_is_refused_with_its_reason():
    rng = np.random.default_rng(1)
    wcs = tan_wcs(50.0, 20.0, 10.0)
    sky = make_sky(wcs, rng)
    x, y = expose(wcs, sky, rng)
    few = catalogue_of(sky.ra_deg[:3], sky.dec_deg[:3], sky.mag[:3])
    empty = catalogue_of(np.empty(0), np.empty(0), np.empty(0))
    for refused, told in [
        (solve_at(x[:0], y[:0], sky, 50.0, 20.0), "no star was detected"),
        (solve_at(x[:4], y[:4], sky, 50.0, 20.0), "4 detections are too few"),
        (solve_at(x, y, empty, 50.0, 20.0), "the catalogue is empty"),
        (solve_at(x, y, few, 50.0, 20.0), "no frame around ra"),
        (solve_at(x, y, sky, 230.0, -20.0), "no frame around ra"),
        (solve_at(x[:4], y[:4], sky, 5.0, 2.0, header="SIMPLE  = T"), "no right ascension"),
    ]:
        assert isinstance(refused, PlateRefusal)
        assert told in refused.reason


def test_nan_detections_are_left_out():
    rng = np.random.default_rng(10)
    wcs = tan_wcs(50.0, 20.0, 10.0)
    sky = make_sky(wcs, rng)
    x, y = expose(wcs, sky, rng)
    x[3] = np.nan
    assert_is_truth(solve_at(x, y, sky, 50.0, 20.0), wcs, atol_px=0.05)


def test_a_header_that_is_a_little_off_is_refined():
    rng = np.random.default_rng(11)
    wcs = tan_wcs(359.999, 62.0, 190.0)
    sky = make_sky(wcs, rng, n_frame=14)
    x, y = expose(wcs, sky, rng)
    off = tan_wcs(359.999, 62.0 + 4.0 / 3600.0, 190.05)
    plate = solve_at(x, y, sky, 0.0, 0.0, header=off.to_header_string())
    assert_is_truth(plate, wcs, atol_px=0.15)
    assert plate.source == "catalogue"


def test_a_header_that_is_wrong_does_not_stop_the_search():
    rng = np.random.default_rng(12)
    wcs = tan_wcs(50.0, 20.0, 10.0)
    sky = make_sky(wcs, rng)
    x, y = expose(wcs, sky, rng)
    wrong = tan_wcs(50.0, 20.1, 10.0).to_header_string()
    assert_is_truth(solve_at(x, y, sky, 50.0, 20.0, header=wrong), wcs, atol_px=0.05)


def test_a_header_with_two_stars_that_agree_is_kept_as_it_is():
    rng = np.random.default_rng(13)
    wcs = tan_wcs(50.0, 20.0, 10.0)
    header = wcs.to_header_string()
    sky = make_sky(wcs, rng, n_frame=40)
    x, y = expose(wcs, sky, rng)
    ra, dec = wcs.all_pix2world(x[:2], y[:2], 0)
    plate = solve_at(x, y, catalogue_of(ra, dec, np.array([1.0, 2.0])), 50.0, 20.0, header=header)
    assert isinstance(plate, Plate)
    assert (plate.source, plate.n_matched, plate.header) == ("header", 2, header)
    away = catalogue_of(ra, dec + 30.0 / 3600.0, np.array([1.0, 2.0]))
    assert isinstance(solve_at(x, y, away, 50.0, 20.0, header=header), PlateRefusal)


def test_distortion_of_a_header_survives_solving_and_pickling():
    rng = np.random.default_rng(14)
    wcs = tan_wcs(80.0, 70.0, 33.0)
    bend = np.zeros((3, 3))
    bend[2, 0], bend[0, 2], bend[1, 1] = 2.34567890123e-6, -1.23456789012e-6, 7.7e-7
    wcs.sip = Sip(bend, -bend, None, None, wcs.wcs.crpix)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    header = wcs.to_header_string(relax=True)
    sky = make_sky(tan_wcs(80.0, 70.0, 33.0), rng)
    x, y = wcs.all_world2pix(sky.ra_deg, sky.dec_deg, 0, quiet=True)
    inside = (np.abs(x - 500) < 490) & (np.abs(y - 400) < 390)
    plate = solve_at(x[inside], y[inside], sky, 80.0, 70.0, header=header)
    assert isinstance(plate, Plate)
    assert plate.source == "header"
    assert plate.n_matched >= 0.9 * inside.sum()
    copy = pickle.loads(pickle.dumps(plate))
    assert copy == plate
    got_x, got_y = to_pixels(copy, sky.ra_deg[inside], sky.dec_deg[inside])
    assert_allclose(got_x, x[inside], atol=1e-4)
    assert_allclose(got_y, y[inside], atol=1e-4)


def test_a_header_alone_is_a_plate_that_claims_no_match():
    plate = from_header(tan_wcs(10.0, -20.0, 0.0).to_header_string(), ny=NY, nx=NX)
    assert isinstance(plate, Plate)
    assert plate.n_matched == 0
    assert np.isnan(plate.rms_arcsec)
    assert_allclose(plate.scale_arcsec, SCALE, rtol=1e-6)
    assert isinstance(from_header("", ny=NY, nx=NX), PlateRefusal)


def test_the_far_side_of_the_sky_and_no_place_have_no_pixel():
    plate = from_header(tan_wcs(10.0, -20.0, 0.0).to_header_string(), ny=NY, nx=NX)
    x, y = to_pixels(plate, [10.0, 190.0, np.nan], [-20.0, 20.0, 5.0])
    assert_allclose([x[0], y[0]], [499.5, 399.5], atol=1e-6)
    assert np.isnan([x[1:], y[1:]]).all()


def detections(path) -> tuple[np.ndarray, np.ndarray, fits.Header]:
    with fits.open(path) as hdus:
        pixels, header = hdus[0].data.astype(np.float32), hdus[0].header
    background = sep.Background(pixels)
    found = sep.extract(pixels - background.back(), 5.0, err=background.globalrms)
    order = np.argsort(-found["flux"])
    return found["x"][order], found["y"][order], header


def test_a_real_wide_frame_is_solved(shared_data):
    sky = at_epoch(read_catalogue([shared_data / "catalogs" / "tycho2_hatp32.ecsv"]), 2017.97)
    first = sorted((shared_data / "hatp32").glob("*.FITS"))[0]
    x, y, header = detections(first)
    plate = solve(
        x, y, sky, ny=500, nx=650, scale_arcsec=header["IM_SCALE"],
        ra_deg=header["RA"], dec_deg=header["DEC"],
    )  # fmt: skip
    assert isinstance(plate, Plate)
    assert plate.n_matched >= 42
    assert plate.rms_arcsec < 1.7
    assert_allclose(plate.scale_arcsec, 5.1645, atol=0.003)
    assert plate.mirrored
    assert_allclose(to_pixels(plate, 31.04283, 46.68784), [423.2, 286.1], atol=0.3)
    assert_allclose(to_sky(plate, 324.5, 249.5), [31.248, 46.740], atol=0.002)


@pytest.fixture(scope="module")
def narrow(shared_data):
    """Detections and header text of a frame with WCS, and detections of one without."""
    lights = sorted((shared_data / "xo1b" / "lights").glob("*.fits"))
    x, y, header = detections(lights[0])
    assert "CRVAL1" in header
    bare_x, bare_y, bare = detections(lights[-6])
    assert "CRVAL1" not in bare
    return x, y, header.tostring(), bare_x, bare_y


def test_a_real_narrow_frame_is_solved_with_and_without_its_wcs(shared_data, narrow):
    x, y, header, bare_x, bare_y = narrow
    sky = read_catalogue([shared_data / "catalogs" / "xo1_frame_stars.ecsv"])
    guess = {"ny": 1024, "nx": 1024, "ra_deg": 240.55, "dec_deg": 28.2, "scale_arcsec": 0.67}
    by_header = solve(x, y, sky, **guess, header_wcs=header)
    by_stars = solve(x, y, sky, **guess)
    bare = solve(bare_x, bare_y, sky, **guess)
    for plate in (by_header, by_stars, bare):
        assert isinstance(plate, Plate), plate
        assert plate.source == "catalogue"
        assert plate.n_matched >= 12
        assert plate.rms_arcsec < 0.5
        assert_allclose(plate.scale_arcsec, 0.670, atol=0.001)
    here = to_pixels(by_header, 240.549, 28.1695)
    assert_allclose(to_pixels(by_stars, 240.549, 28.1695), here, atol=0.1)
    original = replace(by_header, header=header)
    assert_allclose(to_pixels(original, 240.549, 28.1695), here, atol=2.0)


def test_two_real_stars_confirm_a_header_and_solve_nothing(shared_data, narrow):
    x, y, header, _, _ = narrow
    sky = at_epoch(read_catalogue([shared_data / "catalogs" / "tycho2_xo1.ecsv"]), 2025.417)
    guess = {"ny": 1024, "nx": 1024, "ra_deg": 240.55, "dec_deg": 28.2, "scale_arcsec": 0.67}
    plate = solve(x, y, sky, **guess, header_wcs=header)
    assert isinstance(plate, Plate)
    assert (plate.source, plate.n_matched) == ("header", 2)
    assert plate.rms_arcsec < 1.5
    assert isinstance(solve(x, y, sky, **guess), PlateRefusal)
