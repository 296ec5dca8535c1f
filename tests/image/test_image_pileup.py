"""Saturation that only the pixels tell: a 12-bit camera in 16-bit files, and frames without."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nightloom.image.pileup import pile_up_level


def frame(*, brightest_e: float, sky_adu: float = 300.0, seed: int = 1) -> NDArray[np.float64]:
    """Stars of a wide range of brightness on a sky, in ADU, before any converter."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:200, :240]
    image = np.full(rows.shape, sky_adu)
    for x, y, peak in zip(
        rng.uniform(5, 235, 40), rng.uniform(5, 195, 40), brightest_e * 0.85 ** np.arange(40),
        strict=True,
    ):  # fmt: skip
        image += peak * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 1.8**2))
    return rng.poisson(image).astype(np.float64)


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u2", "<i4"])
def test_a_12_bit_camera_in_wider_files(dtype: str) -> None:
    raw = np.clip(frame(brightest_e=30000.0), 0, 4095).astype(dtype)
    assert pile_up_level(raw) == 4095.0


def test_none_where_nothing_piles_up() -> None:
    assert np.isnan(pile_up_level(frame(brightest_e=3000.0).astype(np.int16)))
    assert np.isnan(pile_up_level(np.clip(frame(brightest_e=3e5), 0, 65535).astype(np.uint16)))
    assert np.isnan(pile_up_level(np.clip(frame(brightest_e=3e4), 0, 4095).astype(np.float32)))
    assert np.isnan(pile_up_level(np.zeros((0, 5), np.int16)))


def test_none_in_frames_of_few_counts_or_of_one_value() -> None:
    """The highest of few counts is shared by many pixels, but by more below it."""
    assert np.isnan(pile_up_level(np.full((50, 60), 700, np.int16)))
    rng = np.random.default_rng(2)
    for level in (0.5, 3.0, 40.0):
        assert np.isnan(pile_up_level(rng.poisson(level, (2000, 300)).astype(np.uint16)))


@pytest.mark.parametrize("seed", range(5))
def test_an_unsaturated_field_is_never_guessed(seed: int) -> None:
    for brightest_e in (100.0, 1000.0, 10000.0):
        assert np.isnan(pile_up_level(frame(brightest_e=brightest_e, seed=seed).astype(np.uint16)))
