"""Cutouts: which pixels they hold, at any place of the star and the frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from nightloom.image.calibrate import MASK_BAD, MASK_SATURATED
from nightloom.image.cutout import corner, cut, mirrored, starts


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(deadline=None)  # the first call compiles
@given(left=st.integers(-20, 20), low=st.integers(-20, 20), level=st.sampled_from([0.0, 7.5]))
def test_pixels_are_those_of_the_padded_frame(
    dtype: type[np.floating], left: int, low: int, level: float
) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.normal(0, 9, (11, 13)).astype(np.float32)
    mask = np.where(rng.random(pixels.shape) < 0.1, MASK_BAD, 0).astype(np.uint8)
    mask[2, 3] = MASK_SATURATED  # still a pixel of the star
    pixels[4, 5], pixels[6, 7] = np.nan, -np.inf
    kept = np.where((mask == MASK_BAD) | ~np.isfinite(pixels), np.nan, pixels.astype(np.float64))
    padded = np.pad(kept, 40, constant_values=np.nan)
    expected = padded[low + 40 : low + 55, left + 40 : left + 55] - level
    out = np.full((15, 15), 1e9, dtype=dtype)
    assert cut(pixels, mask, left, low, level, out) == np.isfinite(expected).sum()
    assert_array_equal(out, expected.astype(dtype))


@settings(deadline=None)
@given(x=st.floats(-1e6, 1e6), half=st.integers(0, 9))
def test_the_middle_pixel_holds_the_place(x: float, half: int) -> None:
    assert -0.5 <= x - (corner(x, half) + half) <= 0.5


def test_mirror_images_are_linear_between_good_pixels() -> None:
    rows, columns = np.indices((6, 7))
    pixels = (3.0 * rows - 2.0 * columns + 5.0).astype(np.float32)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    assert_allclose(mirrored(pixels, mask, 2.25, 3.5), 3.0 * 3.5 - 2.0 * 2.25 + 5.0)
    mask[4, 3] = MASK_BAD
    assert np.isnan(mirrored(pixels, mask, 2.25, 3.5))
    assert np.isnan(mirrored(pixels, mask, 5.5, 5.5))  # beyond the last row


def test_a_start_is_a_level_and_a_place_within_the_frame() -> None:
    assert starts(-0.5, 9.5, 1.0, 10, 8)
    for x, y, level in ((-0.6, 3.0, 1.0), (3.0, 9.6, 1.0), (np.nan, 3.0, 1.0), (3.0, 3.0, np.inf)):
        assert not starts(x, y, level, 10, 8)
