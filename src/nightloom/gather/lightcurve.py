"""The light curve of a target over all nights: times at the barycentre, flux, flags, weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightloom.config import Target
from nightloom.engine.recipe import Made, Recipe
from nightloom.gather.budget import Measured, error_terms
from nightloom.gather.differential import ensemble_product
from nightloom.gather.ensemble import weights_for
from nightloom.gather.join import field_product
from nightloom.plan.fields import slug
from nightloom.plan.recipes import filter_slug
from nightloom.reduce.stars import plate_of
from nightloom.schema.cube import LIGHTCURVE, TIME
from nightloom.schema.flags import BITS, CAVEATS, cf_attributes
from nightloom.sky.plate import to_sky
from nightloom.sky.scintillation import scintillation
from nightloom.sky.times import airmass, bjd_tdb
from nightloom.store.encodings import read_arrays, read_attributes, write_store
from nightloom.store.products import current, published_fingerprint
from nightloom.store.provenance import provenance

LIGHTCURVE_VERSION = 4
_FROM_FIELD = ("jd_utc", "exposure_s", "fwhm_px", "shift_x_px", "shift_y_px", "path", "night")
_APERTURE = ("radius_fwhm", "radius_px", "aperture_kind")
_OF_CAMERA = ("gain_e_per_adu", "read_noise_e", "dark_e", "flat_err")
_NOISE = ("aperture_radius_px", *_OF_CAMERA)
_BY_STAR = ("x", "y", "background", "background_err", "flux_err")
_FROM_ENSEMBLE = ("flux", "flux_err", "flags", "comparison", "raw_flux")


class LightcurveSettings(BaseModel):
    """What a light curve depends on besides the field's differential curves."""

    model_config = ConfigDict(frozen=True)

    target: Target
    star: int  # id in the field's list, -1 where it is outside
    aperture_m: float | None  # diameter of the telescope
    scintillation_coefficient: float


@dataclass(frozen=True, slots=True)
class LightcurveJob:
    product: str
    note: str
    field: Path | None
    ensemble: Path | None
    plate: Path | None
    stars: Path | None
    settings: LightcurveSettings
    attributes: dict[str, Any]


def lightcurve_product(target: str, filter_name: str, *, field: str = "") -> str:
    """Id of a light curve; the field is named where the target lies in several."""
    return f"lightcurve/{slug(target)}/{filter_slug(filter_name)}" + (f"-{field}" if field else "")


def lightcurve_recipe(
    root: Path, product: str, field: str, filter_name: str, settings: LightcurveSettings,
    *, note: str,
) -> Recipe:  # fmt: skip
    """Recipe of a light curve; star -1 gives an empty product whose reason is the note."""
    star = settings.star
    source = ensemble_product(field, filter_name)
    joined = field_product(field, filter_name)
    names = (source, joined, f"plate/{field}") if star >= 0 else ()
    inputs = tuple((name, published_fingerprint(root, name)) for name in names)
    inputs += (("note", note),) if star < 0 else ()
    recipe = Recipe(
        product, inputs, settings, LIGHTCURVE_VERSION, job=None, finish=make_lightcurve,
        needs=(source,) if star >= 0 else (f"stars/{field}",),
        uses=(joined, f"plate/{field}") if star >= 0 else (),
    )  # fmt: skip
    if star >= 0 and current(root, source) is None:
        return recipe
    attributes = provenance(
        product, fingerprint=recipe.fingerprint, inputs=inputs, settings=settings,
        algorithm=LIGHTCURVE_VERSION,
    )  # fmt: skip
    job = LightcurveJob(
        product,
        note,
        field=current(root, joined),
        ensemble=current(root, source),
        plate=current(root, f"plate/{field}"),
        stars=current(root, f"stars/{field}"),
        settings=settings,
        attributes=attributes,
    )
    return replace(recipe, job=job)


def make_lightcurve(job: LightcurveJob, work: Path, _: list[Any]) -> Made:
    """Cut the target out of the field's curves; writes `lightcurve.zarr` and `.ecsv`."""
    star = job.settings.star
    if star < 0 or job.field is None or job.ensemble is None:
        return Made(outcome="empty", reason=job.note)
    ensemble = read_arrays(job.ensemble, [*_FROM_ENSEMBLE, "best_aperture", "weight", "scatter"])
    aperture = int(ensemble["best_aperture"][star])
    if aperture < 0:
        return Made(outcome="empty", reason="no aperture has enough clean points")
    columns = read_arrays(job.field, [*_FROM_FIELD, "frame_flags", *_APERTURE, *_NOISE])
    by_star = read_arrays(job.field, _BY_STAR, stars=slice(star, star + 1))
    facts = read_attributes(job.field)
    ra, dec, caveats = _place(job)
    times, more = _times(columns["jd_utc"], ra, dec, facts["site"])
    settings = job.settings
    arrays: dict[str, NDArray[Any]] = {name: columns[name] for name in _FROM_FIELD}
    arrays |= {name: ensemble[name][star] for name in _FROM_ENSEMBLE}
    arrays |= {name: by_star[name][:, 0] for name in ("x", "y", "background")}
    arrays |= _errors(columns, by_star, arrays, aperture)
    weight = weights_for(ensemble["weight"][:, aperture], star)
    arrays |= times | {
        "scintillation": scintillation(
            aperture_m=_or_nan(settings.aperture_m),
            exposure_s=columns["exposure_s"],
            airmass=times["airmass"],
            height_m=_or_nan(facts["site"][2]),
            coefficient=settings.scintillation_coefficient,
        ).astype(np.float32),
        "caveats": (columns["frame_flags"] & np.uint32(CAVEATS)).astype(np.uint32),
        "weight": weight,
        "star_id": np.arange(len(ensemble["best_aperture"]), dtype=np.int32),
    }
    attributes = job.attributes | {
        "target": job.settings.target.name,
        "field": facts["field"],
        "filter": facts["filter"],
        "star": star,
        "ra_deg": ra,
        "dec_deg": dec,
        "aperture": aperture,
        "aperture_kind": str(columns["aperture_kind"][aperture]),
        "aperture_radius_fwhm": _number(columns["radius_fwhm"][aperture]),
        "aperture_radius_px": _number(columns["radius_px"][aperture]),
        "aperture_m": settings.aperture_m,
        "site_height_m": facts["site"][2],
        "comparison_share": float(np.sum(weight**2)),  # 1 over how many equal ones they are worth
        "scatter_p2p": _number(ensemble["scatter"][star, aperture]),
        "flux_units": "adu"
        if (columns["frame_flags"] & BITS["gain_assumed"]).all()
        else "electron",
        "time_scale": "BJD_TDB at mid-exposure",
    }
    write_store(
        work / "lightcurve.zarr", LIGHTCURVE, arrays, attributes=attributes,
        extra={"flags": cf_attributes(), "caveats": cf_attributes("frame")},
    )  # fmt: skip
    _write_ecsv(work / "lightcurve.ecsv", arrays, attributes)
    return Made(caveats=caveats + more)


def _errors(
    columns: dict[str, NDArray[Any]], by_star: dict[str, NDArray[Any]],
    curve: dict[str, NDArray[Any]], aperture: int,
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """The relative error of each point by its causes."""
    star = Measured(
        flux_e=curve["raw_flux"],
        flux_err_e=by_star["flux_err"][:, 0, aperture].astype(np.float64),
        background_e=by_star["background"][:, 0].astype(np.float64),
        background_err_e=by_star["background_err"][:, 0].astype(np.float64),
        radius_px=columns["aperture_radius_px"][:, aperture].astype(np.float64),
        fwhm_px=columns["fwhm_px"].astype(np.float64),
        **{name: columns[name].astype(np.float64) for name in _OF_CAMERA},
    )
    total = np.abs(curve["flux_err"] / np.where(curve["flux"] == 0, np.nan, curve["flux"]))
    terms = error_terms(
        star, total=total,
        is_circle=columns["aperture_kind"][aperture] != "optimal",
    )  # fmt: skip
    return {name: values.astype(np.float32) for name, values in terms.items()}


def _place(job: LightcurveJob) -> tuple[float | None, float | None, tuple[str, ...]]:
    """Direction of the target, as given or by the plate."""
    target = job.settings.target
    if target.ra is not None and target.dec is not None:
        return target.ra, target.dec, ()
    if job.plate is None or job.stars is None:
        return None, None, ("no plate: its direction and so its BJD are unknown",)
    places = read_arrays(job.stars, ["x", "y"])
    star = slice(job.settings.star, job.settings.star + 1)
    ra, dec = to_sky(plate_of(job.plate), places["x"][star], places["y"][star])
    return float(ra[0]), float(dec[0]), ()


def _times(
    jd_utc: NDArray[np.float64], ra: float | None, dec: float | None, site: list[float | None]
) -> tuple[dict[str, NDArray[np.float64]], tuple[str, ...]]:
    lat, lon, height = (_or_nan(value) for value in site)
    if ra is None or dec is None:
        nothing = np.full(len(jd_utc), np.nan)
        return {"bjd_tdb": nothing, "airmass": nothing}, ()
    caveats = () if np.isfinite(lat) else ("no site: BJD for the geocentre (to 21 ms), no airmass",)
    return {
        "bjd_tdb": bjd_tdb(jd_utc, ra, dec, lat, lon, height),
        "airmass": airmass(jd_utc, ra, dec, lat, lon),
    }, caveats


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _write_ecsv(path: Path, arrays: dict[str, NDArray[Any]], attributes: dict[str, Any]) -> None:
    table = Table()
    for variable in LIGHTCURVE:
        if variable.dims == (TIME,):
            values = arrays[variable.name]
            table[variable.name] = [str(v) for v in values] if variable.dtype == "str" else values
            table[variable.name].description = variable.meaning
            if variable.unit and variable.unit != "deg_C":
                table[variable.name].unit = variable.unit
    kept = {"software", "product", "fingerprint", "target", "field", "filter", "ra_deg", "dec_deg",
            "aperture_kind", "aperture_radius_fwhm", "aperture_radius_px",
            "time_scale"}  # fmt: skip
    table.meta.update({key: value for key, value in attributes.items() if key in kept})
    table.write(path, format="ascii.ecsv")
