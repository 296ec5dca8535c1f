"""Profile-weighted fluxes: unbiased, errors as stated, and better than circles where it is dark."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from nightloom.image.annulus import annulus_background
from nightloom.image.aperture import ApertureSums, aperture_sums, flux_errors
from nightloom.image.calibrate import (
    MASK_BAD,
    MASK_COSMIC,
    MASK_NAN,
    MASK_NONLINEAR,
    MASK_SATURATED,
    variance,
)
from nightloom.image.optimal import REACH_FWHM, optimal_sums
from nightloom.image.psf import PsfShape, measure_psf
from nightloom.synth.camera import render

Floats = NDArray[np.float64]
SKY_E, READ_NOISE_E = 60.0, 7.0


def moffat(fwhm_px: float, *, beta: float = 3.0, elongation: float = 1.0) -> PsfShape:
    return PsfShape(fwhm_px, beta, elongation, 25.0, 20)


def clear(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    return np.zeros(pixels.shape, dtype=np.uint8)


def hundred(fwhm_px: float, *, beta: float = 3.0, elongation: float = 1.0) -> tuple[Any, ...]:
    """Equal stars without noise, one at each phase of ten by ten; their places."""
    cell = int(8 * fwhm_px + 20)
    row, column = np.divmod(np.arange(100), 10)
    x, y = cell * (column + 0.5) + column / 10, cell * (row + 0.5) + row / 10
    frame = render(
        10 * cell, 10 * cell, x_px=x, y_px=y, flux_e=np.full(100, 1e5), fwhm_px=fwhm_px,
        beta=beta, elongation=elongation, angle_deg=25.0,
    )  # fmt: skip
    return frame, x, y


@pytest.mark.parametrize(("fwhm_px", "beta"), [(1.5, 3.0), (2.0, 3.0), (4.0, 2.5), (6.0, 49.0)])
def test_the_same_at_every_phase_and_on_the_scale_of_wide_circles(
    fwhm_px: float, beta: float
) -> None:
    frame, x, y = hundred(fwhm_px, beta=beta, elongation=1.2)
    shape = moffat(fwhm_px, beta=beta, elongation=1.2)
    flux = optimal_sums(frame, clear(frame), x, y, shape=shape).flux_e[:, 0]
    circle = aperture_sums(frame, clear(frame), x, y, [3 * fwhm_px]).flux_e[:, 0]
    assert_allclose(flux / circle, 1.0, atol=2e-3)
    assert flux.std() / flux.mean() < (5e-4 if fwhm_px < 2 else 5e-5)


@pytest.mark.parametrize("error", [0.95, 1.05])
def test_a_wrong_width_is_one_factor_that_the_differential_cancels(error: float) -> None:
    frame, x, y = hundred(3.0)
    flux = optimal_sums(frame, clear(frame), x, y, shape=moffat(3.0 * error)).flux_e[:, 0]
    assert abs(flux.mean() / 1e5 - 1) > 0.03
    assert flux.std() / flux.mean() < 2e-4  # of one star over the mean of the others


def field(gain: float, flux_e: Floats) -> tuple[NDArray[Any], NDArray[Any], Floats, Floats]:
    """A raw frame of stars on a grid and the light it was drawn from, in electrons."""
    rng = np.random.default_rng(int(10 * gain))
    side = int(np.ceil(np.sqrt(flux_e.size)))
    row, column = np.divmod(np.arange(flux_e.size), side)
    x, y = (36.0 * k + 20 + rng.uniform(-0.5, 0.5, k.size) for k in (column, row))
    size = 36 * side + 10
    truth = render(size, size, x_px=x, y_px=y, flux_e=flux_e, fwhm_px=3.0, sky_e=SKY_E)
    electrons = rng.poisson(truth) + rng.normal(0, READ_NOISE_E, truth.shape)
    return np.rint(electrons / gain) * gain, truth, x, y


def measured(pixels: NDArray[Any], sums: ApertureSums, x: Floats, y: Floats, gain: float) -> Floats:
    """Fluxes and errors [2, star, aperture]."""
    ring = annulus_background(pixels, clear(pixels), x, y, inner_px=12, outer_px=18)
    return np.array([
        sums.flux_e - ring.level_e[:, None] * sums.area_px,
        flux_errors(sums, background_e=ring.level_e, background_err_e=ring.error_e,
                    read_noise_e=READ_NOISE_E, gain_e_per_adu=gain),
    ])  # fmt: skip


@pytest.mark.parametrize("gain", [0.5, 1.6, 4.0])
def test_pulls_are_one_wide_and_unbiased_from_bright_to_faint(gain: float) -> None:
    flux_e = np.repeat([100.0, 1e3, 1e4, 2e5], 500)
    frame, truth, x, y = field(gain, flux_e)
    shape = moffat(3.0)
    sums = optimal_sums(frame, clear(frame), x, y, shape=shape)
    flux, errors = measured(frame, sums, x, y, gain)
    exact, _ = measured(truth, optimal_sums(truth, clear(truth), x, y, shape=shape), x, y, gain)
    pulls = ((flux - exact) / errors).reshape(4, 500)
    assert pulls.std() == pytest.approx(1.0, abs=0.05)
    assert_allclose(pulls.std(axis=1), 1.0, atol=0.1)  # each of 500: known to 0.03
    assert_allclose(pulls.mean(axis=1), 0.0, atol=0.14)
    assert abs(pulls.mean()) < 0.1


def test_the_error_is_that_of_the_variance_plane() -> None:
    frame, _, x, y = field(1.6, np.array([5e3]))
    weights = np.zeros(frame.shape)
    for j, i in np.ndindex(14, 14):  # the weight of a pixel is its part of the flux
        pixel = np.zeros(frame.shape)
        at = 13 + j, 13 + i
        pixel[at] = 1.0
        weights[at] = optimal_sums(pixel, clear(frame), x, y, shape=moffat(3.0)).flux_e[0, 0]
    plane = variance(frame, inverse_flat=None, gain_e_per_adu=1.6, read_noise_e=READ_NOISE_E)
    sums = optimal_sums(frame, clear(frame), x, y, shape=moffat(3.0))
    error = flux_errors(sums, background_e=[SKY_E], background_err_e=[0.0],
                        read_noise_e=READ_NOISE_E, gain_e_per_adu=1.6)  # fmt: skip
    assert_allclose(error[0, 0] ** 2, np.sum(weights**2 * plane), rtol=1e-5)
    assert_allclose(sums.area_px[0, 0], weights.sum(), rtol=1e-9)


def test_faint_stars_scatter_no_more_than_in_the_best_circle() -> None:
    """With the profile as it is measured in the same frame."""
    flux_e = np.concatenate([np.full(900, 400.0), np.full(100, 1e5)])
    frame, _, x, y = field(1.6, flux_e)
    ring = annulus_background(frame, clear(frame), x, y, inner_px=12, outer_px=18)
    none = np.zeros(x.size, dtype=bool)
    shape = measure_psf(
        frame, clear(frame), x, y, background_e=ring.level_e, saturated=none, blended=none,
    )  # fmt: skip
    radii = np.arange(0.4, 2.0, 0.1) * shape.fwhm_px
    circles, _ = measured(frame, aperture_sums(frame, clear(frame), x, y, radii), x, y, 1.6)
    sums = optimal_sums(frame, clear(frame), x, y, shape=shape)
    best, _ = measured(frame, sums, x, y, 1.6)

    def scatter(flux: Floats) -> Floats:
        return flux[:900].std(axis=0) / flux[:900].mean(axis=0)

    assert scatter(best)[0] <= scatter(circles).min()


@pytest.mark.parametrize("bit", [MASK_BAD, MASK_COSMIC, MASK_NAN, MASK_SATURATED])
def test_pixels_that_are_left_out_are_made_up_for_by_the_others(bit: int) -> None:
    frame, x, y = hundred(4.0)
    mask = clear(frame)
    for u, v in zip(x, y, strict=True):
        mask[round(v) + 1, round(u) - 1] = bit
    spoilt = np.where(mask, np.float32(np.nan if bit == MASK_NAN else 1e6), frame)
    sums = optimal_sums(spoilt, mask, x, y, shape=moffat(4.0))
    whole = optimal_sums(frame, clear(frame), x, y, shape=moffat(4.0))
    assert_allclose(sums.flux_e, whole.flux_e, rtol=2e-3)
    assert (sums.masked_px > 0).all()
    assert (sums.noise_area_px > whole.noise_area_px).all()


def test_nonlinear_pixels_count_and_a_lost_core_is_nan() -> None:
    frame, x, y = hundred(4.0)
    mask = np.full(frame.shape, MASK_NONLINEAR, dtype=np.uint8)
    expected = optimal_sums(frame, clear(frame), x, y, shape=moffat(4.0))
    assert_array_equal(optimal_sums(frame, mask, x, y, shape=moffat(4.0)).flux_e, expected.flux_e)
    for u, v in zip(x, y, strict=True):
        mask[round(v) - 2 : round(v) + 3, round(u) - 2 : round(u) + 3] = MASK_SATURATED
    lost = optimal_sums(frame, mask, x, y, shape=moffat(4.0))
    assert np.isnan(lost.flux_e).all()
    assert np.isnan(lost.area_px).all()


def test_a_neighbour_adds_as_it_does_to_a_circle_of_the_same_noise() -> None:
    """Blended light is not shared out: it is flagged where the star list knows."""
    shape = moffat(4.0)
    pair = render(80, 80, x_px=[40.0, 45.0], y_px=[40.0, 40.0], flux_e=[1e4, 1e4], fwhm_px=4.0)
    sums = optimal_sums(pair, clear(pair), [40.0], [40.0], shape=shape)
    radius = np.sqrt(sums.noise_area_px[0, 0] / np.pi)
    circle = aperture_sums(pair, clear(pair), [40.0], [40.0], [radius])
    assert 1.0 < sums.flux_e[0, 0] / 1e4 < 1.0 + circle.flux_e[0, 0] / 1e4


def test_edges_and_what_is_no_place() -> None:
    frame, _, _ = hundred(4.0)
    shape = moffat(4.0)
    lone = render(50, 50, x_px=[25.0], y_px=[25.0], flux_e=[1e4], fwhm_px=4.0)
    cut = lone[:, 22:]
    part = optimal_sums(cut, clear(cut), [3.0], [25.0], shape=shape)
    whole = optimal_sums(lone, clear(lone), [25.0], [25.0], shape=shape)
    assert_allclose(part.flux_e, whole.flux_e, rtol=2e-3)
    assert part.outside_px[0, 0] > 0
    x = np.array([-0.5, -6.0, np.nan, 1e300, -np.inf])
    assert np.isnan(optimal_sums(frame, clear(frame), x, x, shape=shape).flux_e).all()
    assert optimal_sums(frame, clear(frame), [], [], shape=shape).flux_e.shape == (0, 1)


def test_without_a_profile_there_is_no_flux() -> None:
    frame, x, y = hundred(2.0)
    nothing = PsfShape(np.nan, np.nan, np.nan, np.nan, 0)
    assert np.isnan(optimal_sums(frame, clear(frame), x, y, shape=nothing).flux_e).all()


def test_layouts_are_the_same_and_only_pixels_within_reach_count() -> None:
    frame, x, y = hundred(2.0)
    frame = frame.astype(np.float32)
    shape = moffat(2.0)
    expected = optimal_sums(frame, clear(frame), x[:1], y[:1], shape=shape).flux_e
    for other in (frame.astype(">f4"), np.asfortranarray(frame), frame[::-1][::-1]):
        found = optimal_sums(other, clear(frame), x[:1], y[:1], shape=shape).flux_e
        assert_array_equal(found, expected)
    j, i = np.indices(frame.shape)
    far = (i - x[0]) ** 2 + (j - y[0]) ** 2 > (REACH_FWHM * 2.0) ** 2
    beyond = np.where(far, np.float32(np.nan), frame)
    found = optimal_sums(beyond, clear(frame), x[:1], y[:1], shape=shape).flux_e
    assert_array_equal(found, expected)
