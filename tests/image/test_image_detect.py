"""Background and detection on skies that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sep
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from nightloom.image.calibrate import MASK_BAD, MASK_NAN, MASK_SATURATED
from nightloom.image.detect import (
    Background,
    background_at,
    background_image,
    background_mesh,
    detect,
)


def profile(size, centre, fwhm_px):
    """Light of a Gaussian of unit flux in each of `size` pixels of a row."""
    scale = 2.3548 / fwhm_px / math.sqrt(2)
    edges = np.array([math.erf(scale * (k - 0.5 - centre)) for k in range(size + 1)])
    return 0.5 * np.diff(edges)


def sky_of_stars(shape, x, y, flux, fwhm_px):
    image = np.zeros(shape)
    for a, b, f in zip(x, y, flux, strict=True):
        image += f * np.outer(profile(shape[0], b, fwhm_px), profile(shape[1], a, fwhm_px))
    return image


def apart(rng, n, shape, least_px):
    """n places that are at least so far from each other and half as far from the edge."""
    places = []
    while len(places) < n:
        place = rng.uniform(least_px / 2, np.array(shape[::-1]) - least_px / 2)
        if all(np.hypot(*(place - other)) > least_px for other in places):
            places.append(place)
    return np.array(places).T


def field(seed, *, fwhm_px, n=60, shape=(400, 500), sky_e=200.0, faint_e=3e3, bright_e=3e5):
    """A noisy frame, places and fluxes of its stars."""
    rng = np.random.default_rng(seed)
    x, y = apart(rng, n, shape, 20.0)
    flux = faint_e * (bright_e / faint_e) ** rng.random(n)
    expected = sky_e + sky_of_stars(shape, x, y, flux, fwhm_px)
    return rng.poisson(expected).astype(np.float32), x, y, flux


def clean(pixels):
    return np.zeros(pixels.shape, np.uint8)


def found_in(pixels, mask=None, **settings_):
    mask = clean(pixels) if mask is None else mask
    return detect(pixels, mask, background_mesh(pixels, mask), **settings_)


def compare(stars, x, y):
    """Distance of each true star to the nearest found, and of each found to the nearest true."""
    if not len(stars.x_px):
        return np.full(len(x), np.inf), np.empty(0)
    far = np.hypot(stars.x_px[:, None] - x, stars.y_px[:, None] - y)
    return far.min(axis=0), far.min(axis=1)


def test_level_and_noise_of_a_flat_sky_are_unbiased():
    rng = np.random.default_rng(1)
    mesh = background_mesh(
        rng.normal(50.0, 5.0, (512, 640)).astype(np.float32), np.zeros((512, 640))
    )
    assert mesh.level.shape == (8, 10)
    assert mesh.level.mean() == pytest.approx(50.0, abs=0.05)
    assert mesh.level.std() < 0.2
    assert mesh.noise.mean() == pytest.approx(5.0, rel=0.01)


def test_stars_hardly_raise_the_level():
    pixels, *_ = field(2, fwhm_px=4.0, n=80, bright_e=1e6)
    mesh = background_mesh(pixels, clean(pixels))
    assert abs(mesh.level.mean() - 200.0) < 0.1 * math.sqrt(200.0)
    assert mesh.noise.mean() == pytest.approx(math.sqrt(200.0), rel=0.05)


def test_few_integers_do_not_pin_the_median():
    rng = np.random.default_rng(3)
    pixels = np.round(rng.normal(100.4, 0.8, (256, 256))).astype(np.float32)
    mesh = background_mesh(pixels, clean(pixels))
    assert mesh.level.mean() == pytest.approx(100.4, abs=0.05)
    assert mesh.noise.mean() == pytest.approx(math.hypot(0.8, 1 / math.sqrt(12)), rel=0.03)


def test_a_gradient_is_followed_to_the_corners_and_its_slope_is_no_noise():
    y, x = np.mgrid[:500, :650]
    plane = 100.0 + 3.0 * x - 0.5 * y + 300.0
    pixels = np.random.default_rng(4).normal(plane, 10.0)
    mesh = background_mesh(pixels, clean(pixels))
    assert np.abs(background_image(mesh, 500, 650) - plane).max() < 5.0
    assert mesh.noise.mean() == pytest.approx(10.0, rel=0.1)


def test_noise_is_local():
    rng = np.random.default_rng(5)
    noise = np.where(np.arange(512) < 256, 3.0, 12.0)
    pixels = rng.normal(10.0, noise, (512, 512))
    mesh = background_mesh(pixels, clean(pixels))
    assert_allclose(background_at(mesh, np.array([30.0, 480.0]), np.array([250.0, 250.0]))[1],
                    [3.0, 12.0], rtol=0.06)  # fmt: skip


def test_a_bright_galaxy_fools_neither_the_level_nor_the_noise_beyond_it():
    y, x = np.mgrid[:512, :512]
    pixels, sx, sy, _ = field(6, fwhm_px=3.0, n=50, shape=(512, 512))
    galaxy = 4e4 * np.exp(-np.hypot(x - 250, y - 260) / 12.0)
    pixels = pixels + np.random.default_rng(6).poisson(galaxy)
    mesh = background_mesh(pixels, clean(pixels))
    level = background_image(mesh, 512, 512)
    beyond = np.hypot(x - 250, y - 260) > 150
    assert np.abs(level[beyond] - 200.0).max() < 0.5 * math.sqrt(200.0)
    stars = detect(pixels, clean(pixels), mesh)
    missed, strange = compare(stars, np.append(sx, 250), np.append(sy, 260))
    off_galaxy = np.append(np.hypot(sx - 250, sy - 260) > 60, False)
    assert (missed[off_galaxy] < 1).mean() > 0.97
    assert (strange > 3).sum() <= 1


def test_masked_boxes_are_filled_from_their_neighbours():
    rng = np.random.default_rng(7)
    pixels = rng.normal(30.0, 2.0, (256, 256))
    pixels[:70, :70] = 1e6
    mask = clean(pixels)
    mask[:70, :70] = MASK_BAD
    mesh = background_mesh(pixels, mask)
    assert_allclose(mesh.level, 30.0, atol=0.3)


def test_background_at_agrees_with_the_image_and_goes_on_beyond_it():
    rng = np.random.default_rng(8)
    pixels = rng.normal(30.0, 2.0, (150, 333)) + np.arange(333)
    mesh = background_mesh(pixels, clean(pixels), box_px=32)
    y, x = np.mgrid[:150:7, :333:11]
    image = background_image(mesh, 150, 333)
    assert_allclose(background_at(mesh, x.ravel(), y.ravel())[0], image[y, x].ravel(), rtol=1e-5)
    level, noise = background_at(mesh, np.array([-4.0, 1e9]), np.array([70.0, 70.0]))
    assert level[0] == pytest.approx(26.0, abs=2.0)
    assert np.isfinite([level[1], noise[1]]).all()


@pytest.mark.parametrize("fwhm_px", [1.5, 2.35, 3.5, 6.0])
def test_stars_of_any_width_are_all_found_and_nothing_else(fwhm_px):
    pixels, x, y, flux = field(11, fwhm_px=fwhm_px)
    stars = found_in(pixels)
    missed, strange = compare(stars, x, y)
    assert (missed < 1.0).mean() > 0.98
    assert (strange > 2.0).sum() == 0
    bright = flux > 3e4
    assert np.sqrt(np.mean(missed[bright] ** 2)) < 0.1
    assert (np.diff(stars.flux_e) <= 0).all()
    nearest = np.argmin(np.hypot(stars.x_px[:, None] - x, stars.y_px[:, None] - y), axis=1)
    assert np.corrcoef(np.log(stars.flux_e), np.log(flux[nearest]))[0, 1] > 0.98


def test_undersampled_stars_on_a_gradient_are_found():
    pixels, x, y, _ = field(12, fwhm_px=2.35, n=40, faint_e=2e4)
    gradient = np.random.default_rng(12).poisson(np.broadcast_to(8.0 * np.arange(500), (400, 500)))
    missed, strange = compare(found_in(pixels + gradient), x, y)
    assert (missed < 1.0).all()
    assert (strange > 2.0).sum() == 0


def test_where_the_noise_is_higher_the_threshold_is_too():
    rng = np.random.default_rng(13)
    noise = np.linspace(3.0, 40.0, 800)
    pixels = rng.normal(0.0, noise, (400, 800))
    x, y = np.arange(60.0, 800.0, 80.0), np.full(10, 200.0)
    pixels += sky_of_stars((400, 800), x, y, np.full(10, 450.0), 3.5)
    stars = found_in(pixels)
    missed, strange = compare(stars, x, y)
    assert (missed[:3] < 1).all()
    assert (missed[-4:] > 3).all()
    assert (strange > 3).sum() <= 1


def test_noise_alone_gives_nothing():
    pixels = np.random.default_rng(14).poisson(100.0, (1000, 1000)).astype(np.float32)
    assert len(found_in(pixels).x_px) <= 1


def test_hot_pixels_and_cosmic_rays_are_no_stars():
    rng = np.random.default_rng(15)
    pixels, x, y, _ = field(15, fwhm_px=1.6, n=40)
    hot_x, hot_y = rng.integers(0, 500, 200), rng.integers(0, 400, 200)
    pixels[hot_y, hot_x] += rng.uniform(150, 50_000, 200)
    for k in range(12):
        row, column = rng.integers(20, 380), rng.integers(20, 480)
        for step in range(9):
            pixels[row + (step if k % 2 else 0), column + (0 if k % 3 == 0 else step)] += 4_000.0
    missed, strange = compare(found_in(pixels), x, y)
    assert (missed < 1.0).mean() > 0.95
    assert (strange > 3.0).sum() <= 2


def test_a_hit_brighter_than_every_star_is_not_first():
    pixels, x, y, flux = field(16, fwhm_px=3.0, n=20)
    pixels[100:103, 77] += 1e6
    stars = found_in(pixels)
    top = np.argmax(flux)
    assert math.hypot(stars.x_px[0] - x[top], stars.y_px[0] - y[top]) < 1.0


def test_saturated_stars_are_found_once_known_and_first():
    pixels, x, y, flux = field(17, fwhm_px=4.0, n=20, bright_e=2e5)
    bright = np.argsort(-flux)[:3]
    pixels += sky_of_stars(pixels.shape, x[bright], y[bright], [3e6, 2e7, 1.5e8], 4.0).astype("f4")
    top = bright[2]
    pixels[int(y[top]) - 30 : int(y[top]) + 30, int(x[top])] = 1e6
    mask = np.where(pixels >= 60_000, MASK_SATURATED, 0).astype(np.uint8)
    pixels = np.minimum(pixels, 60_000)
    stars = found_in(pixels, mask)
    missed, strange = compare(stars, x, y)
    assert (missed < 1.0).sum() >= 19
    assert (strange > 3.0).sum() == 0
    assert stars.saturated[:3].all()
    assert not stars.saturated[3:].any()
    assert set(np.argmin(np.hypot(stars.x_px[:3, None] - x, stars.y_px[:3, None] - y), axis=1)) == (
        set(bright)
    )


def test_close_pairs_are_two_and_flagged():
    shape = (200, 200)
    x, y = np.array([50.0, 56.5, 120.0, 150.0]), np.array([60.0, 60.0, 120.0, 40.0])
    expected = 100.0 + sky_of_stars(shape, x, y, [2e5, 1e5, 1.5e5, 9e4], 3.5)
    stars = found_in(np.random.default_rng(18).poisson(expected))
    assert len(stars.x_px) == 4
    order = np.argsort(stars.x_px)
    assert_array_equal(stars.blended[order], [True, True, False, False])


def test_wings_of_a_bright_star_give_no_stars():
    r = np.hypot(*(np.mgrid[:300, :300] - 150.0))
    halo = 3e5 * (1 + (r / 3.0) ** 2) ** -1.5
    stars = found_in(np.random.default_rng(19).poisson(100.0 + halo))
    assert len(stars.x_px) == 1
    assert math.hypot(stars.x_px[0] - 150, stars.y_px[0] - 150) < 0.1


def test_elongation_of_a_trailed_frame():
    shape, places = (200, 200), [(40.3, 50.1), (120.7, 80.4), (160.2, 150.9)]
    image = np.full(shape, 100.0)
    for a, b in places:
        image += 2e5 * np.outer(profile(200, b, 2.5), profile(200, a, 5.0))
    trailed = found_in(np.random.default_rng(20).poisson(image), fwhm_px=4.0)
    assert np.median(trailed.elongation) == pytest.approx(2.0, rel=0.15)
    pixels, *_ = field(20, fwhm_px=3.5, n=15, faint_e=5e4)
    assert np.nanmedian(found_in(pixels).elongation) < 1.1


def test_bad_pixels_and_nan_count_as_background():
    pixels, x, y, _ = field(21, fwhm_px=3.0, n=30)
    mask = clean(pixels)
    pixels[:, 250:253], mask[:, 250:253] = 5e5, MASK_BAD
    pixels[33:40, 60:80] = np.nan
    mask[33:40, 60:80] = MASK_NAN
    pixels[300:305, 300:305] = np.nan
    _, strange = compare(found_in(pixels, mask), x, y)
    assert (strange > 3.0).sum() == 0


def test_as_many_stars_as_asked_for_and_the_brightest():
    pixels, *_ = field(22, fwhm_px=3.0, n=30)
    everything, some = found_in(pixels), found_in(pixels, max_stars=7)
    assert_array_equal(some.x_px, everything.x_px[:7])
    assert len(some.blended) == len(some.saturated) == 7


def test_agrees_with_sep():
    pixels, *_ = field(23, fwhm_px=4.0, n=50, faint_e=1e4)
    ours = found_in(pixels)
    back = sep.Background(pixels)
    theirs = sep.extract(pixels - back.back(), 1.5, err=back.rms(), minarea=9)
    x, y, _ = sep.winpos(pixels - back.back(), theirs["x"], theirs["y"], 4.0 / 2.3548)
    missed, _ = compare(ours, x, y)
    bright = theirs["flux"] > 2e4
    assert (missed[bright] < 0.1).mean() > 0.97


@pytest.mark.parametrize("value", [np.nan, 0.0, 65_535.0, 1e-3])
@pytest.mark.parametrize("flag", [0, MASK_SATURATED, MASK_BAD])
def test_frames_without_stars_give_none(value, flag):
    pixels = np.full((90, 120), value, np.float32)
    assert len(found_in(pixels, np.full(pixels.shape, flag, np.uint8)).x_px) == 0


@settings(max_examples=25, deadline=None)
@given(
    ny=st.integers(1, 40),
    nx=st.integers(1, 40),
    seed=st.integers(0, 99),
    fwhm_px=st.sampled_from([0.5, 2.0, 9.0]),
)
def test_any_small_frame_gives_finite_stars_inside_it(ny, nx, seed, fwhm_px):
    rng = np.random.default_rng(seed)
    pixels = rng.normal(0.0, 1.0, (ny, nx))
    pixels[rng.random((ny, nx)) < 0.2] = np.nan
    pixels[rng.integers(ny), rng.integers(nx)] = 1e5
    mask = (rng.integers(0, 32, (ny, nx)) * (rng.random((ny, nx)) < 0.3)).astype(np.uint8)
    stars = found_in(pixels, mask, fwhm_px=fwhm_px)
    assert np.isfinite([stars.x_px, stars.y_px, stars.flux_e, stars.snr]).all()
    assert ((stars.x_px > -3) & (stars.x_px < nx + 2)).all()
    assert ((stars.y_px > -3) & (stars.y_px < ny + 2)).all()


def test_a_star_on_the_corner_is_found():
    expected = 100.0 + sky_of_stars((80, 90), [0.0, 89.0], [0.0, 79.0], [1e5, 1e5], 3.0)
    missed, _ = compare(found_in(np.random.default_rng(24).poisson(expected)), [0, 89], [0, 79])
    assert (missed < 1.3).all()


def test_views_byte_orders_and_read_only_frames_are_the_same():
    pixels, *_ = field(25, fwhm_px=3.0, n=15)
    first = found_in(pixels)
    wide = np.zeros((400, 1000), ">f4")
    wide[:, ::2] = pixels
    wide.flags.writeable = False
    again = found_in(wide[:, ::2])
    assert_array_equal(first.x_px, again.x_px)
    assert_array_equal(first.flux_e, again.flux_e)


def test_wrong_arguments_are_refused():
    pixels = np.zeros((20, 20))
    with pytest.raises(ValueError, match="both must be"):
        background_mesh(pixels, np.zeros((20, 19), np.uint8))
    with pytest.raises(ValueError, match="box_px"):
        background_mesh(pixels, clean(pixels), box_px=4)
    mesh = background_mesh(pixels, clean(pixels))
    assert isinstance(mesh, Background)
    with pytest.raises(ValueError, match="above 0"):
        detect(pixels, clean(pixels), mesh, fwhm_px=0.0)
