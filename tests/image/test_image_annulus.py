"""Local background against photutils, under neighbours, at the edge, on whole numbers."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.stats import SigmaClip
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from photutils.aperture import ApertureStats, CircularAnnulus

from nightloom.image.annulus import annulus_background, annulus_mode, mean_of_photons
from nightloom.image.calibrate import MASK_BAD, MASK_NONLINEAR, MASK_SATURATED
from nightloom.synth.camera import render


def test_equal_to_photutils_with_the_same_clipping() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.uniform(-5, 205, 80), rng.uniform(-5, 205, 80)
    x[:20], y[:20] = np.rint(x[:20]), np.rint(y[:20])
    stars = render(200, 200, x_px=rng.uniform(0, 200, 40), y_px=rng.uniform(0, 200, 40),
                   flux_e=np.full(40, 3e4), fwhm_px=4.0, sky_e=500)  # fmt: skip
    pixels = rng.normal(stars, 20).astype(np.float32)
    mask = np.where(rng.random(pixels.shape) < 0.05, MASK_SATURATED, 0).astype(np.uint8)
    rings = annulus_background(pixels, mask, x, y, inner_px=8.0, outer_px=14.5, min_pixels=1)
    theirs = ApertureStats(
        pixels,
        CircularAnnulus(np.stack([x, y], axis=1), 8.0, 14.5),
        mask=mask > 0,
        sigma_clip=SigmaClip(3.0, maxiters=10),
        sum_method="center",
    )
    assert_allclose(rings.level_e, theirs.median, rtol=1e-7)
    assert_array_equal(rings.n_used, theirs.center_aper_area.value)
    assert_allclose(rings.rms_e, theirs.std / 0.98658, rtol=1e-4)
    assert_allclose(rings.error_e, rings.rms_e * np.sqrt(np.pi / 2 / rings.n_used))


def test_a_neighbour_in_the_annulus_shifts_the_level_by_less_than_a_tenth_sigma() -> None:
    rng = np.random.default_rng(5)
    places = np.arange(40.0, 1000.0, 80.0)
    x, y = (grid.ravel() for grid in np.meshgrid(places, places))
    flux_e = 10 ** rng.uniform(3, 5.5, x.size)
    stars = render(1040, 1040, x_px=x + 26, y_px=y, flux_e=flux_e, fwhm_px=4.0, sky_e=400)
    pixels = rng.poisson(stars).astype(np.float32)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    rings = annulus_background(pixels, mask, x, y, inner_px=20, outer_px=32)
    assert abs(np.mean(rings.level_e - 400) / 20) < 0.1
    assert np.max(np.abs(rings.level_e - 400)) / 20 < 0.25


def test_level_error_and_noise_of_a_plain_sky() -> None:
    rng = np.random.default_rng(6)
    pixels = rng.normal(100, 12, (1000, 1000)).astype(np.float32)
    x, y = (
        grid.ravel() for grid in np.meshgrid(np.arange(25.0, 980, 50), np.arange(25.0, 980, 50))
    )
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    rings = annulus_background(pixels, mask, x, y, inner_px=10, outer_px=24)
    assert_allclose(np.std((rings.level_e - 100) / rings.error_e), 1.0, atol=0.1)
    assert_allclose(np.mean(rings.rms_e), 12.0, rtol=0.005)


@pytest.mark.parametrize("level", [7.0, 7.2, 7.5, 7.9])
@pytest.mark.parametrize("noise", [0.7, 1.3, 5.0])
@pytest.mark.parametrize("uneven", [0.0, 0.03])
def test_whole_numbers_do_not_lock_the_level(level: float, noise: float, uneven: float) -> None:
    """Nor do they when a flat or a subtracted map of hot pixels has untied them a little."""
    rng = np.random.default_rng(7)
    counts = np.rint(rng.normal(level, noise, (200, 200)))
    counts += rng.normal(0, uneven, counts.shape)
    pixels = (2.5 * counts).astype(np.float32)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    rings = annulus_background(pixels, mask, [100.0], [100.0], inner_px=20, outer_px=90, step_e=2.5)
    # Noise of 0.7 counts is as coarse as it gets: a straight line is not quite its distribution.
    chance = 5 * noise * 1.2533 / np.sqrt(24000)
    assert_allclose(rings.level_e / 2.5, level, atol=max(chance, 0.035))


def test_spread_over_a_step_the_median_is_that_of_the_spread_values() -> None:
    rng = np.random.default_rng(17)
    pixels = np.rint(rng.normal(3, 1.2, (60, 60))).astype(np.float32)
    spread = pixels + rng.uniform(-0.5, 0.5, (4000, 60, 60))
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    rings = annulus_background(
        pixels, mask, [30.0], [30.0], inner_px=3, outer_px=6, step_e=1.0, clip_sigma=50.0
    )
    j, i = np.indices(pixels.shape)
    d2 = (i - 30) ** 2 + (j - 30) ** 2
    inside = (d2 >= 9) & (d2 < 36)
    assert_allclose(rings.level_e[0], np.median(spread[:, inside]), atol=0.01)


def test_flat_sky_reads_the_same_at_the_edge_and_in_the_corner() -> None:
    sky = np.full((100, 100), 1000.0, dtype=np.float32)
    mask = np.zeros(sky.shape, dtype=np.uint8)
    rings = annulus_background(sky, mask, [3.0, 0.0, 50.0], [50.0, 0.0, 50.0],
                               inner_px=20, outer_px=32)  # fmt: skip
    assert_array_equal(rings.level_e, 1000.0)
    assert_array_equal(rings.rms_e, 0.0)


def test_masked_saturated_and_lost_pixels_are_left_out() -> None:
    rng = np.random.default_rng(8)
    pixels = rng.normal(50, 5, (60, 60)).astype(np.float32)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    clean = annulus_background(pixels, mask, [30.0], [30.0], inner_px=5, outer_px=20)
    mask[:, 33:] = MASK_BAD
    half = annulus_background(pixels, mask, [30.0], [30.0], inner_px=5, outer_px=20)
    spoilt = pixels.copy()
    spoilt[:, 33:40], spoilt[:, 40:] = np.nan, np.inf
    lost = annulus_background(spoilt, mask * 0, [30.0], [30.0], inner_px=5, outer_px=20)
    assert half.n_used[0] < clean.n_used[0]
    assert lost == half
    mask[:] = MASK_NONLINEAR
    assert annulus_background(pixels, mask, [30.0], [30.0], inner_px=5, outer_px=20) == clean


def test_too_few_pixels_are_nan_with_their_number() -> None:
    pixels = np.ones((9, 9), dtype=np.float32)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    rings = annulus_background(pixels, mask, [4.0, np.nan, 900.0, 4.0], [4.0, 4.0, 4.0, np.inf],
                               inner_px=1.0, outer_px=2.5)  # fmt: skip
    assert_array_equal(rings.n_used, [20, 0, 0, 0])
    assert_array_equal(rings.level_e, [1.0, np.nan, np.nan, np.nan])
    few = annulus_background(pixels, mask, [4.0], [4.0], inner_px=1, outer_px=2.5, min_pixels=21)
    assert np.isnan([few.level_e, few.error_e, few.rms_e]).all()
    assert few.n_used[0] == 20


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(-1e6, 1e6) | st.floats(-5, 25),
    y=st.floats(-30, 50),
    inner=st.floats(0, 20),
    width=st.floats(0.01, 20),
    value=st.sampled_from([0.0, -3.5, 1e30, np.nan]),
)
def test_a_constant_frame_gives_its_value_or_nan(
    x: float, y: float, inner: float, width: float, value: float
) -> None:
    pixels = np.full((17, 21), value, dtype=np.float32)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    rings = annulus_background(pixels, mask, [x], [y], inner_px=inner, outer_px=inner + width)
    j, i = np.indices(pixels.shape)
    d2 = (i - x) ** 2 + (j - y) ** 2
    inside = np.count_nonzero((d2 >= inner**2) & (d2 < (inner + width) ** 2))
    expected = 0 if np.isnan(value) else inside
    assert rings.n_used[0] == expected
    assert_array_equal(rings.level_e[0], np.float32(value) if expected >= 20 else np.nan)


def test_no_stars_any_layout_and_refusals() -> None:
    pixels = np.random.default_rng(9).normal(0, 1, (40, 40)).astype(np.float32)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    pixels.flags.writeable = False
    assert annulus_background(pixels, mask, [], [], inner_px=3, outer_px=9).level_e.shape == (0,)
    expected = annulus_background(pixels, mask, [20.0], [20.0], inner_px=3, outer_px=9)
    swapped = annulus_background(pixels.astype(">f4"), mask, [20.0], [20.0], inner_px=3, outer_px=9)
    assert swapped == expected
    for inner, outer in ((5.0, 5.0), (-1.0, 5.0), (2.0, np.inf), (np.nan, 5.0)):
        with pytest.raises(ValueError, match="annulus"):
            annulus_background(pixels, mask, [20.0], [20.0], inner_px=inner, outer_px=outer)
    with pytest.raises(ValueError, match="clip_sigma"):
        annulus_background(pixels, mask, [2.0], [2.0], inner_px=3, outer_px=9, clip_sigma=0.0)


def test_the_mode_is_unbiased_with_the_error_it_states() -> None:
    rng = np.random.default_rng(7)
    pixels = rng.normal(100, 12, (1000, 1000)).astype(np.float32)
    places = np.arange(25.0, 980, 50)
    x, y = (grid.ravel() for grid in np.meshgrid(places, places))
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    mode = annulus_mode(pixels, mask, x, y, inner_px=10, outer_px=24)
    pulls = (mode.level_e - 100) / mode.error_e
    assert_allclose(np.std(pulls), 1.0, atol=0.1)
    assert abs(np.mean(mode.level_e - 100)) / 12 < 0.01
    median = annulus_background(pixels, mask, x, y, inner_px=10, outer_px=24)
    assert_allclose(mode.error_e / median.error_e, 1.705, rtol=1e-3)
    assert_allclose(mode.rms_e, median.rms_e)


def test_faint_stars_in_the_ring_shift_the_mode_less_than_the_median() -> None:
    """Trap 8, with many neighbours too faint to be clipped."""
    rng = np.random.default_rng(8)
    x, y = rng.uniform(0, 600, (2, 2500))
    light = render(
        600, 600, x_px=x, y_px=y, flux_e=10 ** rng.uniform(2, 3, x.size), fwhm_px=4.0, sky_e=400
    )
    pixels = rng.poisson(light).astype(np.float32)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    places = np.arange(40.0, 570.0, 35.0)
    at = [grid.ravel() for grid in np.meshgrid(places, places)]
    shifts = [
        float(np.mean(ring(pixels, mask, *at, inner_px=12, outer_px=26, step_e=1.0).level_e - 400))
        / 20
        for ring in (annulus_mode, annulus_background)
    ]
    assert 0 < shifts[0] < 0.1
    assert shifts[0] < 0.9 * shifts[1]


def test_in_a_crowd_the_mode_is_the_median_and_too_few_pixels_are_nan() -> None:
    pixels = np.random.default_rng(9).normal(10, 0.1, (60, 60)).astype(np.float32)
    pixels[:, ::5] += 3  # a fifth of all: the mean lies half of the noise above the median
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    at = ([30.0, -200.0], [30.0, 30.0])
    mode = annulus_mode(pixels, mask, *at, inner_px=8, outer_px=14)
    median = annulus_background(pixels, mask, *at, inner_px=8, outer_px=14)
    assert_array_equal(mode.level_e, median.level_e)
    assert_array_equal(mode.error_e, median.error_e)
    assert np.isnan(mode.level_e[1])


@pytest.mark.parametrize("sky_e", [4.0, 60.0])
def test_the_mean_of_few_photons_is_found_from_their_median(sky_e: float) -> None:
    """A median of Poisson counts and read-out lies up to a sixth of an electron below."""
    rng = np.random.default_rng(4)
    pixels = (rng.poisson(sky_e, (900, 900)) + rng.normal(0, 3, (900, 900))).astype(np.float32)
    places = np.arange(20.0, 880.0, 22.0)
    at = [grid.ravel() for grid in np.meshgrid(places, places)]
    ring = annulus_background(
        pixels, np.zeros(pixels.shape, np.uint8), *at, inner_px=2, outer_px=10
    )
    error = ring.level_e.std() / np.sqrt(len(ring.level_e))
    assert np.mean(ring.level_e) < sky_e - 5 * error
    assert abs(np.mean(mean_of_photons(ring).level_e) - sky_e) < 0.02 + 3 * error
