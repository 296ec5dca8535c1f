"""The stack of a reference from raw files: one scale, one depth, no cosmic ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from nightloom.config import ArchiveSection, Config, Instrument
from nightloom.engine.serial import make_serial
from nightloom.plan.recipes import PlannedFrame
from nightloom.reduce.masters import MasterPaths
from nightloom.reduce.reference import CalibratedFrame, reference_recipe
from nightloom.store.encodings import read_arrays
from nightloom.store.products import require

SIZE, SIGMA_PX = 128, 1.5
SHIFTS = [(0.0, 0.0), (2.4, -1.7), (-3.2, 0.6), (1.5, 2.8), (-1.1, -2.5)]
TRANSPARENCY = [1.0, 0.5, 0.9, 0.7, 1.0]
HIT = (64, 30)  # y, x of the third frame


def write_frames(folder: Path) -> tuple[tuple[CalibratedFrame, ...], np.ndarray]:
    """Five dithered frames of twelve stars through thin cloud; and x, y, flux of the stars."""
    rng = np.random.default_rng(5)
    grid = np.stack(np.meshgrid([20, 50, 80, 108], [22, 60, 100]), axis=-1).reshape(-1, 2)
    x, y = (grid + rng.uniform(-7, 7, grid.shape)).T
    flux = 10 ** rng.uniform(4.2, 5.0, len(x))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    frames = []
    for k, ((dx, dy), share) in enumerate(zip(SHIFTS, TRANSPARENCY, strict=True)):
        pixels = np.full((SIZE, SIZE), 300.0)
        for a, b, f in zip(x + dx, y + dy, flux, strict=True):
            r2 = (columns - a) ** 2 + (rows - b) ** 2
            pixels += share * f * np.exp(-r2 / (2 * SIGMA_PX**2)) / (2 * np.pi * SIGMA_PX**2)
        raw = rng.poisson(pixels)
        if k == 2:
            raw[HIT[0], HIT[1] : HIT[1] + 3] += 20000
        path = folder / f"{k}.fits"
        fits.writeto(path, raw.astype(np.uint16))
        frames.append(CalibratedFrame(planned(path), MasterPaths(), Instrument()))
    return tuple(frames), np.column_stack([x, y, flux])


def planned(path: Path) -> PlannedFrame:
    nan = float("nan")
    return PlannedFrame(
        root=path.parent, path=path.name, hdu=0, size_bytes=path.stat().st_size, digest=path.name,
        instrument="cam", filter="R", ny=SIZE, nx=SIZE, jd_utc=2460000.0, exposure_s=10.0,
        gain_e_per_adu=1.0, read_noise_e=0.0, saturation_adu=60000.0, ra_deg=nan, dec_deg=nan,
        pixel_scale_arcsec=nan, site_lat_deg=nan, site_lon_deg=nan, site_height_m=nan,
        time_suspect=False,
    )  # fmt: skip


def test_frames_of_unlike_transparency_are_stacked_on_the_scale_of_the_first(
    tmp_path: Path,
) -> None:
    frames, stars = write_frames(tmp_path)
    config = Config(archive=ArchiveSection(frames=("x",)))
    list(make_serial(tmp_path, [reference_recipe("reference/f", frames, config)]))
    arrays = read_arrays(require(tmp_path, "reference/f"), ["stack", "weight", "frame"])
    assert len(arrays["frame"]) == len(frames)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    ratios = []
    for x, y, flux in stars:
        near = np.hypot(columns - x, rows - y) < 5.5 * SIGMA_PX
        ratios.append(arrays["stack"][near].sum() / flux)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.01)  # unscaled it would be 0.82
    assert np.std(ratios) < 0.03
    u, v = HIT[1] - SHIFTS[2][0], HIT[0] - SHIFTS[2][1]
    around = arrays["stack"][int(v) - 2 : int(v) + 4, int(u) - 2 : int(u) + 6]
    assert np.abs(around).max() < 60  # 6 sigma of one frame; the hit gave 3,000
    assert arrays["weight"][64, 64] == arrays["weight"].max()
    assert 0 < arrays["weight"][0, 64] < arrays["weight"].max()
