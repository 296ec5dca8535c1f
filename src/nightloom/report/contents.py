"""What a page shows, read from the stores that its light curve was made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightloom.errors import ProductError
from nightloom.gather.budget import clean_points
from nightloom.gather.differential import ensemble_product
from nightloom.gather.join import field_product
from nightloom.image.optimal import REACH_FWHM
from nightloom.reduce.stars import plate_of
from nightloom.report.images import Reference
from nightloom.report.series import Bools, Floats, point_to_point
from nightloom.schema.cube import LIGHTCURVE, TIME
from nightloom.schema.flags import BITS, CAVEATS, FLAGS
from nightloom.sky.plate import Plate, to_pixels, to_sky
from nightloom.store.encodings import read_arrays, read_attributes
from nightloom.store.products import VERSIONS, current, place_of

BEST_COMPARISONS = 8
_OF_FRAMES = (
    "reason", "frame_flags", "transparency", "elongation", "rotation_deg",
    "background_level",
)  # fmt: skip
_OF_CURVE = tuple(v.name for v in LIGHTCURVE if v.dims == (TIME,))


@dataclass(frozen=True, slots=True)
class PagePaths:
    """The versions that a page is made of; None where there is none."""

    lightcurve: Path
    field: Path | None
    ensemble: Path | None
    stars: Path | None
    plate: Path | None
    reference: Path | None
    cube: Path | None  # of the night, or of the last one

    def there(self) -> dict[str, Path]:
        """The versions that are there, by kind."""
        kinds = ("lightcurve", "ensemble", "field", "cube", "stars", "plate", "reference")
        return {kind: path for kind in kinds if (path := getattr(self, kind)) is not None}


@dataclass(frozen=True, slots=True)
class Comparisons:
    """The comparison stars that weigh most: flux, clean [star, time]; star, weight [star]."""

    star: NDArray[np.int64]
    weight: Floats
    flux: Floats
    clean: Bools


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a page shows; `columns` are [time], of its night or of all nights."""

    facts: dict[str, Any]
    columns: dict[str, NDArray[Any]]
    clean: Bools
    weight: Floats  # [star]: of every star as comparison
    comparisons: Comparisons
    radius_px: Floats  # [aperture]: at the median FWHM of the frames
    kind: NDArray[np.str_]  # [aperture]: fwhm, px or optimal
    scatter: Floats  # [aperture]: of the target
    annulus_px: tuple[float, float]
    reference: Reference | None
    plate: Plate | None
    star: dict[str, Any]  # the target's row in the star list

    @property
    def time_d(self) -> Floats:
        """BJD_TDB, or JD UTC where the target's direction is unknown."""
        return times_of(self.columns)[0]

    @property
    def time_scale(self) -> str:
        return times_of(self.columns)[1]

    @property
    def measured(self) -> Bools:
        """Frames that are not quarantined."""
        return np.asarray(self.columns["frame_flags"] & BITS["not_measured"] == 0)


def paths_of(root: Path, lightcurve: Path, *, night: str) -> PagePaths:
    """The versions that a published light curve was made of; night "": all nights."""
    facts = read_attributes(lightcurve)
    field, name = str(facts["field"]), str(facts["filter"])
    made_of = dict(facts["inputs"])
    joined = _version(root, field_product(field, name), made_of)
    return PagePaths(
        lightcurve=lightcurve,
        field=joined,
        ensemble=_version(root, ensemble_product(field, name), made_of),
        stars=current(root, f"stars/{field}"),
        plate=_version(root, f"plate/{field}", made_of),
        reference=current(root, f"reference/{field}"),
        cube=None if joined is None else _cube(root, joined, night=night),
    )


def _version(root: Path, product: str, made_of: dict[str, str]) -> Path | None:
    path = place_of(root, product) / VERSIONS / f"{made_of.get(product, '')}.zarr"
    return path if path.is_dir() else None


def _cube(root: Path, joined: Path, *, night: str) -> Path | None:
    made_of = dict(read_attributes(joined)["inputs"])
    mine = sorted(name for name in made_of if not night or name.split("/")[2] == night)
    return _version(root, mine[-1], made_of) if mine else None


def nights_of(lightcurve: Path) -> tuple[str, ...]:
    """Nights of a published light curve, in order."""
    return tuple(sorted(set(read_arrays(lightcurve, ["night"])["night"].astype(str))))


def read_contents(paths: PagePaths, *, night: str) -> Contents:
    """Read what a page shows; night "": all nights.

    Raises ProductError: a store that the light curve was made of is gone.
    """
    facts = read_attributes(paths.lightcurve)
    if paths.field is None or paths.ensemble is None:
        raise ProductError(
            where=str(facts["product"]), why="what it was made of is gone", do="run makes it again"
        )
    star = int(facts["star"])
    columns, some = read_columns(paths, night=night)
    apertures = read_arrays(paths.field, ["radius_fwhm", "radius_px", "aperture_kind"])
    weight = read_arrays(paths.lightcurve, ["weight"])["weight"]
    scatter = read_arrays(paths.ensemble, ["scatter"])["scatter"]
    reference, row = _reference(paths, n_stars=len(weight), star=star)
    plate = None if paths.plate is None else plate_of(paths.plate)
    fwhm_px = _middle(columns["fwhm_px"])
    if reference is not None and not np.isfinite(fwhm_px):
        fwhm_px = reference.fwhm_px
    kind = apertures["aperture_kind"].astype(str)
    in_fwhm = np.where(kind == "optimal", REACH_FWHM, apertures["radius_fwhm"])
    return Contents(
        facts=facts,
        columns=columns,
        clean=clean_points(columns),
        weight=weight,
        comparisons=_comparisons(paths.ensemble, weight, some),
        radius_px=np.where(kind == "px", apertures["radius_px"], in_fwhm * fwhm_px),
        kind=kind,
        scatter=scatter[star],
        annulus_px=_annulus(paths, fwhm_px),
        reference=reference,
        plate=plate,
        star=row,
    )


def read_columns(paths: PagePaths, *, night: str) -> tuple[dict[str, NDArray[Any]], Bools]:
    """The light curve's columns and its frames', [time]; and which of all times these are.

    Raises ProductError: the joined store that the light curve was made of is gone.
    """
    if paths.field is None:
        raise ProductError(
            where=str(paths.lightcurve), why="what it was made of is gone", do="run makes it again"
        )
    columns = read_arrays(paths.lightcurve, _OF_CURVE) | read_arrays(paths.field, _OF_FRAMES)
    columns["night"] = columns["night"].astype(str)
    some = columns["night"] == night if night else np.ones(len(columns["night"]), dtype=bool)
    return {name: values[some] for name, values in columns.items()}, some


def times_of(columns: dict[str, NDArray[Any]]) -> tuple[Floats, str]:
    """BJD_TDB of the points, or JD UTC where the target's direction is unknown; and its name."""
    if np.isfinite(columns["bjd_tdb"]).any():
        return columns["bjd_tdb"], "BJD_TDB"
    return columns["jd_utc"], "JD UTC"


def _comparisons(ensemble: Path, weight: Floats, some: Bools) -> Comparisons:
    heaviest = np.argsort(-weight, kind="stable")[:BEST_COMPARISONS]
    heaviest = heaviest[weight[heaviest] > 0]
    arrays = read_arrays(ensemble, ["flux", "flags"])
    flux = arrays["flux"][heaviest][:, some]
    clean = (arrays["flags"][heaviest][:, some] == 0) & np.isfinite(flux)
    return Comparisons(heaviest, weight[heaviest], flux, clean)


def _annulus(paths: PagePaths, fwhm_px: float) -> tuple[float, float]:
    if paths.cube is None:
        return float("nan"), float("nan")
    inner, outer = read_attributes(paths.cube)["settings"]["annulus_fwhm"]
    return inner * fwhm_px, outer * fwhm_px


def _reference(
    paths: PagePaths, *, n_stars: int, star: int
) -> tuple[Reference | None, dict[str, Any]]:
    """The reference with the star list, and the target's row; None where they do not fit."""
    if paths.stars is None or paths.reference is None:
        return None, {}
    names = ["x", "y", "saturated", "blended", "appended", "flux"]
    stars = read_arrays(paths.stars, names)
    if len(stars["x"]) < n_stars:
        return None, {}
    facts = read_attributes(paths.reference)
    nothing = np.zeros(0)
    catalogue = {"catalogue_x": nothing, "catalogue_y": nothing, "catalogue_mag": nothing}
    scale, north, east = float("nan"), (float("nan"),) * 2, (float("nan"),) * 2
    stack = read_arrays(paths.reference, ["stack"])["stack"]
    if paths.plate is not None:
        catalogue = read_arrays(paths.plate, list(catalogue))
        plate = plate_of(paths.plate)
        scale = plate.scale_arcsec
        north, east = _directions(plate, *stack.shape)
    reference = Reference(
        stack=stack,
        x=stars["x"],
        y=stars["y"],
        flux=stars["flux"],
        clean=~(stars["saturated"] | stars["blended"] | stars["appended"]),
        fwhm_px=float(facts["fwhm_px"]),
        beta=float("nan") if facts["psf_beta"] is None else float(facts["psf_beta"]),
        scale_arcsec=scale,
        north=north,
        east=east,
        **catalogue,
    )
    return reference, {name: values[star] for name, values in stars.items()}


def _directions(plate: Plate, ny: int, nx: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Unit vectors towards north and east at the middle of the image."""
    x, y = 0.5 * (nx - 1), 0.5 * (ny - 1)
    ra, dec = to_sky(plate, [x], [y])
    step = 10 * plate.scale_arcsec / 3600
    there_x, there_y = to_pixels(
        plate, [ra[0], ra[0] + step / np.cos(np.radians(dec[0]))], [dec[0] + step, dec[0]]
    )
    vectors = np.column_stack([there_x - x, there_y - y])
    vectors /= np.hypot(*vectors.T)[:, None]
    (north_x, north_y), (east_x, east_y) = vectors.tolist()
    return (north_x, north_y), (east_x, east_y)


@dataclass(frozen=True, slots=True)
class NightSummary:
    """A night of a light curve in numbers; scatter and error are relative, NaN where unknown."""

    night: str
    n_frames: int
    n_quarantined: int
    n_points: int
    n_clean: int
    scatter: float
    error: float
    flux: float
    fwhm_px: float
    airmass: tuple[float, float]


def summarise(columns: dict[str, NDArray[Any]], clean: Bools, *, night: str) -> NightSummary:
    """The numbers of a night; night "": of all."""
    some = columns["night"] == night if night else np.ones(len(clean), dtype=bool)
    use = some & clean
    lost = columns["frame_flags"] & BITS["not_measured"] != 0
    airmass = columns["airmass"][some]
    airmass = airmass[np.isfinite(airmass)]
    return NightSummary(
        night=night,
        n_frames=int(some.sum()),
        n_quarantined=int((some & lost).sum()),
        n_points=int((some & np.isfinite(columns["flux"])).sum()),
        n_clean=int(use.sum()),
        scatter=point_to_point(columns["flux"][use], columns["night"][use]),
        error=_middle(columns["flux_err"][use]),
        flux=_middle(columns["flux"][use]),
        fwhm_px=_middle(columns["fwhm_px"][some]),
        airmass=(float(airmass.min()), float(airmass.max())) if airmass.size else (np.nan,) * 2,
    )


def flag_counts(columns: dict[str, NDArray[Any]]) -> list[tuple[str, int, str]]:
    """Flags that mark points: name, how many, and what it means; caveats left out."""
    counts = [
        (flag.name, int(np.count_nonzero(columns["flags"] & flag.mask)), flag.meaning)
        for flag in FLAGS
        if not flag.mask & CAVEATS
    ]
    return [row for row in counts if row[1]]


def _middle(values: NDArray[Any]) -> float:
    good = values[np.isfinite(values)]
    return float(np.median(good)) if good.size else float("nan")
