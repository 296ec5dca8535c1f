"""One frame to one row: raw pixels are what is measured, and every doubt has its flag."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from archives import archive_of, run, star_field, write_config, write_frame
from nightloom.frames.fits import read_pixels
from nightloom.schema.flags import BITS

NY, NX = 150, 180


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
