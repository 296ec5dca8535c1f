"""The tangential projection: a pixel is a linear step on the plane that touches the sky.

Angles are degrees; planes run east and north from their tangent point; pixels are (x, y).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FEW_STARS = 8  # below this an affine fit follows its noise: no shear then

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tangent:
    """`matrix` [2, 3] takes a pixel (x, y, 1) to the plane that touches at ra_deg, dec_deg."""

    ra_deg: float
    dec_deg: float
    matrix: Floats

    @property
    def scale_arcsec(self) -> float:
        return 3600.0 * math.sqrt(abs(float(np.linalg.det(self.matrix[:, :2]))))


def project(
    ra_deg: Floats, dec_deg: Floats, ra0_deg: float, dec0_deg: float
) -> tuple[Floats, Floats]:
    """Gnomonic projection, degrees east and north of the tangent point; NaN beyond 90 degrees."""
    east, dec, dec0 = np.radians(ra_deg - ra0_deg), np.radians(dec_deg), np.radians(dec0_deg)
    depth = np.sin(dec0) * np.sin(dec) + np.cos(dec0) * np.cos(dec) * np.cos(east)
    depth = np.where(depth > 1e-6, depth, np.nan)
    xi = np.cos(dec) * np.sin(east) / depth
    eta = (np.cos(dec0) * np.sin(dec) - np.sin(dec0) * np.cos(dec) * np.cos(east)) / depth
    return np.degrees(xi), np.degrees(eta)


def deproject(
    xi_deg: float, eta_deg: float, ra0_deg: float, dec0_deg: float
) -> tuple[float, float]:
    """Direction (ra, dec) of a point of the plane, the inverse of `project`."""
    xi, eta, dec0 = math.radians(xi_deg), math.radians(eta_deg), math.radians(dec0_deg)
    depth = math.cos(dec0) - eta * math.sin(dec0)
    ra = ra0_deg + math.degrees(math.atan2(xi, depth))
    dec = math.atan2(math.sin(dec0) + eta * math.cos(dec0), math.hypot(xi, depth))
    return ra % 360.0, math.degrees(dec)


def middle(ra_deg: Floats, dec_deg: Floats) -> tuple[float, float]:
    """Direction of the mean of unit vectors: 0h and the poles are places like others."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    x = float(np.mean(np.cos(dec) * np.cos(ra)))
    y = float(np.mean(np.cos(dec) * np.sin(ra)))
    z = float(np.mean(np.sin(dec)))
    return math.degrees(math.atan2(y, x)) % 360.0, math.degrees(math.atan2(z, math.hypot(x, y)))


def fit(xy_px: Floats, ra_deg: Floats, dec_deg: Floats, *, ny: int, nx: int) -> Tangent:
    """Least squares over stars at pixels [n, 2], the tangent point at the frame's centre.

    Affine, or without shear where there are fewer than 8 stars; mirrored if the stars are.
    """
    centre = np.array([0.5 * (nx - 1), 0.5 * (ny - 1)])
    ra0, dec0 = middle(ra_deg, dec_deg)
    plane = np.column_stack(project(ra_deg, dec_deg, ra0, dec0))
    linear, constant = _linear_fit(xy_px - centre, plane)
    for _ in range(4):
        # The fit comes last: at a pole the smallest step of the point turns its axes.
        ra0, dec0 = deproject(float(constant[0]), float(constant[1]), ra0, dec0)
        plane = np.column_stack(project(ra_deg, dec_deg, ra0, dec0))
        linear, constant = _linear_fit(xy_px - centre, plane)
    return Tangent(ra0, dec0, np.column_stack([linear, -linear @ centre]))


def predict(tangent: Tangent, ra_deg: Floats, dec_deg: Floats) -> Floats:
    """Pixels [star, 2] of directions; NaN on the far side of the sky."""
    plane = np.column_stack(project(ra_deg, dec_deg, tangent.ra_deg, tangent.dec_deg))
    inverse = np.linalg.inv(tangent.matrix[:, :2])
    return np.asarray((plane - tangent.matrix[:, 2]) @ inverse.T)


def header_text(tangent: Tangent, *, ny: int, nx: int) -> str:
    """FITS cards of a `fit` over such a frame, with every digit of its numbers."""
    cd = tangent.matrix[:, :2]
    cards: dict[str, str | float | int] = {
        "WCSAXES": 2,
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CUNIT1": "deg",
        "CUNIT2": "deg",
        "CRPIX1": 0.5 * (nx + 1),
        "CRPIX2": 0.5 * (ny + 1),
        "CRVAL1": tangent.ra_deg,
        "CRVAL2": tangent.dec_deg,
        "CD1_1": float(cd[0, 0]),
        "CD1_2": float(cd[0, 1]),
        "CD2_1": float(cd[1, 0]),
        "CD2_2": float(cd[1, 1]),
        "LONPOLE": 180.0,
        "RADESYS": "ICRS",
    }
    lines = []
    for key, value in cards.items():
        text = f"'{value:<8}'" if isinstance(value, str) else f"{value!r:>20}".upper()
        lines.append(f"{key:<8}= {text}".ljust(80))
    return "".join(lines)


def _linear_fit(source: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Matrix [2, 2] and constant [2] that take source to target [n, 2]."""
    if len(source) >= _FEW_STARS:
        design = np.column_stack([source, np.ones(len(source))])
        solution = np.linalg.lstsq(design, target, rcond=None)[0]
        return np.asarray(solution[:2].T), np.asarray(solution[2])
    a, b = source - source.mean(axis=0), target - target.mean(axis=0)
    u, _, vt = np.linalg.svd(b.T @ a)
    turn = u @ vt  # a reflection where that fits better: the frame is mirrored
    linear: Floats = turn * (np.sum(b * (a @ turn.T)) / np.sum(a * a))
    return linear, np.asarray(target.mean(axis=0) - linear @ source.mean(axis=0))
