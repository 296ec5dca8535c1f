"""Stacks: stars keep their flux, one frame's outliers go, weights say where frames reach."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nightloom.image.calibrate import MASK_BAD
from nightloom.image.stack import Stack, add_frame, empty_stack

NY, NX = 40, 50
SKY_E = 3.0
SHIFTS = [(0.0, 0.0), (2.3, -1.6), (-3.4, 0.7), (1.2, 3.1), (-0.6, -2.2)]
TRANSPARENCY = [1.0, 0.5, 0.9, 0.7, 1.0]


def frame(k, rng, flux=20000.0):
    """A star at (24, 18) of the reference, shifted, dimmed, on noise."""
    dx, dy = SHIFTS[k]
    y, x = np.mgrid[:NY, :NX]
    star = np.exp(-((x - 24 - dx) ** 2 + (y - 18 - dy) ** 2) / (2 * 1.7**2)) / (2 * np.pi * 1.7**2)
    return (TRANSPARENCY[k] * flux * star + rng.normal(0, SKY_E, (NY, NX))).astype(np.float32)


def stacked(frames, masks=None, against=None):
    stack = empty_stack(NY, NX)
    for k, pixels in enumerate(frames):
        mask = np.zeros((NY, NX), np.uint8) if masks is None else masks[k]
        matrix = np.array([[1.0, 0.0, SHIFTS[k][0]], [0.0, 1.0, SHIFTS[k][1]]])
        add_frame(
            stack, pixels, mask, matrix, weight=(TRANSPARENCY[k] / SKY_E) ** 2,
            scale=1 / TRANSPARENCY[k], against=against,
        )  # fmt: skip
    return stack


def test_stars_keep_their_flux_and_the_noise_is_that_of_the_weights():
    rng = np.random.default_rng(1)
    frames = [frame(k, rng) for k in range(5)]
    plain = stacked(frames)
    clipped = stacked(frames, against=plain)
    box = (slice(8, 29), slice(14, 35))
    for stack in (plain, clipped):
        assert stack.mean[box].sum() == pytest.approx(20000.0, rel=0.01)
    deep = clipped.weight == clipped.weight.max()
    deep[box] = False
    # Interpolation averages neighbours, so the noise is below that of the weights, never above.
    expected = 1 / np.sqrt(clipped.weight.max())
    assert 0.5 * expected < clipped.mean[deep].std() < 1.05 * expected


def test_a_cosmic_ray_in_one_of_five_frames_is_clipped():
    """Against a scatter that holds it, four sigma can't be reached by one of fewer than 18."""
    rng = np.random.default_rng(2)
    clean = [frame(k, rng) for k in range(5)]
    expected = stacked(clean).mean
    hit = [pixels.copy() for pixels in clean]
    hit[2][30, 10:14] += 5000.0  # sky
    hit[3][21, 25] += 30000.0  # the core of the star
    plain = stacked(hit)
    mean = stacked(hit, against=plain).mean
    assert np.nanmax(np.abs(plain.mean - expected)) > 500
    known = np.isfinite(expected)
    assert np.isfinite(mean[known]).all()
    assert np.abs(mean - expected)[known].max() < 120  # of a core of 1100: one frame of five less
    assert np.abs(mean - expected)[28:33, 5:20].max() < 6 * SKY_E


def test_of_two_that_differ_both_are_kept():
    rng = np.random.default_rng(3)
    frames = [frame(k, rng) for k in (0, 4)]
    frames[1][10, 10] += 9000.0
    both = [np.zeros((NY, NX))] * 2
    stack = empty_stack(NY, NX)
    again = empty_stack(NY, NX)
    for out, against in ((stack, None), (again, stack)):
        for pixels, mask in zip(frames, both, strict=True):
            add_frame(out, pixels, mask, np.eye(2, 3), weight=1.0, against=against)
    assert_array_equal(again.weight, stack.weight)


def test_weights_are_the_sum_of_the_frames_that_reach():
    rng = np.random.default_rng(4)
    frames = [frame(k, rng) for k in range(5)]
    masks = [np.zeros((NY, NX), np.uint8) for _ in frames]
    masks[4][5, 5] = MASK_BAD
    weight = stacked(frames, masks).weight
    expected = np.zeros((NY, NX))
    y, x = np.mgrid[:NY, :NX]
    for (dx, dy), transparency in zip(SHIFTS, TRANSPARENCY, strict=True):
        u, v = np.floor(x + dx), np.floor(y + dy)
        inside = (u >= 0) & (v >= 0) & (u + 1 < NX) & (v + 1 < NY)
        expected += np.where(inside, (transparency / SKY_E) ** 2, 0.0)
    near = (slice(7, 9), slice(5, 7))  # where the bad pixel, 2.2 px lower, is a neighbour
    expected[near] -= (TRANSPARENCY[4] / SKY_E) ** 2
    assert_allclose(weight, expected, atol=1e-12)
    nowhere = Stack(*(np.zeros((2, 2)) for _ in range(3)))
    assert np.isnan(nowhere.mean).all()
