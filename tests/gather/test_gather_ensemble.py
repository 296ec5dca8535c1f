from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from nightloom.gather.ensemble import (
    Ensemble,
    curves,
    differential,
    differential_all,
    lay_out,
    weights_for,
)
from nightloom.gather.weights import solve
from starfields import StarField, only, star_field, transit


def measured(field: StarField, flux: np.ndarray | None = None, **options: object) -> Ensemble:
    """All curves; star 0 is the target."""
    flux = field.flux if flux is None else flux
    options.setdefault("usable", np.isfinite(flux))
    options.setdefault("never", only(flux.shape[1], 0))
    options.setdefault("night", field.night)
    return differential(flux, field.flux_err, **options)


def test_constant_stars_have_errors_that_are_right() -> None:
    spread = [
        np.std((result.flux - 1) / result.flux_err, axis=0)
        for result in (measured(star_field(seed)) for seed in range(6))
    ]
    assert 0.95 < np.median(spread) < 1.05
    assert 0.85 < np.median(np.array(spread)[:, 0]) < 1.2


def test_what_comparisons_scatter_beyond_their_photons_is_in_the_error() -> None:
    field = star_field(1, n_stars=5)
    flux = field.flux.copy()
    flux[:, 1:] *= 1 + 0.01 * np.random.default_rng(0).standard_normal((len(flux), 4))
    result = measured(field, flux)
    pull = (result.flux[:, 0] - 1) / result.flux_err[:, 0]
    assert 0.85 < np.std(pull) < 1.2


def test_raw_flux_is_flux_times_level_times_comparison() -> None:
    field = star_field(1)
    result = measured(field)
    assert_allclose(result.flux * result.level * result.comparison, field.flux, rtol=1e-12)
    assert_allclose(np.median(result.flux, axis=0), 1, rtol=1e-12)
    assert np.median(result.comparison[:, 0]) == pytest.approx(1)
    typical = field.factor / np.median(field.factor)
    assert_allclose(result.comparison[:, 0], typical, rtol=0.01)


def test_the_target_never_enters_its_comparison() -> None:
    field = star_field(2)
    flux = field.flux.copy()
    flux[:, 0] *= transit(len(flux), depth=0.3)
    flux[7, 0] = np.nan
    plain, changed = measured(field), measured(field, flux, usable=np.ones(flux.shape, bool))
    assert_array_equal(plain.comparison, changed.comparison)
    assert_array_equal(plain.weight, changed.weight)
    assert_array_equal(plain.flux[:, 1:], changed.flux[:, 1:])


def test_an_injected_transit_keeps_its_depth() -> None:
    depth, pulls = 0.02, []
    for seed in range(20):
        signal = transit(240, depth=depth)
        result = measured(star_field(seed, n_times=240, signal=signal))
        model = np.stack([np.ones(240), (1 - signal) / depth], axis=1)
        scaled = model / result.flux_err[:, :1]
        cov = np.linalg.inv(scaled.T @ scaled)
        level, slope = cov @ scaled.T @ (result.flux[:, 0] / result.flux_err[:, 0])
        pulls.append((-slope / level - depth) / np.sqrt(cov[1, 1]))
    assert np.abs(pulls).max() < 3.5
    assert abs(np.mean(pulls)) < 3 / np.sqrt(len(pulls))


def test_gaps_at_random_leave_the_curve_within_its_error() -> None:
    field = star_field(3, n_stars=20)
    full = measured(field)
    usable = np.random.default_rng(0).random(field.flux.shape) > 0.1
    usable[:, 0] = True
    gappy = measured(field, np.where(usable, field.flux, np.nan), usable=usable)
    difference = (gappy.flux[:, 0] - full.flux[:, 0]) / full.flux_err[:, 0]
    assert np.abs(difference).max() < 1
    assert abs(difference.mean()) < 0.05


def test_a_gap_in_a_star_of_no_weight_blanks_no_one() -> None:
    field = star_field(4)
    flux = field.flux.copy()
    flux[::3, 5] = np.nan
    never = only(flux.shape[1], 0, 5)
    holed, full = measured(field, flux, never=never), measured(field, never=never)
    others = np.arange(flux.shape[1]) != 5
    assert_array_equal(holed.flux[:, others], full.flux[:, others])
    assert_array_equal(np.isnan(holed.flux[:, 5]), np.isnan(flux[:, 5]))


def test_a_frame_without_any_flux_is_the_only_one_lost() -> None:
    field = star_field(5)
    flux = field.flux.copy()
    flux[20] = np.nan
    result = measured(field, flux)
    lost = np.isnan(result.flux)
    assert lost[20].all()
    assert lost.sum() == flux.shape[1]
    assert result.n_comparisons[20] == 0
    assert result.n_comparisons[21] == flux.shape[1] - 1


def test_a_star_that_leaves_the_frame_makes_no_step_and_costs_no_epoch() -> None:
    field = star_field(6)
    usable = np.ones(field.flux.shape, bool)
    usable[170:, 1] = False
    full = measured(field)
    left = measured(field, np.where(usable, field.flux, np.nan), usable=usable)
    difference = (left.flux[:, 0] - full.flux[:, 0]) / full.flux_err[:, 0]
    assert np.isfinite(difference).all()
    assert abs(difference[170:].mean() - difference[:170].mean()) < 0.1


def test_a_star_missing_under_cloud_keeps_its_level() -> None:
    field = star_field(7)
    usable = np.ones(field.flux.shape, bool)
    usable[field.factor < 0.8 * np.median(field.factor), 1:5] = False
    result, full = measured(field, usable=usable), measured(field)
    assert (~usable).any(axis=0)[1:5].all()
    assert_allclose(result.level, full.level, rtol=1e-3)


def test_a_sine_of_a_hundred_days_survives_the_joining_of_nights() -> None:
    n_nights, each, amplitude = 100, 6, 0.02
    days = np.repeat(np.arange(n_nights) * 3.7, each)
    wave = np.stack([np.sin(2 * np.pi * days / 100), np.ones(len(days))], axis=1)
    signal = 1 + amplitude * wave[:, 0]
    field = star_field(8, n_times=len(days), n_nights=n_nights, n_stars=20, signal=signal)
    usable = np.ones(field.flux.shape, bool)
    for star, first in enumerate(np.random.default_rng(1).integers(0, 60, 19), start=1):
        usable[(field.night >= first) & (field.night < first + 40), star] = False
    result = measured(field, np.where(usable, field.flux, np.nan), usable=usable)
    scaled = wave / result.flux_err[:, :1]
    cov = np.linalg.inv(scaled.T @ scaled)
    found = cov @ scaled.T @ (result.flux[:, 0] / result.flux_err[:, 0])
    assert abs(found[0] / found[1] - amplitude) < 3 * np.sqrt(cov[0, 0])
    pull = (result.flux[:, 0] - wave @ found) / result.flux_err[:, 0]
    nightly = pull.reshape(n_nights, each).mean(axis=1) * np.sqrt(each)
    assert np.std(nightly) < 1.25


def test_one_comparison_serves_all_but_itself() -> None:
    field = star_field(9, n_stars=2)
    result = measured(field)
    assert np.isfinite(result.flux[:, 0]).all()
    assert np.isnan(result.flux[:, 1]).all()
    assert_array_equal(result.weight, [0, 1])
    assert_array_equal(weights_for(result.weight, 1), [0, 0])
    ratio = field.flux[:, 0] / field.flux[:, 1]
    assert_allclose(result.flux[:, 0], ratio / np.median(ratio), rtol=1e-12)


def test_two_stars_serve_each_other() -> None:
    field = star_field(9, n_stars=2)
    result = measured(field, never=only(2))
    ratio = field.flux[:, 0] / field.flux[:, 1]
    assert_allclose(result.flux[:, 0], ratio / np.median(ratio), rtol=1e-12)
    assert_allclose(result.flux[:, 1], 1 / ratio / np.median(1 / ratio), rtol=1e-12)
    assert_array_equal(weights_for(result.weight, 0), [0, 1])


@pytest.mark.parametrize("case", ["only targets", "no flux", "negative", "no errors"])
def test_without_comparisons_all_is_nan(case: str) -> None:
    field = star_field(10, n_stars=4)
    flux = {"no flux": np.nan, "negative": -1.0}.get(case, 1.0) * field.flux
    result = differential(
        flux,
        field.flux_err * (np.nan if case == "no errors" else 1.0),
        np.ones(flux.shape, bool),
        never=np.full(4, case == "only targets"),
        night=field.night,
    )
    assert np.isnan(result.flux).all()
    assert_array_equal(result.weight, np.zeros(4))
    assert_array_equal(result.n_comparisons, np.zeros(len(flux)))


@pytest.mark.parametrize("shape", [(0, 4), (5, 0), (0, 0)])
def test_empty_in_empty_out(shape: tuple[int, int]) -> None:
    nothing = np.zeros(shape)
    result = differential(
        nothing, nothing, nothing, never=np.zeros(shape[1], bool), night=np.zeros(shape[0])
    )
    assert result.flux.shape == result.flux_err.shape == result.comparison.shape == shape


@pytest.mark.parametrize("n_times", [1, 2, 3])
def test_very_few_epochs_are_enough(n_times: int) -> None:
    field = star_field(11, n_times=n_times, n_nights=1)
    assert np.isfinite(measured(field).flux).all()


def test_what_is_left_out_is_exactly_ones_own() -> None:
    field = star_field(12, level=np.array([5e4, 4e11, 3e4, 3e4, 3e4]))
    flux, error = field.flux.T.copy(), field.flux_err.T.copy()
    layout = lay_out(np.ones(field.flux.shape), never=only(5, 0), night=field.night)
    solution = solve(flux, error, layout)
    ratio, _, _ = curves(flux, error, solution, np.arange(5))
    for k, star in enumerate(solution.stars):
        others = np.arange(len(solution.stars)) != k
        factor = solution.own_total[others].sum(axis=0) / solution.own_norm[others].sum(axis=0)
        assert_allclose(ratio[star], flux[star] / factor, rtol=1e-11)


def test_frames_that_are_not_good_get_values_and_decide_nothing() -> None:
    field = star_field(13)
    good = np.ones(len(field.night), bool)
    good[50:80] = False
    flux = field.flux.copy()
    flux[50:80] *= np.random.default_rng(0).uniform(0.5, 1.5, (30, 1))
    flux[50:80, 3] *= 0.5
    plain, result = measured(field, good_frame=good), measured(field, flux, good_frame=good)
    assert_array_equal(result.flux[good], plain.flux[good])
    assert_array_equal(result.weight, plain.weight)
    assert_allclose(result.flux[50:80, 0], 1, atol=8 * result.flux_err[50:80, 0].max())


def test_any_float_array_is_taken_and_left_as_it_was() -> None:
    field = star_field(14)
    expected = measured(field)
    wide = np.zeros((*field.flux.shape, 2), ">f4")
    wide[..., 1] = field.flux
    flux = wide[..., 1]
    flux.flags.writeable = False
    result = differential(
        flux,
        np.asfortranarray(field.flux_err.astype(np.float32)),
        np.ones(flux.shape, np.uint8),
        never=only(flux.shape[1], 0),
        night=np.array([f"2026-01-{3 * n + 1:02d}" for n in field.night]),
    )
    assert_allclose(result.flux, expected.flux, rtol=1e-6)
    assert_array_equal(flux, field.flux.astype(np.float32))


def test_each_aperture_is_as_if_alone() -> None:
    fields = [star_field(15, brightest_e=bright) for bright in (2e4, 1e5, 3e5)]
    flux = np.stack([field.flux for field in fields], axis=-1)
    error = np.stack([field.flux_err for field in fields], axis=-1)
    layout = lay_out(np.ones(flux.shape[:2]), never=only(12, 0), night=fields[0].night)
    for field, result in zip(fields, differential_all(flux, error, layout), strict=True):
        alone = measured(field)
        assert_array_equal(result.flux, alone.flux)
        assert_array_equal(result.flux_err, alone.flux_err)


@settings(max_examples=15, deadline=None)
@given(star=st.integers(0, 11), factor=st.floats(1e-3, 1e3), order=st.permutations(range(12)))
def test_neither_scale_nor_order_of_stars_matters(star: int, factor: float, order: list) -> None:
    field = star_field(16, n_times=120)
    usable = np.random.default_rng(0).random(field.flux.shape) > 0.1
    plain = measured(field, usable=usable)
    scale = np.where(np.arange(12) == star, factor, 1.0)
    result = differential(
        (field.flux * scale)[:, order],
        (field.flux_err * scale)[:, order],
        usable[:, order],
        never=only(12, 0)[order],
        night=field.night,
    )
    assert_allclose(result.flux, plain.flux[:, order], rtol=1e-12)
    assert_allclose(result.flux_err, plain.flux_err[:, order], rtol=1e-12)
    assert_allclose(result.weight, plain.weight[order], rtol=1e-10)
    assert_allclose(result.level, (plain.level * scale)[order], rtol=1e-12)


def test_weights_of_a_star_leave_itself_out() -> None:
    weight = np.array([0.5, 0.3, 0.2])
    assert_allclose(weights_for(weight, 0), [0, 0.6, 0.4])
    assert_array_equal(weight, [0.5, 0.3, 0.2])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"never": np.zeros(3, bool)}, "never"),
        ({"night": np.zeros(7)}, "night"),
        ({"usable": np.ones((4, 4), bool)}, "usable"),
        ({"good_frame": np.ones(3, bool)}, "good_frame"),
        ({"max_comparisons": 0}, "max_comparisons"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measured(star_field(17), **wrong)


def test_flux_and_errors_of_unlike_shape_are_refused() -> None:
    field = star_field(17)
    with pytest.raises(ValueError, match="flux_err"):
        differential(
            field.flux,
            field.flux_err[1:],
            np.ones(field.flux.shape),
            never=only(12),
            night=field.night,
        )
