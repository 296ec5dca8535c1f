"""Every star of a field and filter against its comparisons, each at its own best aperture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightloom.config import GatherSection
from nightloom.engine.recipe import Made, Recipe
from nightloom.gather.aperture import best_curves
from nightloom.gather.exclude import excluded, names_in
from nightloom.gather.join import field_product
from nightloom.plan.recipes import filter_slug
from nightloom.schema.cube import ENSEMBLE
from nightloom.schema.flags import BITS, CAVEATS, cf_attributes
from nightloom.store.encodings import read_arrays, read_attributes, write_store
from nightloom.store.products import current, published_fingerprint
from nightloom.store.provenance import provenance

ENSEMBLE_VERSION = 4
# A star with one of these is no comparison at that epoch; a frame with one decides nothing.
UNUSABLE_STAR = (
    BITS["saturated"]
    | BITS["nonlinear"]
    | BITS["cosmic_ray"]
    | BITS["bad_pixel"]
    | BITS["edge"]
    | BITS["background_poor"]
)
POOR_FRAME = (
    BITS["not_measured"] | BITS["excluded"] | BITS["trailed"] | BITS["low_match"] | BITS["cloudy"]
)

_FIELD_NAMES = (
    "flux", "flux_err", "flags", "clean_radius_px", "frame_flags", "aperture_radius_px",
    "jd_utc", "night", "x", "y",
)  # fmt: skip


class EnsembleSettings(BaseModel):
    """What differential photometry depends on besides the joined cubes."""

    model_config = ConfigDict(frozen=True)

    exclude: tuple[str, ...]
    max_comparisons: int
    targets: tuple[int, ...]  # star ids that are never a comparison


@dataclass(frozen=True, slots=True)
class EnsembleJob:
    product: str
    field: Path
    settings: EnsembleSettings
    attributes: dict[str, Any]


def ensemble_product(field: str, filter_name: str) -> str:
    """Id of the differential curves of a field and filter."""
    return f"ensemble/{field}/{filter_slug(filter_name)}"


def ensemble_recipe(root: Path, field: str, filter_name: str, settings: GatherSection) -> Recipe:
    """Recipe of the differential curves; the joined store must be published to make it."""
    source, product = field_product(field, filter_name), ensemble_product(field, filter_name)
    mine = EnsembleSettings(
        exclude=settings.exclude,
        max_comparisons=settings.max_comparisons,
        targets=target_stars(root, field),
    )
    inputs = ((source, published_fingerprint(root, source)),)
    recipe = Recipe(
        product, inputs, mine, ENSEMBLE_VERSION, job=None, finish=make_ensemble,
        needs=(source,), uses=(f"stars/{field}",),
    )  # fmt: skip
    path = current(root, source)
    if path is None:
        return recipe
    attributes = provenance(
        product, fingerprint=recipe.fingerprint, inputs=inputs, settings=mine,
        algorithm=ENSEMBLE_VERSION,
    )  # fmt: skip
    return replace(recipe, job=EnsembleJob(product, path, mine, attributes))


def target_stars(root: Path, field: str) -> tuple[int, ...]:
    """Star ids of the field's targets."""
    path = current(root, f"stars/{field}")
    if path is None:
        return ()
    stars = read_arrays(path, ["target_star"])["target_star"]
    return tuple(sorted({int(star) for star in stars if star >= 0}))


def make_ensemble(job: EnsembleJob, work: Path, _: list[Any]) -> Made:
    """Differential curves of all stars; writes `ensemble.zarr`."""
    names = {*_FIELD_NAMES, *names_in(job.settings.exclude)}
    columns = read_arrays(job.field, sorted(names))
    flags = _flags(columns, job.settings.exclude)
    usable = flags & np.uint32(UNUSABLE_STAR) == 0
    good_frame = (flags & np.uint32(POOR_FRAME) == 0).all(axis=1)
    facts = read_attributes(job.field)
    unclean = _mask_unclean(columns, tuple(facts["shape"]))
    targets = np.isin(np.arange(usable.shape[1]), job.settings.targets)
    best = best_curves(
        columns["flux"], columns["flux_err"], usable, never=targets, night=columns["night"],
        good_frame=good_frame, max_comparisons=job.settings.max_comparisons,
    )  # fmt: skip
    arrays = {
        "flux": best.flux.T,
        "flux_err": best.flux_err.T,
        "comparison": best.comparison.T,
        "flags": flags.T | _at(unclean, best.aperture),
        "raw_flux": _at(columns["flux"], best.aperture),
        "best_aperture": best.aperture.astype(np.int32),
        "scatter": best.scatter,
        "weight": best.weight.T,
        "target": targets,
        "jd_utc": columns["jd_utc"],
        "night": columns["night"],
    }
    attributes = job.attributes | {
        key: facts[key] for key in ("field", "filter", "instrument", "site")
    }
    write_store(
        work / "ensemble.zarr", ENSEMBLE, arrays, attributes=attributes,
        extra={"flags": cf_attributes()},
    )  # fmt: skip
    return Made()


def _flags(columns: dict[str, NDArray[Any]], expressions: tuple[str, ...]) -> NDArray[np.uint32]:
    """Flags [time, star]: of the star or of its frame, caveats left out."""
    frame = columns["frame_flags"].astype(np.uint32)
    out = excluded(expressions, columns, len(frame))
    frame[out] |= np.uint32(BITS["excluded"])
    flags: NDArray[np.uint32] = columns["flags"] | frame[:, None]
    return flags & ~np.uint32(CAVEATS)


def _mask_unclean(columns: dict[str, NDArray[Any]], shape: tuple[int, int]) -> NDArray[np.uint32]:
    """Flag [time, star, aperture] of apertures that reach beyond the edge or onto lost pixels.

    They give no flux to gather: a sum that lacks pixels is no flux of the star.
    """
    radius = columns["aperture_radius_px"][:, None, :]
    beyond = radius > columns["clean_radius_px"][:, :, None]
    columns["flux"] = np.where(beyond, np.float32(np.nan), columns["flux"])
    x, y, (ny, nx) = columns["x"], columns["y"], shape
    inside_px = np.minimum.reduce([x + 0.5, y + 0.5, nx - 0.5 - x, ny - 0.5 - y])
    flags = np.where(
        radius > inside_px[:, :, None], np.uint32(BITS["edge"]), np.uint32(BITS["bad_pixel"])
    )
    return np.asarray(np.where(beyond, flags, np.uint32(0)))


def _at(cube: NDArray[Any], apertures: NDArray[np.int64]) -> NDArray[Any]:
    """[star, time] of a cube [time, star, aperture], each star at its aperture; -1: the first."""
    picks = np.maximum(apertures, 0)[None, :, None]
    return np.take_along_axis(cube, picks, axis=2)[:, :, 0].T
