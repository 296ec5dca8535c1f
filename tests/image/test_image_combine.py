"""Masters out of stacks: the exact median, the clipped mean and the noise of one frame."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from nightloom.image.combine import (
    _merge_exchange,
    _pruned,
    clipped_mean,
    median_combine,
    stack_noise,
)


def numpy_median(stack):
    return np.median(stack, axis=0).astype(np.float32)


@pytest.mark.parametrize("n", range(1, 12))
def test_the_network_sorts_every_sequence_of_zeros_and_ones(n):
    network = _merge_exchange(n)
    for bits in itertools.product((0, 1), repeat=n):
        values = list(bits)
        for i, j in network:
            values[i], values[j] = min(values[i], values[j]), max(values[i], values[j])
        assert values == sorted(bits)


@pytest.mark.parametrize(("n", "comparators"), [(16, 53), (64, 445)])
def test_the_network_is_pruned_to_the_middle(n, comparators):
    assert len(_pruned(_merge_exchange(n), wanted={(n - 1) // 2, n // 2})) == comparators


@pytest.mark.parametrize("dtype", ["<u2", ">i2", "<i4"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 33, 70])
def test_median_of_integers_has_numpys_bits(dtype, n):
    info = np.iinfo(np.dtype(dtype).newbyteorder("="))
    rng = np.random.default_rng(n)
    stack = rng.integers(info.min, info.max, (n, 3, 131), endpoint=True).astype(dtype)
    stack.flags.writeable = False
    median = median_combine(stack)
    assert median.dtype == np.float32
    assert_array_equal(median, numpy_median(stack))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 24), nx=st.integers(1, 9), seed=st.integers(0, 999), few=st.booleans())
def test_median_of_few_values_with_many_ties(n, nx, seed, few):
    rng = np.random.default_rng(seed)
    stack = rng.integers(0, 3 if few else 65535, (n, 2, nx)).astype(np.uint16)
    assert_array_equal(median_combine(stack[:, ::-1]), numpy_median(stack[:, ::-1]))


def test_median_leaves_out_nan_and_what_is_not_valid():
    rng = np.random.default_rng(3)
    stack = rng.normal(100, 10, (9, 4, 50)).astype(np.float32)
    stack[rng.random(stack.shape) < 0.3] = np.nan
    stack[:, 0, 0] = np.nan
    stack[0, 0, 0] = 7.0
    assert_array_equal(median_combine(stack), np.nanmedian(stack, axis=0).astype(np.float32))
    whole = rng.integers(0, 4000, (9, 4, 50)).astype(np.uint16)
    valid = whole < 3000
    valid[0] = True
    expected = np.nanmedian(np.where(valid, whole, np.nan), axis=0).astype(np.float32)
    assert_array_equal(median_combine(whole, valid=valid), expected)


def test_nothing_valid_is_nan_and_infinity_keeps_its_place():
    stack = np.array([[[np.nan, np.inf, 1.0]], [[np.nan, np.inf, np.inf]], [[np.nan, 1.0, 2.0]]])
    assert_array_equal(median_combine(stack), [[np.nan, np.inf, 2.0]])
    value, used = clipped_mean(stack[:, :, :1], sigma=3.0)
    assert np.isnan(value).all()
    assert_array_equal(used, [[0]])


def test_flats_do_not_suffer_from_saturated_pixels():
    flats = np.full((7, 2, 4), 20_000, np.uint16)
    flats[:3, 0, 1] = 65_535
    flats[0, 1, 2] = 65_535
    valid = flats < 60_000
    assert (median_combine(flats, valid=valid) == 20_000).all()
    value, used = clipped_mean(flats, sigma=4.0, valid=valid)
    assert (value == 20_000).all()
    assert_array_equal(used, valid.sum(axis=0))


@pytest.mark.parametrize("n", [5, 16, 60])
def test_clipped_mean_is_unbiased_and_drops_outliers(n):
    rng = np.random.default_rng(n)
    stack = rng.normal(1000.0, 5.0, (n, 40, 100)).astype(np.float32)
    plain, used = clipped_mean(stack, sigma=4.0)
    assert plain.mean() == pytest.approx(1000.0, abs=0.3 / np.sqrt(n))
    assert used.mean() > 0.993 * n
    stack[0, ::2] += 500.0
    clipped, used = clipped_mean(stack, sigma=4.0)
    assert (used[::2] <= n - 1).all()
    assert np.abs(clipped - plain).mean() < 2.5 * 5.0 / n
    assert clipped.std() < 1.3 * 5.0 / np.sqrt(n)


def test_clipped_mean_with_a_known_scale_is_numpys_masked_mean():
    rng = np.random.default_rng(8)
    stack = rng.normal(0.0, 1.0, (15, 6, 30))
    stack[2] += 50.0
    value, used = clipped_mean(stack, sigma=5.0, scale=np.ones((6, 30)))
    assert_allclose(value, np.delete(stack, 2, axis=0).mean(axis=0), atol=1e-6)
    assert (used == 14).all()


def test_many_equal_values_do_not_clip_their_neighbours():
    stack = np.full((16, 1, 8), 300, np.uint16)
    stack[:3] = 301
    stack[15, 0, 5] = 5_000
    value, used = clipped_mean(stack, sigma=4.0)
    expected = np.full(8, 300 + 3 / 16, np.float32)
    expected[5] = 300 + 3 / 15
    assert_allclose(value[0], expected, rtol=1e-6)
    assert_array_equal(used[0], [16] * 5 + [15] + [16] * 2)


def test_noise_is_that_of_one_frame():
    rng = np.random.default_rng(9)
    stack = np.round(rng.normal(300.0, 2.0, (25, 60, 200))).astype(np.uint16)
    stack[3, 5, 5] = 60_000
    centre, _ = clipped_mean(stack, sigma=5.0)
    noise = stack_noise(stack, centre)
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(np.hypot(2.0, 1 / np.sqrt(12)), rel=0.01)
    assert noise[5, 5] < 5.0
    assert np.isnan(stack_noise(stack[:1], stack[0])).all()


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(8)), cut=st.integers(1, 5))
def test_bits_ignore_the_order_of_frames_and_the_cut_of_sections(order, cut):
    rng = np.random.default_rng(10)
    stack = rng.normal(100.0, 3.0, (8, 6, 90)).astype(np.float32)
    stack[1, 2, 3], stack[4, 1] = np.nan, 900.0
    mixed = stack[list(order)]
    whole, used = clipped_mean(stack, sigma=3.0)
    parts = [clipped_mean(part, sigma=3.0) for part in (mixed[:, :cut], mixed[:, cut:])]
    assert_array_equal(np.concatenate([value for value, _ in parts]), whole)
    assert_array_equal(np.concatenate([n for _, n in parts]), used)
    noise = np.concatenate(
        [stack_noise(mixed[:, s], whole[s]) for s in (slice(cut), slice(cut, None))]
    )
    assert_array_equal(noise, stack_noise(stack, whole))
    assert_array_equal(median_combine(mixed), median_combine(stack))


def test_wrong_stacks_are_refused():
    with pytest.raises(ValueError, match="a stack"):
        median_combine(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="a stack"):
        clipped_mean(np.zeros((0, 3, 4)), sigma=3.0)
    with pytest.raises(ValueError, match="valid is"):
        median_combine(np.zeros((2, 3, 4)), valid=np.ones((3, 4)))
    with pytest.raises(ValueError, match="centre is"):
        stack_noise(np.zeros((2, 3, 4)), np.zeros((4, 3)))
