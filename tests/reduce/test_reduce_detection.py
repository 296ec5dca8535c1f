"""A frame's variance when it is asked for: what its pixels scatter by, under a flat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits

from nightloom.config import Instrument
from nightloom.plan.recipes import PlannedFrame
from nightloom.reduce.detection import CalibratedFrame, expose, variance_of
from nightloom.reduce.masters import MasterPaths, calibration_of
from nightloom.schema.cube import MASTER
from nightloom.store.encodings import write_store

SIZE, GAIN, READ_NOISE_E, N_FRAMES = 64, 2.0, 8.0, 80


def planned(path: Path, read_noise_e: float) -> PlannedFrame:
    nan = float("nan")
    return PlannedFrame(
        root=path.parent, path=path.name, hdu=0, size_bytes=path.stat().st_size, digest="d",
        instrument="cam", filter="R", ny=SIZE, nx=SIZE, jd_utc=2460000.0, exposure_s=30.0,
        gain_e_per_adu=GAIN, read_noise_e=read_noise_e, saturation_adu=60000.0, ra_deg=nan,
        dec_deg=nan, pixel_scale_arcsec=nan, site_lat_deg=nan, site_lon_deg=nan,
        site_height_m=nan, time_suspect=False,
    )  # fmt: skip


def test_the_variance_of_a_frame_is_what_its_pixels_scatter_by(tmp_path: Path) -> None:
    """Twenty to 20,000 electrons under a flat from 0.7 to 1.3, in eight bins of brightness."""
    rng = np.random.default_rng(6)
    light = np.geomspace(20.0, 20000.0, SIZE * SIZE).reshape(SIZE, SIZE)
    flat = np.broadcast_to(np.linspace(0.7, 1.3, SIZE), light.shape).astype(np.float32)
    nothing = np.zeros(light.shape, np.float32)
    planes = {"level": flat, "noise": nothing, "variance": nothing, "bad": nothing.astype(np.uint8)}
    write_store(tmp_path / "flat.zarr", MASTER, planes, attributes={"exposure_s": 1.0})
    paths = MasterPaths(flat=tmp_path / "flat.zarr")
    seen, told = [], []
    for k in range(N_FRAMES):
        electrons = rng.poisson(light * flat) + rng.normal(0, READ_NOISE_E, light.shape)
        path = tmp_path / f"{k}.fits"
        fits.writeto(path, np.round(electrons / GAIN + 200).astype(np.float32))
        item = CalibratedFrame(planned(path, READ_NOISE_E), paths, Instrument())
        exposure = expose(
            item.frame, calibration_of(paths, 30.0), item.instrument, trim_px=0
        )  # fmt: skip
        seen.append(exposure.pixels_e)
        told.append(variance_of(item, exposure))
    found = np.var(np.array(seen, np.float64), axis=0, ddof=1).reshape(8, -1).mean(axis=1)
    # The pedestal of 200 ADU that no bias takes off counts as light: 400 electrons under the flat.
    pedestal = np.broadcast_to(400.0 / flat**2, light.shape).reshape(8, -1).mean(axis=1)
    expected = np.mean(told, axis=0).reshape(8, -1).mean(axis=1) - pedestal
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_without_a_read_noise_the_variance_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "f.fits"
    fits.writeto(path, np.full((SIZE, SIZE), 100, np.uint16))
    item = CalibratedFrame(planned(path, float("nan")), MasterPaths(), Instrument())
    exposure = expose(item.frame, calibration_of(item.paths, 30.0), item.instrument, trim_px=0)
    assert np.isnan(variance_of(item, exposure)).all()
