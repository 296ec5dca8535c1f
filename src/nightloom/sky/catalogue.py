"""Star catalogues from local ECSV files, carried to the epoch of the frames."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy import units
from astropy.table import Column, MaskedColumn, Table
from numpy.typing import NDArray

from nightloom.errors import ConfigError

_DEFAULT_EPOCH_YR = 2000.0
_SAME_STAR_ARCSEC = 1.0
_MAS_IN_RAD = np.pi / (180.0 * 3600.0 * 1000.0)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Stars at the epochs `epoch_yr`, all arrays of one length; pmra has cos(dec) in it.

    Proper motions are 0 where unknown, magnitudes NaN. `epoch_assumed`: a file did not say its
    epoch and 2000.0 was taken. `digest` depends on the arrays alone.
    """

    ra_deg: Floats
    dec_deg: Floats
    mag: Floats
    pmra_mas_yr: Floats
    pmdec_mas_yr: Floats
    epoch_yr: Floats
    epoch_assumed: bool
    digest: str


_ARRAYS = ("ra_deg", "dec_deg", "mag", "pmra_mas_yr", "pmdec_mas_yr", "epoch_yr")


def read_catalogue(paths: Sequence[Path]) -> Catalogue:
    """Stars of ECSV files with columns ra, dec (degrees, ICRS), mag and, optional, pmra, pmdec.

    The meta key `epoch` is the year of the places. A star within 1 arcsec of one of an earlier
    line or file is left out, so name the file with proper motions first.
    Raises ConfigError: no such file, not ECSV, a column missing or in a wrong unit.
    """
    parts = [_read_file(path) for path in paths]
    columns = {
        name: np.concatenate([part[name] for part, _ in parts]) if parts else np.empty(0)
        for name in _ARRAYS
    }
    whole = _catalogue(columns, epoch_assumed=any(assumed for _, assumed in parts))
    return _take(whole, _first_of_each(whole))


def at_epoch(catalogue: Catalogue, year: float) -> Catalogue:
    """The stars where they are in `year` (2025.5), moved along great circles.

    Rigorous but for parallax and radial velocity, at the poles too.
    """
    place, east, north = _axes(catalogue.ra_deg, catalogue.dec_deg)
    motion = _MAS_IN_RAD * (
        catalogue.pmra_mas_yr[:, np.newaxis] * east + catalogue.pmdec_mas_yr[:, np.newaxis] * north
    )
    moved = place + motion * (year - catalogue.epoch_yr)[:, np.newaxis]
    distance = np.linalg.norm(moved, axis=1)
    ra = np.degrees(np.arctan2(moved[:, 1], moved[:, 0])) % 360.0
    dec = np.degrees(np.arctan2(moved[:, 2], np.hypot(moved[:, 0], moved[:, 1])))
    _, new_east, new_north = _axes(ra, dec)
    still = catalogue.epoch_yr == year
    columns = {
        # A star that need not move keeps its digits.
        "ra_deg": np.where(still, catalogue.ra_deg, ra),
        "dec_deg": np.where(still, catalogue.dec_deg, dec),
        "mag": catalogue.mag,
        "pmra_mas_yr": np.sum(motion * new_east, axis=1) / distance / _MAS_IN_RAD,
        "pmdec_mas_yr": np.sum(motion * new_north, axis=1) / distance / _MAS_IN_RAD,
        "epoch_yr": np.full(len(ra), float(year)),
    }
    return _catalogue(columns, epoch_assumed=catalogue.epoch_assumed)


def within(catalogue: Catalogue, ra_deg: float, dec_deg: float, radius_deg: float) -> Catalogue:
    """The stars at most `radius_deg` from a direction, in their order."""
    place, _, _ = _axes(catalogue.ra_deg, catalogue.dec_deg)
    centre, _, _ = _axes(np.array([ra_deg]), np.array([dec_deg]))
    chord = np.linalg.norm(place - centre, axis=1)
    return _take(catalogue, chord <= 2.0 * np.sin(np.radians(min(radius_deg, 180.0)) / 2.0))


def _catalogue(columns: Mapping[str, Floats], *, epoch_assumed: bool) -> Catalogue:
    arrays = {name: np.ascontiguousarray(columns[name], dtype=np.float64) for name in _ARRAYS}
    digest = hashlib.sha256()
    for name in _ARRAYS:
        digest.update(arrays[name].astype("<f8").tobytes())
    return Catalogue(**arrays, epoch_assumed=epoch_assumed, digest=digest.hexdigest())


def _take(catalogue: Catalogue, chosen: NDArray[np.bool_]) -> Catalogue:
    columns = {name: getattr(catalogue, name)[chosen] for name in _ARRAYS}
    return _catalogue(columns, epoch_assumed=catalogue.epoch_assumed)


def _axes(ra_deg: Floats, dec_deg: Floats) -> tuple[Floats, Floats, Floats]:
    """Unit vectors [n, 3] to the stars, and east and north of them."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    sin_ra, cos_ra, sin_dec, cos_dec = np.sin(ra), np.cos(ra), np.sin(dec), np.cos(dec)
    place = np.stack([cos_dec * cos_ra, cos_dec * sin_ra, sin_dec], axis=1)
    east = np.stack([-sin_ra, cos_ra, np.zeros_like(ra)], axis=1)
    north = np.stack([-sin_dec * cos_ra, -sin_dec * sin_ra, cos_dec], axis=1)
    return place, east, north


def _first_of_each(catalogue: Catalogue) -> NDArray[np.bool_]:
    """True for all stars but those that repeat an earlier one."""
    keep = np.ones(len(catalogue.ra_deg), dtype=bool)
    if len(keep) < 2:
        return keep
    common = at_epoch(catalogue, float(catalogue.epoch_yr.max()))
    place, _, _ = _axes(common.ra_deg, common.dec_deg)
    order = np.argsort(common.dec_deg, kind="stable")
    dec = common.dec_deg[order]
    limit_deg = _SAME_STAR_ARCSEC / 3600.0
    pairs = []
    for step in range(1, len(order)):
        near = np.flatnonzero(dec[step:] - dec[:-step] < limit_deg)
        if near.size == 0:
            break
        one, other = order[near], order[near + step]
        apart = np.linalg.norm(place[one] - place[other], axis=1)
        same = apart < np.radians(limit_deg)
        pairs.append(np.sort(np.stack([one[same], other[same]], axis=1), axis=1))
    for first, second in sorted(map(tuple, np.concatenate(pairs).tolist())) if pairs else ():
        if keep[first]:
            keep[second] = False
    return keep


def _read_file(path: Path) -> tuple[dict[str, Floats], bool]:
    try:
        table = Table.read(path, format="ascii.ecsv")
    except FileNotFoundError:
        raise ConfigError(
            where=str(path), why="no such file", do="mend catalog.files in nightloom.toml"
        ) from None
    except OSError as error:
        raise ConfigError(
            where=str(path), why=error.strerror or "can't be read", do="name a readable ECSV file"
        ) from None
    except (ValueError, KeyError) as error:
        raise ConfigError(
            where=str(path),
            why=f"not a readable ECSV table: {str(error).splitlines()[0]}",
            do="write it with astropy's Table.write(..., format='ascii.ecsv')",
        ) from None
    columns = {
        "ra_deg": _column(path, table, "ra", units.deg) % 360.0,
        "dec_deg": _column(path, table, "dec", units.deg),
        "mag": _column(path, table, "mag", units.mag),
        "pmra_mas_yr": _motion(path, table, "pmra"),
        "pmdec_mas_yr": _motion(path, table, "pmdec"),
    }
    if np.any(np.abs(columns["dec_deg"]) > 90.0):
        raise ConfigError(where=f"{path}: dec", why="beyond 90 degrees", do="mend the column")
    epoch_yr, assumed = _epoch(path, table.meta)
    columns["epoch_yr"] = np.full(len(table), epoch_yr)
    placed = np.isfinite(columns["ra_deg"]) & np.isfinite(columns["dec_deg"])
    return {name: column[placed] for name, column in columns.items()}, assumed


def _column(path: Path, table: Table, name: str, unit: units.UnitBase) -> Floats:
    """A column in `unit`, which is taken as meant where the file names none; masked is NaN."""
    if name not in table.colnames:
        raise ConfigError(
            where=f"{path}: {name}",
            why=f"no such column; there are {', '.join(table.colnames)}",
            do="name the columns ra, dec (degrees, ICRS), mag and, if known, pmra, pmdec",
        )
    column: Column = table[name]
    if column.dtype.kind not in "iuf":
        raise ConfigError(
            where=f"{path}: {name}", why="not a column of numbers", do=f"give it in {unit}"
        )
    values = np.asarray(column, dtype=np.float64)
    if isinstance(column, MaskedColumn):
        values = np.where(np.ma.getmaskarray(column), np.nan, values)
    if column.unit is None or column.unit == unit:
        return values
    try:
        factor = float(column.unit.to(unit))
    except (units.UnitConversionError, TypeError, ValueError):
        raise ConfigError(
            where=f"{path}: {name}", why=f"its unit is {column.unit}", do=f"give it in {unit}"
        ) from None
    return values * factor


def _motion(path: Path, table: Table, name: str) -> Floats:
    if name not in table.colnames:
        return np.zeros(len(table))
    motion = _column(path, table, name, units.mas / units.yr)
    return np.where(np.isfinite(motion), motion, 0.0)


def _epoch(path: Path, meta: Mapping[str, object]) -> tuple[float, bool]:
    """The year of the places, and whether it had to be assumed."""
    given = meta.get("epoch")
    if given is None:
        return _DEFAULT_EPOCH_YR, True
    try:
        year = float(str(given).upper().removeprefix("J"))
    except ValueError:
        year = np.nan
    if not 1800.0 < year < 2200.0:
        raise ConfigError(
            where=f"{path}: epoch", why=f"{given!r} is no year", do="write one, such as 2016.0"
        )
    return year, False
