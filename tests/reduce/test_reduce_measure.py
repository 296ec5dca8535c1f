"""One frame to one row: raw pixels are what is measured, and every doubt has its flag."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from archives import archive_of, run, star_field, write_config, write_frame
from nightloom.config import Instrument, PhotometrySection
from nightloom.frames.fits import read_pixels
from nightloom.plan.recipes import PlannedFrame
from nightloom.reduce.detection import CalibratedFrame
from nightloom.reduce.masters import MasterPaths
from nightloom.reduce.measure import StarList, measure_frame
from nightloom.schema.flags import BITS, CAVEATS

NY, NX = 150, 180
Background = Literal["annulus_median", "annulus_mode", "mesh"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames that drift by fractions of a pixel, and whose first star leaves the frame."""
    folder = tmp_path_factory.mktemp("measure")
    x, y, flux = star_field(18, ny=NY, nx=NX, seed=8)
    x[3], y[3] = 8.0, 75.0
    for k in range(10):
        write_frame(
            folder / "frames" / f"f{k:02d}.fits", x - 1.37 * k, y + 0.41 * k, flux, ny=NY, nx=NX,
            minute=k, seed=k,
        )  # fmt: skip
    run(write_config(folder))
    return folder


def raw_of(folder: Path, k: int) -> NDArray[np.uint16]:
    return read_pixels(folder / "frames" / f"f{k:02d}.fits", 0)


def test_only_pixels_as_they_were_read_are_measured(folder: Path) -> None:
    """Trap 33: the peak is a raw pixel of the frame; of a warped one it would be a mean."""
    cube = archive_of(folder / "nightloom.toml").cube("Test").load()
    for k in range(cube.sizes["time"]):
        raw = raw_of(folder, k)
        for star in range(cube.sizes["star"]):
            x, y, peak = (float(cube[n].values[k, star]) for n in ("x", "y", "peak"))
            if np.isfinite(peak):
                j, i = round(y), round(x)
                near = raw[max(0, j - 6) : j + 7, max(0, i - 6) : i + 7]
                assert peak in near


def test_a_star_that_leaves_is_flagged_and_then_nan(folder: Path) -> None:
    archive = archive_of(folder / "nightloom.toml")
    cube = archive.cube("Test").load()
    outside = (cube["x"].values < -0.5) | (cube["x"].values > NX - 0.5)
    assert outside.any()
    assert np.isnan(cube["flux"].values[outside]).all()
    assert (cube["flags"].values[outside] & BITS["edge"] != 0).all()
    curves = archive.lightcurves("Test").load()
    stays = ~outside.any(axis=0)
    middle = (np.abs(cube["x"].values - NX / 2) < NX / 2 - 25).all(axis=0) & stays
    assert np.isfinite(curves["flux"].values[middle]).all()  # nobody else lost an epoch


def test_what_is_lacking_is_a_caveat_and_not_a_flag(folder: Path) -> None:
    cube = archive_of(folder / "nightloom.toml").cube("Test").load()
    flags = cube["frame_flags"].values
    assert (flags & BITS["calibration_missing"] != 0).all()
    assert (flags & BITS["gain_assumed"] == 0).all()  # EGAIN was in the header
    curves = archive_of(folder / "nightloom.toml").lightcurves("Test").load()
    assert (curves["flags"].values & BITS["calibration_missing"] == 0).all()


def test_radii_follow_the_frame_or_stay(folder: Path) -> None:
    cube = archive_of(folder / "nightloom.toml").cube("Test").load()
    follows = np.isfinite(cube["radius_fwhm"].values)
    radius = cube["aperture_radius_px"].values
    expected = cube["radius_fwhm"].values[None, follows] * cube["fwhm_px"].values[:, None]
    np.testing.assert_allclose(radius[:, follows], expected, rtol=1e-6)
    np.testing.assert_array_equal(
        radius[:, ~follows], np.broadcast_to(cube["radius_px"].values[~follows], (10, 5))
    )
    assert follows.sum() == 30


def test_the_weighted_aperture_is_one_more_and_can_be_chosen(tmp_path: Path) -> None:
    x, y, flux = star_field(14, ny=NY, nx=NX, seed=8)
    for k in range(8):
        write_frame(
            tmp_path / "frames" / f"f{k}.fits", x + 0.3 * k, y, flux, ny=NY, nx=NX, minute=k,
            seed=k,
        )  # fmt: skip
    target = f'[[target]]\nname = "T"\nx = {x[2]}\ny = {y[2]}\n'
    few = "[photometry]\nradii_fwhm = [0.2, 3.0]\nradii_px = [1.0]\noptimal = true\n"
    config = write_config(tmp_path, more=target + few)
    assert run(config, report=True).exit_code == 0
    cube = archive_of(config).cube("Test").load()
    assert list(cube["aperture_kind"].values) == ["fwhm", "fwhm", "px", "optimal"]
    assert np.isnan(cube["radius_fwhm"].values[3])
    assert np.isnan(cube["radius_px"].values[3])
    np.testing.assert_allclose(cube["aperture_radius_px"][:, 3], 2 * cube["fwhm_px"], rtol=1e-6)
    bright = cube["flux"].values[:, :5]
    np.testing.assert_allclose(bright[:, :, 3], bright[:, :, 1], rtol=0.03)
    error = cube["flux_err"].values[:, 5:]
    assert (error[:, :, 3] < error[:, :, 1]).all()  # less sky than the wide circle
    assert archive_of(config).lightcurve("T").attrs["aperture_kind"] == "optimal"
    pages = list((tmp_path / "products" / "report").rglob("*.html"))
    assert any("weighted by the profile" in page.read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("background", ["annulus_median", "annulus_mode", "mesh"])
def test_on_a_sky_with_a_gradient_fluxes_are_the_truth_within_their_errors(
    tmp_path: Path, background: Background
) -> None:
    """From 200 to 420 electrons across the frame: 70 stars, bright and faint, in two apertures."""
    rng = np.random.default_rng(11)
    size, sigma_px, gain = 448, 1.5, 1.5
    x, y, flux = star_field(70, ny=size, nx=size, seed=5)
    flux = flux / 30
    rows, columns = np.mgrid[:size, :size]
    light = 200.0 + 0.3 * columns + 0.2 * rows
    for a, b, f in zip(x, y, flux, strict=True):
        r2 = (columns - a) ** 2 + (rows - b) ** 2
        light += f * np.exp(-r2 / (2 * sigma_px**2)) / (2 * np.pi * sigma_px**2)
    electrons = rng.poisson(light) + rng.normal(0, 6.0, light.shape)
    path = tmp_path / "f.fits"
    fits.writeto(path, np.clip(np.round(electrons / gain), 0, None).astype(np.uint16))
    item = CalibratedFrame(planned(path, size, gain), MasterPaths(), Instrument())
    settings = PhotometrySection(radii_fwhm=(), radii_px=(6.0, 8.0), background=background)
    sure = np.ones(len(x), dtype=bool)
    stars = StarList(x, y, flux, sure, sure, 2.3548 * sigma_px, 30.0)
    row = measure_frame(item, stars, settings, trim_px=0)
    assert row["reason"] == ""
    alone = row["flags"] & ~np.uint32(CAVEATS) == 0
    assert alone.sum() > 50
    within = 1 - np.exp(-(np.array([6.0, 8.0]) ** 2) / (2 * sigma_px**2))
    pull = (row["flux"] - flux[:, None] * within) / row["flux_err"]
    for k in range(2):
        assert abs(np.mean(pull[alone, k])) < 3 / np.sqrt(alone.sum())
        assert 0.8 < np.sqrt(np.mean(pull[alone, k] ** 2)) < 1.25
    slope = np.polyfit(x[alone] + y[alone], pull[alone, 1], 1)[0]
    assert abs(slope) * size < 2.0  # none of the gradient is left in the fluxes


def planned(path: Path, size: int, gain: float) -> PlannedFrame:
    nan = float("nan")
    return PlannedFrame(
        root=path.parent, path=path.name, hdu=0, size_bytes=path.stat().st_size, digest="d",
        instrument="cam", filter="R", ny=size, nx=size, jd_utc=2460000.0, exposure_s=30.0,
        gain_e_per_adu=gain, read_noise_e=6.0, saturation_adu=60000.0, ra_deg=nan, dec_deg=nan,
        pixel_scale_arcsec=nan, site_lat_deg=nan, site_lon_deg=nan, site_height_m=nan,
        time_suspect=False,
    )  # fmt: skip
