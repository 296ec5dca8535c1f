"""A bias that drifts from frame to frame and row to row, with and without the overscan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from archives import GAIN, archive_of, run, star_field, write_config, write_frame
from nightloom.archive import Archive
from nightloom.config import CalibrationSection, Instrument
from nightloom.engine.serial import make_serial
from nightloom.plan.calibrations import Choice, Kit, kits
from nightloom.plan.recipes import PlannedFrame, PlannedMaster
from nightloom.reduce.detection import expose
from nightloom.reduce.masters import MasterPaths, calibration_of, master_recipe
from nightloom.reduce.overscan import less_overscan, row_levels
from nightloom.schema.frames import frames_from_rows
from nightloom.store.encodings import read_arrays, read_attributes
from nightloom.store.products import require

NY, NX, STRIP = 100, 140, 32
N_FRAMES = 10
BIASSEC, TRIMSEC = f"[{NX + 1}:{NX + STRIP},1:{NY}]", f"[1:{NX},1:{NY}]"


@dataclass(frozen=True, slots=True)
class Night:
    archive: Archive
    flux_e: NDArray[np.float64]


def night(folder: Path, *, more: str = "") -> Night:
    """Frames whose rows each have a bias of their own, in the data and in the strip beside."""
    x, y, flux = star_field(9, ny=NY, nx=NX, seed=5)
    rng = np.random.default_rng(8)
    for k in range(N_FRAMES):
        path = folder / "frames" / f"f{k:02d}.fits"
        write_frame(path, x, y, flux, ny=NY, nx=NX, minute=k, seed=k)
        with fits.open(path, mode="update") as hdus:
            strip = np.round(rng.normal(500.0, 4.0, (NY, STRIP)))
            level = np.round(7.0 * k + rng.normal(0.0, 25.0, NY))
            whole = np.hstack([hdus[0].data, strip]) + level[:, None]
            hdus[0].data = np.clip(whole, 0, 65535).astype(np.uint16)
            hdus[0].header["BIASSEC"] = BIASSEC
            hdus[0].header["TRIMSEC"] = TRIMSEC
    config = write_config(folder, more=more)
    assert run(config).exit_code == 0
    return Night(archive_of(config), flux)


def test_flux_is_unbiased_scatters_less_and_the_border_is_not_measured(tmp_path: Path) -> None:
    with_it = night(tmp_path / "a")
    without = night(tmp_path / "b", more='overscan_section = "none"\n')
    spreads = []
    for one in (with_it, without):
        cube = one.archive.cube("Test").load()
        assert float(cube["x"].max()) < NX - 0.5
        near = int(np.argmin(np.abs(cube["radius_fwhm"].values - 1.8)))
        spreads.append(float(np.median(np.nanstd(cube["flux"].values[:, :, near], axis=0))))
    assert spreads[0] < 0.6 * spreads[1]
    cube = with_it.archive.cube("Test").load()
    assert np.abs(cube["background_level"].values - 200.0).max() < 6.0  # the sky, no bias in it
    flux = np.sort(np.nanmedian(cube["flux"].values[:, :, near], axis=0))[::-1]
    assert len(flux) == len(with_it.flux_e)
    share = flux / np.sort(with_it.flux_e)[::-1]
    assert np.abs(share / np.median(share) - 1).max() < 0.02
    used = with_it.archive.frames
    assert set(used["overscan_section"]) == {BIASSEC}
    assert set(used["data_section"]) == {TRIMSEC}


def frame_of(path: Path, *, overscan: str = BIASSEC, data: str = TRIMSEC) -> PlannedFrame:
    nan = float("nan")
    ny, nx = fits.getdata(path).shape
    return PlannedFrame(
        root=path.parent, path=path.name, hdu=0, size_bytes=path.stat().st_size, digest=path.name,
        instrument="cam", filter="R", ny=ny, nx=nx, jd_utc=2460000.0, exposure_s=4.0,
        gain_e_per_adu=GAIN, read_noise_e=6.0, saturation_adu=60000.0, ra_deg=nan, dec_deg=nan,
        pixel_scale_arcsec=nan, site_lat_deg=nan, site_lon_deg=nan, site_height_m=nan,
        time_suspect=False, overscan_section=overscan, data_section=data,
    )  # fmt: skip


def written(folder: Path, name: str, light: float, n: int) -> list[PlannedFrame]:
    rng = np.random.default_rng(len(name))
    frames = []
    for k in range(n):
        plane = rng.normal(500.0, 4.0, (NY, NX + STRIP)) + 9.0 * k + np.arange(NY)[:, None]
        plane[:, :NX] += rng.poisson(light, (NY, NX))
        path = folder / f"{name}{k}.fits"
        fits.writeto(path, np.round(plane).astype(np.uint16))
        frames.append(frame_of(path))
    return frames


def made(folder: Path, image_type: str, frames: list[PlannedFrame], choice: Choice) -> Path:
    kit = Kit(
        f"master/{image_type}/x", image_type, "cam", NY, NX, 1, "", "2024-01-01", 4.0, "R", -20.0,
        (),
    )  # fmt: skip
    planned = PlannedMaster(kit, tuple(frames), choice)
    list(make_serial(folder, [master_recipe(folder, planned, CalibrationSection())]))
    return require(folder, kit.product)


def by_hand(frame: PlannedFrame) -> NDArray[np.float32]:
    """Trimmed data less the median of each row's overscan."""
    raw = fits.getdata(frame.file).astype(np.float32)
    return raw[:, :NX] - np.median(raw[:, NX:], axis=1, keepdims=True)


def test_masters_are_those_of_the_trimmed_data(tmp_path: Path) -> None:
    biases = written(tmp_path, "bias", 0.0, 5)
    bias = made(tmp_path, "bias", biases, Choice())
    arrays = read_arrays(bias, ["level", "bad"])
    expected = np.median([by_hand(frame) for frame in biases], axis=0)
    np.testing.assert_array_equal(arrays["level"][:, :NX], expected)
    assert np.isnan(arrays["level"][:, NX:]).all()
    assert arrays["bad"][:, NX:].all()
    assert read_attributes(bias)["n_bad"] == 0
    flats = written(tmp_path, "flat", 20000.0, 4)
    flat = made(tmp_path, "flat", flats, Choice(bias="master/bias/x"))
    planes = [by_hand(frame) - expected for frame in flats]
    combined = np.median([p / np.float32(np.median(p)) for p in planes], axis=0)
    level = read_arrays(flat, ["level"])["level"][:, :NX]
    np.testing.assert_allclose(level, combined / np.median(combined), rtol=3e-7)
    assert read_attributes(flat)["gain_e_per_adu"] == pytest.approx(1.0, rel=0.1)


def test_a_frame_is_calibrated_within_its_data_and_bad_beyond(tmp_path: Path) -> None:
    bias = made(tmp_path, "bias", written(tmp_path, "bias", 0.0, 5), Choice())
    (light,) = written(tmp_path, "light", 300.0, 1)
    calibration = calibration_of(MasterPaths(bias), 4.0)
    seen = expose(light, calibration, Instrument(), trim_px=0)
    level = read_arrays(bias, ["level"])["level"][:, :NX]
    wanted = (by_hand(light) - level) * GAIN
    np.testing.assert_allclose(seen.pixels_e[:, :NX], wanted, atol=1e-3)
    assert not seen.mask[:, :NX].any()
    assert (seen.mask[:, NX:] == 1).all()
    assert np.isfinite(seen.pixels_e).all()
    edge = expose(light, calibration, Instrument(), trim_px=3)
    assert not edge.mask[3:-3, 3 : NX - 3].any()
    assert np.count_nonzero(edge.mask == 0) == (NY - 6) * (NX - 6)


def test_the_level_does_not_depend_on_which_rows_are_read_together(tmp_path: Path) -> None:
    (light,) = written(tmp_path, "light", 300.0, 1)
    raw = fits.getdata(light.file)
    whole = less_overscan(raw, light)
    parts = [less_overscan(raw[a : a + 7], light, first_row=a) for a in range(0, NY, 7)]
    np.testing.assert_array_equal(np.vstack(parts), whole)
    above = replace(light, overscan_section=f"[1:{NX},91:{NY}]", data_section=f"[1:{NX},1:90]")
    levels = row_levels(raw[:5], above, first_row=20)
    assert levels is not None  # one of the frame: a strip above the data has no median a row
    assert set(levels.tolist()) == {float(np.median(raw[90:, :NX]))}
    narrow = replace(light, overscan_section=f"[{NX + 1}:{NX + 8},1:{NY}]")
    levels = row_levels(raw, narrow)
    assert levels is not None
    assert set(levels.tolist()) == {float(np.median(raw[:, NX : NX + 8]))}


def test_a_frame_without_sections_is_as_it_is(tmp_path: Path) -> None:
    (light,) = written(tmp_path, "light", 300.0, 1)
    plain = replace(light, overscan_section="", data_section="")
    assert row_levels(fits.getdata(light.file), plain) is None
    seen = expose(plain, calibration_of(MasterPaths(), 4.0), Instrument(), trim_px=0)
    raw = fits.getdata(light.file).astype(np.float32)
    np.testing.assert_array_equal(seen.pixels_e, raw * np.float32(GAIN))
    assert not seen.mask.any()


def test_sections_are_part_of_what_a_product_is_made_of(tmp_path: Path) -> None:
    (light,) = written(tmp_path, "light", 300.0, 1)
    plain = replace(light, overscan_section="", data_section="")
    assert plain.inputs == (plain.identity,)
    other = replace(light, overscan_section=f"[{NX + 3}:{NX + STRIP},1:{NY}]")
    assert len({plain.inputs, light.inputs, other.inputs}) == 3


def test_frames_whose_sections_differ_share_no_master() -> None:
    rows = [
        {
            "root": "/r", "path": f"b{k}.fits", "image_type": "bias", "instrument": "cam",
            "ny": NY, "nx": NX + STRIP, "night": "2024-03-01", "exposure_s": 0.0,
            "jd_utc": 2460000.0 + k, "overscan_section": overscan,
        }
        for k, overscan in enumerate(["", "", BIASSEC, BIASSEC, "[1:9,1:100]"])
    ]  # fmt: skip
    found = kits(frames_from_rows(rows))
    assert len({kit.product for kit in found}) == 3
    assert sorted(len(kit.rows) for kit in found) == [1, 2, 2]
