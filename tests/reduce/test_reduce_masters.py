"""Masters from real files: exact medians, flats of any level, memory that does not grow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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

NY, NX = 60, 80
RESPONSE = 1 + 0.2 * np.sin(np.arange(NX) / 15.0)[None, :] * np.cos(np.arange(NY) / 11.0)[:, None]


def frame_of(path: Path, exposure_s: float, *, ny: int = NY, nx: int = NX) -> PlannedFrame:
    nan = float("nan")
    return PlannedFrame(
        file=path, path=path.name, hdu=0, size_bytes=path.stat().st_size, digest=path.name,
        instrument="cam", filter="R", ny=ny, nx=nx, jd_utc=2460000.0, exposure_s=exposure_s,
        gain_e_per_adu=nan, read_noise_e=nan, saturation_adu=60000.0, ra_deg=nan, dec_deg=nan,
        pixel_scale_arcsec=nan, site_lat_deg=nan, site_lon_deg=nan, site_height_m=nan,
        time_suspect=False,
    )  # fmt: skip


def master(root: Path, image_type: str, planes: list[NDArray[np.uint16]], exposure_s: float,
           choice: Choice = Choice()) -> str:  # fmt: skip  # noqa: B008
    """Write planes as raw files and make their master; returns its id."""
    frames = []
    for k, plane in enumerate(planes):
        path = root / f"{image_type}-{exposure_s:g}-{k}.fits"
        fits.writeto(path, plane, overwrite=True)
        frames.append(frame_of(path, exposure_s))
    product = f"master/{image_type}/{exposure_s:g}s"
    kit = Kit(product, image_type, "cam", NY, NX, 1, "", "2024-01-01", exposure_s, "R", -20.0, ())
    recipe = master_recipe(root, PlannedMaster(kit, tuple(frames), choice), CalibrationSection())
    list(make_serial(root, [recipe]))
    return product


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


MEMORY = """
import resource, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_reduce_masters import frame_of
from nightloom.reduce.masters import _median
n, size, file = int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
frame = frame_of(file, 0.0, ny=size, nx=size)
_median((frame,) * 5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
_median((frame,) * n)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_and_open_files_do_not_grow_with_the_frames(tmp_path: Path) -> None:
    """Trap 19: 100 frames of 4 Mpx are 840 MB; with 64 files open at the most."""
    file = tmp_path / "frame.fits"
    size = 2048
    fits.writeto(file, np.random.default_rng(4).integers(900, 1100, (size, size), np.uint16))
    told = subprocess.run(
        [sys.executable, "-c", MEMORY, str(Path(__file__).parent), "100", str(size), str(file)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert float(told.stdout) < 160  # MiB: sections of 32 MiB, their copies, the results


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
    assert replace(frames[0], file=tmp_path).identity == frames[0].identity


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
