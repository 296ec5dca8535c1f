"""Quads by twirl: candidates that hold the truth, for shifts, turns, flips and mirrors."""

from __future__ import annotations

import numpy as np
import pytest

from nightloom.image.align import apply
from nightloom.image.quads import quad_candidates


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("angle_deg", [0.0, 30.0, 180.0, -77.0])
def test_the_truth_is_among_the_candidates(angle_deg: float, mirror: bool) -> None:
    rng = np.random.default_rng(int(angle_deg) + 100)
    source = rng.uniform(0, 1000, (12, 2))
    angle = np.radians(angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirror:
        turn = turn @ np.diag([1.0, -1.0])
    truth = np.column_stack([1.01 * turn, [20.0, -13.0]])
    target = np.column_stack(apply(truth, source[:, 0], source[:, 1]))
    target = target + rng.normal(0, 0.05, target.shape)
    target[[2, 7]] = rng.uniform(0, 1000, (2, 2))  # two that are others
    found = quad_candidates(source, target, scale_range=(0.95, 1.05), allow_mirror=True)
    away = np.abs(found[:, :, :2] - truth[:, :2]).max(axis=(1, 2))
    assert away.min() < 1e-3
    assert np.abs(found[np.argmin(away)][:, 2] - truth[:, 2]).max() < 1.0


def test_scale_and_parity_are_kept_to() -> None:
    source = np.random.default_rng(4).uniform(0, 1000, (12, 2))
    assert len(quad_candidates(source, 3 * source, scale_range=(0.9, 1.1), allow_mirror=False)) == 0
    flipped = source * (1.0, -1.0)
    found = quad_candidates(source, flipped, scale_range=(0.9, 1.1), allow_mirror=False)
    assert all(np.linalg.det(matrix[:, :2]) > 0 for matrix in found)


def test_too_few_stars_give_no_candidate() -> None:
    few = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert quad_candidates(few, few, scale_range=(0.9, 1.1), allow_mirror=True).shape == (0, 2, 3)


def test_two_equal_runs() -> None:
    """Trap 16: no random star is dropped."""
    rng = np.random.default_rng(2)
    source, target = rng.uniform(0, 500, (12, 2)), rng.uniform(0, 500, (12, 2))
    first = quad_candidates(source, target, scale_range=(0.5, 2.0), allow_mirror=True)
    again = quad_candidates(source, target, scale_range=(0.5, 2.0), allow_mirror=True)
    np.testing.assert_array_equal(first, again)
