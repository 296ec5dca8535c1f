"""A synthetic night reduced with each centroid: places against the truth and their bound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from numpy.typing import NDArray

from archives import archive_of, run
from cramer_rao import Floats, bounds_px
from nightloom.image.annulus import Annuli
from nightloom.image.centroid import Centroids
from nightloom.reduce import measure
from nightloom.reduce.detection import Exposure
from nightloom.reduce.positions import Positions
from nightloom.synth.archive import write_archive
from nightloom.synth.truth import Instrument, SynthSpec

# Without what a centroid can't know of: hits, hot pixels, clouds and trails.
SPEC = SynthSpec(
    n_nights=1, frames_per_night=12, ny=300, nx=300, n_stars=70, n_bias=7, n_dark=5, n_flat=7,
    drift_px=12.0, trailed=False, cloud=False, cosmic_rays=False, hot_pixels=False,
)  # fmt: skip
APART_PX, APART_FLUX = 14.0, 0.01  # no neighbour so near is brighter than that, of the star
ASKED_PX = 0.01  # less than this is not asked, whatever the bound


@dataclass(frozen=True, slots=True)
class Places:
    """Arrays [frame, star] of the true stars, and the bound of each; `lone` [star]."""

    paths: list[str]
    x_px: Floats
    y_px: Floats
    bound_px: Floats
    snr: Floats
    lone: NDArray[np.bool_]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Places]:
    config = write_archive(tmp_path_factory.mktemp("centroids"), SPEC)
    truth = config.parent / "truth"
    arrays = np.load(truth / "fluxes.npz")
    x, y, flux = (arrays[f"Synth-1.{name}"] for name in ("x_px", "y_px", "flux_e"))
    scenes = Table.read(truth / "frames.ecsv", format="ascii.ecsv")
    scenes.add_index("path")
    camera: Instrument = SPEC.instrument
    fixed_e2 = camera.read_noise_e**2 + camera.dark_e_per_s * SPEC.exposure_s
    paths = [str(path) for path in arrays["Synth-1.path"]]
    rows = [
        bounds_px(
            flux[k], noise_e2=scene["sky_e"] + fixed_e2, fwhm_px=scene["fwhm_px"],
            elongation=scene["elongation"], angle_deg=scene["angle_deg"],
        )
        for k, scene in enumerate(scenes.loc[path] for path in paths)
    ]  # fmt: skip
    bound, snr = (np.array(part) for part in zip(*rows, strict=True))
    away = np.hypot(x[0][:, None] - x[0], y[0][:, None] - y[0])
    near = (away < APART_PX) & (flux[0][None, :] > APART_FLUX * flux[0][:, None])
    lone = near.sum(axis=1) == 1  # itself
    return config, Places(paths, x, y, bound, snr, lone)


def errors_px(config: Path, places: Places) -> tuple[Floats, Floats, Floats]:
    """Errors in x and y and their bounds, one of each lone star of SNR 20 to 1000 in a frame."""
    cube = archive_of(config).cube("Synth-1").load()
    row_of = {path: k for k, path in enumerate(places.paths)}
    rows = np.array([row_of[str(p).removeprefix("frames/")] for p in cube["path"].values])
    x, y = cube["x"].values, cube["y"].values
    away = np.hypot(
        places.x_px[rows[0]][None, :] - x[0][:, None], places.y_px[rows[0]][None, :] - y[0][:, None]
    )
    star_of = np.where(np.nanmin(away, axis=1) < 1.0, np.nanargmin(away, axis=1), -1)
    snr = places.snr[rows][:, star_of]
    chosen = (star_of >= 0) & places.lone[star_of] & (snr > 20) & (snr < 1000)
    chosen &= (cube["flags"].values == 0) & (cube["frame_flags"].values == 0)[:, None]
    dx = x - places.x_px[rows][:, star_of]
    dy = y - places.y_px[rows][:, star_of]
    return dx[chosen], dy[chosen], places.bound_px[rows][:, star_of][chosen]


def centroids_alone(
    exposure: Exposure, x_px: Floats, y_px: Floats, found: Centroids, annuli: Annuli, *,
    fwhm_px: float,
) -> Positions:  # fmt: skip
    """Centroids wherever there is one, however little they are worth."""
    x, y = np.where(found.ok, found.x_px, x_px), np.where(found.ok, found.y_px, y_px)
    return Positions(x, y, fallback=~found.ok, forced=np.zeros_like(found.ok))


@pytest.mark.parametrize(
    ("centroid", "bounds"),
    [("gaussian2d", 1.15), ("ballet", 1.2), ("windowed", 1.2), ("quadratic", 1.2)],
)
def test_places_are_as_good_as_the_bound_says(
    night: tuple[Path, Places], centroid: str, bounds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the places of faint stars would be those of the alignment, and none of the centroid's.
    monkeypatch.setattr(measure, "steadiest", centroids_alone)
    config, places = night
    text = config.read_text(encoding="utf-8").split("[photometry]")[0]
    config.write_text(f'{text}[photometry]\ncentroid = "{centroid}"\n', encoding="utf-8")
    assert run(config).exit_code == 0
    dx, dy, bound = errors_px(config, places)
    assert len(dx) > 200
    share = np.array([dx, dy]) / np.maximum(bound, ASKED_PX / 1.3)
    assert 0.85 < np.sqrt(np.mean(share**2)) < bounds  # below: the bound is wrong
    assert abs(np.mean(dx)) < ASKED_PX
    assert abs(np.mean(dy)) < ASKED_PX
