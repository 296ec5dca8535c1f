"""Photometry of a field whose truth is known: levels, what the sky did, and the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class StarField:
    flux: Array  # [time, star], electrons, star 0 the brightest
    flux_err: Array  # [time, star], the true noise
    night: Array  # [time]
    level: Array  # [star]
    factor: Array  # [time]


def star_field(
    seed: int,
    *,
    n_times: int = 300,
    n_stars: int = 12,
    n_nights: int = 3,
    brightest_e: float = 3e5,
    range_mag: float = 2.5,
    signal: Array | None = None,
    level: Array | None = None,
) -> StarField:
    """Photon noise only; nights of unlike depth, waves, a cloud in the second fifth.

    signal: [time], what star 0 does; level: [star], in place of an even run of magnitudes.
    """
    rng = np.random.default_rng(seed)
    if level is None:
        level = brightest_e * 10 ** (-0.4 * np.linspace(0, range_mag, n_stars))
    t = np.arange(n_times)
    night = t * n_nights // n_times
    cloud = 1 - 0.5 * np.exp(-(((t - 0.3 * n_times) / 8.0) ** 2))
    factor = (1 + 0.1 * np.sin(t / 20)) * rng.uniform(0.6, 1.1, n_nights)[night] * cloud
    truth = level * factor[:, None]
    if signal is not None:
        truth[:, 0] *= signal
    flux_err = np.sqrt(truth + 3000.0)
    flux = truth + flux_err * rng.standard_normal(truth.shape)
    return StarField(flux, flux_err, night, level, factor)


def only(n_stars: int, *stars: int) -> Array:
    """A mask of some stars."""
    mask = np.zeros(n_stars, bool)
    mask[list(stars)] = True
    return mask


def transit(n_times: int, *, depth: float, start: float = 0.4, stop: float = 0.6) -> Array:
    """A box with sloping sides between two fractions of the time."""
    x = np.linspace(0, 1, n_times)
    return 1 - depth * np.clip(np.minimum(x - start, stop - x) / 0.03, 0, 1)
