"""The stack of a night from its cube: same bits for any band, clipped, weighted, on one scale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from archives import archive_of, run, star_field, write_config, write_frame
from nightloom import stages
from nightloom.archive import Archive
from nightloom.config import Config, load_config
from nightloom.engine.serial import make_serial
from nightloom.pipeline import read_frames
from nightloom.plan.recipes import PlannedCube, make_plan
from nightloom.reduce.stacks import TILE_ROWS, stack_recipe
from nightloom.store.encodings import read_arrays
from nightloom.store.products import require

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
