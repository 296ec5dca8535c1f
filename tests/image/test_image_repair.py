"""Masked pixels filled from their neighbours: on planes, and near stars alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nightloom.image.calibrate import (
    MASK_BAD,
    MASK_COSMIC,
    MASK_FILLED,
    MASK_NAN,
    MASK_SATURATED,
)
from nightloom.image.repair import flags_before, repair, repair_near


def spotted(shape=(300, 400), part=0.03):
    rng = np.random.default_rng(4)
    y, x = np.mgrid[: shape[0], : shape[1]]
    pixels = (100.0 + 2.0 * x - 0.5 * y).astype(np.float32)
    mask = np.where(rng.random(shape) < part, MASK_BAD, 0).astype(np.uint8)
    mask[rng.random(shape) < 0.002] = MASK_SATURATED
    return pixels, mask


def test_a_plane_is_filled_exactly_and_what_saturates_is_left():
    plane, mask = spotted()
    pixels = plane.copy()
    pixels[mask == MASK_BAD] = -1e6
    left = mask.copy()
    repair(pixels, left)
    filled = left != mask
    assert filled.sum() > 0.8 * (mask == MASK_BAD).sum()
    assert_allclose(pixels[filled], plane[filled], rtol=1e-6)
    assert_array_equal(left[mask == MASK_SATURATED], MASK_SATURATED)


def test_a_filled_pixel_remembers_what_was_wrong_with_it():
    plane, _ = spotted()
    for flags in range(32):
        pixels, mask = plane.copy(), np.zeros(plane.shape, dtype=np.uint8)
        mask[50, 60] = flags
        repair(pixels, mask)
        left, lost = int(mask[50, 60]), flags & (MASK_BAD | MASK_COSMIC | MASK_NAN)
        assert left & ~MASK_FILLED == flags & ~lost
        assert bool(left & MASK_FILLED) == bool(lost)
        assert flags_before(left) == flags


@pytest.mark.parametrize("n_stars", [6, 400])
def test_near_stars_all_is_as_if_everywhere(n_stars):
    plane, mask = spotted()
    plane[mask > 0] = -1e6
    rng = np.random.default_rng(5)
    x, y = rng.uniform(-20, 420, n_stars), rng.uniform(-20, 320, n_stars)
    x[0], y[1], x[2] = np.nan, np.inf, 1e9
    whole, near = plane.copy(), plane.copy()
    left_of_whole, left = mask.copy(), mask.copy()
    repair(whole, left_of_whole)
    repair_near(near, left, x, y, reach_px=12.3)
    rows, columns = np.mgrid[:300, :400]
    within = np.zeros(mask.shape, dtype=bool)
    for star in range(n_stars):
        within |= (abs(columns - x[star]) <= 12.3) & (abs(rows - y[star]) <= 12.3)
    assert_array_equal(near[within], whole[within])
    assert_array_equal(left[within], left_of_whole[within])
    touched = left != mask
    assert_array_equal(near[~touched], plane[~touched])
    assert (left != left_of_whole).any() == (n_stars == 6)


def test_a_reach_that_is_none_is_refused():
    pixels, mask = spotted()
    with pytest.raises(ValueError, match="reach_px"):
        repair_near(pixels, mask, [5.0], [5.0], reach_px=0.0)
