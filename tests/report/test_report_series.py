"""Time axes without daytime, means of bins, limits and scatter, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nightloom.report.series import (
    MINUTE_D,
    bin_days,
    binned,
    limits,
    point_to_point,
    time_axis,
)


def _night(name: str, n: int) -> np.ndarray:
    return np.full(n, name, dtype=object)


def test_one_night_is_shown_in_days_after_its_integer() -> None:
    axis = time_axis(2460586.25 + np.array([0.0, 0.1, 0.3]), _night("n", 3), scale="BJD_TDB")
    assert_allclose(axis.x, [0.25, 0.35, 0.55])
    assert axis.label == "BJD_TDB − 2460586 (days)"


def test_days_between_nights_are_cut_out_and_order_is_kept() -> None:
    time_d = np.array([10.2, 10.4, 500.3, 500.6])
    night = np.array(["a", "a", "b", "b"], dtype=object)
    axis = time_axis(time_d, night, scale="BJD_TDB")
    assert_allclose(np.diff(axis.x)[[0, 2]], [0.2, 0.3])
    assert 0 < axis.x[2] - axis.x[1] < 0.3
    assert axis.names == ("a", "b")
    assert_allclose(axis.spans[1], axis.x[[2, 3]])


def test_a_night_past_midnight_is_not_cut() -> None:
    axis = time_axis(np.array([5.9, 6.1]), _night("n", 2), scale="JD UTC")
    assert_allclose(axis.x, [0.9, 1.1])


def test_means_of_bins_weigh_by_error_and_leave_out_what_is_not_used() -> None:
    minutes = np.array([0.0, 1.0, 2.0, 6.0, 7.0])
    axis = time_axis(minutes * MINUTE_D, _night("n", 5), scale="BJD_TDB")
    flux = np.array([1.0, 4.0, 99.0, 2.0, 2.0])
    error = np.array([1.0, 2.0, 1.0, 1.0, 1.0])
    use = np.array([True, True, False, True, True])
    x, mean, err = binned(axis, flux, error, use, bin_d=5 * MINUTE_D)
    assert_allclose(mean, [(1.0 + 4.0 / 4) / 1.25, 2.0])
    assert_allclose(err, [1 / np.sqrt(1.25), 1 / np.sqrt(2)])
    assert_allclose(x[1], 6.5 * MINUTE_D)


def test_no_bin_crosses_a_night() -> None:
    time_d = np.array([0.0, 0.001, 9.0, 9.001])
    night = np.array(["a", "a", "b", "b"], dtype=object)
    axis = time_axis(time_d, night, scale="BJD_TDB")
    flux = np.array([1.0, 1.0, 3.0, 3.0])
    _, mean, _ = binned(axis, flux, np.ones(4), np.ones(4, dtype=bool), bin_d=1.0)
    assert_allclose(mean, [1.0, 3.0])


def test_points_without_an_error_weigh_the_same() -> None:
    axis = time_axis(np.array([0.0, 0.001]), _night("n", 2), scale="BJD_TDB")
    _, mean, err = binned(
        axis, np.array([1.0, 2.0]), np.array([np.nan, 0.5]), np.ones(2, dtype=bool), bin_d=1.0
    )
    assert_allclose(mean, [1.5])
    assert np.isnan(err).all()


@pytest.mark.parametrize(
    ("span_h", "cadence_min", "bin_min"), [(1.0, 0.5, 5.0), (4.0, 0.5, 8.0), (9.0, 0.5, 10.0),
                                           (6.0, 6.0, 18.0)]
)  # fmt: skip
def test_width_of_bins(span_h: float, cadence_min: float, bin_min: float) -> None:
    time_d = np.arange(0, span_h * 60 + 1e-6, cadence_min) * MINUTE_D
    axis = time_axis(time_d, _night("n", len(time_d)), scale="BJD_TDB")
    assert_allclose(bin_days(axis) / MINUTE_D, bin_min, rtol=1e-6)


def test_one_wild_point_does_not_set_the_limits() -> None:
    flux = np.concatenate([np.linspace(0.99, 1.01, 400), [7.0, np.nan]])
    low, high = limits(flux, np.ones(402, dtype=bool))
    assert 0.98 < low < 0.99
    assert 1.01 < high < 1.02


def test_limits_of_nothing_and_of_one_value_are_a_range() -> None:
    for values in (np.full(3, np.nan), np.ones(3)):
        low, high = limits(values, np.ones(3, dtype=bool))
        assert low < 1.0 < high


def test_point_to_point_ignores_trends_and_steps_between_nights() -> None:
    noise = np.random.default_rng(3).normal(0, 0.01, 4000)
    night = np.repeat(["a", "b"], 2000)
    flux = 1 + noise + np.repeat([0.0, 5.0], 2000) + np.linspace(0, 1, 4000)
    assert_allclose(point_to_point(flux, night), 0.01, rtol=0.05)
    assert np.isnan(point_to_point(flux[:2], night[:2]))
