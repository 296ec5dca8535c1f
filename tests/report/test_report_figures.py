"""Figures: in the house style whatever the user's, never global, the same twice, all labelled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from nightloom.report import figures, images
from nightloom.report.images import Reference, moffat, radial_values, seen_moffat
from nightloom.report.series import time_axis

N = 90
FWHM_PX, BETA = 4.2, 3.1
NIGHT = np.repeat(np.array(["2024-10-01", "2024-10-02", "2024-10-05"], dtype=object), N // 3)
TIME_D = 2460585.3 + np.repeat([0.0, 1.0, 4.0], N // 3) + np.tile(np.arange(N // 3) / 300, 3)
FLUX = 1 + np.random.default_rng(2).normal(0, 0.004, N)
ERROR = np.full(N, 0.004)
CLEAN = np.arange(N) % 11 != 0
AXIS = time_axis(TIME_D, NIGHT, scale="BJD_TDB")


def _reference(x: float = 70.37, y: float = 55.81) -> Reference:
    rows, columns = np.mgrid[0:120, 0:140]
    stars = np.array([[x, y], [30.0, 90.2], [101.7, 20.6]])
    stack = np.zeros((120, 140))
    for x0, y0 in stars:
        stack += 5000 * moffat(
            np.hypot(columns - x0, rows - y0).astype(float), fwhm_px=FWHM_PX, beta=BETA
        )
    stack[:3] = np.nan
    return Reference(
        stack=stack.astype(np.float32), x=stars[:, 0], y=stars[:, 1], clean=np.ones(3, dtype=bool),
        flux=np.array([3.0, 2.0, 1.0]), fwhm_px=FWHM_PX, beta=BETA, catalogue_x=stars[:, 0],
        catalogue_y=stars[:, 1], catalogue_mag=np.arange(3.0), scale_arcsec=1.1, north=(0.0, 1.0),
        east=(-1.0, 0.0),
    )  # fmt: skip


def _image(draw: Callable[..., Figure], **settings: Any) -> Callable[[], Figure]:
    return partial(draw, _reference(), star=0, title="An image", **settings)


DRAWN: dict[str, Callable[[], Figure]] = {
    "light_curve": partial(figures.light_curve, AXIS, FLUX, ERROR, CLEAN, title="A curve"),
    "night_panels": partial(
        figures.night_panels, TIME_D, NIGHT, FLUX, ERROR, CLEAN, scale="BJD_TDB", title="Nights"
    ),
    "overview": partial(
        figures.overview, TIME_D, NIGHT, FLUX, CLEAN, scale="BJD_TDB", title="Overview"
    ),
    "raw_curves": partial(
        figures.raw_curves, AXIS, 1e5 * FLUX, FLUX, CLEAN, unit="ADU", title="Raw"
    ),
    "comparison_stars": partial(
        figures.comparison_stars, AXIS, np.stack([FLUX, FLUX]), np.stack([CLEAN, CLEAN]),
        np.array([0.7, 0.3]), ["C1", "C2"], title="Comparisons",
    ),
    "systematics": partial(
        figures.systematics, AXIS, [("FWHM (px)", [("", FLUX)])], CLEAN, title="Systematics"
    ),
    "aperture_choice": partial(
        figures.aperture_choice, np.array([2.0, 3.0, 5.0]), np.array([0.02, 0.01, 0.03]),
        np.array(["fwhm", "optimal", "px"]), chosen=1, label="weighted", title="Apertures",
    ),
    "field_image": _image(
        images.field_image, name="Target", weight=np.array([0.0, 0.8, 0.2]), labels={1: "C1"}
    ),
    "cutout": _image(images.cutout, radius_px=5.0, annulus_px=(12.0, 20.0)),
    "profile": _image(images.profile, radius_px=5.0),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_has_a_title_and_its_axes_their_labels(name: str) -> None:
    figure = DRAWN[name]()
    shown = [panel for panel in figure.axes if panel.get_visible()]
    titles = [panel.get_title(loc="left") for panel in shown]
    titles += [text.get_text() for text in figure.texts]
    assert any(titles)
    assert any(panel.get_xlabel() for panel in shown)
    assert any(panel.get_ylabel() for panel in shown)


@pytest.mark.parametrize("name", ["light_curve", "field_image", "profile"])
def test_a_figure_is_the_same_twice_whatever_the_users_style(name: str) -> None:
    first = figures.png(DRAWN[name]())
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.facecolor": "red"}):
        before = dict(mpl.rcParams)
        assert figures.png(DRAWN[name]()) == first
        assert dict(mpl.rcParams) == before


def test_no_date_and_no_software_in_a_png() -> None:
    data = figures.png(figures.thumbnail(AXIS, FLUX, CLEAN, within=(0.9, 1.1)))
    assert data.startswith(b"\x89PNG")
    for chunk in (b"tEXt", b"iTXt", b"tIME", b"Matplotlib"):
        assert chunk not in data


def test_pages_never_import_the_global_plotting_state() -> None:
    code = "import sys, nightloom.report.pages; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("phase", [(70.0, 55.0), (70.37, 55.81), (70.5, 55.5)])
def test_radial_profile_of_a_known_star_follows_its_model(phase: tuple[float, float]) -> None:
    radius, value = radial_values(_reference(*phase), 0, reach_px=10.0)
    model = moffat(radius, fwhm_px=FWHM_PX, beta=BETA)
    scale = np.sum(model * value) / np.sum(model**2)
    # The local background holds a little of the wings, and of the others' wings.
    assert_allclose(value / scale, model, atol=0.01)


def test_profile_of_a_star_at_the_corner_and_of_an_empty_place() -> None:
    corner = _reference(1.0, 118.5)
    radius, value = radial_values(corner, 0, reach_px=8.0)
    assert radius.size == value.size > 20
    empty = _reference()
    empty.stack[...] = np.nan
    assert np.isnan(radial_values(empty, 0, reach_px=8.0)[1]).all()


def test_moffat_and_gaussian_have_half_their_peak_at_half_the_fwhm() -> None:
    for beta in (2.0, 4.765, float("nan"), float("inf")):
        assert_allclose(moffat(np.array([0.0, 2.1]), fwhm_px=4.2, beta=beta), [1.0, 0.5])


@pytest.mark.parametrize("fwhm_px", [1.5, 4.0])
def test_a_model_seen_by_pixels_is_its_mean_over_them(fwhm_px: float) -> None:
    grid = (np.arange(200) + 0.5) / 200 - 0.5
    x, y = np.meshgrid(grid, grid)
    settings = {"fwhm_px": fwhm_px, "beta": BETA}
    exact = [moffat(np.hypot(x + r, y), **settings).mean() for r in (0.0, 1.0, 2.5)]
    seen = seen_moffat(np.array([0.0, 1.0, 2.5]), **settings)
    assert_allclose(seen, np.array(exact) / exact[0], atol=0.012)
    assert seen[1] > moffat(np.array([1.0]), **settings)[0]


def test_a_large_image_is_averaged_in_blocks_and_keeps_its_place() -> None:
    big = _reference()
    tiled = np.tile(big.stack, (20, 20))
    large = Reference(**{name: getattr(big, name) for name in big.__slots__} | {"stack": tiled})
    figure = images.field_image(
        large, star=0, name="Target", weight=np.zeros(3), labels={}, title="Large"
    )
    (shown,) = figure.axes[0].images
    assert max(shown.get_array().shape) <= images.MAX_SIDE_PX
    assert shown.get_extent() == pytest.approx((-0.5, 2799.5, -0.5, 2399.5), abs=2)


def test_flagged_points_are_shown_apart_and_wild_ones_at_the_edge() -> None:
    flux = FLUX.copy()
    flux[1], flux[11] = 3.0, 0.1  # a clean one and a flagged one
    figure = figures.light_curve(AXIS, flux, ERROR, CLEAN, title="A curve")
    panel = figure.axes[0]
    low, high = panel.get_ylim()
    assert high < 1.1
    assert low > 0.9
    up = next(line for line in panel.lines if line.get_marker() == "^")
    assert_allclose(up.get_ydata(), [high])
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert "flagged points" in labels
