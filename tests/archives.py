"""Archives for tests: written for real, run for real, opened as a user would."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from nightloom import pipeline
from nightloom.archive import Archive, open_archive
from nightloom.config import load_config
from nightloom.engine.cluster import SERIAL, Engine
from nightloom.engine.recipe import Event
from nightloom.pipeline import Outcome
from nightloom.store.products import current
from nightloom.synth.camera import render

Floats = NDArray[np.float64]
# The command, for a process of its own.
MAIN = "import sys; from nightloom.cli.start import main; sys.argv[0] = 'nightloom'; main()"
SKY_E, READ_NOISE_E, GAIN, BIAS_ADU = 200.0, 6.0, 1.5, 500.0


def _ignore(event: Event) -> None:
    pass


def run(config: Path, *, cluster: str = SERIAL, report: bool = False) -> Outcome:
    """All of `nightloom run`, pages only where they are wanted."""
    with Engine(cluster) as engine:
        return run_on(engine, config, report=report)


def run_on(
    engine: Engine, config: Path, *, report: bool = False, listen: Callable[[Event], None] = _ignore
) -> Outcome:
    """The same on an engine that goes on afterwards."""
    with pipeline.Run(load_config(config), engine, listen) as made:
        pipeline.scan(made)
        plan = pipeline.plan(made)
        pipeline.reduce(made, plan)
        pipeline.gather(made, plan)
        if report:
            pipeline.report(made, plan)
        pipeline.keep_expected(made, plan)
    return made.outcome


def archive_of(config: Path) -> Archive:
    """The archive that a configuration makes."""
    return open_archive(load_config(config).products_path)


def digest(config: Path) -> dict[str, str]:
    """Digest of every byte of each product."""
    root = load_config(config).products_path
    out = {}
    for product in archive_of(config).ledger["product"]:
        path = current(root, str(product))
        if path is not None:
            hasher = hashlib.blake2b()
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                hasher.update(str(file.relative_to(path)).encode())
                hasher.update(file.read_bytes())
            out[str(product)] = path.name + hasher.hexdigest()
    return out


def star_field(n: int, *, ny: int, nx: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """x, y, electrons of stars that do not touch each other, brightest first."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(20, nx - 20, 20 * n), rng.uniform(20, ny - 20, 20 * n)
    chosen: list[int] = []
    for k in range(len(x)):
        if all(np.hypot(x[k] - x[j], y[k] - y[j]) > 22 for j in chosen):
            chosen.append(k)
    chosen = chosen[:n]
    flux = np.sort(10 ** rng.uniform(4.4, 5.5, len(chosen)))[::-1]
    return x[chosen], y[chosen], flux


def write_frame(
    path: Path, x: Floats, y: Floats, flux_e: Floats, *, ny: int, nx: int, minute: int,
    seed: int, fwhm_px: float = 3.5, object_name: str = "Test", **cards: object,
) -> None:  # fmt: skip
    """A raw frame with photon and read noise, as MaxIm DL would write it."""
    rng = np.random.default_rng(seed)
    light = render(ny, nx, x_px=x, y_px=y, flux_e=flux_e, fwhm_px=fwhm_px, sky_e=SKY_E)
    electrons = rng.poisson(np.clip(light, 0, None)) + rng.normal(0, READ_NOISE_E, light.shape)
    adu = np.clip(np.round(electrons / GAIN + BIAS_ADU), 0, 65535).astype(np.uint16)
    header = fits.Header()
    header["IMAGETYP"] = "Light Frame"
    header["DATE-OBS"] = f"2024-03-01T{20 + minute // 60:02d}:{minute % 60:02d}:00.000"
    header["EXPTIME"] = 30.0
    header["OBJECT"] = object_name
    header["FILTER"] = "R"
    header["TELESCOP"] = "Test 0.3 m"
    header["INSTRUME"] = "Test CCD"
    header["EGAIN"] = GAIN
    header["SITELAT"] = "+28 18 00"
    header["SITELONG"] = "-16 30 36"
    header["OBJCTRA"] = "08 00 00"
    header["OBJCTDEC"] = "+20 00 00"
    header["SWCREATE"] = "MaxIm DL Version 6.50"
    for key, value in cards.items():
        header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.writeto(path, adu, header)


def write_config(folder: Path, *, more: str = "") -> Path:
    """A configuration for frames in folder/frames."""
    path = folder / "nightloom.toml"
    path.write_text(
        '[archive]\nframes = ["frames"]\n'
        f"[instrument.test]\nmatch = {{TELESCOP = 'Test*'}}\nread_noise_e = {READ_NOISE_E}\n{more}"
    )
    return path
