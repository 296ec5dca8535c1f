from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nightloom.gather.aperture import best_aperture, best_curves
from nightloom.gather.ensemble import differential
from starfields import only, star_field, transit


def noisy(sigma: list[float], *, seed: int = 0, n_times: int = 400, n_stars: int = 3) -> np.ndarray:
    """Flat curves [time, star, aperture] of known scatter."""
    rng = np.random.default_rng(seed)
    return 1 + np.array(sigma) * rng.standard_normal((n_times, n_stars, len(sigma)))


def cube(
    *, signal: np.ndarray | None = None, seed: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux, error [time, star, aperture] and night: the sky's noise grows with the aperture."""
    fields = [
        star_field(seed + k, n_times=240, n_stars=8, brightest_e=bright, signal=signal)
        for k, bright in enumerate([3e4, 2e5, 6e5, 2e5, 3e4])
    ]
    # One sky for all: the fields differ in their noise and level only.
    sky = fields[0].factor[:, None]
    flux = np.stack([f.flux / f.factor[:, None] * sky for f in fields], axis=-1)
    error = np.stack([f.flux_err / f.factor[:, None] * sky for f in fields], axis=-1)
    return flux, error, fields[0].night


def always(flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All usable, all one night."""
    return np.ones(flux.shape[:2], bool), np.zeros(len(flux))


def test_scatter_of_noise_is_its_sigma_and_the_least_wins() -> None:
    flux = noisy([0.03, 0.01, 0.02, 0.05], n_times=4000)
    index, scatter = best_aperture(flux, *always(flux))
    assert_array_equal(index, [1, 1, 1])
    assert_allclose(scatter, np.broadcast_to([0.03, 0.01, 0.02, 0.05], (3, 4)), rtol=0.08)


def test_a_transit_neither_moves_the_choice_nor_loses_depth() -> None:
    depth, signal = 0.02, transit(240, depth=0.02)
    results = []
    for shape in (np.ones(240), signal):
        flux, error, night = cube(signal=shape)
        results.append(
            best_curves(flux, error, np.ones(flux.shape[:2]), never=only(8, 0), night=night)
        )
    plain, dipped = results
    assert_array_equal(dipped.aperture, plain.aperture)
    assert_array_equal(dipped.weight, plain.weight)
    inside, outside = signal < 1 - 0.99 * depth, signal == 1
    found = 1 - dipped.flux[inside, 0].mean() / dipped.flux[outside, 0].mean()
    error = np.sqrt(np.mean(dipped.flux_err[:, 0] ** 2) * (1 / inside.sum() + 1 / outside.sum()))
    assert abs(found - depth) < 3 * error


def test_the_depth_of_a_transit_does_not_count_as_scatter() -> None:
    flux = noisy([0.004, 0.005], n_stars=1)
    signal = transit(len(flux), depth=0.05)[:, None, None]
    _, plain = best_aperture(flux, *always(flux))
    index, dipped = best_aperture(flux * signal, *always(flux))
    assert index[0] == 0
    assert_allclose(dipped, plain, rtol=0.1)


def test_one_absurd_aperture_and_one_without_values_move_no_choice() -> None:
    flux, error, night = cube()
    usable = np.ones(flux.shape[:2])
    plain = best_curves(flux, error, usable, never=only(8, 0), night=night)
    rng = np.random.default_rng(0)
    absurd = flux.copy()
    absurd[:, :, 0] = rng.standard_normal(flux.shape[:2]) * 1e6
    absurd[:, :, 4] = np.nan
    absurd[30, 2, 2] = np.nan
    absurd[40, 0, 2] = 1e12
    result = best_curves(absurd, error, usable, never=only(8, 0), night=night)
    assert_array_equal(plain.aperture, np.full(8, 2))
    assert_array_equal(result.aperture, plain.aperture)
    assert np.isnan(result.scatter[:, 4]).all()


def test_nan_elects_no_aperture() -> None:
    flux = noisy([0.02, 0.01, 0.03])
    flux[:, 0] = np.nan
    flux[:, 1, 0] = np.nan
    index, scatter = best_aperture(flux, *always(flux))
    assert_array_equal(index, [-1, 1, 1])
    assert np.isnan(scatter[0]).all()


@pytest.mark.parametrize("sparse", [0, 1, 2])
def test_an_aperture_with_few_values_is_not_eligible(sparse: int) -> None:
    flux = noisy([0.03, 0.03, 0.03], n_stars=1)
    flux[:, :, sparse] = 1 + (flux[:, :, sparse] - 1) * 1e-3
    flux[40:, :, sparse] = np.nan
    index, _ = best_aperture(flux, *always(flux))
    assert index[0] != sparse


def test_a_frozen_aperture_is_no_measurement() -> None:
    flux = noisy([0.03, 0.01, 0.02], n_stars=1)
    flux[:, :, 2] = 1.0
    assert best_aperture(flux, *always(flux))[0][0] == 1


def test_steps_between_nights_do_not_count() -> None:
    flux = noisy([0.01, 0.02, 0.03], n_stars=1, n_times=90)
    night = np.arange(90) // 3
    stepped = flux.copy()
    stepped[:, 0, 0] += 0.2 * np.random.default_rng(1).standard_normal(30)[night]
    usable = np.ones((90, 1), bool)
    plain, moved = best_aperture(flux, usable, night), best_aperture(stepped, usable, night)
    assert_array_equal(moved[0], [0])
    assert_allclose(moved[1], plain[1], rtol=1e-5)


def test_only_usable_epochs_of_good_frames_count() -> None:
    flux = noisy([0.01, 0.02, 0.03], n_stars=1)
    usable, night = always(flux)
    usable[::5] = False
    good = np.arange(len(flux)) % 7 != 3
    spoilt = flux.copy()
    spoilt[~usable[:, 0] | ~good, 0, 0] = np.random.default_rng(0).uniform(0, 5)
    expected = best_aperture(flux[usable[:, 0] & good], *always(flux[usable[:, 0] & good]))
    index, scatter = best_aperture(spoilt, usable, night, good_frame=good)
    assert_array_equal(index, [0])
    assert_array_equal(scatter, expected[1])


@pytest.mark.parametrize(("n_apertures", "centre"), [(1, 0), (2, 0), (5, 2), (30, 14)])
def test_of_equals_the_central_one_is_taken(n_apertures: int, centre: int) -> None:
    flux = np.repeat(noisy([0.01]), n_apertures, axis=2)
    assert_array_equal(best_aperture(flux, *always(flux))[0], [centre] * 3)


def test_a_gain_within_chance_does_not_move_the_choice() -> None:
    base = noisy([0.01])[:, :, 0] - 1
    flux = 1 + np.stack([base * f for f in (0.985, 1.0, 0.99, 0.97)], axis=-1)
    assert_array_equal(best_aperture(flux, *always(flux))[0], [3, 3, 3])
    assert_array_equal(best_aperture(flux[:, :, :3], *always(flux))[0], [1, 1, 1])


def test_best_curves_are_those_of_the_aperture_chosen() -> None:
    flux, error, night = cube()
    usable = np.random.default_rng(3).random(flux.shape[:2]) > 0.1
    best = best_curves(flux, error, usable, never=only(8, 0), night=night)
    alone = [
        differential(flux[..., k], error[..., k], usable, never=only(8, 0), night=night)
        for k in range(flux.shape[2])
    ]
    for star, k in enumerate(best.aperture):
        assert_array_equal(best.flux[:, star], alone[k].flux[:, star])
        assert_array_equal(best.flux_err[:, star], alone[k].flux_err[:, star])
        assert_array_equal(best.comparison[:, star], alone[k].comparison[:, star])
        assert best.level[star] == alone[k].level[star]
    assert_array_equal(best.weight, [result.weight for result in alone])
    curves = np.stack([result.flux for result in alone], axis=-1)
    index, scatter = best_aperture(curves, usable, night)
    assert_array_equal(index, best.aperture)
    assert_allclose(scatter, best.scatter, rtol=1e-6)


def test_a_star_that_nobody_can_be_compared_with_has_no_aperture() -> None:
    flux, error, night = cube()
    best = best_curves(flux, error, np.ones(flux.shape[:2]), never=np.ones(8, bool), night=night)
    assert_array_equal(best.aperture, np.full(8, -1))
    assert np.isnan(best.flux).all()
    assert np.isnan(best.level).all()


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0)])
def test_empty_in_none_out(shape: tuple[int, int, int]) -> None:
    nothing = np.zeros(shape)
    usable, night = np.ones(shape[:2], bool), np.zeros(shape[0])
    index, scatter = best_aperture(nothing, usable, night)
    best = best_curves(nothing, nothing, usable, never=np.zeros(shape[1]), night=night)
    assert_array_equal(index, np.full(shape[1], -1))
    assert_array_equal(best.aperture, index)
    assert scatter.shape == best.scatter.shape == shape[1:]
    assert best.flux.shape == shape[:2]


def test_shapes_that_differ_are_refused() -> None:
    flux = noisy([0.01, 0.02])
    usable, night = always(flux)
    with pytest.raises(ValueError, match="usable"):
        best_aperture(flux, usable[1:], night)
    with pytest.raises(ValueError, match="flux_err"):
        best_curves(flux, flux[..., :1], usable, never=only(3), night=night)
