"""A small products folder with known numbers: a reference, a plate, two nights, a light curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nightloom.engine.recipe import Made, Recipe
from nightloom.schema.cube import (
    CUBE,
    ENSEMBLE,
    FIELD,
    LIGHTCURVE,
    PLATE,
    STACK,
    STARS,
    TARGETS,
    Variable,
)
from nightloom.schema.flags import BITS
from nightloom.sky.tangent import Tangent, header_text
from nightloom.store.encodings import write_store
from nightloom.store.fingerprint import digest_of
from nightloom.store.products import publish, published_fingerprint, work_folder
from nightloom.store.provenance import provenance

NIGHTS = ("2024-10-01", "2024-10-02")
PER_NIGHT, N_STARS, NY, NX = 60, 24, 220, 260
FWHM_PX, BETA, SCALE_ARCSEC = 4.0, 3.5, 1.5
RADII_FWHM, RADII_PX = (0.8, 1.2, 1.6), (5.0, 8.0)
TARGET, CHOSEN = 3, 1
DEPTH = 0.02
QUARANTINED, CLOUDY, SATURATED = 17, (5, 6, 7), 40  # rows of the whole
REASON = "does not align with the reference: 3 < 5 & <nothing> fits"


@dataclass(frozen=True, slots=True)
class FakeProducts:
    """Where they lie, the recipes that made them, and the numbers that went in."""

    root: Path
    recipes: list[Recipe]
    flux: NDArray[np.float64]
    flags: NDArray[np.uint32]
    night: NDArray[Any]
    weight: NDArray[np.float64]


def _nothing(job: Any, work: Path, results: list[Any]) -> Made:
    raise AssertionError("made already")


def moffat_stack(x: NDArray[Any], y: NDArray[Any], flux: NDArray[Any]) -> NDArray[np.float32]:
    """Moffat stars on a flat, noisy sky that was subtracted."""
    rows, columns = np.mgrid[0:NY, 0:NX]
    alpha = 0.5 * FWHM_PX / np.sqrt(2 ** (1 / BETA) - 1)
    stack = np.random.default_rng(4).normal(0, 6.0, (NY, NX))
    for x0, y0, total in zip(x, y, flux, strict=True):
        squared = (columns - x0) ** 2 + (rows - y0) ** 2
        peak = total * (BETA - 1) / (np.pi * alpha**2)
        stack += peak * (1 + squared / alpha**2) ** -BETA
    return stack.astype(np.float32)


def _complete(variables: tuple[Variable, ...], sizes: dict[str, int], known: dict[str, Any]) -> Any:
    """Arrays of all variables; what is not known has its fill value."""
    arrays = {}
    for variable in variables:
        shape = tuple(sizes[dim] for dim in variable.dims)
        dtype = object if variable.dtype == "str" else variable.dtype
        arrays[variable.name] = np.full(shape, variable.fill, dtype=dtype)
        if variable.name in known:
            arrays[variable.name][...] = known[variable.name]
    return arrays


def write_products(
    root: Path, *, on_sky: bool = True, lost_night: bool = False, seed: int = 1
) -> FakeProducts:
    """Publish every store that pages read; on_sky: with a plate, a site and the target's place.

    lost_night: the first night's frames are all quarantined.
    """
    rng = np.random.default_rng(seed)
    n = len(NIGHTS) * PER_NIGHT
    sizes = {"time": n, "star": N_STARS, "aperture": len(RADII_FWHM) + len(RADII_PX)}
    night = np.repeat(np.array(NIGHTS, dtype=object), PER_NIGHT)
    jd = np.concatenate([2460585.3 + k + np.arange(PER_NIGHT) / 288.0 for k in range(len(NIGHTS))])
    x, y = rng.uniform(20, NX - 20, N_STARS), rng.uniform(20, NY - 20, N_STARS)
    x[TARGET], y[TARGET] = 120.3, 98.7
    star_flux = np.sort(rng.uniform(2e4, 4e5, N_STARS))[::-1]

    frame_flags = np.full(n, BITS["gain_assumed"], dtype=np.uint32)
    lost = (np.arange(n) == QUARANTINED) | (lost_night & (np.arange(n) < PER_NIGHT))
    frame_flags[lost] |= BITS["not_measured"]
    frame_flags[list(CLOUDY)] |= BITS["cloudy"]
    flags = frame_flags & ~np.uint32(BITS["gain_assumed"])
    flags[SATURATED] |= BITS["saturated"]
    gone = np.where(lost, np.nan, 1.0)
    flux = gone * (1 + rng.normal(0, 0.003, (N_STARS, n)))
    flux[TARGET, 80:100] *= 1 - DEPTH
    flux[TARGET, SATURATED] = 1.4 * gone[SATURATED]
    air = 1.1 + 0.3 * np.tile(np.linspace(0, 1, PER_NIGHT), len(NIGHTS)) ** 2
    by_time = {
        "jd_utc": jd, "night": night, "fwhm_px": gone * (FWHM_PX + rng.normal(0, 0.1, n)),
        "exposure_s": 60.0, "shift_x_px": gone * np.linspace(0, 9, n), "elongation": gone * 1.05,
        "shift_y_px": gone * np.linspace(3, -4, n), "rotation_deg": gone * 0.01,
        "background_level": gone * 300.0, "transparency": gone * 0.98, "n_matched": 20,
        "frame_flags": frame_flags, "airmass_center": air,
        "path": np.array([f"{a}/light_{k:03d}.fits" for k, a in enumerate(night)], dtype=object),
        "reason": np.where(lost, REASON, "").astype(object),
        "aperture_radius_px": np.array([r * FWHM_PX for r in RADII_FWHM] + [*RADII_PX]),
    }  # fmt: skip
    apertures = {
        "radius_fwhm": [*RADII_FWHM, *[np.nan] * len(RADII_PX)],
        "radius_px": [*[np.nan] * len(RADII_FWHM), *RADII_PX],
        "aperture_kind": ["fwhm"] * len(RADII_FWHM) + ["px"] * len(RADII_PX),
        "star_id": np.arange(N_STARS),
    }
    place = {"field": "Fake-1", "filter": "R", "instrument": "fake",
             "site": [28.3, -16.5, 2390.0] if on_sky else [None] * 3}  # fmt: skip

    def store(product: str, variables: Any, known: Any, inputs: Any, more: Any, dims: Any) -> None:
        digest = digest_of([product, [list(pair) for pair in inputs], seed, on_sky, lost_night])
        attributes = provenance(
            product, fingerprint=digest, inputs=inputs, settings=None, algorithm=1
        )
        kind = product.split("/")[0]
        with work_folder(root, product) as work:
            write_store(
                work / f"{kind}.zarr", variables, _complete(variables, dims, known),
                attributes=attributes | more,
            )  # fmt: skip
            publish(root, product, digest, work)

    def made_of(*names: str) -> tuple[tuple[str, str], ...]:
        return tuple((name, published_fingerprint(root, name)) for name in names)

    stars = {
        "star_id": np.arange(N_STARS), "x": x, "y": y, "flux": star_flux, "saturated": False,
        "blended": False, "appended": False, "target": "Fake & Sons 1", "target_star": TARGET,
        "target_x": x[TARGET], "target_y": y[TARGET], "target_note": "",
    }  # fmt: skip
    pixels = {"y": NY, "x": NX, "frame": 3, "target": 1, "catalogue_star": N_STARS}
    store(
        "reference/Fake-1", (*STACK, *STARS), stars | {"stack": moffat_stack(x, y, star_flux)},
        [("a.fits", "1")], {"fwhm_px": FWHM_PX, "psf_beta": BETA}, sizes | pixels,
    )  # fmt: skip
    store("stars/Fake-1", (*STARS, *TARGETS), stars, made_of("reference/Fake-1"), {},
          sizes | pixels)  # fmt: skip
    if on_sky:
        step = SCALE_ARCSEC / 3600
        wcs = header_text(
            Tangent(31.0, 46.7, np.array([[-step, 0.0, 0.0], [0.0, step, 0.0]])), ny=NY, nx=NX
        )
        store(
            "plate/Fake-1", PLATE,
            {"catalogue_x": x + 0.2, "catalogue_y": y - 0.1, "catalogue_mag": np.arange(N_STARS)},
            made_of("reference/Fake-1"),
            {"wcs": wcs, "n_matched": 20, "rms_arcsec": 0.2, "scale_arcsec": SCALE_ARCSEC,
             "rotation_deg": 0.0, "mirrored": False, "source": "catalogue"}, pixels,
        )  # fmt: skip
    for name in NIGHTS:
        known = {k: v for k, v in by_time.items() if k != "night"}
        some = {k: v[night == name] if np.shape(v)[:1] == (n,) else v for k, v in known.items()}
        store(
            f"cube/Fake-1/{name}/R", CUBE, some | apertures, made_of("stars/Fake-1"),
            place | {"night": name, "settings": {"annulus_fwhm": [4.0, 7.0]}},
            sizes | {"time": PER_NIGHT},
        )  # fmt: skip
    store("field/Fake-1/R", FIELD, by_time | apertures,
          made_of(*(f"cube/Fake-1/{name}/R" for name in NIGHTS)), place, sizes)  # fmt: skip
    weight = np.where(np.arange(N_STARS) < 12, star_flux, 0.0)
    weight[TARGET] = 0.0
    weight /= weight.sum()
    scatter = np.array([0.0051, 0.0030, 0.0034, 0.0036, 0.0060])
    all_flags = np.tile(flags & ~np.uint32(BITS["saturated"]), (N_STARS, 1))
    all_flags[TARGET] = flags
    store(
        "ensemble/Fake-1/R", ENSEMBLE,
        {"flux": flux, "flux_err": 0.003, "flags": all_flags, "comparison": gone, "raw_flux": 2e5,
         "best_aperture": CHOSEN, "scatter": scatter, "weight": weight[:, None],
         "target": np.arange(N_STARS) == TARGET, "jd_utc": jd, "night": night},
        made_of("field/Fake-1/R"), place, sizes,
    )  # fmt: skip
    nowhere = np.full(n, np.nan)
    store(
        "lightcurve/Fake-Sons-1/R", LIGHTCURVE,
        by_time | {"flux": flux[TARGET], "flux_err": 0.003, "flags": flags, "weight": weight,
                   "bjd_tdb": jd + 0.003 if on_sky else nowhere,
                   "airmass": air if on_sky else nowhere, "star_id": np.arange(N_STARS),
                   "raw_flux": 2e5 * gone * (1 + 0.1 * air), "comparison": gone * (1 + 0.1 * air),
                   "background": 310.0, "err_photometry": 0.0021,
                   "err_comparisons": 0.0007, "caveats": BITS["gain_assumed"]},
        made_of("ensemble/Fake-1/R", "field/Fake-1/R", "plate/Fake-1"),
        place | {"target": "Fake & Sons 1", "star": TARGET, "aperture": CHOSEN,
                 "ra_deg": 31.0 if on_sky else None, "dec_deg": 46.7 if on_sky else None,
                 "aperture_kind": "fwhm", "aperture_radius_fwhm": RADII_FWHM[CHOSEN],
                 "aperture_radius_px": None,
                 "flux_units": "adu", "scatter_p2p": 0.003, "aperture_m": None,
                 "site_height_m": None, "comparison_share": 0.1}, sizes,
    )  # fmt: skip
    recipes = [
        Recipe(product, (), None, 1, job=None, finish=_nothing)
        for product in ("field/Fake-1/R", "ensemble/Fake-1/R", "lightcurve/Fake-Sons-1/R")
    ]
    return FakeProducts(root, recipes, flux[TARGET], flags, night, weight)


@pytest.fixture(scope="session")
def products(tmp_path_factory: pytest.TempPathFactory) -> FakeProducts:
    """Two nights of a target on the sky; not to be changed."""
    return write_products(tmp_path_factory.mktemp("products"))


@pytest.fixture(scope="session")
def write_fake() -> Callable[..., FakeProducts]:
    """Writes such products into a folder of the test's own."""
    return write_products
