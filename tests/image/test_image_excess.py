"""Steady excess, and the gain of a sky that changes, against known truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nightloom.image.excess import (
    SkyNoise,
    frame_excess,
    gain_by_lags,
    gain_of_sky,
    most_covered,
    sky_noise,
    steady_excess,
)


@pytest.mark.parametrize("gain", [0.8, 4.0, 25.0])
def test_gain_of_a_sky_that_brightens(gain: float) -> None:
    """The detector's pattern and bias drop out, whole counts and a few stars do little."""
    rng = np.random.default_rng(2)
    sky_e = np.linspace(300, 3000, 24) * max(1.0, gain / 4)
    pattern = rng.normal(1, 0.02, (64, 256))
    pattern[20:24, 30:34] += 30.0
    frames = rng.poisson(sky_e[:, None, None] * pattern) + rng.normal(0, 5, (24, 64, 256))
    stack = np.round(frames / gain + 300).astype(np.float32)
    near, far = (sky_noise(stack, frame_excess(stack), lag=lag) for lag in (1, 2))
    found, error = gain_of_sky([near])
    assert abs(found - gain) < 4 * error
    assert error < 0.03 * gain
    same, with_lags = gain_by_lags([near], [far])
    assert same == found
    assert error <= with_lags < 0.05 * gain


def test_error_of_the_gain_tells_of_faint_stars_that_drift() -> None:
    """Faint sources under the limit cancel less between frames further apart."""
    rng = np.random.default_rng(3)
    sky_e = np.linspace(300, 3000, 24)
    drifting = 1 + 0.02 * np.cumsum(rng.normal(size=(24, 64, 256)), axis=0)
    frames = rng.poisson(np.maximum(sky_e[:, None, None] * drifting, 0)) / 4.0 + 300
    stack = np.round(frames).astype(np.float32)
    near, far = (sky_noise(stack, frame_excess(stack), lag=lag) for lag in (1, 2))
    found, error = gain_by_lags([near], [far])
    assert found < 3.5
    assert abs(found - 4.0) < 2 * error
    assert np.isnan(gain_by_lags([near], [SkyNoise(*np.full((3, 9), np.nan))])[1])


def test_no_gain_where_the_sky_does_not_change() -> None:
    assert np.isnan(gain_of_sky([])).all()
    steady = SkyNoise(np.full(9, 50.0), np.full(9, 4.0), np.full(9, 1e4))
    assert np.isnan(gain_of_sky([steady])).all()
    lost = SkyNoise(*np.full((3, 9), np.nan))
    assert np.isnan(gain_of_sky([lost])).all()


def test_only_what_is_certain_is_in_the_map() -> None:
    rng = np.random.default_rng(4)
    y, x = np.indices((90, 130))
    level = (0.1 * x + 3 * np.sin(y / 30) + rng.normal(0, 0.1, x.shape)).astype(np.float32)
    level[40, 50] += 4.0
    level[41, 90] -= 4.0
    found = steady_excess(level, np.full(x.shape, 1.0, np.float32), n_frames=100, sigma=6.0)
    assert {tuple(place) for place in np.argwhere(found)} == {(40, 50), (41, 90)}
    assert_allclose([found[40, 50], found[41, 90]], [4, -4], atol=0.4)


def test_share_of_frames_that_a_star_covers() -> None:
    steps = np.arange(100.0)
    moving = np.stack([steps, 0 * steps], axis=1)[:, None, :]
    assert most_covered(moving, reach_px=4.0) == pytest.approx(0.09)
    assert most_covered(np.zeros((10, 3, 2)), reach_px=4.0) == 1.0
    assert most_covered(np.zeros((10, 0, 2)), reach_px=4.0) == 1.0
