"""Peaks, mask bits and clean radii of stars; stars that lie close together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from nightloom.image.calibrate import MASK_BAD, MASK_COSMIC, MASK_SATURATED
from nightloom.image.repair import repair
from nightloom.image.stars import StarPixels, blended, peaks_and_clean_radius


def look(raw: np.ndarray, mask: np.ndarray, x: list[float], y: list[float]) -> StarPixels:
    return peaks_and_clean_radius(
        raw, mask, x, y, fwhm_px=2.0, flag_radius_px=4.0, max_radius_px=10.0
    )


@pytest.mark.parametrize("dtype", ["u2", ">u2", ">i2", ">f4", "f8"])
def test_peak_of_every_kind_of_raw_pixel(dtype: str) -> None:
    raw = np.full((40, 40), 3, dtype=dtype)
    raw[20, 23], raw[20, 24], raw[19, 20], raw[20, 21] = 90, 100, 80, 110
    mask = np.zeros(raw.shape, dtype=np.uint8)
    mask[20, 21] = MASK_BAD
    raw.flags.writeable = mask.flags.writeable = False
    found = look(raw, mask, [20.0], [20.0])
    assert found.peak_adu.dtype == np.float32
    assert_array_equal(found.peak_adu, 90)


def test_bits_and_clean_radius() -> None:
    raw = np.zeros((60, 60), dtype=np.uint16)
    mask = np.zeros(raw.shape, dtype=np.uint8)
    mask[30, 30], mask[30, 33], mask[30, 37] = MASK_SATURATED, MASK_COSMIC, MASK_BAD
    found = look(raw, mask, [30.0, 38.0, 2.0, 20.0], [30.0, 30.0, 50.0, 20.0])
    assert_array_equal(found.mask_bits, [MASK_SATURATED | MASK_COSMIC, MASK_BAD, 0, 0])
    assert_allclose(found.clean_radius_px, [2.5, 0.5, 2.5, 10.0])


def test_a_filled_pixel_counts_as_before_but_ends_no_circle() -> None:
    raw = np.full((60, 60), 3, dtype=np.uint16)
    mask = np.zeros(raw.shape, dtype=np.uint8)
    raw[30, 31], raw[30, 32] = 200, 90
    mask[30, 31], mask[30, 33], mask[34, 30] = MASK_BAD, MASK_COSMIC, MASK_SATURATED
    before = look(raw, mask, [30.0], [30.0])
    filled = mask.copy()
    repair(raw.astype(np.float32), filled)
    after = look(raw, filled, [30.0], [30.0])
    assert not filled[30, 31] & MASK_BAD
    assert before.mask_bits == after.mask_bits == MASK_BAD | MASK_COSMIC | MASK_SATURATED
    assert before.peak_adu == after.peak_adu == 90
    assert_allclose([before.clean_radius_px[0], after.clean_radius_px[0]], [0.5, 10.0])


def test_places_off_the_frame_or_missing() -> None:
    raw = np.ones((20, 20), dtype=np.uint16)
    mask = np.full(raw.shape, MASK_SATURATED, dtype=np.uint8)
    found = look(raw, mask, [-60.0, 1e300, np.nan, -1.0], [5.0, 5.0, 5.0, 5.0])
    assert_array_equal(found.peak_adu, [np.nan, np.nan, np.nan, 1.0])
    assert_array_equal(found.clean_radius_px, [0.0, 0.0, np.nan, 0.0])
    assert_array_equal(found.mask_bits, [0, 0, 0, MASK_SATURATED])
    assert look(raw, mask, [], []).peak_adu.shape == (0,)


def test_raw_values_that_are_none_are_no_peak() -> None:
    raw = np.full((20, 20), np.nan)
    mask = np.zeros(raw.shape, dtype=np.uint8)
    assert np.isnan(look(raw, mask, [10.0], [10.0]).peak_adu[0])
    raw[10, 11] = 5.0
    assert look(raw, mask, [10.0], [10.0]).peak_adu[0] == 5.0


def test_refusals() -> None:
    raw = np.zeros((9, 9), dtype=np.uint16)
    mask = np.zeros(raw.shape, dtype=np.uint8)
    with pytest.raises(ValueError, match="mask"):
        look(raw, mask[:4], [4.0], [4.0])
    with pytest.raises(ValueError, match="fwhm_px"):
        peaks_and_clean_radius(
            raw, mask, [4.0], [4.0], fwhm_px=np.nan, flag_radius_px=1.0, max_radius_px=2.0
        )
    with pytest.raises(ValueError, match="radius_px"):
        blended([1.0], [1.0], radius_px=0.0)


@settings(max_examples=50, deadline=None)
@given(
    places=st.lists(
        st.tuples(st.integers(0, 12) | st.just(np.nan), st.integers(0, 12)), max_size=20
    ),
    radius=st.sampled_from([0.5, 1.0, 3.0, 20.0]),
)
def test_blended_is_what_all_pairs_say(places: list[tuple[float, float]], radius: float) -> None:
    x, y = np.array(places, dtype=float).reshape(-1, 2).T
    distance = np.hypot(x[:, None] - x, y[:, None] - y)
    np.fill_diagonal(distance, np.inf)
    assert_array_equal(blended(x, y, radius_px=radius), (distance <= radius).any(axis=1))
