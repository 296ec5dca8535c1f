"""The shape of stars against the truth they were drawn with, and against what is no star."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from nightloom.image.calibrate import MASK_BAD
from nightloom.image.psf import PsfShape, measure_psf, radial_profile
from nightloom.synth.camera import render

SKY_E = 100.0
SIZE = 500
GAUSSIAN = 60.0  # a Moffat beta that is one within a percent


def places(n: int, *, seed: int = 3) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    x, y = (grid.ravel()[:n] for grid in np.meshgrid(np.arange(5), np.arange(5)))
    return 60 + 95 * x + rng.uniform(-3, 3, n), 60 + 95 * y + rng.uniform(-3, 3, n)


def frame(
    x: NDArray[np.float64], y: NDArray[np.float64], *, fwhm_px: float, seed: int = 4, **shape: float
) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    flux_e = 10 ** rng.uniform(4, 5.3, len(x))
    stars = render(SIZE, SIZE, x_px=x, y_px=y, flux_e=flux_e, fwhm_px=fwhm_px, sky_e=SKY_E, **shape)
    return (rng.poisson(stars) + rng.normal(0, 8, stars.shape)).astype(np.float32)


def shape_of(
    pixels: NDArray[Any],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    *,
    level: float = SKY_E,
    spoilt: NDArray[np.bool_] | None = None,
    mask: NDArray[np.uint8] | None = None,
) -> PsfShape:
    clean = np.zeros(len(x), dtype=bool)
    return measure_psf(
        pixels,
        np.zeros(pixels.shape, dtype=np.uint8) if mask is None else mask,
        x + 0.3,
        y - 0.4,
        background_e=np.full(len(x), level),
        saturated=clean if spoilt is None else spoilt,
        blended=clean,
    )


@pytest.mark.parametrize("fwhm_px", [1.8, 2.5, 4.0, 7.0, 10.0])
@pytest.mark.parametrize("beta", [2.5, 3.5, 5.0, GAUSSIAN])
def test_width_within_two_percent(fwhm_px: float, beta: float) -> None:
    x, y = places(25)
    shape = shape_of(frame(x, y, fwhm_px=fwhm_px, beta=beta), x, y)
    assert_allclose(shape.fwhm_px, fwhm_px, rtol=0.02)
    assert_allclose(1 / shape.beta, 1 / beta, atol=0.03)
    assert shape.elongation < 1.05
    assert shape.n_stars >= 20


@pytest.mark.parametrize(("fwhm_px", "elongation"), [(2.5, 1.5), (3.0, 1.3), (4.0, 2.5)])
@pytest.mark.parametrize("angle_deg", [0.0, 30.0, 90.0, -50.0])
def test_a_trailed_frame_is_known(fwhm_px: float, elongation: float, angle_deg: float) -> None:
    x, y = places(16)
    pixels = frame(x, y, fwhm_px=fwhm_px, elongation=elongation, angle_deg=angle_deg)
    shape = shape_of(pixels, x, y)
    assert_allclose(shape.fwhm_px, fwhm_px, rtol=0.025)
    assert_allclose(shape.elongation, elongation, rtol=0.05)
    turned = (shape.angle_deg - angle_deg + 90) % 180 - 90
    assert abs(turned) < 3
    assert -90 < shape.angle_deg <= 90


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_any_scale_of_flux(scale: float) -> None:
    x, y = places(9)
    pixels = frame(x, y, fwhm_px=4.7)
    expected = shape_of(pixels, x, y)
    shape = shape_of(pixels * np.float32(scale), x, y, level=SKY_E * scale)
    assert_allclose(shape.fwhm_px, expected.fwhm_px, rtol=1e-4)
    assert_allclose(shape.fwhm_px, 4.7, rtol=0.02)


def test_hot_pixels_hits_galaxies_and_spoilt_stars_do_not_fool_it() -> None:
    x, y = places(25)
    pixels = frame(x, y, fwhm_px=3.0)
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    for k in range(4):  # listed as stars: hot pixels alone
        pixels[row[k] - 8 : row[k] + 9, column[k] - 8 : column[k] + 9] = SKY_E
        pixels[row[k], column[k]] = 40000.0
    galaxies = render(SIZE, SIZE, x_px=x[4:8], y_px=y[4:8], flux_e=np.full(4, 4e5), fwhm_px=8.0)
    pixels += galaxies.astype(np.float32)
    pixels[row[8:11] + 4, column[8:11] + 3] += 5000.0  # hits in the wings
    spoilt = np.zeros(25, dtype=bool)
    spoilt[11:14] = True
    pixels[row[11:14] - 2, column[11:14]] = 65535.0
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    mask[row[14], column[14] + 1] = MASK_BAD
    pixels[row[14], column[14] + 1] = -5e4
    shape = shape_of(pixels, x, y, spoilt=spoilt, mask=mask)
    assert_allclose(shape.fwhm_px, 3.0, rtol=0.02)
    assert shape.elongation < 1.05
    assert 8 <= shape.n_stars <= 13


def test_one_star_is_enough_and_the_brightest_are_taken() -> None:
    x, y = places(25)
    pixels = frame(x, y, fwhm_px=3.5)
    assert_allclose(shape_of(pixels, x[:1], y[:1]).fwhm_px, 3.5, rtol=0.03)
    clean = np.zeros(25, dtype=bool)
    shape = measure_psf(pixels, np.zeros(pixels.shape, dtype=np.uint8), x, y, saturated=clean,
                        background_e=np.full(25, SKY_E), blended=clean, max_stars=7)  # fmt: skip
    assert 5 <= shape.n_stars <= 7


@pytest.mark.parametrize("value", [0.0, SKY_E, np.nan, np.inf, 65535.0])
def test_no_usable_star_is_nan(value: float) -> None:
    x, y = places(4)
    pixels = np.full((SIZE, SIZE), value, dtype=np.float32)
    shape = shape_of(pixels, x, y)
    assert shape.n_stars == 0
    assert np.isnan([shape.fwhm_px, shape.beta, shape.elongation, shape.angle_deg]).all()


def test_empty_lists_corners_one_pixel_and_missing_places() -> None:
    x, y = places(9)
    pixels = frame(x, y, fwhm_px=3.0)
    none = np.array([])
    assert shape_of(pixels, none, none).n_stars == 0
    corners = np.array([0.0, 499.0, -30.0, np.nan, 1e300])
    assert shape_of(pixels, corners, corners).n_stars == 0
    assert shape_of(pixels[:1, :1], np.zeros(1), np.zeros(1)).n_stars == 0
    everywhere = np.ones(9, dtype=bool)
    assert shape_of(pixels, x, y, spoilt=everywhere).n_stars == 0


def test_layouts_and_refusals() -> None:
    x, y = places(9)
    pixels = frame(x, y, fwhm_px=3.0)
    expected = shape_of(pixels, x, y)
    pixels.flags.writeable = False
    assert shape_of(pixels.astype(">f4"), x, y) == expected
    assert shape_of(np.asfortranarray(pixels), x, y) == expected
    with pytest.raises(ValueError, match="saturated"):
        shape_of(pixels, x, y, spoilt=np.zeros(3, dtype=bool))
    with pytest.raises(ValueError, match="guess_fwhm_px"):
        measure_psf(pixels, np.zeros(pixels.shape, dtype=np.uint8), x, y, saturated=x > 0,
                    background_e=x, blended=x > 0, guess_fwhm_px=0.0)  # fmt: skip


def test_radial_profile_is_that_of_the_stars() -> None:
    x, y = places(25)
    pixels = frame(x, y, fwhm_px=4.0, beta=4.0)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    level = np.full(25, SKY_E)
    profile = radial_profile(pixels, mask, x, y, background_e=level, max_radius_px=12, bin_px=0.5)
    assert profile.radius_px.shape == profile.fraction.shape == profile.n_pixels.shape == (24,)
    gamma = 4.0 / (2 * np.sqrt(2 ** (1 / 4.0) - 1))
    moffat = 3 / (np.pi * gamma**2) * (1 + (profile.radius_px / gamma) ** 2) ** -4.0
    assert_allclose(profile.fraction[:8], moffat[:8], rtol=0.06)
    nowhere = radial_profile(
        pixels, mask, [-99.0, np.nan], [5.0, 5.0], background_e=[0.0, 0.0],
        max_radius_px=2.0, bin_px=1.0,
    )  # fmt: skip
    assert np.isnan(nowhere.fraction).all()
    assert_array_equal(nowhere.n_pixels, 0)
