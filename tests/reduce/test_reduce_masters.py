"""Masters from real files: exact medians, flats of any level, memory that does not grow."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from nightloom.config import CalibrationSection
from nightloom.engine.recipe import Failed
from nightloom.engine.serial import make_serial
from nightloom.plan.calibrations import Choice, Kit
from nightloom.plan.recipes import PlannedFrame, PlannedMaster
from nightloom.reduce.masters import MasterPaths, calibration_of, master_recipe
from nightloom.store.encodings import read_arrays, read_attributes
from nightloom.store.products import require

Combine = Literal["median", "clipped_mean"]
NY, NX = 60, 80
RESPONSE = 1 + 0.2 * np.sin(np.arange(NX) / 15.0)[None, :] * np.cos(np.arange(NY) / 11.0)[:, None]


def frame_of(path: Path, exposure_s: float, *, ny: int = NY, nx: int = NX) -> PlannedFrame:
    nan = float("nan")
    return PlannedFrame(
        root=path.parent, path=path.name, hdu=0, size_bytes=path.stat().st_size, digest=path.name,
        instrument="cam", filter="R", ny=ny, nx=nx, jd_utc=2460000.0, exposure_s=exposure_s,
        gain_e_per_adu=nan, read_noise_e=nan, saturation_adu=60000.0, ra_deg=nan, dec_deg=nan,
        pixel_scale_arcsec=nan, site_lat_deg=nan, site_lon_deg=nan, site_height_m=nan,
        time_suspect=False,
    )  # fmt: skip


def master(root: Path, image_type: str, planes: list[NDArray[np.uint16]], exposure_s: float,
           choice: Choice = Choice(), combine: Combine = "median") -> str:  # fmt: skip  # noqa: B008
    """Write planes as raw files and make their master; returns its id."""
    frames = []
    for k, plane in enumerate(planes):
        path = root / f"{image_type}-{exposure_s:g}-{k}.fits"
        fits.writeto(path, plane, overwrite=True)
        frames.append(frame_of(path, exposure_s))
    product = f"master/{image_type}/{exposure_s:g}s"
    kit = Kit(product, image_type, "cam", NY, NX, 1, "", "2024-01-01", exposure_s, "R", -20.0, ())
    settings = CalibrationSection(combine=combine)
    recipe = master_recipe(root, PlannedMaster(kit, tuple(frames), choice), settings)
    list(make_serial(root, [recipe]))
    return product


def test_what_a_master_is_made_of_is_how_its_frames_are_read(tmp_path: Path) -> None:
    """Its fingerprint changes with their exposure and saturation, not with gain or site."""
    path = tmp_path / "dark.fits"
    fits.writeto(path, np.zeros((NY, NX), np.uint16))
    frame = frame_of(path, 60.0)

    def mark(**told: float) -> str:
        kit = Kit("master/d", "dark", "cam", NY, NX, 1, "", "2024-01-01", 60.0, "R", -20.0, ())
        planned = PlannedMaster(kit, (replace(frame, **told),), Choice())
        return master_recipe(tmp_path, planned, CalibrationSection()).fingerprint

    assert mark(gain_e_per_adu=2.0) == mark(site_lat_deg=28.0) == mark()
    assert len({mark(), mark(saturation_adu=5e4), mark(exposure_s=30.0)}) == 3


def noisy(level: NDArray[np.float64] | float, rng: np.random.Generator) -> NDArray[np.uint16]:
    electrons = rng.poisson(np.broadcast_to(level, (NY, NX)) * 1.5) / 1.5
    return np.clip(np.round(electrons + rng.normal(500, 5, (NY, NX))), 0, 65535).astype(np.uint16)


def test_bias_is_numpys_median_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for n in (3, 8):
        planes = [noisy(0.0, rng) for _ in range(n)]
        path = require(tmp_path, master(tmp_path, "bias", planes, float(n)))
        level = read_arrays(path, ["level"])["level"]
        np.testing.assert_array_equal(level, np.median(planes, axis=0).astype(np.float32))


def test_flats_of_different_levels_are_each_over_their_own(tmp_path: Path) -> None:
    """Trap 17: flats at 10k to 40k; one that is saturated, and one without light, are left out."""
    rng = np.random.default_rng(2)
    bias = master(tmp_path, "bias", [noisy(0.0, rng) for _ in range(9)], 0.0)
    levels = (10000.0, 20000.0, 30000.0, 40000.0)
    planes = [noisy(level * RESPONSE, rng) for level in levels]
    for plane in planes:
        plane[7, 9] = 0  # dead
    planes += [np.full((NY, NX), 64000, np.uint16), noisy(0.0, rng)]
    flat = require(tmp_path, master(tmp_path, "flat", planes, 4.0, Choice(bias=bias)))
    arrays, facts = read_arrays(flat, ["level", "bad"]), read_attributes(flat)
    assert facts["n_frames"] == 4
    assert facts["gain_e_per_adu"] == pytest.approx(1.5, rel=0.05)
    assert facts["level_adu"] == pytest.approx(25000, rel=0.02)  # the middle of the four
    assert facts["n_bad"] == 1
    good = arrays["bad"] == 0
    assert np.argwhere(~good).tolist() == [[7, 9]]  # a dead pixel is bad, not 1
    ratio = arrays["level"][good] / (RESPONSE / np.median(RESPONSE))[good]
    assert abs(ratio.mean() - 1) < 5e-4
    assert ratio.std() < 0.006  # photons of four flats


def test_dark_is_scaled_about_the_bias(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rate = np.full((NY, NX), 2.0)
    rate[30, 40] = 50.0  # hot, and steady: subtracted like any other
    bias = master(tmp_path, "bias", [noisy(0.0, rng) for _ in range(15)], 0.0)
    dark = master(tmp_path, "dark", [noisy(rate * 60.0, rng) for _ in range(15)], 60.0)
    paths = MasterPaths(require(tmp_path, bias), require(tmp_path, dark), None)
    calibration = calibration_of(paths, 30.0)
    assert calibration.offset is not None
    assert calibration.bad is not None
    assert np.median(calibration.offset) == pytest.approx(560.0, abs=1.0)
    assert calibration.offset[30, 40] == pytest.approx(2000.0, rel=0.02)
    assert calibration.bad[30, 40] == 0
    assert calibration.dark_adu == pytest.approx(60.0, abs=1.0)
    assert calibration.read_noise_adu == pytest.approx(5.0, rel=0.1)


def test_nothing_to_make_a_flat_of_fails_with_the_reason(tmp_path: Path) -> None:
    planes = [np.full((NY, NX), 64500, np.uint16)] * 3
    kit = Kit("master/flat/x", "flat", "cam", NY, NX, 1, "", "2024-01-01", 4.0, "R", -20.0, ())
    frames = []
    for k, plane in enumerate(planes):
        fits.writeto(tmp_path / f"{k}.fits", plane)
        frames.append(frame_of(tmp_path / f"{k}.fits", 4.0))
    recipe = master_recipe(
        tmp_path, PlannedMaster(kit, tuple(frames), Choice()), CalibrationSection()
    )
    failed = list(make_serial(tmp_path, [recipe]))[-1]
    assert "no flat has a usable level" in failed.reason  # type: ignore[attr-defined]


@pytest.mark.parametrize("combine", ["median", "clipped_mean"])
def test_variance_beside_the_level_is_what_the_level_scatters(
    tmp_path: Path, combine: Combine
) -> None:
    """Many more masters can't be made here: a flat bias makes every pixel one more trial."""
    rng = np.random.default_rng(6)
    planes = [np.round(rng.normal(500, 5, (NY, NX))).astype(np.uint16) for _ in range(11)]
    planes[3][::5, ::5] = 60000  # cosmic rays
    path = require(tmp_path, master(tmp_path, "bias", planes, 0.0, combine=combine))
    arrays = read_arrays(path, ["level", "noise", "variance", "bad"])
    assert arrays["level"].mean() == pytest.approx(500.0, abs=0.1)
    assert np.sqrt(np.mean(arrays["noise"] ** 2)) == pytest.approx(5.0, rel=0.03)
    assert np.sqrt(arrays["variance"].mean()) == pytest.approx(arrays["level"].std(), rel=0.04)
    assert not arrays["bad"].any()


def test_the_way_to_combine_is_part_of_the_recipe(tmp_path: Path) -> None:
    kit = Kit("master/bias/x", "bias", "cam", NY, NX, 1, "", "2024-01-01", 0.0, "", -20.0, ())
    fits.writeto(tmp_path / "a.fits", np.zeros((NY, NX), np.uint16))
    planned = PlannedMaster(kit, (frame_of(tmp_path / "a.fits", 0.0),), Choice())
    found = {
        master_recipe(tmp_path, planned, CalibrationSection(combine=way)).fingerprint
        for way in ("median", "clipped_mean")
    }
    assert len(found) == 2


@pytest.mark.parametrize("combine", ["median", "clipped_mean"])
def test_saturated_and_missing_pixels_never_poison(tmp_path: Path, combine: Combine) -> None:
    """A star's core in one twilight flat; a hot pixel at the top of its range in every dark."""
    rng = np.random.default_rng(7)
    planes = [noisy(level * RESPONSE, rng) for level in (20000.0, 25000.0, 30000.0, 33000.0)]
    for plane in planes[:3]:
        plane[10, 10] = 65535
    for plane in planes:
        plane[20, 20] = 65535
    flat = require(tmp_path, master(tmp_path, "flat", planes, 4.0, combine=combine))
    arrays = read_arrays(flat, ["level", "bad"])
    wanted = RESPONSE / np.median(RESPONSE)
    assert arrays["level"][10, 10] == pytest.approx(wanted[10, 10], rel=0.03)  # of one flat alone
    assert np.argwhere(arrays["bad"]).tolist() == [[20, 20]]
    darks = [noisy(60.0, rng) for _ in range(5)]
    for plane in darks:
        plane[5, 6] = 60000
    dark = require(tmp_path, master(tmp_path, "dark", darks, 60.0, combine=combine))
    assert read_arrays(dark, ["bad"])["bad"][5, 6] == 1
    calibration = calibration_of(MasterPaths(None, dark, flat), 60.0)
    assert calibration.inverse_flat is not None
    assert np.isfinite(calibration.inverse_flat).all()
    assert np.isfinite(calibration.flat_err)


def test_frames_with_nan_are_combined_without_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    planes = [rng.normal(500, 5, (NY, NX)).astype(np.float32) for _ in range(6)]
    planes[2][:, 7] = np.nan
    for plane in planes:
        plane[3, 3] = np.nan
    path = require(tmp_path, master(tmp_path, "bias", planes, 0.0))  # type: ignore[arg-type]
    arrays = read_arrays(path, ["level", "noise", "bad"])
    expected = np.nanmedian(np.delete(planes, 2, axis=0)[:, 4:, 7], axis=0)
    np.testing.assert_array_equal(arrays["level"][4:, 7], expected.astype(np.float32))
    assert np.argwhere(~np.isfinite(arrays["level"])).tolist() == [[3, 3]]
    assert np.argwhere(arrays["bad"]).tolist() == [[3, 3]]


def test_packed_frames_are_unpacked_once_and_give_the_same_master(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    planes = [noisy(0.0, rng) for _ in range(4)]
    plain = require(tmp_path, master(tmp_path, "bias", planes, 0.0))
    frames = []
    for k in range(4):
        raw = (tmp_path / f"bias-0-{k}.fits").read_bytes()
        file = tmp_path / f"bias-0-{k}.fits.gz"
        file.write_bytes(gzip.compress(raw))
        frames.append(frame_of(file, 0.0))
    kit = Kit("master/bias/gz", "bias", "cam", NY, NX, 1, "", "2024-01-01", 0.0, "", -20.0, ())
    planned = PlannedMaster(kit, tuple(frames), Choice())
    list(make_serial(tmp_path, [master_recipe(tmp_path, planned, CalibrationSection())]))
    packed = require(tmp_path, "master/bias/gz")
    for name in ("level", "noise"):
        np.testing.assert_array_equal(
            read_arrays(packed, [name])[name], read_arrays(plain, [name])[name]
        )
    assert list(packed.parent.parent.rglob("frame-*.fits")) == []


MEMORY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_reduce_masters import CalibrationSection, Choice, Kit, PlannedMaster, frame_of
from nightloom.reduce.masters import make_master, master_recipe
n, ny, nx, folder = *map(int, sys.argv[2:5]), Path(sys.argv[5])
frame = frame_of(folder / "frame.fits", 0.0, ny=ny, nx=nx)
kit = Kit("master/bias/x", "bias", "cam", ny, nx, 1, "", "2024-01-01", 0.0, "", -20.0, ())
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
recipe = master_recipe(folder, PlannedMaster(kit, (frame,) * n, Choice()), CalibrationSection())
(folder / str(n)).mkdir()
def peak():  # not ru_maxrss, which begins at that of the process that started this one
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = peak()
make_master(recipe.job, folder / str(n), [])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's VmHWM")
def test_memory_and_open_files_do_not_grow_with_the_frames(tmp_path: Path) -> None:
    """Trap 19: the resident peak of a whole master of 20 and of 100, 64 files open at the most."""
    size = 1024  # 100 of them are 210 MB
    raw = np.random.default_rng(4).integers(900, 1100, (size, size), np.uint16)
    fits.writeto(tmp_path / "frame.fits", raw)
    peaks = []
    for n in (20, 100):
        told = subprocess.run(
            [sys.executable, "-c", MEMORY, str(Path(__file__).parent), str(n), str(size),
             str(size), str(tmp_path)],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        peaks.append(float(told.stdout))
    assert peaks[1] < peaks[0] + 8, peaks  # MiB
    assert peaks[1] < 128


def test_a_frame_that_is_cut_is_left_out_with_a_caveat(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    frames = []
    for k in range(4):
        path = tmp_path / f"b{k}.fits"
        fits.writeto(path, noisy(0.0, rng))
        if k == 2:
            os.truncate(path, 6000)
        frames.append(frame_of(path, 0.0))
    kit = Kit("master/bias/x", "bias", "cam", NY, NX, 1, "", "2024-01-01", 0.0, "", -20.0, ())
    master = PlannedMaster(kit, tuple(frames), Choice())
    made = list(make_serial(tmp_path, [master_recipe(tmp_path, master, CalibrationSection())]))[-1]
    assert any("b2.fits left out" in caveat for caveat in made.made.caveats)  # type: ignore[attr-defined]
    assert read_attributes(require(tmp_path, "master/bias/x"))["n_frames"] == 3
    assert replace(frames[0], root=tmp_path).identity == frames[0].identity


@pytest.mark.parametrize("damage", [lambda path: os.truncate(path, 6000), Path.unlink])
def test_a_frame_that_changed_since_the_scan_is_no_quarantine(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """What is made of it would carry the fingerprint of the whole file."""
    path = tmp_path / "b0.fits"
    fits.writeto(path, noisy(0.0, np.random.default_rng(5)))
    frame = frame_of(path, 0.0)
    damage(path)
    kit = Kit("master/bias/x", "bias", "cam", NY, NX, 1, "", "2024-01-01", 0.0, "", -20.0, ())
    recipe = master_recipe(
        tmp_path, PlannedMaster(kit, (frame, frame), Choice()), CalibrationSection()
    )
    end = list(make_serial(tmp_path, [recipe]))[-1]
    assert isinstance(end, Failed)
    assert end.kind == "transient"
    assert "b0.fits" in end.reason
