"""Centroids against the truth at many phases, against sep, and where there is nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import sep
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from nightloom.image.calibrate import MASK_BAD, MASK_SATURATED
from nightloom.image.centroid import SIGMA_PER_FWHM, Centroids, quadratic, windowed
from nightloom.synth.camera import render

METHODS = [windowed, quadratic]
Method = Callable[..., Centroids]
Floats = NDArray[np.float64]


def phases(fwhm_px: float, *, beta: float = 3.0) -> tuple[NDArray[np.float32], Floats, Floats]:
    """A frame of 100 stars, one at each phase of ten by ten; their places."""
    row, column = np.divmod(np.arange(100), 10)
    x, y = 40 + 60 * column + column / 10, 40 + 60 * row + row / 10
    flux_e = np.full(100, 1e5)
    frame = render(640, 640, x_px=x, y_px=y, flux_e=flux_e, fwhm_px=fwhm_px, beta=beta, sky_e=50)
    return frame.astype(np.float32), x, y


def measure(
    method: Method, pixels: NDArray[np.float32], x: Floats, y: Floats, fwhm_px: float
) -> Centroids:
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    level = np.full(len(x), 50.0)
    return method(pixels, mask, x, y, background_e=level, fwhm_px=fwhm_px, max_shift_px=2.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("fwhm_px", "beta"), [(1.8, 4.0), (2.0, 3.0), (4.0, 2.5), (8.0, 5.0)])
def test_no_bias_at_a_hundred_phases(method: Method, fwhm_px: float, beta: float) -> None:
    pixels, x, y = phases(fwhm_px, beta=beta)
    shift = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 100))
    found = measure(method, pixels, x + shift[0], y + shift[1], fwhm_px)
    assert found.ok.all()
    limit_px = 0.01 if method is windowed else 0.02
    assert np.max(np.abs([found.x_px - x, found.y_px - y])) < limit_px
    assert_allclose([np.mean(found.x_px - x), np.mean(found.y_px - y)], 0, atol=0.001)


@pytest.mark.parametrize("fwhm_px", [2.2, 3.0, 6.0])
def test_windowed_agrees_with_sep_on_noisy_stars(fwhm_px: float) -> None:
    rng = np.random.default_rng(2)
    pixels, x, y = phases(fwhm_px)
    noisy = rng.normal(pixels, 60).astype(np.float32)
    found = measure(windowed, noisy, x + 0.3, y - 0.2, fwhm_px)
    level = np.float32(50)
    theirs = sep.winpos(noisy - level, x + 0.3, y - 0.2, fwhm_px * SIGMA_PER_FWHM)
    assert found.ok.all()
    assert_allclose(found.x_px, theirs[0], atol=1e-3)
    assert_allclose(found.y_px, theirs[1], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_masked_pixel_beside_the_peak_does_not_pull(method: Method) -> None:
    pixels, x, y = phases(4.0)
    clean = measure(method, pixels, x, y, 4.0)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    columns, rows = np.rint(x).astype(int) + 2, np.rint(y).astype(int)
    pixels[rows, columns] = 60000.0
    mask[rows, columns] = MASK_BAD
    level = np.full(100, 50.0)
    found = method(pixels, mask, x, y, background_e=level, fwhm_px=4.0, max_shift_px=2.0)
    pixels[rows, columns] = np.nan
    lost = method(pixels, mask * 0, x, y, background_e=level, fwhm_px=4.0, max_shift_px=2.0)
    assert found.ok.all()
    assert_array_equal(lost.x_px, found.x_px)
    assert np.max(np.abs(found.x_px - clean.x_px)) < (0.02 if method is windowed else 0.15)


def test_windowed_uses_saturated_pixels_and_is_unbiased_at_the_edge() -> None:
    x, y = np.array([1.3, 50.0]), np.array([30.2, 1.6])
    pixels = render(60, 60, x_px=x, y_px=y, flux_e=[1e5, 1e5], fwhm_px=3.0, sky_e=50)
    mask = np.full(pixels.shape, MASK_SATURATED, dtype=np.uint8)
    found = windowed(pixels, mask, x + 0.2, y - 0.3, background_e=[50.0, 50.0], fwhm_px=3.0,
                     max_shift_px=2.0)  # fmt: skip
    assert found.ok.all()
    assert_allclose(found.x_px, x, atol=0.03)
    assert_allclose(found.y_px, y, atol=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_a_cutout_and_the_whole_frame_agree_through_the_origin(method: Method) -> None:
    pixels, x, y = phases(3.0)
    whole = measure(method, pixels, x, y, 3.0)
    for x0, y0 in ((17, 20), (18, 21)):
        cut = pixels[y0 : y0 + 41, x0 : x0 + 42]
        part = measure(method, cut, x[:1] - x0, y[:1] - y0, 3.0)
        assert_allclose([part.x_px[0] + x0, part.y_px[0] + y0], [whole.x_px[0], whole.y_px[0]],
                        atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_had_is_the_start_and_not_ok(method: Method) -> None:
    pixels, x, y = phases(4.0)
    start_x = np.array([x[0] + 3.5, 5.0, np.nan, -80.0, 1e300, x[1]])
    start_y = np.array([y[0], 5.0, 9.0, 30.0, 5.0, y[1]])
    level = np.array([50.0, 60.0, 50.0, 50.0, 50.0, np.nan])
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    found = method(pixels, mask, start_x, start_y, background_e=level, fwhm_px=4.0,
                   max_shift_px=2.0)  # fmt: skip
    assert not found.ok.any()
    assert_array_equal(found.x_px, start_x)
    assert_array_equal(found.y_px, start_y)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40, deadline=None)
@given(
    ny=st.integers(1, 12),
    nx=st.integers(1, 12),
    value=st.sampled_from([np.nan, 0.0, 7.0, 1e30, np.inf]),
    x=st.floats(-3, 15),
    y=st.floats(-3, 15),
    fwhm_px=st.floats(0.1, 12),
    level=st.sampled_from([7.0, -1.0, np.nan]),
)
def test_flat_small_and_empty_frames_are_defined(
    method: Method,
    ny: int,
    nx: int,
    value: float,
    x: float,
    y: float,
    fwhm_px: float,
    level: float,
) -> None:
    pixels = np.full((ny, nx), value, dtype=np.float32)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    found = method(pixels, mask, [x], [y], background_e=[level], fwhm_px=fwhm_px, max_shift_px=1.5)
    assert np.hypot(found.x_px[0] - x, found.y_px[0] - y) <= 1.5
    assert found.ok[0] or (found.x_px[0], found.y_px[0]) == (x, y)
    if not np.isfinite(value) or np.isnan(level):
        assert not found.ok[0]


@pytest.mark.parametrize("method", METHODS)
def test_layouts_empty_lists_and_refusals(method: Method) -> None:
    pixels, x, y = phases(3.0)
    pixels.flags.writeable = x.flags.writeable = y.flags.writeable = False
    expected = measure(method, pixels, x, y, 3.0)
    swapped = measure(method, pixels.astype(">f4"), x.astype(">f8"), y, 3.0)
    assert_array_equal(swapped.x_px, expected.x_px)
    assert_array_equal(measure(method, np.asfortranarray(pixels), x, y, 3.0).y_px, expected.y_px)
    assert measure(method, pixels, x[:0], y[:0], 3.0).ok.shape == (0,)
    for fwhm_px in (0.0, np.nan, -2.0):
        with pytest.raises(ValueError, match="fwhm_px"):
            measure(method, pixels, x, y, fwhm_px)
    with pytest.raises(ValueError, match="star"):
        measure(method, pixels, x[:5], y, 3.0)
