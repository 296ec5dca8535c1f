"""Ranks found by counting are those that sorting gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightloom.image.ranks import (
    LEAST,
    MOST,
    count_below,
    fill_keys,
    key_from,
    key_to,
    moments_within,
    ranked,
    value_of,
)

FLOATS = st.floats(width=32, allow_nan=False)


def keys_of(values):
    keys = np.empty(len(values), dtype=np.int32)
    fill_keys(values, keys)
    return keys


@settings(deadline=None)
@given(values=st.lists(FLOATS, min_size=2, max_size=60))
def test_keys_are_in_the_order_of_their_values(values):
    keys = keys_of(np.array(values, dtype=np.float32))
    assert [value_of(key) for key in keys] == values
    for a, b in itertools.pairwise(values):
        at = values.index(a), values.index(b)
        assert (a < b) == (keys[at[0]] < keys[at[1]])


@settings(deadline=None)
@given(
    values=st.lists(FLOATS | st.integers(-3, 3).map(float), min_size=1, max_size=60),
    guess=FLOATS | st.just(np.nan),
    spacing=st.sampled_from([0.0, 1e-30, 0.3, 1e30, np.nan]),
    data=st.data(),
)
def test_a_rank_is_what_sorting_finds_wherever_the_search_begins(values, guess, spacing, data):
    rank = data.draw(st.integers(0, len(values) - 1))
    key, first, last, before, behind = ranked(
        keys_of(np.array(values, dtype=np.float32)), rank, guess, spacing
    )
    rising = sorted(values)
    assert value_of(key) == rising[rank]
    assert first == rising.index(rising[rank])
    assert last == first + rising.count(rising[rank])
    assert before == LEAST if first == 0 else value_of(before) == rising[first - 1]
    assert behind == MOST if last == len(values) else value_of(behind) == rising[last]


@settings(deadline=None)
@given(
    values=st.lists(FLOATS, min_size=1, max_size=60),
    limit=st.floats(-3e38, 3e38) | st.integers(-4, 4).map(float),
)
def test_limits_between_two_float32_count_as_they_are(values, limit):
    array = np.array(values, dtype=np.float32)
    keys = keys_of(array)
    assert count_below(keys, key_from(limit)) == np.sum(array.astype(np.float64) < limit)
    assert count_below(keys, key_to(limit) + 1) == np.sum(array.astype(np.float64) <= limit)


def test_ranks_of_values_that_no_step_points_to():
    """Each ten times further out than the one before."""
    values = np.cumprod(np.full(30, 10.0)).astype(np.float32)
    values = np.concatenate([values, -values])
    for rank in range(len(values)):
        key, *_ = ranked(keys_of(values), rank, np.nan, 0.0)
        assert value_of(key) == np.sort(values)[rank]


def test_moments_are_those_of_what_lies_within():
    values = np.random.default_rng(1).normal(300.0, 15.0, 1999).astype(np.float32)
    values[:20] = np.inf
    origin, low, high = (float(np.float32(v)) for v in (301.5, 262.5, 340.25))
    kept = values[(values >= low) & (values <= high)].astype(np.float64) - origin
    first, second = moments_within(values, origin, low, high)
    assert first / len(kept) == pytest.approx(kept.mean(), abs=1e-5 * 15.0)
    assert second == pytest.approx(np.sum(kept**2), rel=1e-6)
    assert moments_within(values[::-1].copy(), origin, low, high) == (first, second)
    assert moments_within(values, origin, origin, origin) == (0.0, 0.0)
