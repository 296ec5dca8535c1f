"""Each star is measured where its position scatters least: by its centroid, or by the alignment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from archives import star_field
from nightloom.config import Instrument, PhotometrySection
from nightloom.image.aperture import aperture_sums
from nightloom.image.centroid import windowed
from nightloom.plan.recipes import PlannedFrame
from nightloom.reduce.detection import CalibratedFrame
from nightloom.reduce.masters import MasterPaths
from nightloom.reduce.measure import Row, StarList, measure_frame
from nightloom.schema.flags import BITS, CAVEATS
from nightloom.synth.camera import render

SIZE, SIGMA_PX, SKY_E, N_FRAMES = 320, 1.5, 200.0, 15
MOVED, MOVED_PX = 35, 1.3  # a star whose place in the list is old

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Night:
    items: list[CalibratedFrame]
    stars: StarList
    x: Floats  # truth, [frame, star]
    y: Floats


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """Dithered frames of sixty stars, of 100,000 to 700 electrons; one is not where it was."""
    folder = tmp_path_factory.mktemp("faint")
    rng = np.random.default_rng(3)
    x, y, _ = star_field(60, ny=SIZE, nx=SIZE, seed=5)
    flux = np.geomspace(1e5, 700, len(x))
    sure = np.ones(len(x), dtype=bool)
    stars = StarList(x.copy(), y.copy(), flux, sure, sure, 2.3548 * SIGMA_PX, 30.0)
    x[MOVED] += MOVED_PX
    shifts = rng.uniform(-3, 3, (N_FRAMES, 2, 1))
    items = [
        write(folder / f"{k}.fits", x + shifts[k, 0], y + shifts[k, 1], flux, rng)
        for k in range(N_FRAMES)
    ]
    return Night(items, stars, x + shifts[:, 0], y + shifts[:, 1])


def write(
    path: Path, x: Floats, y: Floats, flux: Floats, rng: np.random.Generator
) -> CalibratedFrame:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    light = np.full((SIZE, SIZE), SKY_E)
    for a, b, f in zip(x, y, flux, strict=True):
        cut = (slice(max(0, int(b) - 12), int(b) + 13), slice(max(0, int(a) - 12), int(a) + 13))
        r2 = (columns[cut] - a) ** 2 + (rows[cut] - b) ** 2
        light[cut] += f * np.exp(-r2 / (2 * SIGMA_PX**2)) / (2 * np.pi * SIGMA_PX**2)
    pixels = rng.poisson(light) + rng.normal(0, 6.0, light.shape)
    fits.writeto(path, np.clip(np.round(pixels), 0, None).astype(np.uint16))
    nan = float("nan")
    frame = PlannedFrame(
        root=path.parent, path=path.name, hdu=0, size_bytes=path.stat().st_size, digest="d",
        instrument="cam", filter="R", ny=SIZE, nx=SIZE, jd_utc=2460000.0, exposure_s=30.0,
        gain_e_per_adu=1.0, read_noise_e=6.0, saturation_adu=60000.0, ra_deg=nan, dec_deg=nan,
        pixel_scale_arcsec=nan, site_lat_deg=nan, site_lon_deg=nan, site_height_m=nan,
        time_suspect=False,
    )  # fmt: skip
    return CalibratedFrame(frame, MasterPaths(), Instrument())


def measured(night: Night, centroid: Literal["windowed", "none"]) -> list[Row]:
    settings = PhotometrySection(radii_fwhm=(), radii_px=(3.0,), centroid=centroid)
    return [measure_frame(item, night.stars, settings, trim_px=0) for item in night.items]


def rms(night: Night, x: Floats, y: Floats) -> Floats:
    """Of the distance along an axis from the truth, [star]."""
    apart = np.stack([x - night.x, y - night.y])
    return np.asarray(np.sqrt(np.mean(apart**2, axis=(0, 1))))


def test_a_star_is_where_it_scatters_less(night: Night) -> None:
    rows, forced = measured(night, "windowed"), measured(night, "none")
    centroids = []
    for item, x, y in zip(night.items, night.x, night.y, strict=True):
        pixels = fits.getdata(item.frame.file).astype(np.float32)
        clean = np.zeros(pixels.shape, np.uint8)
        centroids.append(
            windowed(pixels, clean, x, y, background_e=np.full(len(x), SKY_E),
                     fwhm_px=2.3548 * SIGMA_PX, max_shift_px=2.0)
        )  # fmt: skip
    ours = rms(night, np.array([r["x"] for r in rows]), np.array([r["y"] for r in rows]))
    aligned = rms(night, np.array([r["x"] for r in forced]), np.array([r["y"] for r in forced]))
    plain = rms(night, np.array([c.x_px for c in centroids]), np.array([c.y_px for c in centroids]))
    bright, faint = slice(0, 10), slice(45, 60)
    assert np.median(plain[faint]) > 0.1
    assert np.median(ours[faint]) < 0.25 * np.median(plain[faint])
    assert np.median(ours[bright]) < 0.7 * np.median(aligned[bright])
    still = np.arange(len(ours)) != MOVED
    assert (ours[still] < 1.5 * np.minimum(aligned, plain)[still] + 0.005).all()


def test_what_was_forced_says_so_and_is_no_fault(night: Night) -> None:
    flags = np.array([row["flags"] for row in measured(night, "windowed")])
    share = np.mean(flags & BITS["position_forced"] != 0, axis=0)
    assert share[:10].max() < 0.2
    assert share[45:].min() > 0.9
    assert not (flags & BITS["centroid_fallback"]).any()
    assert BITS["position_forced"] & CAVEATS
    never = np.array([row["flags"] for row in measured(night, "none")])
    assert not (never & BITS["position_forced"]).any()  # then all are, as was asked for


def test_a_star_that_moved_keeps_its_centroid(night: Night) -> None:
    """Its list is old: by the alignment alone it would be measured beside its light for years."""
    rows = measured(night, "windowed")
    apart = np.array([row["x"][MOVED] for row in rows]) - night.x[:, MOVED]
    assert np.abs(apart).max() < 0.3 * MOVED_PX
    assert not any(row["flags"][MOVED] & BITS["position_forced"] for row in rows)


def test_a_centroid_that_follows_the_noise_finds_too_much_light_and_scatters_as_much() -> None:
    # Why faint stars' fluxes look steadier at their centroids: the mean is too high, no more.
    rng, side, tile = np.random.default_rng(3), 25, 50
    row, column = np.divmod(np.arange(side * side), side)
    x, y = tile * (np.stack([column, row]) + 0.5) + rng.uniform(-0.5, 0.5, (2, side * side))
    star = {"x_px": x, "y_px": y, "flux_e": np.full(len(x), 600.0), "fwhm_px": 4.0}
    light = render(side * tile, side * tile, **star)
    noisy = (rng.poisson(light + SKY_E) - SKY_E).astype(np.float32)
    clean = np.zeros(light.shape, dtype=np.uint8)
    found = windowed(
        noisy, clean, x, y, background_e=np.zeros(len(x)), fwhm_px=4.0, max_shift_px=2.0
    )
    truth, forced, centred = (
        aperture_sums(frame.astype(np.float32), clean, *xy, [3.0]).flux_e[found.ok, 0]
        for frame, xy in (
            (light, (x, y)), (noisy, (x, y)), (noisy, (found.x_px, found.y_px)),
        )
    )  # fmt: skip
    error = forced.std() / np.sqrt(len(forced))
    assert abs(forced.mean() - truth.mean()) < 3 * error
    assert centred.mean() > 1.02 * forced.mean()
    assert centred.std() == pytest.approx(forced.std(), rel=0.02)
    assert centred.std() / centred.mean() < forced.std() / forced.mean()
