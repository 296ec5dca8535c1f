"""A transit across a star with quadratic limb darkening, by quadrature; and its fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Floats = NDArray[np.float64]
N_RINGS = 400


@dataclass(frozen=True, slots=True)
class Planet:
    """a_rs: semi-major axis in stellar radii; u1, u2: quadratic limb darkening."""

    period_d: float
    a_rs: float
    inclination_deg: float
    u1: float
    u2: float


@dataclass(frozen=True, slots=True)
class Fit:
    rp_rs: float
    rp_rs_err: float
    t0: float
    residual: float
    p2p: float
    red: float  # scatter of means of 8 neighbours over what white noise would give
    n: int


def transit(t: Floats, *, t0: float, rp_rs: float, planet: Planet) -> Floats:
    """Relative flux: each ring of the disc is dimmed by the part of it behind the planet."""
    phase = 2 * np.pi * (t - t0) / planet.period_d
    inclination = np.radians(planet.inclination_deg)
    z = planet.a_rs * np.hypot(np.sin(phase), np.cos(inclination) * np.cos(phase))
    z = np.where(np.cos(phase) > 0, z, np.inf)[:, None]
    edges = np.sin(np.linspace(0, np.pi / 2, N_RINGS + 1))  # finer towards the limb
    r = 0.5 * (edges[1:] + edges[:-1])
    area = np.pi * np.diff(edges**2)
    mu = np.sqrt(1 - r**2)
    light = (1 - planet.u1 * (1 - mu) - planet.u2 * (1 - mu) ** 2) * area
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = (z**2 + r**2 - rp_rs**2) / (2 * z * r)
    covered = np.arccos(np.clip(np.where(np.isfinite(cosine), cosine, 1.0), -1, 1)) / np.pi
    return 1 - (covered * light).sum(axis=1) / light.sum()


def fit_transit(
    t: Floats, flux: Floats, airmass: Floats, *, planet: Planet, t0: float, rp_rs: float
) -> Fit:
    """Rp/Rs, mid-transit, level and slope of exp(slope x airmass); errors from the scatter."""
    x = airmass - airmass.mean()

    def model(p: Floats) -> Floats:
        return p[2] * np.exp(p[3] * x) * transit(t, t0=p[1], rp_rs=p[0], planet=planet)

    def away(p: Floats) -> Floats:
        return flux - model(p)

    start = np.array([rp_rs, t0, np.median(flux), 0.0])
    found = least_squares(away, start, x_scale=[0.01, 0.01, 0.01, 0.01])
    n = len(flux)
    eights = found.fun[: n // 8 * 8].reshape(-1, 8).mean(axis=1)
    variance = np.sum(found.fun**2) / (n - len(start))
    covariance = np.linalg.inv(found.jac.T @ found.jac) * variance
    return Fit(
        rp_rs=float(found.x[0]),
        rp_rs_err=float(np.sqrt(covariance[0, 0])),
        t0=float(found.x[1]),
        residual=float(np.std(found.fun)),
        p2p=float(np.std(np.diff(flux)) / np.sqrt(2)),
        red=float(np.std(eights) / (np.std(found.fun) / np.sqrt(8))),
        n=n,
    )
