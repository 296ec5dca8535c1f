"""Aperture sums against closed forms and photutils; flux errors against simulated frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from photutils.aperture import CircularAperture

from nightloom.image.annulus import annulus_background, mean_of_photons
from nightloom.image.aperture import (
    ApertureSums,
    aperture_sums,
    flat_errors,
    flux_errors,
    flux_errors_from_rms,
)
from nightloom.image.calibrate import (
    MASK_BAD,
    MASK_COSMIC,
    MASK_NAN,
    MASK_NONLINEAR,
    MASK_SATURATED,
)
from nightloom.synth.camera import render

RADII_PX = np.array([0.3, 0.5, 0.71, 1.0, 1.7, 3.0, 3.53, 3.54, 5.5, 9.0, 17.3, 30.0])


def clear(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    return np.zeros(pixels.shape, dtype=np.uint8)


def noise(ny: int, nx: int, *, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(1, 100, (ny, nx)).astype(np.float32)


def totals(sums: ApertureSums) -> NDArray[np.float64]:
    return sums.area_px + sums.masked_px + sums.outside_px


@pytest.mark.parametrize("phase", [0.0, 0.1, 0.25, 0.499999, 0.5, 0.73])
def test_ones_sum_to_the_circle_at_any_phase(phase: float) -> None:
    ones = np.ones((80, 90), dtype=np.float32)
    sums = aperture_sums(ones, clear(ones), [40.0 + phase], [41.0 - phase / 3], RADII_PX)
    assert_allclose(sums.flux_e[0], np.pi * RADII_PX**2, rtol=1e-9)
    assert_array_equal(sums.masked_px, 0)
    assert_array_equal(sums.outside_px, 0)


def test_a_tiny_circle_within_a_pixel() -> None:
    pixels = noise(5, 5)
    sums = aperture_sums(pixels, clear(pixels), [2.2], [3.1], [1e-3, 0.2])
    assert_allclose(sums.flux_e[0], float(pixels[3, 2]) * np.pi * np.array([1e-6, 0.04]), rtol=1e-9)


def test_equal_to_photutils_for_any_centre_edge_and_mask() -> None:
    rng = np.random.default_rng(2)
    pixels = noise(120, 100)
    x, y = rng.uniform(-5, 105, 60), rng.uniform(-5, 125, 60)
    x[:20], y[:20] = np.rint(x[:20]), np.rint(y[:20])
    x[20:30] = np.rint(x[20:30]) + 0.5
    mask = np.where(rng.random(pixels.shape) < 0.02, MASK_BAD, 0).astype(np.uint8)
    sums = aperture_sums(pixels, mask, x, y, RADII_PX)
    for k, radius in enumerate(RADII_PX):
        circle = CircularAperture(np.stack([x, y], axis=1), radius)
        flux, _ = circle.do_photometry(pixels.astype(float), mask=mask > 0, method="exact")
        good, _ = circle.do_photometry(np.ones(pixels.shape), mask=mask > 0, method="exact")
        frame, _ = circle.do_photometry(np.ones(pixels.shape), method="exact")
        seen = sums.area_px[:, k] > 0
        assert_array_equal(seen, np.nan_to_num(good) > 1e-9)
        assert_allclose(sums.flux_e[seen, k], flux[seen], rtol=1e-7)
        assert_allclose(sums.area_px[seen, k], good[seen], rtol=1e-7)
        assert_allclose(sums.masked_px[seen, k], (frame - good)[seen], atol=1e-7 * radius**2)
    assert_allclose(totals(sums), np.broadcast_to(np.pi * RADII_PX**2, totals(sums).shape))


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(-40, 60),
    y=st.floats(-40, 60),
    radii=st.lists(st.floats(1e-3, 40), min_size=1, max_size=6),
)
def test_areas_add_up_and_order_is_free(x: float, y: float, radii: list[float]) -> None:
    pixels = noise(19, 23)
    mask = clear(pixels)
    mask[::4, ::3] = MASK_NAN
    sums = aperture_sums(pixels, mask, [x], [y], radii)
    assert_allclose(totals(sums)[0], np.pi * np.square(radii), rtol=1e-8)
    assert np.all(sums.area_px >= 0)
    assert_array_equal(np.isnan(sums.flux_e), sums.area_px == 0)
    for k, radius in enumerate(radii):
        alone = aperture_sums(pixels, mask, [x], [y], [radius])
        assert_allclose(alone.masked_px[0, 0], sums.masked_px[0, k], atol=1e-9)
        assert_allclose(alone.flux_e[0, 0], sums.flux_e[0, k], rtol=1e-12, equal_nan=True)


def test_radii_of_each_star_in_any_order() -> None:
    pixels = noise(60, 60)
    x, y = np.array([20.2, 33.3]), np.array([28.0, 31.7])
    radii = np.array([[5.0, 2.0, 9.0], [3.0, 8.0, 1.0]])
    sums = aperture_sums(pixels, clear(pixels), x, y, radii)
    for star in range(2):
        for k in range(3):
            one = aperture_sums(pixels, clear(pixels), x[[star]], y[[star]], radii[star, [k]])
            assert_allclose(sums.flux_e[star, k], one.flux_e[0, 0], rtol=1e-12)


@pytest.mark.parametrize("bit", [MASK_BAD, MASK_COSMIC, MASK_NAN, MASK_SATURATED, MASK_NONLINEAR])
def test_which_mask_bits_leave_a_pixel_out(bit: int) -> None:
    ones = np.ones((21, 21), dtype=np.float32)
    ones[10, 11] = 1000.0
    mask = clear(ones)
    mask[10, 11] = bit
    sums = aperture_sums(ones, mask, [10.0], [10.0], [4.0])
    left_out = bit in (MASK_BAD, MASK_COSMIC, MASK_NAN)
    assert_allclose(sums.masked_px[0, 0], 1.0 if left_out else 0.0, rtol=1e-12)
    expected = np.pi * 16 - 1 if left_out else np.pi * 16 + 999
    assert_allclose(sums.flux_e[0, 0], expected, rtol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_counts_as_masked(value: float) -> None:
    ones = np.ones((21, 21), dtype=np.float32)
    ones[9, 10] = value
    sums = aperture_sums(ones, clear(ones), [10.0], [10.0], [4.0])
    assert_allclose(sums.flux_e[0, 0], np.pi * 16 - 1, rtol=1e-9)
    assert_allclose(sums.masked_px[0, 0], 1.0, rtol=1e-12)


@pytest.mark.parametrize(("x", "y"), [(3.0, 50.0), (50.0, 97.2), (0.0, 0.0), (99.5, -0.5)])
def test_a_star_at_the_edge_of_a_flat_sky_has_no_flux(x: float, y: float) -> None:
    sky = np.full((100, 100), 1000.0, dtype=np.float32)
    sums = aperture_sums(sky, clear(sky), [x], [y], [5.0, 16.0])
    level = annulus_background(sky, clear(sky), [x], [y], inner_px=20, outer_px=32).level_e
    assert level[0] == 1000.0
    assert np.all(sums.outside_px > 0)
    assert_allclose(sums.flux_e - level[:, None] * sums.area_px, 0, atol=1e-4)


@pytest.mark.parametrize("x", [-50.0, 400.0, 1e9, -1e300, 1e300])
def test_a_star_off_the_frame_is_nan_and_wholly_outside(x: float) -> None:
    pixels = noise(30, 30)
    sums = aperture_sums(pixels, clear(pixels), [x], [15.0], [2.0, 6.0])
    assert np.isnan(sums.flux_e).all()
    assert_array_equal(sums.area_px, 0)
    assert_allclose(sums.outside_px[0], np.pi * np.array([4.0, 36.0]))


def test_all_nan_frames_and_missing_places_are_nan() -> None:
    lost = np.full((20, 20), np.nan, dtype=np.float32)
    sums = aperture_sums(lost, clear(lost), [10.0], [10.0], [3.0])
    assert np.isnan(sums.flux_e[0, 0])
    assert_allclose(sums.masked_px[0, 0], np.pi * 9)
    pixels = noise(20, 20)
    for x, y in ((np.nan, 5.0), (5.0, np.nan), (np.inf, 5.0)):
        sums = aperture_sums(pixels, clear(pixels), [x], [y], [3.0])
        assert np.isnan([sums.flux_e, sums.area_px, sums.masked_px, sums.outside_px]).all()


def test_one_pixel_and_no_stars() -> None:
    one = np.full((1, 1), 7.0, dtype=np.float32)
    sums = aperture_sums(one, clear(one), [0.0], [0.0], [0.3, 5.0])
    assert_allclose(sums.flux_e[0], [7 * np.pi * 0.09, 7.0], rtol=1e-9)
    assert aperture_sums(one, clear(one), [], [], [1.0, 2.0]).flux_e.shape == (0, 2)
    assert aperture_sums(one, clear(one), [0.0], [0.0], []).flux_e.shape == (1, 0)


@pytest.mark.parametrize("radius", [0.0, -1.0, np.nan, np.inf])
def test_radii_that_are_none_are_refused(radius: float) -> None:
    pixels = noise(9, 9)
    with pytest.raises(ValueError, match="above zero"):
        aperture_sums(pixels, clear(pixels), [4.0], [4.0], [1.0, radius])


def test_shapes_that_differ_are_refused() -> None:
    pixels = noise(9, 9)
    with pytest.raises(ValueError, match="mask"):
        aperture_sums(pixels, clear(pixels)[:5], [4.0], [4.0], [1.0])
    with pytest.raises(ValueError, match="star"):
        aperture_sums(pixels, clear(pixels), [4.0, 5.0], [4.0], [1.0])
    with pytest.raises(ValueError, match="radii_px"):
        aperture_sums(pixels, clear(pixels), [4.0], [4.0], [[1.0], [2.0]])


def test_any_layout_and_byte_order_gives_the_same_and_nothing_is_written() -> None:
    pixels = noise(40, 50)
    mask = clear(pixels)
    mask[20, 22] = MASK_BAD
    pixels.flags.writeable = mask.flags.writeable = False
    expected = aperture_sums(pixels, mask, [24.3], [21.1], RADII_PX)
    wide = np.zeros((80, 100), dtype=np.float32)
    wide[::2, ::2] = pixels
    for other in (pixels.astype(">f4"), wide[::2, ::2], np.asfortranarray(pixels)):
        for flags in (mask, np.asfortranarray(mask)):
            sums = aperture_sums(other, flags, [24.3], [21.1], RADII_PX)
            assert_array_equal(sums.flux_e, expected.flux_e)


@pytest.mark.parametrize("gain_e_per_adu", [0.5, 1.6, 4.0])
def test_pulls_of_simulated_fluxes_are_one_wide(gain_e_per_adu: float) -> None:
    rng = np.random.default_rng(int(10 * gain_e_per_adu))
    sky_e, read_noise_e, radii = 60.0, 7.0, np.array([1.0, 2.5, 5.0])
    places = np.arange(20.0, 1400.0, 36.0)
    x, y = (grid.ravel() for grid in np.meshgrid(places, places))
    x, y = x + rng.uniform(-0.5, 0.5, x.size), y + rng.uniform(-0.5, 0.5, y.size)
    flux_e = 10 ** rng.uniform(2, 5, x.size)
    truth = render(1400, 1400, x_px=x, y_px=y, flux_e=flux_e, fwhm_px=3.0, beta=5.0, sky_e=sky_e)
    electrons = rng.poisson(truth) + rng.normal(0, read_noise_e, truth.shape)
    frame = np.rint(electrons / gain_e_per_adu) * gain_e_per_adu

    def measure(pixels: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sums = aperture_sums(pixels, clear(pixels), x, y, radii)
        ring = annulus_background(
            pixels, clear(pixels), x, y, inner_px=9, outer_px=15, step_e=gain_e_per_adu
        )
        flux = sums.flux_e - ring.level_e[:, None] * sums.area_px
        errors = flux_errors(
            sums, background_e=ring.level_e, background_err_e=ring.error_e,
            read_noise_e=read_noise_e, gain_e_per_adu=gain_e_per_adu,
        )  # fmt: skip
        return flux, errors

    flux, errors = measure(frame)
    pulls = (flux - measure(truth)[0]) / errors
    assert_allclose(pulls.std(axis=0), 1.0, atol=0.05)
    assert_allclose(pulls.mean(axis=0), 0.0, atol=0.1)


@pytest.mark.parametrize("gain_e_per_adu", [0.5, 1.6, 4.0])
def test_pulls_with_dark_and_flat_hold_from_bright_to_faint(gain_e_per_adu: float) -> None:
    """All terms at once: photons, sky and its estimate, reading, rounding, dark, flat."""
    rng = np.random.default_rng(int(100 * gain_e_per_adu))
    fwhm_px, sky_e, dark_e, read_noise_e, flat_err = 3.0, 60.0, 25.0, 7.0, 0.01
    places = np.arange(20.0, 1060.0, 36.0)
    x, y = (grid.ravel() + rng.uniform(-0.5, 0.5) for grid in np.meshgrid(places, places))
    x, y = x[:800], y[:800]
    flux_e = np.tile([150.0, 2e3, 2e4, 2e5], 200)
    light = render(
        1080, 1080, x_px=x, y_px=y, flux_e=flux_e, fwhm_px=fwhm_px, beta=300.0, sky_e=sky_e
    )
    radii = np.array([2.5, 5.0])
    pulls = []
    for _ in range(12):
        electrons = rng.poisson(light + dark_e) + rng.normal(0, read_noise_e, light.shape)
        counts = np.rint(electrons / gain_e_per_adu)
        frame = (counts * gain_e_per_adu - dark_e) / (1 + rng.normal(0, flat_err, light.shape))
        sums = aperture_sums(frame, clear(frame), x, y, radii)
        ring = annulus_background(
            frame, clear(frame), x, y, inner_px=9, outer_px=15, step_e=gain_e_per_adu
        )
        ring = mean_of_photons(ring, dark_e=dark_e)
        errors = flux_errors(
            sums, background_e=ring.level_e, background_err_e=ring.error_e,
            read_noise_e=read_noise_e, gain_e_per_adu=gain_e_per_adu, dark_e=dark_e,
            flat_err=flat_errors(flat_err, fwhm_px=fwhm_px, radii_px=radii),
        )  # fmt: skip
        exact = aperture_sums(light - sky_e, clear(frame), x, y, radii).flux_e
        pulls.append((sums.flux_e - ring.level_e[:, None] * sums.area_px - exact) / errors)
    by_flux = np.array(pulls).reshape(12 * 200, 4, 2)
    assert_allclose(by_flux.std(axis=0), 1.0, atol=0.05)
    assert_allclose(by_flux.mean(axis=0), 0.0, atol=0.1)


def test_terms_of_the_error() -> None:
    # Two stars of 400 and -400 electrons on a level of 3 in ten whole pixels.
    area, nothing = np.full((2, 1), 10.0), np.zeros((2, 1))
    flux = np.array([[430.0], [-370.0]])
    sums = ApertureSums(flux, area, nothing, nothing, flux, area)
    level, level_error = [3.0, 3.0], [0.2, 0.2]
    errors = flux_errors(
        sums, background_e=level, background_err_e=level_error, read_noise_e=2.0,
        gain_e_per_adu=np.sqrt(12.0), dark_e=1.0, flat_err=0.01,
    )  # fmt: skip
    common = 10 * (3 + 1 + 4 + 1) + (10 * 0.2) ** 2 + (0.01 * 400) ** 2
    assert_allclose(errors[:, 0], np.sqrt([common + 400, common]))
    from_rms = flux_errors_from_rms(
        sums, background_e=level, background_err_e=level_error, rms_e=[3.0, np.nan]
    )
    assert_allclose(from_rms[:, 0], [np.sqrt(90 + 4 + 400), np.nan])
    with pytest.raises(ValueError, match="star"):
        flux_errors_from_rms(sums, background_e=[3.0], background_err_e=[0.2], rms_e=[1.0])


def test_noise_of_cut_pixels_is_that_of_their_squared_weights() -> None:
    pixels = noise(41, 41)
    for x, y in ((20.0, 20.0), (20.3, 19.8), (20.5, 20.5)):
        sums = aperture_sums(pixels, clear(pixels), [x], [y], RADII_PX[2:9])
        for k, radius in enumerate(RADII_PX[2:9]):
            weights = (
                CircularAperture((x, y), radius).to_mask(method="exact").to_image(pixels.shape)
            )
            assert_allclose(sums.noise_area_px[0, k], np.sum(weights**2), rtol=0.04)
            assert_allclose(sums.noise_flux_e[0, k], np.sum(weights**2 * pixels), rtol=0.06)
