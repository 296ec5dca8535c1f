"""The simulated camera: pixel-integrated Moffat stars, a detector with its faults, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nightloom.synth.nights import Frame, Scene
from nightloom.synth.truth import MOFFAT_BETA, Floats, SynthSpec

Form = tuple[float, float, float]

LOST = 1e-4  # of a star's flux, beyond the circle within the box it is drawn in
CORE_FWHM = 2.0  # half width of what is integrated by quadrature
_BATCH_PX = 200_000  # pixels drawn at once: the work stays in the cache


def render(
    ny: int,
    nx: int,
    *,
    x_px: ArrayLike,
    y_px: ArrayLike,
    flux_e: ArrayLike,
    fwhm_px: float,
    beta: float = 3.0,
    elongation: float = 1.0,
    angle_deg: float = 0.0,
    sky_e: float = 0.0,
) -> Floats:
    """Expected electrons [ny, nx] of Moffat stars on a flat sky, without noise.

    x_px, y_px, flux_e: [star]; stars off the frame lend their wings. `flux_e` is what an
    infinite aperture holds. `fwhm_px` is the geometric mean of both axes, the major one lies
    `angle_deg` from x to y. Less than 1e-4 of a star's flux lies beyond the box it is drawn in.
    Raises ValueError: shapes differ.
    """
    x, y, flux = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (x_px, y_px, flux_e))
    if not x.shape == y.shape == flux.shape or x.ndim != 1:
        raise ValueError(f"x_px, y_px, flux_e must be [star], not {x.shape, y.shape, flux.shape}")
    form = _quadratic_form(fwhm_px, beta, elongation, angle_deg)
    peak = (beta - 1) / math.pi * math.sqrt(form[0] * form[2] - form[1] ** 2)
    stretch = math.sqrt(elongation)
    wing = math.ceil(_gamma_px(fwhm_px, beta) * stretch * math.sqrt(LOST ** (1 / (1 - beta)) - 1))
    core = min(wing, max(5, math.ceil(CORE_FWHM * fwhm_px * stretch)))
    image = np.full((ny, nx), float(sky_e))
    left, low = np.rint(x).astype(np.int64) - wing, np.rint(y).astype(np.int64) - wing
    side = 2 * wing + 1
    seen = (left < nx) & (left + side > 0) & (low < ny) & (low + side > 0) & (flux != 0)
    chosen = np.flatnonzero(seen)
    step = max(1, _BATCH_PX // side**2)
    for start in range(0, chosen.size, step):
        batch = chosen[start : start + step]
        offset_x, offset_y = left[batch] - x[batch], low[batch] - y[batch]
        stamps = _wings(offset_x, offset_y, side=side, form=form, beta=beta)
        inner = slice(wing - core, wing + core + 1)
        stamps[:, inner, inner] = _core(
            offset_x + wing - core,
            offset_y + wing - core,
            side=2 * core + 1,
            form=form,
            beta=beta,
            n_nodes=3 if fwhm_px > 2.6 * stretch else 5,
        )
        stamps *= (peak * flux[batch])[:, None, None]
        for stamp, x0, y0 in zip(stamps, left[batch], low[batch], strict=True):
            rows = slice(max(0, y0), min(ny, y0 + side))
            columns = slice(max(0, x0), min(nx, x0 + side))
            image[rows, columns] += stamp[
                rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0
            ]
    return image


def _gamma_px(fwhm_px: float, beta: float) -> float:
    return fwhm_px / (2 * math.sqrt(2 ** (1 / beta) - 1))


def _quadratic_form(fwhm_px: float, beta: float, elongation: float, angle_deg: float) -> Form:
    """a, b, c of the Moffat (1 + a x² + 2 b x y + c y²)^-beta."""
    gamma_px = _gamma_px(fwhm_px, beta)
    major, minor = 1 / (gamma_px**2 * elongation), elongation / gamma_px**2
    cosine, sine = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return (
        major * cosine**2 + minor * sine**2,
        (major - minor) * sine * cosine,
        major * sine**2 + minor * cosine**2,
    )


def _wings(offset_x: Floats, offset_y: Floats, *, side: int, form: Form, beta: float) -> Floats:
    """Stamps [star, side, side]: the value at a pixel's centre plus its Laplacian over 24."""
    a, b, c = form
    dx = (offset_x[:, None] + np.arange(side))[:, None, :]
    dy = (offset_y[:, None] + np.arange(side))[:, :, None]
    ax, ay = a * dx + b * dy, b * dx + c * dy
    q = 1 / (1 + dx * ax + dy * ay)
    laplacian = 4 * beta * (beta + 1) * q * (ax * ax + ay * ay) - 2 * (a + c) * beta
    return _power(q, beta) * (1 + q * laplacian / 24)


def _core(
    offset_x: Floats, offset_y: Floats, *, side: int, form: Form, beta: float, n_nodes: int
) -> Floats:
    """Stamps [star, side, side] by Gauss-Legendre quadrature within each pixel."""
    a, b, c = form
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    total = np.zeros((len(offset_x), side, side))
    for node_y, weight_y in zip(nodes / 2, weights / 2, strict=True):
        dy = (offset_y[:, None] + np.arange(side) + node_y)[:, :, None]
        for node_x, weight_x in zip(nodes / 2, weights / 2, strict=True):
            dx = (offset_x[:, None] + np.arange(side) + node_x)[:, None, :]
            q = 1 / (1 + a * dx * dx + dy * (2 * b * dx + c * dy))
            total += weight_y * weight_x * _power(q, beta)
    return total


def _power(q: Floats, beta: float) -> Floats:
    # numpy's power is ten times slower than two products
    return q * q * q if beta == 3.0 else np.power(q, beta)


@dataclass(frozen=True, slots=True)
class Detector:
    """Maps [ny, nx] of one camera, and by filter what a flat shows, its median 1."""

    bias_adu: Floats
    dark_e_per_s: Floats
    response: dict[str, Floats]
    hot: NDArray[np.bool_]


def make_detector(spec: SynthSpec) -> Detector:
    """The camera of an archive: the same for all nights."""
    rng = np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(3,)))
    ny, nx = spec.ny, spec.nx
    y, x = np.mgrid[:ny, :nx]
    columns = rng.normal(0, 2.0, nx)
    bias = spec.instrument.bias_adu + columns[None, :] + 3.0 * y / ny
    dark = spec.instrument.dark_e_per_s * rng.lognormal(0, 0.3, (ny, nx))
    hot = rng.random((ny, nx)) < (1e-3 if spec.hot_pixels else 0.0)
    dark[hot] = 10 ** rng.uniform(0.5, 2.5, int(hot.sum()))
    pixels = rng.normal(1, 0.008, (ny, nx))
    # the corners of the frame lose 15 %
    radius2 = ((x - 0.52 * nx) / nx) ** 2 + ((y - 0.47 * ny) / ny) ** 2
    response = {}
    for name in spec.filters:
        flat = pixels * (1 - 0.3 * radius2)
        for _ in range(6):  # grains on the filter cast rings, the shadow of the mirrors
            at_x, at_y = rng.uniform(0, nx), rng.uniform(0, ny)
            outer, depth = rng.uniform(8, 22), rng.uniform(0.02, 0.08)
            near = (
                slice(max(0, int(at_y - outer - 20)), int(at_y + outer + 20)),
                slice(max(0, int(at_x - outer - 20)), int(at_x + outer + 20)),
            )
            r = np.hypot(x[near] - at_x, y[near] - at_y)
            flat[near] *= 1 - 0.5 * depth * (np.tanh(r - 0.4 * outer) - np.tanh(r - outer))
        response[name] = flat / np.median(flat)
    return Detector(bias_adu=bias, dark_e_per_s=dark, response=response, hot=hot)


def science_light(
    spec: SynthSpec, scene: Scene, *, x_px: Floats, y_px: Floats, flux_e: Floats
) -> Floats:
    """Expected electrons [ny, nx] of stars and sky, before the detector's response."""
    right = np.arange(spec.nx) / spec.nx - 0.5
    up = np.arange(spec.ny)[:, None] / spec.ny - 0.5
    slope: Floats = scene.sky_slope_x * right + scene.sky_slope_y * up
    elongation = scene.elongation
    if scene.trail_px > 0:
        elongation = 1.0
        n = 2 * math.ceil(2 * scene.trail_px / scene.fwhm_px) + 1
        along = scene.trail_px * ((np.arange(n) + 0.5) / n - 0.5)[:, None]
        angle = math.radians(scene.angle_deg)
        x_px = (x_px + along * math.cos(angle)).ravel()
        y_px = (y_px + along * math.sin(angle)).ravel()
        flux_e = np.tile(flux_e / n, n)
    light_e = render(
        spec.ny,
        spec.nx,
        x_px=x_px,
        y_px=y_px,
        flux_e=flux_e,
        fwhm_px=scene.fwhm_px,
        beta=MOFFAT_BETA,
        elongation=elongation,
        angle_deg=scene.angle_deg,
    )
    light_e += scene.sky_e * (1 + slope)
    return light_e


def file_rng(spec: SynthSpec, frame: Frame) -> np.random.Generator:
    """The random numbers of one file: its own, whoever writes it and when."""
    return np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(4, frame.index)))


def cosmic_rays(spec: SynthSpec, *, exposure_s: float, rng: np.random.Generator) -> Floats:
    """Electrons [ny, nx] of straight tracks, some two a minute in 200 000 pixels."""
    image = np.zeros((spec.ny, spec.nx))
    if not spec.cosmic_rays:
        return image
    for _ in range(rng.poisson(1.7e-7 * spec.ny * spec.nx * exposure_s)):
        at_x, at_y = rng.uniform(0, spec.nx), rng.uniform(0, spec.ny)
        angle, length = rng.uniform(0, math.pi), 1 + rng.exponential(3.0)
        charge_e = rng.lognormal(math.log(2500.0), 0.6)
        steps = np.linspace(0, length, math.ceil(4 * length))
        columns = np.floor(at_x + steps * math.cos(angle)).astype(np.int64)
        rows = np.floor(at_y + steps * math.sin(angle)).astype(np.int64)
        inside = (columns >= 0) & (columns < spec.nx) & (rows >= 0) & (rows < spec.ny)
        np.add.at(image, (rows[inside], columns[inside]), charge_e / steps.size)
    return image


def expose(
    spec: SynthSpec,
    frame: Frame,
    detector: Detector,
    *,
    light_e: Floats | float,
    rng: np.random.Generator,
) -> NDArray[np.uint16]:
    """Raw pixels [ny, nx] in ADU: `light_e` through the response, dark, cosmic rays, noise.

    Pixels hold no more than the full well; nothing spills into their neighbours.
    """
    camera = spec.instrument
    expected = detector.dark_e_per_s * frame.exposure_s
    if frame.image_type in ("science", "flat"):
        expected += light_e * detector.response[frame.filter]
    cosmic_e = cosmic_rays(spec, exposure_s=frame.exposure_s, rng=rng)
    charge_e = np.minimum(rng.poisson(expected) + cosmic_e, camera.full_well_e)
    charge_e += camera.read_noise_e * rng.standard_normal(charge_e.shape)
    adu = np.rint(charge_e / camera.gain_e_per_adu + detector.bias_adu)
    return np.clip(adu, 0, 65535).astype(np.uint16)
