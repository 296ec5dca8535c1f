"""The stack of a night from its cube: same bits for any band, clipped, weighted, on one scale."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from archives import archive_of, run, star_field, write_config, write_frame
from nightloom import stages
from nightloom.archive import Archive
from nightloom.config import Config, load_config
from nightloom.engine.recipe import Outline
from nightloom.engine.serial import make_serial
from nightloom.pipeline import read_frames
from nightloom.plan.recipes import PlannedCube, make_plan
from nightloom.reduce.bands import TILE_ROWS
from nightloom.reduce.stacks import stack_recipe
from nightloom.store.encodings import read_arrays
from nightloom.store.products import kind_of, require

NY, NX, N_FRAMES = 150, 160, 9
HIT = (75, 40)  # y, x of the fourth frame
PRODUCT = "stack/Test/2024-03-01/R"


@dataclass(frozen=True, slots=True)
class Night:
    archive: Archive
    config: Config
    cube: PlannedCube
    shares: np.ndarray


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """Dithered and slowly turning frames through thin cloud, one of them hit by a cosmic ray."""
    folder = tmp_path_factory.mktemp("stack")
    rng = np.random.default_rng(4)
    x, y, flux = star_field(12, ny=NY, nx=NX, seed=6)
    shares = np.where(np.arange(N_FRAMES) % 3 == 1, 0.8, 1.0)
    for k in range(N_FRAMES):
        dx, dy, turn = *rng.uniform(-4, 4, 2), np.radians(0.4 * k)
        u, v = x - NX / 2, y - NY / 2
        path = folder / "frames" / f"f{k}.fits"
        write_frame(
            path, u * np.cos(turn) - v * np.sin(turn) + NX / 2 + dx,
            u * np.sin(turn) + v * np.cos(turn) + NY / 2 + dy, shares[k] * flux, ny=NY, nx=NX,
            minute=k, seed=k,
        )  # fmt: skip
        if k == 3:
            with fits.open(path, mode="update") as hdus:
                hdus[0].data[HIT[0], HIT[1] : HIT[1] + 2] = 30000
    path = write_config(folder, more="[stack]\nnights = true\n")
    assert run(path).exit_code == 0
    config = load_config(path)
    plan = make_plan(read_frames(config.products_path), config)
    assert PRODUCT in [r.product for r in stages.all_recipes(config.products_path, plan, config)]
    return Night(archive_of(path), config, plan.cubes[0], shares)


def test_an_outline_is_that_of_the_recipe(night: Night) -> None:
    root = night.config.products_path
    plan = make_plan(read_frames(root), night.config)
    outlines = [r for r in stages.all_recipes(root, plan, night.config) if isinstance(r, Outline)]
    assert {kind_of(r.product) for r in outlines} == {"cube", "stack"}
    for outline in outlines:
        recipe = outline.write()
        assert outline == Outline(
            recipe.product, recipe.fingerprint, recipe.needs, recipe.uses, outline.write
        )


def test_stars_are_as_bright_as_in_the_middle_frame(night: Night) -> None:
    stack = night.archive.stack("Test", "2024-03-01", "R").load()
    cube = night.archive.cube("Test").load()
    single = np.median(cube["flux"].values[:, :, cube["radius_px"].values == 8.0], axis=0)
    assert stack["stack"].shape == (NY, NX)
    assert len(stack["frame"]) == N_FRAMES
    assert night.archive.ledger.set_index("product").loc[PRODUCT, "state"] == "done"
    rows, columns = np.mgrid[:NY, :NX]
    ratios = []
    for k, star in night.archive.reference("Test").stars.iterrows():
        near = np.hypot(columns - star["x"], rows - star["y"]) < 8.0
        ratio = stack["stack"].values[near].sum() / single[k, 0]
        if np.isfinite(ratio):
            ratios.append(ratio)
    assert len(ratios) >= 6
    assert np.median(ratios) == pytest.approx(1.0, abs=0.01)
    assert np.std(ratios) < 0.02


def test_a_cosmic_ray_is_clipped_and_edges_weigh_less(night: Night) -> None:
    stack = night.archive.stack("Test", "2024-03-01", "R").load()
    image, weight = stack["stack"].values, stack["weight"].values
    cube = night.archive.cube("Test").load()
    x, y = float(cube["x"][3, 0]), float(cube["y"][3, 0])
    stars = night.archive.reference("Test").stars
    u, v = HIT[1] - x + stars["x"][0], HIT[0] - y + stars["y"][0]
    around = image[int(v) - 6 : int(v) + 7, int(u) - 6 : int(u) + 8]
    assert np.nanmax(around) < 800  # the hit is 44,000 electrons, a ninth of it 4,900
    assert weight[NY // 2, NX // 2] == pytest.approx(weight.max(), rel=0.2)
    assert (weight[0] < 0.9 * weight.max()).all()
    assert np.isnan(image[weight == 0]).all()


def test_the_reference_of_the_same_frames_is_the_same_stack(night: Night) -> None:
    """Placed by other stars and weighed by another noise: they differ by far less than either's."""
    stack = night.archive.stack("Test", "2024-03-01", "R").load()
    reference = night.archive.reference("Test")
    assert reference.attributes["n_frames"] == len(stack["frame"]) == N_FRAMES
    image, other = stack["stack"].values, reference.stack.values
    rows, columns = np.mgrid[:NY, :NX]
    known = np.isfinite(image) & np.isfinite(other)
    sky, ratios = known.copy(), []
    for _, star in reference.stars.iterrows():
        near = np.hypot(columns - star["x"], rows - star["y"]) < 8.0
        sky[np.hypot(columns - star["x"], rows - star["y"]) < 14.0] = False
        if known[near].all():
            ratios.append(image[near].sum() / other[near].sum())
    scale = np.median(ratios)
    assert len(ratios) >= 6
    assert np.std(ratios) < 0.003 * scale
    apart = (image - scale * other)[sky]
    assert np.std(apart) < 0.2 * np.std(image[sky])


def test_the_height_of_the_bands_changes_no_bit(night: Night, tmp_path: Path) -> None:
    root = night.config.products_path
    whole = read_arrays(require(root, PRODUCT), ["stack", "weight"])
    recipe = stack_recipe(root, night.cube, night.config, band_tiles=1)
    assert len(recipe.items) == -(-NY // TILE_ROWS)
    list(make_serial(tmp_path, [recipe]))
    parts = read_arrays(require(tmp_path, PRODUCT), ["stack", "weight"])
    for name in ("stack", "weight"):
        np.testing.assert_array_equal(parts[name], whole[name])


def test_no_stack_is_made_unless_it_is_asked_for(night: Night) -> None:
    assert Config.model_fields["stack"].default.nights is False
    plan = make_plan(read_frames(night.config.products_path), night.config)
    off = night.config.model_copy(update={"stack": Config.model_fields["stack"].default})
    assert list(stages.stack_recipes(night.config.products_path, plan, off)) == []


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from nightloom.config import Instrument
from nightloom.plan.recipes import PlannedFrame
from nightloom.reduce import bands
from nightloom.reduce.masters import MasterPaths
from nightloom.reduce.detection import CalibratedFrame
n, size, file = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
nan = float("nan")
frame = PlannedFrame(
    root=file.parent, path=file.name, hdu=0, size_bytes=file.stat().st_size, digest="d",
    instrument="cam", filter="R", ny=size, nx=size, jd_utc=2460000.0, exposure_s=4.0,
    gain_e_per_adu=1.0, read_noise_e=6.0, saturation_adu=60000.0, ra_deg=nan, dec_deg=nan,
    pixel_scale_arcsec=nan, site_lat_deg=nan, site_lon_deg=nan, site_height_m=nan,
    time_suspect=False,
)
item = CalibratedFrame(frame, MasterPaths(), Instrument())
places = tuple(
    bands.Placement(k, np.array([[1.0, 0.0, k % 7], [0.0, 1.0, -k % 5]]), 1.0, 0.01, 200.0)
    for k in range(n)
)
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
bands.stack_band((item,) * n, places[:1], (0, 32), trim_px=0)  # compiles
before = peak()
for a in range(0, size, 256):
    planes, names = bands.stack_band((item,) * n, places, (a, a + 256), trim_px=0)
assert len(names) == n
print(before, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's VmHWM")
def test_memory_does_not_grow_with_the_frames(tmp_path: Path) -> None:
    """All bands of a stack of 15 and of 60 frames: of 0.4 Mpx each, 46 MB of raw numbers."""
    size, file = 640, tmp_path / "frame.fits"
    fits.writeto(file, np.random.default_rng(4).integers(180, 220, (size, size), np.uint16))
    peaks = []
    for n in (15, 60):
        told = subprocess.run(
            [sys.executable, "-c", MEMORY, str(n), str(size), str(file)],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        before, peak = map(float, told.stdout.split())
        peaks.append(peak)
        assert peak - before < 24  # MiB
    assert peaks[1] < 1.2 * peaks[0], peaks
