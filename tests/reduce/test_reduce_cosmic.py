"""Hits of cosmic rays are found, the cores of sharp stars are left alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from archives import archive_of, run, star_field, write_config, write_frame
from nightloom.errors import ConfigError
from nightloom.image.calibrate import MASK_COSMIC, MASK_NAN, MASK_SATURATED
from nightloom.reduce.cosmic import contrast, load_astroscrappy, mark_cosmic_rays
from nightloom.reduce.detection import Exposure
from nightloom.schema.flags import BITS
from nightloom.synth.camera import render

SIZE, SKY_E, READ_NOISE_E = 400, 300.0, 6.0
Bools = NDArray[np.bool_]


def exposure_of(pixels_e: NDArray[np.floating]) -> Exposure:
    pixels = pixels_e.astype(np.float32)
    mask = np.where(np.isfinite(pixels), 0, MASK_NAN).astype(np.uint8)
    return Exposure(pixels, pixels, mask, 1.0, False, READ_NOISE_E, 0.0, 0.0)


def field_of(seed: int, fwhm_px: float) -> tuple[NDArray[np.float64], Bools, Bools]:
    """Electrons of 144 stars and 60 tracks; pixels within 1.5 FWHM of a star; pixels of tracks."""
    rng = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(144), 12)
    x, y = (33 * k + 18 + rng.uniform(-8, 8, 144) for k in (column, row))
    light = render(
        SIZE, SIZE, x_px=x, y_px=y, flux_e=10 ** rng.uniform(3, 5.5, 144), fwhm_px=fwhm_px,
        sky_e=SKY_E, beta=3.0,
    )  # fmt: skip
    pixels = rng.poisson(light) + rng.normal(0, READ_NOISE_E, light.shape)
    j, i = np.indices(light.shape)
    near = np.zeros(light.shape, dtype=bool)
    for u, v in zip(x, y, strict=True):
        near |= (i - u) ** 2 + (j - v) ** 2 < (1.5 * fwhm_px) ** 2
    hit = np.zeros(light.shape, dtype=bool)
    for _ in range(60):
        start, angle = rng.uniform(10, SIZE - 10, 2), rng.uniform(0, np.pi)
        along = np.arange(0, rng.uniform(1, 8), 0.7)
        u = (start[0] + along * np.cos(angle)).astype(int)
        v = (start[1] + along * np.sin(angle)).astype(int)
        pixels[v, u] += 10 ** rng.uniform(2.5, 4.5)
        hit[v, u] = True
    return pixels, near, hit


def grown(mask: Bools, by_px: int) -> Bools:
    """The mask and the pixels about it."""
    padded = np.pad(mask, by_px)
    steps = range(2 * by_px + 1)
    return np.logical_or.reduce(
        [padded[dy : dy + SIZE, dx : dx + SIZE] for dy in steps for dx in steps]
    )


@pytest.mark.parametrize("fwhm_px", [2.0, 3.5])
def test_hits_are_found_and_star_cores_are_not(fwhm_px: float) -> None:
    pixels, near, hit = field_of(5, fwhm_px)
    marked = mark_cosmic_rays(exposure_of(pixels), fwhm_px=fwhm_px).mask == MASK_COSMIC
    assert np.count_nonzero(marked & near & ~grown(hit, 4)) == 0
    assert np.count_nonzero(marked & ~near & ~grown(hit, 1)) <= 2e-4 * SIZE**2
    assert np.count_nonzero(marked & hit & ~near) >= 0.95 * np.count_nonzero(hit & ~near)


def test_stars_that_are_hardly_sampled_lose_few_cores() -> None:
    pixels, near, hit = field_of(6, 1.5)
    marked = mark_cosmic_rays(exposure_of(pixels), fwhm_px=1.5).mask == MASK_COSMIC
    assert np.count_nonzero(marked & near & ~grown(hit, 4)) <= 3  # of 144 stars


def test_a_hit_brighter_than_every_star_is_marked_even_where_it_saturates() -> None:
    """Trap 15."""
    pixels, _, _ = field_of(7, 3.0)
    pixels[200:203, 209] = 1.2e6
    exposure = exposure_of(pixels)
    exposure.mask[pixels > 1e6] |= MASK_SATURATED
    before = exposure.pixels_e.copy()
    marked = mark_cosmic_rays(exposure, fwhm_px=3.0)
    assert (marked.mask[200:203, 209] == MASK_COSMIC | MASK_SATURATED).all()
    np.testing.assert_array_equal(marked.pixels_e, before)
    assert not (exposure.mask & MASK_COSMIC).any()


def test_without_a_read_noise_the_scatter_of_the_frame_takes_its_place() -> None:
    pixels, near, hit = field_of(8, 3.0)
    known = exposure_of(pixels)
    for unknown in (
        replace(known, read_noise_e=float("nan")),
        replace(exposure_of(pixels / 2.5), read_noise_e=float("nan"), gain_assumed=True),
    ):
        marked = mark_cosmic_rays(unknown, fwhm_px=3.0).mask == MASK_COSMIC
        assert np.count_nonzero(marked & ~grown(hit, 4)) <= 2e-4 * SIZE**2
        assert np.count_nonzero(marked & hit & ~near) >= 0.8 * np.count_nonzero(hit & ~near)


def test_lost_pixels_are_no_hits_and_lost_frames_are_let_pass() -> None:
    pixels, _, hit = field_of(9, 3.0)
    pixels[50:60, 50:60] = np.nan
    marked = mark_cosmic_rays(exposure_of(pixels), fwhm_px=3.0).mask
    assert (marked[50:60, 50:60] == MASK_NAN).all()
    assert not (marked[45:65, 45:65] & MASK_COSMIC).any() or hit[45:65, 45:65].any()
    nothing = exposure_of(np.full((20, 20), np.nan))
    assert (mark_cosmic_rays(nothing, fwhm_px=3.0).mask == MASK_NAN).all()


def test_the_limit_rises_for_narrow_stars_only() -> None:
    assert contrast(4.0) == contrast(2.5) == 5.0
    assert contrast(2.5) < contrast(2.0) < contrast(1.5) == contrast(0.1)


def test_a_night_with_hits(tmp_path: Path) -> None:
    """A track beside a star's core is flagged, and its flux is kept out of the sum."""
    ny, nx = 150, 180
    x, y, flux = star_field(14, ny=ny, nx=nx, seed=8)
    for k in range(6):
        write_frame(tmp_path / "frames" / f"f{k}.fits", x, y, flux, ny=ny, nx=nx, minute=k, seed=k)
    with fits.open(tmp_path / "frames" / "f4.fits", mode="update") as files:
        i, j = round(x[2]) + 3, round(y[2])
        files[0].data[j : j + 2, i] += 20_000
    config = write_config(tmp_path, more="[calibration]\ncosmic_rays = true\n")
    run(config)
    cube = archive_of(config).cube("Test").load()
    flags = cube["flags"].values & BITS["cosmic_ray"] != 0
    star = int(np.argmin(np.hypot(cube["x"].values[4] - x[2], cube["y"].values[4] - y[2])))
    assert flags[4, star]
    assert flags.sum() == 1
    bright = cube["flux"].values[:, star, 10]
    assert abs(bright[4] / np.median(bright) - 1) < 0.05  # the hit adds half of it


def test_without_the_library_it_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "astroscrappy", None)
    with pytest.raises(ConfigError, match="pip install"):
        load_astroscrappy()
    (tmp_path / "frames").mkdir()
    with pytest.raises(ConfigError, match="cosmic_rays"):
        run(write_config(tmp_path, more="[calibration]\ncosmic_rays = true\n"))
