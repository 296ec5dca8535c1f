"""The plate of a reference, and the field's star list with its targets.

The plate is a product that no cube depends on. The star list is the reference's, with targets
appended that are not among its stars; a cube depends on the positions in it alone, so a new
catalogue, or a new target that is a known star, makes no cube again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightloom.config import Config, Target
from nightloom.engine.recipe import Made, Recipe
from nightloom.frames.wcs import wcs_text
from nightloom.plan.recipes import PlannedFrame
from nightloom.schema.cube import PLATE, STARS, TARGETS
from nightloom.sky.catalogue import Catalogue, at_epoch, read_catalogue
from nightloom.sky.plate import Plate, PlateRefusal, from_header, solve, to_pixels
from nightloom.store.encodings import read_arrays, read_attributes, write_store
from nightloom.store.fingerprint import digest_of, digest_of_file
from nightloom.store.products import current, published_fingerprint
from nightloom.store.provenance import provenance

PLATE_VERSION = 1
STARS_VERSION = 1
JD_2000, DAYS_A_YEAR = 2451545.0, 365.25
PLATE_STARS = 80
POINTING = ("ra_deg", "dec_deg", "pixel_scale_arcsec")  # what a plate is looked for with
FOUND_WITHIN_FWHM = 1.0

log = logging.getLogger("nightloom")


class PlateSettings(BaseModel):
    """What a plate depends on besides its reference and catalogue."""

    model_config = ConfigDict(frozen=True)

    tolerance_arcsec: float


class StarsSettings(BaseModel):
    """What a star list depends on besides its reference."""

    model_config = ConfigDict(frozen=True)

    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class PlateJob:
    product: str
    reference: Path
    grid: PlannedFrame | None  # the frame whose pixels are the reference's, where it is still there
    catalogues: tuple[Path, ...]
    settings: PlateSettings
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StarsJob:
    product: str
    field: str
    reference: Path
    plate: Path | None
    previous: Path | None
    settings: StarsSettings
    attributes: dict[str, Any]


def plate_recipe(
    root: Path, field: str, frame_named: Callable[[str], PlannedFrame | None], config: Config
) -> Recipe:
    """Recipe of a field's plate; its reference must be published.

    frame_named: the field's frame of this path, None where it is gone.
    """
    reference = f"reference/{field}"
    path = current(root, reference)
    settings = PlateSettings(tolerance_arcsec=config.reference.plate_tolerance_arcsec)
    catalogues = config.catalog_paths()
    grid = None if path is None else frame_named(read_attributes(path)["grid_of"])
    inputs = (
        (reference, published_fingerprint(root, reference)),
        *((p.name, digest_of_file(p)) for p in catalogues if p.is_file()),
        *(() if grid is None else (grid.said(*POINTING),)),
    )
    product = f"plate/{field}"
    recipe = Recipe(
        product, inputs, settings, PLATE_VERSION, job=None, finish=make_plate, needs=(reference,)
    )
    attributes = provenance(
        product, fingerprint=recipe.fingerprint, inputs=inputs, settings=settings,
        algorithm=PLATE_VERSION,
    )  # fmt: skip
    if path is None:
        return recipe
    return replace(recipe, job=PlateJob(product, path, grid, catalogues, settings, attributes))


def make_plate(job: PlateJob, work: Path, _: list[Any]) -> Made:
    """Solve the plate and write `plate.zarr`; without a solution the product is empty."""
    arrays = read_arrays(job.reference, ["stack", "x", "y"])
    facts = read_attributes(job.reference)
    year = 2000.0 + (facts["jd_utc"] - JD_2000) / DAYS_A_YEAR
    catalogue = at_epoch(read_catalogue(job.catalogues), year) if job.catalogues else None
    plate = _solved(job, arrays, catalogue)
    if isinstance(plate, PlateRefusal):
        return Made(outcome="empty", reason=plate.reason)
    ny, nx = arrays["stack"].shape
    write_store(
        work / "plate.zarr",
        PLATE,
        _catalogue_in_frame(plate, catalogue, ny, nx),
        attributes=job.attributes
        | {
            "wcs": plate.header,
            "n_matched": plate.n_matched,
            "rms_arcsec": None if np.isnan(plate.rms_arcsec) else plate.rms_arcsec,
            "scale_arcsec": plate.scale_arcsec,
            "rotation_deg": plate.rotation_deg,
            "mirrored": plate.mirrored,
            "source": plate.source,
        },
    )
    caveats = ("the header's own WCS, not checked",) if plate.n_matched == 0 else ()
    return Made(caveats=caveats)


def _solved(
    job: PlateJob, arrays: dict[str, NDArray[Any]], catalogue: Catalogue | None
) -> Plate | PlateRefusal:
    ny, nx = arrays["stack"].shape
    grid = job.grid
    header = wcs_text(grid.file, grid.hdu) if grid is not None and grid.file.exists() else None
    if catalogue is None:
        if header is None:
            return PlateRefusal("no catalogue given, and no WCS in the reference's header")
        return from_header(header, ny=ny, nx=nx)
    if grid is None:
        return PlateRefusal("the frame that the reference's grid is of is gone: no pointing known")
    if header is None and not np.isfinite(grid.ra_deg):
        return PlateRefusal("the header says neither where the telescope pointed nor a WCS")
    return solve(
        arrays["x"][:PLATE_STARS],
        arrays["y"][:PLATE_STARS],
        catalogue,
        ny=ny,
        nx=nx,
        ra_deg=grid.ra_deg,
        dec_deg=grid.dec_deg,
        scale_arcsec=grid.pixel_scale_arcsec,
        header_wcs=header,
        tolerance_arcsec=job.settings.tolerance_arcsec,
    )


def _catalogue_in_frame(
    plate: Plate, catalogue: Catalogue | None, ny: int, nx: int
) -> dict[str, NDArray[np.float64]]:
    if catalogue is None:
        return {name: np.zeros(0) for name in (v.name for v in PLATE)}
    x, y = to_pixels(plate, catalogue.ra_deg, catalogue.dec_deg)
    inside = (x > -0.5) & (y > -0.5) & (x < nx - 0.5) & (y < ny - 0.5)
    columns = (catalogue.ra_deg, catalogue.dec_deg, catalogue.mag, x, y)
    return {v.name: column[inside] for v, column in zip(PLATE, columns, strict=True)}


def stars_recipe(root: Path, field: str, config: Config) -> Recipe:
    """Recipe of a field's star list; the plate is used where there is one."""
    reference, product = f"reference/{field}", f"stars/{field}"
    targets = tuple(t for t in config.target if t.field in (None, field))
    settings = StarsSettings(targets=targets)
    plate = current(root, f"plate/{field}")
    # Whether there is a plate counts, which one does not: places once given stay.
    inputs = (
        (reference, published_fingerprint(root, reference)),
        (f"plate/{field}", "there" if plate is not None else "none"),
    )
    recipe = Recipe(
        product, inputs, settings, STARS_VERSION, job=None, finish=make_stars, needs=(reference,),
        uses=(f"plate/{field}",),
    )  # fmt: skip
    attributes = provenance(
        product, fingerprint=recipe.fingerprint, inputs=inputs, settings=settings,
        algorithm=STARS_VERSION,
    )  # fmt: skip
    path = current(root, reference)
    if path is None:
        return recipe
    job = StarsJob(product, field, path, plate, current(root, product), settings, attributes)
    return replace(recipe, job=job)


def make_stars(job: StarsJob, work: Path, _: list[Any]) -> Made:
    """List the stars and find the targets among them; those that are not there are appended."""
    facts = read_attributes(job.reference)
    columns = read_arrays(job.reference, [v.name for v in STARS])
    ny, nx = read_arrays(job.reference, ["weight"])["weight"].shape
    kept = _kept_places(job)
    names, stars, xs, ys, notes = [], [], [], [], []
    for target in job.settings.targets:
        x, y, note = _expected_place(target, job, facts)
        star = -1
        if np.isfinite(x) and not (-0.5 < x < nx - 0.5 and -0.5 < y < ny - 0.5):
            note = "outside the field"
        elif np.isfinite(x):
            star, note = _nearest(columns, x, y, FOUND_WITHIN_FWHM * facts["fwhm_px"])
            if star < 0:
                x, y = kept.get(target.name, (x, y))
                star, note = len(columns["x"]), "not detected in the reference: appended"
                columns = _append(columns, x, y)
        names.append(target.name)
        stars.append(star)
        xs.append(x)
        ys.append(y)
        notes.append(note)
    positions = digest_of([columns["x"].tolist(), columns["y"].tolist()])
    arrays: dict[str, Any] = columns | {
        "target": np.array(names, dtype=object),
        "target_star": np.array(stars, dtype=np.int32),
        "target_x": np.array(xs, dtype=float),
        "target_y": np.array(ys, dtype=float),
        "target_note": np.array(notes, dtype=object),
    }
    write_store(
        work / "stars.zarr",
        (*STARS, *TARGETS),
        arrays,
        attributes=job.attributes
        | {
            "positions": positions,
            "fwhm_px": facts["fwhm_px"],
            "exposure_s": facts["exposure_s"],
            "reference": job.reference.stem,
        },
    )
    return Made()


def positions_of(root: Path, field: str) -> tuple[str, str] | None:
    """The input that a cube takes from its star list: its positions and nothing else."""
    path = current(root, f"stars/{field}")
    if path is None:
        return None
    return f"stars/{field}", _positions(path)


@lru_cache(maxsize=256)
def _positions(path: Path) -> str:
    # A version never changes; a field's thousands of nights ask for the same one.
    return str(read_attributes(path)["positions"])


def _expected_place(
    target: Target, job: StarsJob, facts: dict[str, Any]
) -> tuple[float, float, str]:
    if target.x is not None and target.y is not None:
        return target.x, target.y, ""
    if job.plate is None or target.ra is None or target.dec is None:
        return float("nan"), float("nan"), "no plate: can't be placed by its coordinates"
    years = 2000.0 + (facts["jd_utc"] - JD_2000) / DAYS_A_YEAR - target.epoch
    dec = target.dec + target.pmdec * years / 3.6e6
    ra = target.ra + target.pmra * years / 3.6e6 / np.cos(np.radians(target.dec))
    x, y = to_pixels(plate_of(job.plate), np.array([ra]), np.array([dec]))
    if not np.isfinite(x[0]):
        return float("nan"), float("nan"), "outside the field"
    return float(x[0]), float(y[0]), ""


def plate_of(path: Path) -> Plate:
    """The plate that a product holds."""
    a = read_attributes(path)
    rms = float("nan") if a["rms_arcsec"] is None else a["rms_arcsec"]
    return Plate(
        a["wcs"], a["n_matched"], rms, a["scale_arcsec"], a["rotation_deg"], a["mirrored"],
        a["source"],
    )  # fmt: skip


def _kept_places(job: StarsJob) -> dict[str, tuple[float, float]]:
    """Where targets were appended before, while the reference is the same."""
    if job.previous is None or read_attributes(job.previous)["reference"] != job.reference.stem:
        return {}
    old = read_arrays(job.previous, ["x", "y", "appended", "target", "target_star"])
    return {
        str(name): (float(old["x"][star]), float(old["y"][star]))
        for name, star in zip(old["target"], old["target_star"], strict=True)
        if star >= 0 and old["appended"][star]
    }


def _nearest(
    columns: dict[str, NDArray[Any]], x: float, y: float, within_px: float
) -> tuple[int, str]:
    distance = np.hypot(columns["x"] - x, columns["y"] - y)
    star = int(np.argmin(distance))
    if distance[star] > within_px:
        return -1, ""
    return star, f"star {star}, {distance[star]:.2f} px from its place"


def _append(columns: dict[str, NDArray[Any]], x: float, y: float) -> dict[str, NDArray[Any]]:
    new = {
        "star_id": len(columns["x"]), "x": x, "y": y, "flux": np.nan, "peak": np.nan,
        "saturated": False, "blended": False, "appended": True,
    }  # fmt: skip
    return {
        name: np.append(values, np.array([new[name]], dtype=values.dtype))
        for name, values in columns.items()
    }
