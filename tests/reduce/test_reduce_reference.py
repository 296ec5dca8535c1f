"""The stack of a reference from raw files: one scale, one depth, no cosmic ray."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from archives import archive_of, run, star_field, write_config, write_frame
from deadly import measure_or_die
from nightloom.config import ArchiveSection, Config, Instrument, load_config
from nightloom.engine.cluster import Engine
from nightloom.engine.recipe import Failed, Finished
from nightloom.engine.serial import make_serial
from nightloom.errors import ProductError
from nightloom.plan.recipes import PlannedFrame
from nightloom.reduce.detection import CalibratedFrame
from nightloom.reduce.masters import MasterPaths
from nightloom.reduce.reference import (
    lost_candidate,
    pinned_inputs,
    reference_recipe,
    reference_settings,
)
from nightloom.reduce.stars import plate_recipe
from nightloom.store.encodings import read_arrays, read_attributes
from nightloom.store.products import published_fingerprint, require

SIZE, SIGMA_PX = 128, 1.5
SHIFTS = [(0.0, 0.0), (2.4, -1.7), (-3.2, 0.6), (1.5, 2.8), (-1.1, -2.5)]
TRANSPARENCY = [1.0, 0.5, 0.9, 0.7, 1.0]
HIT = (64, 30)  # y, x of the third frame
CONFIG = Config(archive=ArchiveSection(frames=("x",)))


def write_frames(
    folder: Path, sigmas_px: tuple[float, ...] = (SIGMA_PX,) * 5
) -> tuple[tuple[CalibratedFrame, ...], np.ndarray]:
    """Five dithered frames of twelve stars through thin cloud; and x, y, flux of the stars."""
    rng = np.random.default_rng(5)
    grid = np.stack(np.meshgrid([20, 50, 80, 108], [22, 60, 100]), axis=-1).reshape(-1, 2)
    x, y = (grid + rng.uniform(-7, 7, grid.shape)).T
    flux = 10 ** rng.uniform(4.2, 5.0, len(x))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    frames = []
    for k, ((dx, dy), share, s) in enumerate(zip(SHIFTS, TRANSPARENCY, sigmas_px, strict=True)):
        pixels = np.full((SIZE, SIZE), 300.0)
        for a, b, f in zip(x + dx, y + dy, flux, strict=True):
            r2 = (columns - a) ** 2 + (rows - b) ** 2
            pixels += share * f * np.exp(-r2 / (2 * s**2)) / (2 * np.pi * s**2)
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


@pytest.mark.parametrize(
    "sigmas_px", [(1.5,) * 5, (1.1,) * 5, (1.2, 1.4, 1.9, 1.6, 1.3)], ids=["", "sharp", "seeing"]
)
def test_frames_of_unlike_transparency_are_stacked_on_the_scale_of_the_first(
    tmp_path: Path, sigmas_px: tuple[float, ...]
) -> None:
    frames, stars = write_frames(tmp_path, sigmas_px)
    list(make_serial(tmp_path, [reference_recipe("reference/f", frames, CONFIG)]))
    path = require(tmp_path, "reference/f")
    arrays = read_arrays(path, ["stack", "weight", "frame"])
    assert len(arrays["frame"]) == len(frames)
    grid = int(read_attributes(path)["grid_of"].removesuffix(".fits"))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    ratios = []
    for x, y, flux in stars + np.array([*SHIFTS[grid], 0.0]):
        near = np.hypot(columns - x, rows - y) < 8.3
        ratios.append(arrays["stack"][near].sum() / (TRANSPARENCY[grid] * flux))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.01)  # unscaled it would be off by a fifth
    assert np.std(ratios) < 0.03
    u, v = (h + a - b for h, a, b in zip(HIT[::-1], SHIFTS[grid], SHIFTS[2], strict=True))
    around = arrays["stack"][int(v) - 2 : int(v) + 4, int(u) - 2 : int(u) + 6]
    assert np.abs(around).max() < 60 * TRANSPARENCY[grid]  # a fiftieth of what the hit gave
    assert arrays["weight"][64, 64] == arrays["weight"].max()
    edges = [arrays["weight"][cut] for cut in ((0, 64), (-1, 64), (64, 0), (64, -1))]
    assert min(edges) < 0.9 * arrays["weight"].max()


def test_a_candidate_that_kills_its_worker_is_quarantined(tmp_path: Path) -> None:
    """The reference is made of the others, and says so."""
    frames, _ = write_frames(tmp_path)
    recipe = replace(reference_recipe("reference/f", frames, CONFIG), step=measure_or_die)
    with Engine() as engine:
        events = list(engine.make(tmp_path, [recipe]))
    (end,) = [event for event in events if isinstance(event, Finished | Failed)]
    assert isinstance(end, Finished), end
    assert end.made.caveats[0].startswith("1 of 5 candidates quarantined: 1.fits: the worker")
    used = read_arrays(require(tmp_path, "reference/f"), ["frame"])["frame"]
    assert sorted(used) == ["0.fits", "2.fits", "3.fits", "4.fits"]


def test_without_any_candidate_left_the_reason_is_told(tmp_path: Path) -> None:
    frames, _ = write_frames(tmp_path)
    recipe = reference_recipe("reference/f", frames, CONFIG)
    lost = [lost_candidate(recipe.job, item, "it died") for item in frames]
    with pytest.raises(ProductError, match=r"none of 5 .* usable: 0[.]fits: it died"):
        recipe.finish(recipe.job, tmp_path, [lost])


def test_a_reference_holds_until_its_frames_are_read_otherwise(tmp_path: Path) -> None:
    """New nights, frames that went, a better site: none of it unsettles it."""
    items, _ = write_frames(tmp_path)
    recipe = reference_recipe("reference/f", items, CONFIG)
    list(make_serial(tmp_path, [recipe]))
    frames = [item.frame for item in items]

    def pinned(*planned: PlannedFrame) -> object:
        return pinned_inputs(tmp_path, "reference/f", reference_settings(CONFIG), [planned])

    new = replace(frames[0], path="new.fits", gain_e_per_adu=2.0)
    for planned in (frames, [], [*frames, new], [replace(f, site_lat_deg=28.3) for f in frames]):
        assert pinned(*planned) == recipe.inputs
    for name in ("gain_e_per_adu", "saturation_adu", "exposure_s"):
        assert pinned(frames[0], replace(frames[1], **{name: 7.0})) is None


def test_another_saturation_in_the_profile_makes_the_reference_and_cube_again(
    tmp_path: Path,
) -> None:
    x, y, flux = star_field(10, ny=120, nx=120, seed=2)
    for k in range(4):
        path = tmp_path / "frames" / f"f{k}.fits"
        write_frame(path, x + 0.3 * k, y, flux, ny=120, nx=120, minute=k, seed=k)
    config = write_config(tmp_path)
    assert run(config).n_made > 0
    before = published(config)
    assert run(config).n_made == 0
    write_config(tmp_path, more="saturation_adu = 9000\n")
    assert run(config).exit_code == 0
    after = published(config)
    kinds = {name.split("/")[0] for name in before if before[name] != after[name]}
    assert {"reference", "stars", "cube"} <= kinds
    assert archive_of(config).reference("Test").stars["saturated"].any()


def test_a_plate_holds_until_it_would_be_looked_for_elsewhere(tmp_path: Path) -> None:
    items, _ = write_frames(tmp_path)
    list(make_serial(tmp_path, [reference_recipe("reference/f", items, CONFIG)]))
    frame = items[0].frame

    def fingerprint(**said: float) -> str:
        told = replace(frame, **said)
        return plate_recipe(tmp_path, "f", lambda path: told, CONFIG).fingerprint

    for said in ({"pixel_scale_arcsec": 1.7}, {"ra_deg": 11.0}, {"dec_deg": -4.0}):
        assert fingerprint(**said) != fingerprint()
    assert fingerprint(site_lat_deg=28.3) == fingerprint(gain_e_per_adu=2.0) == fingerprint()


def published(config: Path) -> dict[str, str]:
    """The fingerprint of each product that is there."""
    root = load_config(config).products_path
    names = archive_of(config).ledger["product"]
    return {str(name): published_fingerprint(root, str(name)) for name in names}


MEMORY = """
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
sys.path.insert(0, str(Path.cwd().parent))
from test_reduce_reference import CONFIG, planned
from nightloom.config import Instrument
from nightloom.reduce.detection import CalibratedFrame
from nightloom.reduce.masters import MasterPaths
from nightloom.reduce.reference import reference_recipe
n, size, file = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
item = CalibratedFrame(replace(planned(file), ny=size, nx=size), MasterPaths(), Instrument())
recipe = reference_recipe("reference/f", (item,), CONFIG)
(seen,) = recipe.step(recipe.job, (item,))
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
def make(n):
    work = Path(mkdtemp(dir=file.parent))
    made = recipe.finish(recipe.job, work, [[replace(seen) for _ in range(n)]])
    assert made.outcome == "done"
make(3)
before = peak()
make(n)
print(before, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's VmHWM")
def test_memory_does_not_grow_with_the_frames(tmp_path: Path) -> None:
    """27 frames of 0.8 Mpx more, 108 MB of electrons and masks, in no more memory than 3."""
    size, file = 896, tmp_path / "frame.fits"
    rng = np.random.default_rng(3)
    pixels = rng.normal(300.0, 17.0, (size, size))
    rows, columns = np.mgrid[-8:9, -8:9]
    star = 40000 * np.exp(-(rows**2 + columns**2) / (2 * SIGMA_PX**2)) / (2 * np.pi * SIGMA_PX**2)
    for y, x in rng.integers(20, size - 20, (40, 2)):
        pixels[y - 8 : y + 9, x - 8 : x + 9] += star
    fits.writeto(file, pixels.astype(np.uint16))
    told = subprocess.run(
        [sys.executable, "-c", MEMORY, "30", str(size), str(file)],
        capture_output=True, text=True, check=True, timeout=240, cwd=Path(__file__).parent,
    )  # fmt: skip
    before, peak = map(float, told.stdout.split())
    assert peak - before < 12, (before, peak)  # MiB
