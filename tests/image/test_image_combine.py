"""Masters out of stacks: the exact median, the clipped mean and the noise of one frame."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from nightloom.image.combine import combine, median_combine, median_variance
from nightloom.image.sorting import merge_exchange, pruned


def numpy_median(stack):
    return np.median(stack, axis=0).astype(np.float32)


@pytest.mark.parametrize("n", range(1, 12))
def test_the_network_sorts_every_sequence_of_zeros_and_ones(n):
    network = merge_exchange(n)
    for bits in itertools.product((0, 1), repeat=n):
        values = list(bits)
        for i, j in network:
            values[i], values[j] = min(values[i], values[j]), max(values[i], values[j])
        assert values == sorted(bits)


@pytest.mark.parametrize(("n", "comparators"), [(16, 53), (64, 445)])
def test_the_network_ispruned_to_the_middle(n, comparators):
    assert len(pruned(merge_exchange(n), wanted={(n - 1) // 2, n // 2})) == comparators


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


@pytest.mark.parametrize("dtype", [">i2", "<i2"])
def test_words_as_fits_stores_them(dtype):
    rng = np.random.default_rng(13)
    stack = rng.integers(0, 2**16, (9, 3, 70)).astype(np.uint16)
    stored = (stack.astype(int) - 32768).astype(dtype)
    assert_array_equal(median_combine(stored, zero=32768), numpy_median(stack))
    meant, made = combine(stack, sigma=3.0), combine(stored, sigma=3.0, zero=32768)
    valid = stack < 60_000
    left, out = combine(stack, valid=valid), combine(stored, valid=valid, zero=32768)
    for name in ("median", "mean", "noise", "used"):
        assert_array_equal(getattr(made, name), getattr(meant, name))
        assert_array_equal(getattr(out, name), getattr(left, name))
    with pytest.raises(ValueError, match="zero 5"):
        combine(stored, zero=5)


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
    made = combine(stack[:, :, :1], sigma=3.0)
    assert np.isnan([made.median, made.mean, made.noise]).all()
    assert_array_equal(made.used, [[0]])


def test_flats_do_not_suffer_from_saturated_pixels():
    flats = np.full((7, 2, 4), 20_000, np.uint16)
    flats[:3, 0, 1] = 65_535
    flats[0, 1, 2] = 65_535
    valid = flats < 60_000
    assert (median_combine(flats, valid=valid) == 20_000).all()
    made = combine(flats, sigma=4.0, valid=valid)
    assert (made.mean == 20_000).all()
    assert (made.median == 20_000).all()
    assert_array_equal(made.used, valid.sum(axis=0))


@pytest.mark.parametrize("n", [5, 16, 60])
def test_clipped_mean_is_unbiased_and_drops_outliers(n):
    rng = np.random.default_rng(n)
    stack = rng.normal(1000.0, 5.0, (n, 40, 100)).astype(np.float32)
    plain = combine(stack, sigma=4.0)
    assert plain.mean.mean() == pytest.approx(1000.0, abs=0.3 / np.sqrt(n))
    assert plain.used.mean() > 0.993 * n
    stack[0, ::2] += 500.0
    clipped = combine(stack, sigma=4.0)
    assert (clipped.used[::2] <= n - 1).all()
    assert np.abs(clipped.mean - plain.mean).mean() < 2.5 * 5.0 / n
    assert clipped.mean.std() < 1.3 * 5.0 / np.sqrt(n)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 30])
def test_moments_are_those_of_a_plain_clip_about_the_median(dtype, n):
    """The vector code against numpy, pixel by pixel; one run of 64 to 1024 pixels has one floor."""
    rng = np.random.default_rng(n)
    stack = np.round(rng.normal(900.0, 12.0, (n, 3, 50))).astype(dtype)
    stack[n // 2, :, ::7] += 700
    made = combine(stack, sigma=4.0)
    median = np.median(stack.astype(float), axis=0)
    mad = np.median(np.abs(stack - median), axis=0)
    scale = 1.4826 * mad
    some = np.sort(scale[:, ::4], axis=1)
    floor = np.maximum(some[:, some.shape[1] // 2, None], 0.0 if dtype(0.5) else 0.5)
    kept = np.ma.array(
        stack.astype(float), mask=np.abs(stack - median) > 4 * np.maximum(scale, floor)
    )
    assert_array_equal(made.median, median.astype(np.float32))
    assert_array_equal(made.used, kept.count(axis=0))
    assert_allclose(made.mean, kept.mean(axis=0), rtol=1e-6)
    if n > 2:
        assert_allclose(made.noise, kept.std(axis=0, ddof=1), rtol=2e-5, atol=1e-4)


def test_gaps_leave_what_the_rest_would_give_alone():
    """A pixel with gaps is treated as in a stack without them, and its neighbours are untouched."""
    rng = np.random.default_rng(11)
    stack = rng.normal(100.0, 3.0, (12, 2, 64)).astype(np.float32)
    gaps = stack.copy()
    gaps[3:6, :, 10] = np.nan
    made, whole = combine(gaps, sigma=50.0), combine(stack, sigma=50.0)
    rest = np.delete(stack[:, :, 10], slice(3, 6), axis=0)
    assert_allclose(made.mean[:, 10], rest.mean(axis=0), rtol=1e-6)
    assert_allclose(made.noise[:, 10], rest.std(axis=0, ddof=1), rtol=1e-5)
    others = np.delete(np.arange(64), 10)
    assert_array_equal(made.noise[:, others], whole.noise[:, others])


def test_many_equal_values_do_not_clip_their_neighbours():
    stack = np.full((16, 1, 8), 300, np.uint16)
    stack[:3] = 301
    stack[15, 0, 5] = 5_000
    made = combine(stack, sigma=4.0)
    expected = np.full(8, 300 + 3 / 16, np.float32)
    expected[5] = 300 + 3 / 15
    assert_allclose(made.mean[0], expected, rtol=1e-6)
    assert_array_equal(made.used[0], [16] * 5 + [15] + [16] * 2)


def test_noise_is_that_of_one_frame():
    rng = np.random.default_rng(9)
    stack = np.round(rng.normal(300.0, 2.0, (25, 60, 200))).astype(np.uint16)
    stack[3, 5, 5] = 60_000
    noise = combine(stack).noise
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(np.hypot(2.0, 1 / np.sqrt(12)), rel=0.01)
    assert noise[5, 5] < 5.0
    assert np.isnan(combine(stack[:1]).noise).all()


@pytest.mark.parametrize("n", [1, 3, 9, 25])
def test_variance_of_the_median_is_what_medians_scatter(n):
    rng = np.random.default_rng(12)
    medians = median_combine(rng.normal(0.0, 2.0, (n, 300, 200)).astype(np.float32))
    expected = median_variance(np.float32(2.0), np.int32(n))
    assert medians.var() == pytest.approx(expected, rel=0.04)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(8)), cut=st.integers(1, 5))
def test_bits_ignore_the_order_of_frames_and_the_cut_of_sections(order, cut):
    rng = np.random.default_rng(10)
    stack = rng.normal(100.0, 3.0, (8, 6, 90)).astype(np.float32)
    stack[1, 2, 3], stack[4, 1] = np.nan, 900.0
    mixed = stack[list(order)]
    whole = combine(stack, sigma=3.0)
    parts = [combine(part, sigma=3.0) for part in (mixed[:, :cut], mixed[:, cut:])]
    for name in ("median", "mean", "noise", "used"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert_array_equal(joined, getattr(whole, name))
    assert_array_equal(median_combine(mixed), median_combine(stack))


def test_wrong_stacks_are_refused():
    with pytest.raises(ValueError, match="a stack"):
        median_combine(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="a stack"):
        combine(np.zeros((0, 3, 4)))
    with pytest.raises(ValueError, match="valid is"):
        median_combine(np.zeros((2, 3, 4)), valid=np.ones((3, 4)))
