"""The plate of a frame: which pixel shows which place of the sky.

Detections are matched with a catalogue, by the header's WCS or by asterisms around a guess, and
a tangential projection is fitted to all that match. A plate is believed only if so many matches
could hardly be chance. It travels as header text: a pickled WCS loses digits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any, Literal

import numpy as np
from astropy.wcs import WCS, FITSFixedWarning
from numpy.typing import ArrayLike, NDArray

from nightloom.image.align import Alignment, find_similarity, match
from nightloom.sky.catalogue import Catalogue
from nightloom.sky.tangent import Tangent, deproject, fit, header_text, middle, predict, project

_MAX_DETECTIONS = 300
_MAX_ASTERISM_STARS = 40
_ASTERISM_PX = 1.5  # asterisms are told from chance by closeness: finer than the tolerance
_SEARCH_DEG = 1.2
_MANY_PLACES, _FEW_PLACES = 400, 37  # around a guess: 11 rings, 3 rings
_SCALES_ARCSEC = (1.0, 2.0, 0.5, 4.0, 0.25, 8.0, 16.0)  # where the scale is unknown
_LOG_CHANCE_BLIND = math.log(1e-9)  # many hypotheses were tried
_LOG_CHANCE_REFINED = math.log(1e-6)  # one, but bent to what matches
_LOG_CHANCE_KEPT = math.log(1e-3)  # one
_LEAST_SHARE = 0.3  # of the stars or detections, of which there are fewer, for a header kept
_IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plate:
    """A solution as header text; `rotation_deg` is the position angle of +y, north through east.

    `mirrored`: east lies clockwise from north when x runs right and y up. n_matched and rms are
    of the catalogue stars that agree; source "header" is the header's own WCS, left as it was.
    """

    header: str
    n_matched: int
    rms_arcsec: float
    scale_arcsec: float
    rotation_deg: float
    mirrored: bool
    source: Literal["catalogue", "header"]


@dataclass(frozen=True, slots=True)
class PlateRefusal:
    reason: str


@dataclass(frozen=True, slots=True)
class _Field:
    """What is to be matched: detections [n, 2] and stars, both brightest first."""

    xy_px: Floats
    ra_deg: Floats
    dec_deg: Floats
    ny: int
    nx: int
    tolerance_arcsec: float
    min_matched: int
    half_diagonal_px: float


@dataclass(frozen=True, slots=True)
class _Guess:
    """Where the frame may look, with a scale that may be off by the factor `slack`."""

    ra_deg: float
    dec_deg: float
    scale_arcsec: float
    slack: float
    tolerance_px: float


@dataclass(frozen=True, slots=True)
class _Match:
    """Pairs [pair, 2] of star and detection, their distances, and the odds of so many."""

    pairs: NDArray[np.int64]
    distance_px: Floats
    n_stars: int
    share: float
    log_chance: float


def solve(
    x_px: ArrayLike,
    y_px: ArrayLike,
    catalogue: Catalogue,
    *,
    ny: int,
    nx: int,
    ra_deg: float,
    dec_deg: float,
    scale_arcsec: float,
    header_wcs: str | None = None,
    tolerance_arcsec: float = 3.0,
    min_matched: int = 5,
) -> Plate | PlateRefusal:
    """The plate of a frame from detections (brightest first) and a catalogue at its epoch.

    ra_deg, dec_deg: where the frame's centre is thought to be, within a degree; scale_arcsec:
    of a pixel, within 10 % or a factor of two. NaN is unknown. Stars match within the tolerance
    or one pixel, whichever is more. A header's WCS that agrees with the catalogue is refined,
    or kept as it is where there are few stars or it has distortion terms.
    """
    order = np.argsort(catalogue.mag, kind="stable")
    xy = np.column_stack([np.asarray(x_px, np.float64), np.asarray(y_px, np.float64)])
    field = _Field(
        xy_px=xy[np.isfinite(xy).all(axis=1)][:_MAX_DETECTIONS],
        ra_deg=catalogue.ra_deg[order],
        dec_deg=catalogue.dec_deg[order],
        ny=ny,
        nx=nx,
        tolerance_arcsec=tolerance_arcsec,
        min_matched=min_matched,
        half_diagonal_px=0.5 * math.hypot(nx, ny),
    )
    if field.ra_deg.size == 0:
        return PlateRefusal("the catalogue is empty")
    if len(field.xy_px) == 0:
        return PlateRefusal("no star was detected")
    refused = ""
    if header_wcs is not None:
        by_header = _by_header(field, header_wcs)
        if isinstance(by_header, Plate):
            return by_header
        refused = f"{by_header.reason}; "
    by_asterisms = _by_asterisms(field, ra_deg, dec_deg, scale_arcsec)
    if isinstance(by_asterisms, Plate):
        return by_asterisms
    return PlateRefusal(refused + by_asterisms.reason)


def from_header(header_wcs: str, *, ny: int, nx: int) -> Plate | PlateRefusal:
    """The header's own WCS, checked against nothing: n_matched is 0, rms NaN."""
    wcs = _celestial(header_wcs)
    if isinstance(wcs, PlateRefusal):
        return wcs
    return _header_plate(header_wcs, wcs, ny, nx, np.empty(0))


def to_pixels(plate: Plate, ra_deg: ArrayLike, dec_deg: ArrayLike) -> tuple[Floats, Floats]:
    """0-based pixel coordinates of ICRS directions; NaN where the projection does not reach."""
    return _world_to_pixels(_open(plate.header).celestial, ra_deg, dec_deg)


def to_sky(plate: Plate, x_px: ArrayLike, y_px: ArrayLike) -> tuple[Floats, Floats]:
    """ICRS directions in degrees of 0-based pixel coordinates."""
    wcs = _open(plate.header).celestial
    ra, dec = wcs.all_pix2world(np.asarray(x_px, np.float64), np.asarray(y_px, np.float64), 0)
    return np.asarray(ra) % 360.0, np.asarray(dec)


def _world_to_pixels(wcs: Any, ra_deg: ArrayLike, dec_deg: ArrayLike) -> tuple[Floats, Floats]:
    ra, dec = np.broadcast_arrays(np.asarray(ra_deg, np.float64), np.asarray(dec_deg, np.float64))
    x, y = wcs.all_world2pix(ra, dec, 0, quiet=True)
    # Distortion far off the frame need not converge: only what leads back is an answer.
    back_ra, back_dec = wcs.all_pix2world(x, y, 0)
    east = (back_ra - ra + 180.0) % 360.0 - 180.0
    strayed = np.hypot(east * np.cos(np.radians(dec)), back_dec - dec) * 3600.0
    good = strayed < 0.01
    return np.where(good, x, np.nan), np.where(good, y, np.nan)


def _open(header: str) -> Any:
    with warnings.catch_warnings():
        # RADECSYS and its like: old cards that are understood, nothing to be mended by anyone.
        warnings.simplefilter("ignore", FITSFixedWarning)
        return WCS(header, fix=False)


def _celestial(header_wcs: str) -> Any:
    """The WCS of a header text, or a PlateRefusal."""
    try:
        wcs = _open(header_wcs)
    except ValueError as error:
        return PlateRefusal(f"the header's WCS can't be read: {str(error).splitlines()[0]}")
    if not wcs.has_celestial or wcs.celestial.wcs.lngtyp != "RA":
        return PlateRefusal("the header's WCS has no right ascension and declination")
    return wcs.celestial


def _by_header(field: _Field, header_wcs: str) -> Plate | PlateRefusal:
    wcs = _celestial(header_wcs)
    if isinstance(wcs, PlateRefusal):
        return wcs
    predicted = np.column_stack(_world_to_pixels(wcs, field.ra_deg, field.dec_deg))
    scale = 3600.0 * math.sqrt(abs(float(np.linalg.det(wcs.pixel_scale_matrix))))
    radius_px = _radius_px(field, scale)
    if wcs.wcs.ctype[0].endswith("-TAN") and not wcs.has_distortion:
        found = _match(field, predicted, 3.0 * radius_px, free_stars=0)
        refined = _refine(field, found, free_stars=0, limit=_LOG_CHANCE_REFINED)
        if isinstance(refined, Plate):
            return refined
    found = _match(field, predicted, radius_px, free_stars=0)
    if found.log_chance > _LOG_CHANCE_KEPT or found.share < _LEAST_SHARE:
        return PlateRefusal(
            f"the header's WCS puts {found.n_stars} catalogue stars into the frame and "
            f"{len(found.pairs)} of them within {field.tolerance_arcsec:g} arcsec of a detection"
        )
    return _header_plate(header_wcs, wcs, field.ny, field.nx, found.distance_px)


def _header_plate(header_wcs: str, wcs: Any, ny: int, nx: int, distance_px: Floats) -> Plate:
    x, y = 0.5 * (nx - 1), 0.5 * (ny - 1)
    ra, dec = wcs.all_pix2world([x, x + 1, x], [y, y, y + 1], 0)
    xi, eta = project(ra, dec, float(ra[0]), float(dec[0]))
    jacobian_deg = np.array([[xi[1], xi[2]], [eta[1], eta[2]]])
    return _plate(header_wcs, jacobian_deg, distance_px, "header")


def _by_asterisms(
    field: _Field, ra_deg: float, dec_deg: float, scale_arcsec: float
) -> Plate | PlateRefusal:
    if len(field.xy_px) < field.min_matched:
        return PlateRefusal(
            f"{len(field.xy_px)} detections are too few to match asterisms: "
            f"{field.min_matched} are needed"
        )
    if not (math.isfinite(ra_deg) and math.isfinite(dec_deg)):
        # A local catalogue is usually one of the field.
        ra_deg, dec_deg = middle(field.ra_deg, field.dec_deg)
    most, tried = 0, 0
    for guess in _guesses(field, ra_deg, dec_deg, scale_arcsec):
        xi, eta = project(field.ra_deg, field.dec_deg, guess.ra_deg, guess.dec_deg)
        reach = field.half_diagonal_px * guess.scale_arcsec / 3600.0
        near = np.flatnonzero(np.hypot(xi, eta) <= reach)
        most = max(most, near.size)
        if near.size < field.min_matched:
            continue
        tried += 1
        solved = _solve_at(field, guess, np.column_stack([xi, eta])[near])
        if solved is not None:
            return solved
    place = f"ra {ra_deg:.4f} dec {dec_deg:+.4f}"
    if tried == 0:
        return PlateRefusal(
            f"no frame around {place} would hold more than {most} catalogue stars: "
            f"{field.min_matched} are needed"
        )
    return PlateRefusal(
        f"no asterism of the {len(field.xy_px)} brightest detections was confirmed by the "
        f"catalogue around {place}: {tried} places and scales tried"
    )


def _guesses(field: _Field, ra_deg: float, dec_deg: float, scale_arcsec: float) -> Iterator[_Guess]:
    """What to try, the likely first."""

    def around(
        scale: float, n_places: int, *, slack: float = 1.1, tolerance_px: float = _ASTERISM_PX
    ) -> Iterator[_Guess]:
        for ra, dec in islice(_places(field, ra_deg, dec_deg, scale), n_places):
            yield _Guess(ra, dec, scale, slack, tolerance_px)

    if not math.isfinite(scale_arcsec):
        rungs = [around(scale, _FEW_PLACES, slack=1.45) for scale in _SCALES_ARCSEC]
        for row in zip_longest(*rungs):
            yield from (guess for guess in row if guess is not None)
        return
    yield from around(scale_arcsec, _MANY_PLACES)
    # A header's scale may be that of another binning, a catalogue may be coarse.
    yield from around(2.0 * scale_arcsec, _FEW_PLACES)
    yield from around(0.5 * scale_arcsec, _FEW_PLACES)
    radius_px = _radius_px(field, scale_arcsec)
    if radius_px > _ASTERISM_PX:
        yield from around(scale_arcsec, _FEW_PLACES, tolerance_px=radius_px)


def _places(
    field: _Field, ra_deg: float, dec_deg: float, scale_arcsec: float
) -> Iterator[tuple[float, float]]:
    """Centres to try: the guess, then rings around it, less than half a frame apart."""
    step_deg = 0.7 * field.half_diagonal_px * scale_arcsec / 3600.0
    yield ra_deg, dec_deg
    for ring in range(1, int(_SEARCH_DEG / step_deg) + 1):
        for k in range(6 * ring):
            angle = 2.0 * math.pi * k / (6 * ring)
            radius = ring * step_deg
            yield deproject(radius * math.cos(angle), radius * math.sin(angle), ra_deg, dec_deg)


def _solve_at(field: _Field, guess: _Guess, plane_deg: Floats) -> Plate | None:
    """The plate that asterisms of the stars around a place suggest, if it holds."""
    # Either list may go deeper than the other: as many of the brightest as the other has.
    n_most = min(_MAX_ASTERISM_STARS, 2 * len(plane_deg), 2 * len(field.xy_px))
    pixel_deg = guess.scale_arcsec / 3600.0
    found = find_similarity(
        field.xy_px[:n_most],
        plane_deg[:n_most] / pixel_deg,
        scale_range=(1.0 / guess.slack, guess.slack),
        allow_mirror=True,
        tolerance=guess.tolerance_px,
        min_matched=field.min_matched,
    )
    if not isinstance(found, Alignment):
        return None
    start = Tangent(guess.ra_deg, guess.dec_deg, found.matrix * pixel_deg)
    predicted = predict(start, field.ra_deg, field.dec_deg)
    radius_px = max(_radius_px(field, start.scale_arcsec), 3.0)  # shear and distortion at corners
    matched = _match(field, predicted, radius_px, free_stars=3)
    solved = _refine(field, matched, free_stars=3, limit=_LOG_CHANCE_BLIND)
    return solved if isinstance(solved, Plate) else None


def _refine(field: _Field, found: _Match, *, free_stars: int, limit: float) -> Plate | PlateRefusal:
    """Fit, match closer, fit again; believed only where so many matches are unlikely."""
    fitted: Tangent | None = None
    for _ in range(6):
        if len(found.pairs) < max(field.min_matched, 3):
            return PlateRefusal(f"{len(found.pairs)} matched, {field.min_matched} are needed")
        stars, seen = found.pairs.T
        fitted = fit(
            field.xy_px[seen], field.ra_deg[stars], field.dec_deg[stars], ny=field.ny, nx=field.nx
        )
        predicted = predict(fitted, field.ra_deg, field.dec_deg)
        spread = 4.0 * 1.48 * float(np.median(_distances(field, predicted, found.pairs)))
        radius_px = min(_radius_px(field, fitted.scale_arcsec), max(spread, 0.5))
        found = _match(field, predicted, radius_px, free_stars=free_stars)
    if fitted is None or found.log_chance > limit or len(found.pairs) < field.min_matched:
        return PlateRefusal(f"{len(found.pairs)} of {found.n_stars} stars matched may be chance")
    header = header_text(fitted, ny=field.ny, nx=field.nx)
    return _plate(header, fitted.matrix[:, :2], found.distance_px, "catalogue")


def _radius_px(field: _Field, scale_arcsec: float) -> float:
    return max(field.tolerance_arcsec / scale_arcsec, 1.0)


def _match(field: _Field, predicted_px: Floats, radius_px: float, *, free_stars: int) -> _Match:
    """Stars and detections that are each other's nearest, within the radius."""
    x, y = predicted_px[:, 0], predicted_px[:, 1]
    inside = (x >= -0.5) & (x < field.nx - 0.5) & (y >= -0.5) & (y < field.ny - 0.5)
    n_detections = len(field.xy_px)
    stars = np.flatnonzero(inside)[: max(2 * n_detections, 50)]
    pairs = match(predicted_px[stars], field.xy_px, _IDENTITY, radius_px)
    pairs = np.column_stack([stars[pairs[:, 0]], pairs[:, 1]])
    few, many = sorted((len(stars), n_detections))
    chance = min(many * math.pi * radius_px**2 / (field.nx * field.ny), 1.0)
    return _Match(
        pairs=pairs,
        distance_px=_distances(field, predicted_px, pairs),
        n_stars=len(stars),
        share=len(pairs) / max(few, 1),
        log_chance=_log_tail(len(pairs) - free_stars, few - free_stars, chance),
    )


def _log_tail(hits: int, trials: int, chance: float) -> float:
    """Upper bound of the log of the probability of at least so many hits: C(n, k) p^k."""
    if hits <= 0 or chance <= 0.0:
        return 0.0
    choices = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
    return min(choices + hits * math.log(chance), 0.0)


def _distances(field: _Field, predicted_px: Floats, pairs: NDArray[np.int64]) -> Floats:
    apart = predicted_px[pairs[:, 0]] - field.xy_px[pairs[:, 1]]
    return np.hypot(apart[:, 0], apart[:, 1])


def _plate(
    header: str,
    jacobian_deg: Floats,
    distance_px: Floats,
    source: Literal["catalogue", "header"],
) -> Plate:
    determinant = float(np.linalg.det(jacobian_deg))
    scale_arcsec = 3600.0 * math.sqrt(abs(determinant))
    rms_px = math.sqrt(float(np.mean(distance_px**2))) if distance_px.size else math.nan
    return Plate(
        header=header,
        n_matched=len(distance_px),
        rms_arcsec=scale_arcsec * rms_px,
        scale_arcsec=scale_arcsec,
        rotation_deg=math.degrees(math.atan2(jacobian_deg[0, 1], jacobian_deg[1, 1])),
        mirrored=determinant > 0.0,
        source=source,
    )
