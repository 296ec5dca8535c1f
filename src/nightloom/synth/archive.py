"""The synthetic archive on disk: frames, catalogue, truth and a nightloom.toml to go on with."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.table import QTable, Table, vstack
from numpy.typing import NDArray

from nightloom.errors import ConfigError
from nightloom.synth.camera import Detector, expose, file_rng, make_detector, science_light
from nightloom.synth.headers import header
from nightloom.synth.nights import Frame, World, make_world
from nightloom.synth.truth import (
    CATALOGUE_EPOCH,
    TRANSIT,
    VARIABLE,
    Field,
    Floats,
    SynthSpec,
    star_columns,
)

FRAMES, CATALOGUE, TRUTH, CONFIG = "frames", "catalogue.ecsv", "truth", "nightloom.toml"


@dataclass(frozen=True, slots=True)
class _Shot:
    """What a worker needs for one file; `lights` is x, y, electrons [3, star], else empty."""

    frame: Frame
    field: Field | None
    lights: Floats


def write_archive(folder: Path, spec: SynthSpec, *, n_processes: int = 1) -> Path:
    """Write the archive of a spec into a folder; returns the path of its nightloom.toml.

    The same bytes for any `n_processes`. With more than one the calling script needs its
    `if __name__ == "__main__"`: workers are spawned.
    Raises ConfigError: an archive is there already, or the nights can't hold the frames.
    """
    if (folder / FRAMES).exists() or (folder / CONFIG).exists():
        raise ConfigError(where=str(folder), why="holds an archive already", do="name a new folder")
    world = make_world(spec)
    for path in {(folder / FRAMES / frame.path).parent for frame in world.frames}:
        path.mkdir(parents=True)
    shots = _shots(world)
    if n_processes <= 1:
        _write_frames(folder, spec, shots)
    else:
        _write_parallel(folder, spec, shots, n_processes=n_processes)
    _write_catalogue(folder, world)
    _write_truth(folder / TRUTH, world)
    path = folder / CONFIG
    path.write_text(_config_text(spec, world), encoding="utf-8")
    return path


def _shots(world: World) -> list[_Shot]:
    lights: dict[int, Floats] = {}
    for light in world.starlight:
        stacked = np.stack([light.x_px, light.y_px, light.flux_e], axis=1)
        lights |= {frame.index: row for frame, row in zip(light.frames, stacked, strict=True)}
    empty = np.empty((3, 0))
    return [
        _Shot(
            frame=frame,
            field=None if frame.scene is None else world.fields[frame.scene.field],
            lights=lights.get(frame.index, empty),
        )
        for frame in world.frames
    ]


def _write_parallel(folder: Path, spec: SynthSpec, shots: list[_Shot], *, n_processes: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, mp_context=spawn) as pool:
        # dealt like cards: darks are cheap, and each hand gets some
        hands = [shots[k::n_processes] for k in range(n_processes)]
        for done in [pool.submit(_write_frames, folder, spec, hand) for hand in hands if hand]:
            done.result()


def _write_frames(folder: Path, spec: SynthSpec, shots: list[_Shot]) -> None:
    detector = make_detector(spec)
    for shot in shots:
        pixels = shoot(spec, shot.frame, detector, lights=shot.lights)
        image = fits.PrimaryHDU(pixels, header(spec, shot.frame, shot.field))
        image.writeto(folder / FRAMES / shot.frame.path)


def shoot(
    spec: SynthSpec, frame: Frame, detector: Detector, *, lights: Floats
) -> NDArray[np.uint16]:
    """Raw pixels of any frame; `lights` is x, y, electrons [3, star] of a science frame."""
    light_e: Floats | float = frame.flat_e
    if frame.scene is not None:
        x, y, flux = lights
        light_e = science_light(spec, frame.scene, x_px=x, y_px=y, flux_e=flux)
    return expose(spec, frame, detector, light_e=light_e, rng=file_rng(spec, frame))


def _write_catalogue(folder: Path, world: World) -> None:
    tables = [
        QTable(
            {
                "ra": stars.ra_deg * u.deg,
                "dec": stars.dec_deg * u.deg,
                "mag": stars.mag * u.mag,
                "pmra": stars.pmra_mas_yr * u.mas / u.yr,
                "pmdec": stars.pmdec_mas_yr * u.mas / u.yr,
            }
        )
        for stars in (field.stars for field in world.fields)
    ]
    table = vstack(tables)
    table.meta = {
        "catalogue": "synthetic stars of nightloom",
        "frame": "ICRS",
        "epoch": CATALOGUE_EPOCH,
        "mag_band": "R",
        "note": "pmra includes cos(dec)",
    }
    table.write(folder / CATALOGUE, format="ascii.ecsv")


def _write_truth(folder: Path, world: World) -> None:
    """stars.ecsv, frames.ecsv (science), and fluxes.npz with keys 'FIELD.flux_e' and so on."""
    folder.mkdir()
    stars = vstack(
        [
            Table({"field": np.full(len(field.stars), field.name), **star_columns(field.stars)})
            for field in world.fields
        ]
    )
    stars.meta = {"epoch": CATALOGUE_EPOCH, "frame": "ICRS"}
    stars.write(folder / "stars.ecsv", format="ascii.ecsv")
    rows = [
        {
            "path": frame.path,
            "night": frame.night,
            "filter": frame.filter,
            "exposure_s": frame.exposure_s,
            "jd_utc": frame.jd_utc,
            **(asdict(frame.scene) | {"field": world.fields[frame.scene.field].name}),
        }
        for frame in world.frames
        if frame.scene is not None
    ]
    Table(rows).write(folder / "frames.ecsv", format="ascii.ecsv")
    arrays: dict[str, Any] = {}
    for field, light in zip(world.fields, world.starlight, strict=True):
        arrays[f"{field.name}.path"] = np.array([frame.path for frame in light.frames])
        arrays[f"{field.name}.star_id"] = field.stars.star_id
        arrays[f"{field.name}.flux_e"] = light.flux_e
        arrays[f"{field.name}.x_px"] = light.x_px
        arrays[f"{field.name}.y_px"] = light.y_px
    np.savez(folder / "fluxes.npz", **arrays)


def _config_text(spec: SynthSpec, world: World) -> str:
    camera = spec.instrument
    text = f"""\
# A synthetic archive: every number in it is known, see truth/.

# Where the raw frames lie, and where nightloom writes. Relative to this file.
[archive]
frames = ["{FRAMES}"]
products = "products"

# What the headers of this camera leave out: neither program that wrote them knows the
# read noise or where the wells are full, and MaxIm DL not how high the site lies.
[instrument.synthetic]
match = {{ TELESCOP = "{camera.telescope}", INSTRUME = "{camera.camera}" }}
read_noise_e = {camera.read_noise_e}
saturation_adu = {camera.saturation_adu}
site_height_m = {spec.site.height_m}

# Stars with known places, to find where on the sky the frames look.
[catalog]
files = ["{CATALOGUE}"]

# Stars of interest: in each field the one with transits, and a variable.
"""
    for field in world.fields:
        for star, name in ((TRANSIT, "transit"), (VARIABLE, "variable")):
            stars = field.stars
            text += f"""\
[[target]]
name = "{field.name} {name}"
ra = {stars.ra_deg[star]:.8f}
dec = {stars.dec_deg[star]:.8f}
pmra = {stars.pmra_mas_yr[star]}
pmdec = {stars.pmdec_mas_yr[star]}
epoch = {CATALOGUE_EPOCH}

"""
    return text.rstrip("\n") + "\n"
