"""Noisy stars whose places are known, with the Cramér-Rao bound of their 15x15 pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nightloom.image.centroid import Centroids
from nightloom.synth.camera import render

Floats = NDArray[np.float64]
Method = Callable[..., Centroids]
TILE, HALF = 41, 7
GAUSSIAN_BETA = 300.0  # a Moffat so steep is a Gaussian


@dataclass(frozen=True, slots=True)
class NoisyStars:
    """A frame of tiles with a star each, their places, and one bound (px) for x and y alike."""

    pixels_e: NDArray[np.float32]
    x_px: Floats
    y_px: Floats
    sky_e: float
    bound_px: float


def noisy_stars(
    rng: np.random.Generator,
    *,
    fwhm_px: float,
    beta: float,
    snr: float,
    sky_to_peak: float,
    n_phases: int = 10,
    n_each: int = 30,
    elongation: float = 1.0,
) -> NoisyStars:
    """Stars at random phases, each with many draws of noise.

    snr: of the best-weighted sum of 15x15 pixels; sky_to_peak: variance of the sky over that of
    the star's photons in the brightest pixel.
    """
    middle = TILE // 2
    box = slice(middle - HALF, middle + HALF + 1)
    x, y = middle + rng.uniform(-0.5, 0.5, (2, n_phases))
    shape = {"fwhm_px": fwhm_px, "beta": beta, "elongation": elongation, "angle_deg": 20.0}

    def draw(dx: float, dy: float) -> Floats:
        return np.stack(
            [
                render(TILE, TILE, x_px=[u + dx], y_px=[v + dy], flux_e=[1.0], **shape)
                for u, v in zip(x, y, strict=True)
            ]
        )

    star, step = draw(0, 0), 0.01
    slopes = (draw(step, 0) - draw(-step, 0), draw(0, step) - draw(0, -step))
    sky = sky_to_peak * star.max()
    flux = snr**2 / np.mean((star[:, box, box] ** 2 / (star[:, box, box] + sky)).sum((1, 2)))
    variance = flux * (star + sky)
    fisher = [
        ((flux * slope / (2 * step)) ** 2 / variance)[:, box, box].sum((1, 2)) for slope in slopes
    ]
    tiles = np.repeat(variance, n_each, axis=0)
    noisy = tiles + rng.normal(size=tiles.shape) * np.sqrt(tiles)
    n = n_phases * n_each
    pixels = noisy.transpose(1, 0, 2).reshape(TILE, n * TILE).astype(np.float32)
    return NoisyStars(
        pixels_e=pixels,
        x_px=np.repeat(x, n_each) + TILE * np.arange(n),
        y_px=np.repeat(y, n_each),
        sky_e=float(flux * sky),
        bound_px=float(np.sqrt(np.mean(1 / np.array(fisher)))),
    )


def bounds_px(
    flux_e: Floats, *, noise_e2: float, fwhm_px: float, elongation: float, angle_deg: float
) -> tuple[Floats, Floats]:
    """Bounds [star] for x and y alike and SNR of Moffats of beta 3 at the centre of a pixel.

    noise_e2: variance of sky and read-out in a pixel.
    """
    side, step = 2 * HALF + 1, 0.01
    shape = {"fwhm_px": fwhm_px, "elongation": elongation, "angle_deg": angle_deg}

    def draw(dx: float, dy: float) -> Floats:
        return render(side, side, x_px=[HALF + dx], y_px=[HALF + dy], flux_e=[1.0], **shape)

    star = draw(0, 0)
    slopes = (draw(step, 0) - draw(-step, 0), draw(0, step) - draw(0, -step))
    flux = flux_e[:, None, None]
    variance = flux * star + noise_e2
    fisher = [((flux * slope / (2 * step)) ** 2 / variance).sum((1, 2)) for slope in slopes]
    snr = np.sqrt(((flux * star) ** 2 / variance).sum((1, 2)))
    return np.sqrt(np.mean(1 / np.array(fisher), axis=0)), snr


def rms_px(method: Method, stars: NoisyStars, rng: np.random.Generator, *, fwhm_px: float) -> float:
    """Root mean square error in x and y, from starts up to 0.4 px off; all must be measured."""
    start = rng.uniform(-0.4, 0.4, (2, stars.x_px.size))
    level = np.full(stars.x_px.size, stars.sky_e)
    found = method(
        stars.pixels_e, np.zeros(stars.pixels_e.shape, dtype=np.uint8), stars.x_px + start[0],
        stars.y_px + start[1], background_e=level, fwhm_px=fwhm_px,
        max_shift_px=max(2.0, fwhm_px / 2),
    )  # fmt: skip
    assert found.ok.all()
    error = np.array([found.x_px - stars.x_px, found.y_px - stars.y_px])
    return float(np.sqrt(np.mean(error**2)))


def a_hundred_phases(fwhm_px: float, *, beta: float) -> tuple[NDArray[np.float32], Floats, Floats]:
    """A frame of 100 bright stars on a sky of 50, one at each phase of ten by ten; their places."""
    row, column = np.divmod(np.arange(100), 10)
    x, y = 20 + TILE * column + column / 10, 20 + TILE * row + row / 10
    side = 10 * TILE + 1
    frame = np.full((side, side), 50.0)
    for u, v in zip(x, y, strict=True):  # each alone in its tile: no neighbour's wings
        left, low = int(u) - 20, int(v) - 20
        tile = render(TILE, TILE, x_px=[u - left], y_px=[v - low], flux_e=[1e6], fwhm_px=fwhm_px,
                      beta=beta)  # fmt: skip
        frame[low : low + TILE, left : left + TILE] += tile
    return frame.astype(np.float32), x, y
