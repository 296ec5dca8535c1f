"""The reference of a field -> figures: stars marked, the target's aperture, the radial profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from nightloom.report.figures import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    VERMILION,
    WIDTH_IN,
    styled,
)
from nightloom.report.series import Bools, Floats

HALO = "white"
PLATE_OF_TEXT = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.8}
MAX_SIDE_PX = 1400  # of an image as drawn; larger ones are averaged in blocks
MAX_CATALOGUE = 400
PROFILE_STARS = 20
_BARS_ARCSEC = (5, 10, 20, 30, 60, 120, 180, 300, 600, 900, 1200, 1800, 3600)


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference with its star list, and what a plate says of it: NaN or empty without one.

    stack [y, x]; x, y, flux, clean [star]: clean ones are neither saturated, blended nor appended.
    fwhm_px, beta: of the stars before the pixels blur them. north, east: unit vectors (x, y).
    """

    stack: NDArray[np.float32]
    x: Floats
    y: Floats
    flux: Floats
    clean: Bools
    fwhm_px: float
    beta: float
    catalogue_x: Floats
    catalogue_y: Floats
    catalogue_mag: Floats
    scale_arcsec: float
    north: tuple[float, float]
    east: tuple[float, float]


@styled
def field_image(
    reference: Reference,
    *,
    star: int,
    name: str,
    weight: Floats,
    labels: dict[int, str],
    title: str,
) -> Figure:
    """The stack with its star list, the target and its comparisons, and the catalogue over it.

    weight [star]: a comparison's ring is as strong as its weight; labels: of some stars.
    """
    ny, nx = reference.stack.shape
    side = 0.72 * WIDTH_IN
    height = side * float(np.clip(ny / nx, 0.4, 1.5))
    figure = Figure(figsize=(side + 0.65, height + 1.25))
    panel = figure.add_axes(
        (0.6 / (side + 0.65), 0.5 / (height + 1.25), side / (side + 0.65), height / (height + 1.25))
    )
    _show(panel, reference.stack, offset=(0.0, 0.0))
    unit = 0.012 * max(ny, nx)
    # A target that was added since is in the list, and weighs nothing.
    weight = np.pad(weight, (0, len(reference.x) - len(weight)))
    plain = ~((weight > 0) | (np.arange(len(weight)) == star))
    panel.scatter(
        reference.x[plain], reference.y[plain], s=32, facecolors="none", edgecolors=GREY,
        linewidths=0.7, label="star list",
    )  # fmt: skip
    brightest = np.argsort(reference.catalogue_mag, kind="stable")[:MAX_CATALOGUE]
    if brightest.size:
        panel.scatter(
            reference.catalogue_x[brightest], reference.catalogue_y[brightest], s=26, marker="+",
            color=ORANGE, linewidths=0.9, label="catalogue",
        )  # fmt: skip
    chosen = np.flatnonzero(weight > 0)
    share = np.sqrt(weight[chosen] / max(float(weight.max(initial=0.0)), 1e-12))
    ink = [to_rgba(BLUE, float(alpha)) for alpha in 0.35 + 0.65 * share]
    panel.scatter(
        reference.x[chosen], reference.y[chosen], s=40 + 110 * share, facecolors="none",
        edgecolors=ink, linewidths=(0.9 + 1.1 * share).tolist(),
        label="comparison stars, by weight",
    )  # fmt: skip
    panel.scatter(
        reference.x[star], reference.y[star], s=230, facecolors="none", edgecolors=VERMILION,
        linewidths=2.0, label="target",
    )  # fmt: skip
    for index, text in labels.items():
        _name(panel, reference.x[index], reference.y[index], text, unit=unit, limit=nx, colour=BLUE)
    _name(panel, reference.x[star], reference.y[star], name, unit=unit, limit=nx, colour=VERMILION)
    _compass(panel, reference)
    panel.set(xlim=(-0.5, nx - 0.5), ylim=(-0.5, ny - 0.5), xlabel="x (px)", ylabel="y (px)")
    panel.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, handletextpad=0.1, columnspacing=1.0,
        markerscale=0.7, borderaxespad=0.3,
    )  # fmt: skip
    figure.text(0.6 / (side + 0.65), 1 - 0.2 / (height + 1.25), title, size=10.5, va="center")
    return figure


@styled
def cutout(
    reference: Reference,
    *,
    star: int,
    radius_px: float,
    annulus_px: tuple[float, float],
    title: str,
) -> Figure:
    """The target in the stack, with its aperture and the annulus of its background."""
    figure = Figure(figsize=(4.6, 4.6))
    panel = figure.add_axes((0.12, 0.11, 0.85, 0.76))
    x, y = float(reference.x[star]), float(reference.y[star])
    reach = 1.25 * max(annulus_px[1], radius_px)
    ny, nx = reference.stack.shape
    x0, y0 = max(0, int(x - reach)), max(0, int(y - reach))
    part = reference.stack[y0 : min(ny, int(y + reach) + 2), x0 : min(nx, int(x + reach) + 2)]
    _show(panel, part, offset=(x0, y0))
    near = (np.abs(reference.x - x) < reach) & (np.abs(reference.y - y) < reach)
    near[star] = False
    panel.plot(
        reference.x[near], reference.y[near], "o", ms=9, mfc="none", mec=GREY, mew=1.0,
        label="others of the list",
    )  # fmt: skip
    for radius, line, colour, label in (
        (radius_px, "-", VERMILION, "aperture"),
        (annulus_px[0], "--", BLUE, "annulus"),
        (annulus_px[1], "--", BLUE, ""),
    ):
        for width, ink in ((3.2, HALO), (1.5, colour)):
            panel.add_patch(
                Circle((x, y), radius, fill=False, ec=ink, lw=width, ls=line, label=None)
            )
        if label:
            panel.plot([], [], line, color=colour, label=f"{label}")
    panel.set(xlim=(x - reach, x + reach), ylim=(y - reach, y + reach))
    panel.set(xlabel="x (px)", ylabel="y (px)")
    panel.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, handlelength=1.6, columnspacing=1.0
    )
    figure.text(0.12, 0.965, title, size=10.5, va="center")
    return figure


@styled
def profile(reference: Reference, *, star: int, radius_px: float, title: str) -> Figure:
    """Radial profile of the target and of clean stars as bright as it, with FWHM and aperture.

    Every star is background-subtracted and divided by its flux within 1.5 FWHM; the model's
    peak, as pixels see it, is 1.
    """
    figure = Figure(figsize=(4.6, 3.9))
    panel = figure.add_axes((0.12, 0.13, 0.85, 0.73))
    reach = max(3.0 * reference.fwhm_px, 1.25 * radius_px)
    stars = _alike(reference, star)
    clouds = [radial_values(reference, k, reach_px=reach) for k in stars]
    target = radial_values(reference, star, reach_px=reach)
    pool = clouds or [target]
    radius, value = (np.concatenate([cloud[k] for cloud in pool]) for k in (0, 1))
    model = seen_moffat(radius, fwhm_px=reference.fwhm_px, beta=reference.beta)
    core = (radius < reference.fwhm_px) & np.isfinite(value)
    peak = float(np.sum(model[core] * value[core]) / max(np.sum(model[core] ** 2), 1e-12))
    panel.plot(
        target[0], target[1] / peak, "o", ms=2.8, mew=0, color=VERMILION, alpha=0.45, label="target"
    )
    if clouds:
        middle, rows = _by_radius(radius, value / peak, width=max(0.5, reference.fwhm_px / 8))
        panel.errorbar(
            middle, rows[:, 1], np.abs(rows[:, [0, 2]] - rows[:, [1]]).T, fmt="o", ms=4,
            color=BLUE, mec="white", mew=0.5, elinewidth=1.0, zorder=4,
            label=f"{len(clouds)} clean stars, median",
        )  # fmt: skip
    fine = np.linspace(0, reach, 200)
    panel.plot(
        fine, seen_moffat(fine, fwhm_px=reference.fwhm_px, beta=reference.beta), "-", color=INK,
        lw=1.0, label=_model_name(reference.beta),
    )  # fmt: skip
    half = 0.5 * reference.fwhm_px
    panel.plot([half, half], [0, 0.5], ":", color=INK, lw=1.2)
    panel.plot([0, half], [0.5, 0.5], ":", color=INK, lw=1.2)
    panel.axvline(radius_px, color=VERMILION, lw=1.3)
    label = panel.text(half + 0.03 * reach, 0.5, f"FWHM {reference.fwhm_px:.2f} px", va="center")
    label.set_bbox(PLATE_OF_TEXT)
    panel.text(
        radius_px + 0.01 * reach, 0.98, "aperture", color=VERMILION, rotation=90, va="top", size=8.5
    )
    panel.axhline(0, color=PALE, lw=0.8)
    panel.set(xlim=(0, reach), ylim=(-0.12, 1.18))
    panel.set(xlabel="distance from the centroid (px)", ylabel="value over the model's peak")
    panel.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, handletextpad=0.3, handlelength=1.2,
        columnspacing=0.9,
    )  # fmt: skip
    figure.text(0.12, 0.96, title, size=10.5, va="center")
    return figure


def radial_values(reference: Reference, star: int, *, reach_px: float) -> tuple[Floats, Floats]:
    """Distance and value of every pixel around a star, over its flux within 1.5 FWHM.

    The local background is the median between 3 and 5 FWHM.
    """
    x, y = float(reference.x[star]), float(reference.y[star])
    ny, nx = reference.stack.shape
    far = max(reach_px, 5.0 * reference.fwhm_px)
    x0, x1 = max(0, int(x - far)), min(nx, int(x + far) + 2)
    y0, y1 = max(0, int(y - far)), min(ny, int(y + far) + 2)
    part = reference.stack[y0:y1, x0:x1].astype(np.float64)
    rows, columns = np.mgrid[y0:y1, x0:x1]
    distance = np.hypot(columns - x, rows - y)
    ring = (
        (distance > 3 * reference.fwhm_px) & (distance < 5 * reference.fwhm_px) & np.isfinite(part)
    )
    part -= np.median(part[ring]) if ring.any() else 0.0
    inner = (distance < 1.5 * reference.fwhm_px) & np.isfinite(part)
    total = float(part[inner].sum())
    near = distance <= reach_px
    value = part[near] / total if total > 0 else np.full(int(near.sum()), np.nan)
    return distance[near], value


def moffat(radius_px: Floats, *, fwhm_px: float, beta: float) -> Floats:
    """A Moffat profile of peak 1 (Moffat 1969); a Gaussian where beta is not finite."""
    if not np.isfinite(beta):
        return np.asarray(0.5 ** ((2 * radius_px / fwhm_px) ** 2))
    alpha = 0.5 * fwhm_px / np.sqrt(2.0 ** (1.0 / beta) - 1.0)
    return np.asarray((1.0 + (radius_px / alpha) ** 2) ** -beta)


def seen_moffat(radius_px: Floats, *, fwhm_px: float, beta: float) -> Floats:
    """Mean of such a profile over a pixel at a radius, over that of the pixel at the centre."""
    offsets = (np.arange(5) - 2) / 5
    angles = np.radians([0.0, 22.5, 45.0])
    radius = np.append(radius_px, 0.0)[:, None, None, None]
    x = radius * np.cos(angles)[:, None, None] + offsets[:, None]
    y = radius * np.sin(angles)[:, None, None] + offsets
    seen = moffat(np.hypot(x, y), fwhm_px=fwhm_px, beta=beta).mean(axis=(1, 2, 3))
    return np.asarray(seen[:-1] / seen[-1])


def _alike(reference: Reference, star: int) -> list[int]:
    """The clean stars that come nearest to a star in brightness; the brightest, if it has none.

    Much brighter ones may be saturated without anybody knowing, much fainter ones are noise.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.abs(np.log(reference.flux / reference.flux[star]))
    known = np.where(np.isfinite(apart), apart, np.arange(len(apart)))
    order = [int(k) for k in np.argsort(known, kind="stable") if reference.clean[k] and k != star]
    return order[:PROFILE_STARS]


def _model_name(beta: float) -> str:
    return f"Moffat, beta {beta:.1f}" if np.isfinite(beta) else "Gaussian"


def _by_radius(radius: Floats, value: Floats, *, width: float) -> tuple[Floats, Floats]:
    """Middle of each ring, and the 16th, 50th and 84th percentile of the values in it."""
    good = np.isfinite(value)
    ring = np.floor(radius[good] / width).astype(int)
    middles, rows = [], []
    for k in np.unique(ring):
        inside = ring == k
        middles.append(float(np.mean(radius[good][inside])))
        rows.append(np.percentile(value[good][inside], [16, 50, 84]))
    return np.array(middles), np.array(rows)


def _show(panel: Axes, pixels: NDArray[Any], *, offset: tuple[float, float]) -> None:
    """Pixels in inverted grey: sky light, faint stars visible, bright ones not burnt out."""
    factor = -(-max(pixels.shape) // MAX_SIDE_PX)
    shown = _shrunk(pixels, factor)
    ny, nx = (factor * length for length in shown.shape)
    good = shown[np.isfinite(shown)]
    sky = float(np.median(good)) if good.size else 0.0
    noise = 1.4826 * float(np.median(np.abs(good - sky))) if good.size else 1.0
    stretched = np.arcsinh((shown - sky) / max(3.0 * noise, 1e-6))
    top = float(np.percentile(stretched[np.isfinite(stretched)], 99.9)) if good.size else 1.0
    x0, y0 = offset
    panel.imshow(
        stretched, cmap="gray_r", origin="lower", vmin=-0.7, vmax=max(top, 1.5),
        extent=(x0 - 0.5, x0 + nx - 0.5, y0 - 0.5, y0 + ny - 0.5), interpolation="nearest",
    )  # fmt: skip
    panel.set_facecolor("#f3e9dc")
    panel.grid(visible=False)


def _shrunk(pixels: NDArray[Any], factor: int) -> Floats:
    """Means of blocks of factor x factor pixels; the last ones, if they fill no block, go."""
    if factor <= 1:
        return pixels.astype(np.float64)
    ny, nx = (length // factor * factor for length in pixels.shape)
    blocks = pixels[:ny, :nx].reshape(ny // factor, factor, nx // factor, factor)
    good = np.isfinite(blocks)
    count = good.sum(axis=(1, 3))
    total = np.where(good, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _name(
    panel: Axes, x: float, y: float, text: str, *, unit: float, limit: int, colour: str
) -> None:
    left = x > 0.8 * limit
    label = panel.text(
        x - unit if left else x + unit, y + unit, text, color=colour, size=8.5, va="bottom",
        ha="right" if left else "left", clip_on=True,
    )  # fmt: skip
    label.set_bbox(PLATE_OF_TEXT)


def _compass(panel: Axes, reference: Reference) -> None:
    """North, east and a bar of known length, where there is a plate."""
    if not np.isfinite(reference.scale_arcsec):
        return
    ny, nx = reference.stack.shape
    length = 0.075 * min(ny, nx)
    x, y = nx - 2.2 * length, ny - 2.2 * length
    for text, (dx, dy) in (("N", reference.north), ("E", reference.east)):
        tip = (x + length * dx, y + length * dy)
        for width, ink in ((3.5, HALO), (1.4, INK)):
            panel.annotate(
                "", tip, (x, y),
                arrowprops={"arrowstyle": "-|>", "color": ink, "lw": width, "shrinkA": 0},
            )  # fmt: skip
        where = (x + 1.35 * length * dx, y + 1.35 * length * dy)
        panel.text(*where, text, ha="center", va="center", weight="bold")
    most = 0.25 * nx * reference.scale_arcsec
    arcsec = max((bar for bar in _BARS_ARCSEC if bar <= most), default=most)
    long_px = arcsec / reference.scale_arcsec
    x0, y0 = 0.04 * nx, 0.04 * ny
    for width, ink in ((5.0, HALO), (2.2, INK)):
        panel.plot([x0, x0 + long_px], [y0, y0], color=ink, lw=width, solid_capstyle="butt")
    text = f"{arcsec / 60:g}′" if arcsec >= 60 else f"{arcsec:g}″"
    label = panel.text(x0 + 0.5 * long_px, y0 + 0.012 * ny, text, ha="center", va="bottom")
    label.set_bbox(PLATE_OF_TEXT)
