from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nightloom.gather.ensemble import Ensemble, differential
from nightloom.gather.weights import row_medians
from starfields import StarField, only, star_field

TARGET = 5


def measured(field: StarField, flux: np.ndarray | None = None, **options: object) -> Ensemble:
    flux = field.flux if flux is None else flux
    options.setdefault("usable", np.isfinite(flux))
    options.setdefault("night", field.night)
    return differential(flux, field.flux_err, never=only(flux.shape[1], TARGET), **options)


def ideal_weight(field: StarField) -> np.ndarray:
    weight = field.level**2 / np.mean(field.flux_err**2, axis=0)
    weight[TARGET] = 0.0
    return weight / weight.sum()


def noise_over_ideal(field: StarField, weight: np.ndarray) -> float:
    """Noise of the weighted mean, over the least there is."""
    best = ideal_weight(field)
    used = best > 0
    return float(np.sqrt(np.sum(weight[used] ** 2 / best[used])))


def moved(one: Ensemble, other: Ensemble) -> float:
    """How far the target's curve lies from another of it, at most, in its errors."""
    difference = np.abs(one.flux[:, TARGET] - other.flux[:, TARGET])
    return float((difference / one.flux_err[:, TARGET]).max())


@pytest.mark.parametrize(("n_times", "n_stars"), [(60, 7), (300, 12), (300, 60)])
def test_weights_are_as_good_as_the_true_noise_would_make_them(n_times: int, n_stars: int) -> None:
    field = star_field(1, n_times=n_times, n_stars=n_stars)
    weight = measured(field).weight
    assert weight.sum() == pytest.approx(1)
    assert noise_over_ideal(field, weight) < 1.04


def test_one_bright_star_among_faint_ones_gets_its_due() -> None:
    level = np.array([3e6, 2e4, 2e4, 2e4, 2e4, 1e5, 2e4, 2e4, 2e4])
    field = star_field(2, level=level)
    result = measured(field)
    assert result.weight[0] == pytest.approx(ideal_weight(field)[0], rel=0.02)
    assert np.isfinite(result.flux[:, 0]).all()


def test_no_star_runs_away_with_the_weight() -> None:
    for seed in range(10):
        field = star_field(seed, n_times=24, n_nights=1, level=np.full(7, 1e5))
        assert measured(field).weight.max() < 0.5


def test_two_comparisons_cannot_judge_each_other_and_go_by_their_photons() -> None:
    field = star_field(3, level=np.array([2e5, 2e4, 1.0, 1.0, 1.0, 1e5]))
    usable = np.broadcast_to(only(6, 0, 1, TARGET), field.flux.shape)
    weight = measured(field, usable=usable).weight
    assert weight[0] / weight[1] == pytest.approx(
        ideal_weight(field)[0] / ideal_weight(field)[1], rel=0.1
    )


@pytest.mark.parametrize("n_stars", [6, 12])
@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.4])
def test_one_star_fading_by_a_third_at_the_end_moves_nothing(n_stars: int, fraction: float) -> None:
    field = star_field(4, n_stars=n_stars)
    without = np.ones(field.flux.shape, bool)
    without[:, 0] = False
    fading = field.flux.copy()
    fading[int(len(fading) * (1 - fraction)) :, 0] *= 0.7
    result = measured(field, fading)
    assert moved(measured(field, usable=without), result) < 0.05
    assert result.weight[0] < 0.02 * ideal_weight(field)[0]


def test_a_slow_fade_moves_nothing() -> None:
    field = star_field(5)
    without = np.ones(field.flux.shape, bool)
    without[:, 0] = False
    fading = field.flux.copy()
    fading[:, 0] *= np.linspace(1, 0.7, len(fading))
    assert moved(measured(field, usable=without), measured(field, fading)) < 0.05


def test_a_fade_is_seen_in_nights_of_one_frame_too() -> None:
    field = star_field(5)
    fading = field.flux.copy()
    fading[240:, 0] *= 0.7
    weight = measured(field, fading, night=np.arange(len(fading))).weight
    assert weight[0] < 0.02 * ideal_weight(field)[0]


@pytest.mark.parametrize("kind", ["jumps", "wave", "flicker"])
def test_a_comparison_that_varies_loses_its_weight(kind: str) -> None:
    field = star_field(6, n_nights=6)
    rng = np.random.default_rng(0)
    t = np.arange(len(field.night))
    change = {
        "jumps": 0.05 * rng.standard_normal(6)[field.night],
        "wave": 0.05 * np.sin(t / 15),
        "flicker": 0.05 * rng.standard_normal(len(t)),
    }[kind]
    flux = field.flux.copy()
    flux[:, 0] *= 1 + change
    assert measured(field, flux).weight[0] < 0.02 * ideal_weight(field)[0]


@pytest.mark.parametrize("value", [1e9, -1e9, 1e30, 3e5])
def test_one_absurd_value_costs_a_comparison_nothing_but_that_epoch(value: float) -> None:
    field = star_field(7)
    flux = field.flux.copy()
    flux[90, 1] = value
    result = measured(field, flux)
    gap = np.ones(flux.shape, bool)
    gap[90, 1] = False
    expected = measured(field, usable=gap)
    assert moved(expected, result) < 0.02
    assert result.weight[1] == pytest.approx(expected.weight[1], rel=0.02)


def test_a_star_flagged_in_most_epochs_gets_no_weight() -> None:
    field = star_field(8)
    usable = np.ones(field.flux.shape, bool)
    usable[: len(usable) // 2 + 1, 0] = False
    usable[: len(usable) // 2 - 1, 1] = False
    weight = measured(field, usable=usable).weight
    assert weight[0] == 0
    assert weight[1] > 0


def test_frames_in_which_nothing_was_measured_do_not_count_against_a_star() -> None:
    field = star_field(8)
    flux = field.flux.copy()
    flux[:200] = np.nan
    assert (measured(field, flux).weight > 0).sum() == flux.shape[1] - 1


def test_only_the_best_comparisons_are_used() -> None:
    field = star_field(9)
    weight = measured(field, max_comparisons=3).weight
    assert np.flatnonzero(weight).tolist() == [0, 1, 2]


def test_a_hopeless_comparison_has_no_weight_at_all() -> None:
    field = star_field(10, level=np.array([3e5, 3e5, 3e5, 3e5, 200.0, 1e5]))
    weight = measured(field).weight
    assert weight[4] == 0
    assert (weight[:4] > 0).all()


def test_when_all_stars_disagree_in_a_frame_none_loses_its_epoch() -> None:
    field = star_field(11)
    flux = field.flux.copy()
    flux[40] *= np.random.default_rng(0).uniform(0.3, 1.7, flux.shape[1])
    result = measured(field, flux)
    assert np.isfinite(result.flux).all()


@given(
    values=hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=7),
        elements=st.floats(-10, 10) | st.just(np.nan) | st.just(np.inf),
    ),
    data=st.data(),
)
def test_medians_of_rows_leave_out_what_is_not_valid(
    values: np.ndarray, data: st.DataObject
) -> None:
    valid = data.draw(hnp.arrays(bool, values.shape))
    found = row_medians(values, valid)
    for row, mask, median in zip(values, valid, found, strict=True):
        kept = row[mask & np.isfinite(row)]
        if len(kept):
            assert median == np.median(kept)
        else:
            assert np.isnan(median)
