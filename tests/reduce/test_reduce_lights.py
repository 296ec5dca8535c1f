"""Hot pixels from the lights: taken off where stars drift, never made of stars that stay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from archives import GAIN, archive_of, run, star_field, write_config, write_frame
from nightloom.archive import Archive
from nightloom.config import load_config
from nightloom.pipeline import look
from nightloom.plan.recipes import make_plan
from nightloom.stages import lights_recipes
from nightloom.store.encodings import read_arrays, read_attributes
from nightloom.store.products import current, published_fingerprint, require

NY, NX, N_FRAMES = 150, 200, 24
PRODUCT = "lights/Test/2024-03-01/R"


@dataclass(frozen=True)
class Night:
    archive: Archive
    excess_adu: NDArray[np.float64]  # the truth
    hot: NDArray[np.bool_]
    flickering: tuple[int, int]


def night(
    folder: Path, *, drift_px: float, lights_map: bool | None = None, n_hot: int = 250
) -> Night:
    """A night of one field whose detector has steady hot pixels and one that flickers."""
    rng = np.random.default_rng(3)
    hot = rng.random((NY, NX)) < n_hot / (NY * NX)
    excess_adu = np.where(hot, 10 ** rng.uniform(1.8, 3.0, hot.shape), 0.0)
    flickering = (70, 90)
    x, y, flux = star_field(16, ny=NY, nx=NX + 80, seed=5)
    for k in range(N_FRAMES):
        path = folder / "frames" / f"f{k:02d}.fits"
        moved = x - 35 + drift_px * (k - N_FRAMES / 2)
        write_frame(path, moved, y, flux, ny=NY, nx=NX, minute=k, seed=k)
        with fits.open(path, mode="update") as hdus:
            dark = rng.poisson(excess_adu * GAIN) / GAIN
            dark[flickering] = 3000.0 * (k % 2)
            hdus[0].data = np.round(hdus[0].data + dark).astype(np.uint16)
    more = "" if lights_map is None else f"[calibration]\nlights_map = {str(lights_map).lower()}\n"
    folder.mkdir(parents=True, exist_ok=True)
    config = write_config(folder, more=more)
    assert run(config).exit_code == 0
    return Night(archive_of(config), excess_adu, hot, flickering)


@pytest.fixture(scope="module")
def drifting(tmp_path_factory: pytest.TempPathFactory) -> Night:
    return night(tmp_path_factory.mktemp("drifting"), drift_px=3.1)


def test_the_map_holds_the_hot_pixels_and_nothing_else(drifting: Night) -> None:
    path = require(drifting.archive.root, PRODUCT)
    arrays, facts = read_arrays(path, ["level", "bad"]), read_attributes(path)
    level, clean = arrays["level"], ~drifting.hot
    clean[drifting.flickering] = False
    away = (level - drifting.excess_adu)[drifting.hot]
    error = np.sqrt((drifting.excess_adu[drifting.hot] + 200) / GAIN / N_FRAMES)
    assert np.median(np.abs(away) / error) < 1.5
    assert abs(np.median(away / error)) < 0.5
    assert np.count_nonzero(level[clean]) < 0.002 * clean.sum()
    assert arrays["bad"][drifting.flickering] == 1
    assert arrays["bad"].sum() <= 3
    assert facts["n_frames"] == N_FRAMES


def test_a_map_is_made_once(drifting: Night) -> None:
    again = run(drifting.archive.root.parent / "nightloom.toml")
    assert (again.n_made, again.exit_code) == (0, 0)


def test_another_way_to_find_stars_makes_a_map_stale(drifting: Night) -> None:
    config = load_config(drifting.archive.root.parent / "nightloom.toml")
    made = published_fingerprint(drifting.archive.root, PRODUCT)
    for more, stale in (({}, False), ({"detection_sigma": 7.0}, True), ({"radii_px": ()}, False)):
        photometry = config.photometry.model_copy(update=more)
        asked = config.model_copy(update={"photometry": photometry})
        plan = make_plan(look(asked).frames, asked)
        (outline,) = lights_recipes(asked.products_path, plan, asked)
        assert (outline.fingerprint != made) == stale


def test_stars_that_cross_hot_pixels_scatter_less(drifting: Night, tmp_path: Path) -> None:
    """As little as on a detector without any."""
    without = night(tmp_path / "without", drift_px=3.1, lights_map=False)
    clean = night(tmp_path / "clean", drift_px=3.1, lights_map=False, n_hot=0)
    assert current(without.archive.root, PRODUCT) is None
    spreads = []
    for one in (drifting, clean, without):
        curves = one.archive.lightcurves("Test").load()
        flux = np.where(curves["flags"].values == 0, curves["flux"].values, np.nan)
        seen = np.isfinite(flux).sum(axis=1) >= N_FRAMES // 2
        assert seen.sum() >= 6
        spreads.append(np.median(np.nanstd(flux[seen], axis=1)))
    assert spreads[0] < 1.05 * spreads[1]
    assert spreads[2] > 1.5 * spreads[1]


def test_stars_that_stay_are_not_burnt_into_a_map(tmp_path: Path) -> None:
    still = night(tmp_path, drift_px=0.05, n_hot=30)
    assert current(still.archive.root, PRODUCT) is None
    ledger = still.archive.ledger.set_index("product")
    assert ledger.loc[PRODUCT, "state"] == "empty"
    assert "drift by" in ledger.loc[PRODUCT, "reason"]
    assert ledger.loc["cube/Test/2024-03-01/R", "state"] == "done"
    assert "if stars drift" in ledger.loc["cube/Test/2024-03-01/R", "note"]
    assert load_config(tmp_path / "nightloom.toml").calibration.lights_map is None
