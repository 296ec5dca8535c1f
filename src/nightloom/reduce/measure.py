"""One frame to one row of numbers: every step, every decision, every flag."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightloom.config import PhotometrySection
from nightloom.errors import FrameError
from nightloom.image import align as alignment
from nightloom.image.align import Alignment
from nightloom.image.annulus import (
    Annuli,
    annulus_background,
    annulus_mode,
    mean_of_photons,
)
from nightloom.image.aperture import (
    ApertureSums,
    aperture_sums,
    flat_errors,
    flux_errors,
    flux_errors_from_rms,
    joined,
)
from nightloom.image.ballet import ballet
from nightloom.image.calibrate import (
    MASK_BAD,
    MASK_COSMIC,
    MASK_NAN,
    MASK_NONLINEAR,
    MASK_SATURATED,
)
from nightloom.image.centroid import Centroids, quadratic, windowed
from nightloom.image.detect import background_at
from nightloom.image.gaussian import gaussian2d
from nightloom.image.optimal import REACH_FWHM, optimal_sums
from nightloom.image.repair import repair_near
from nightloom.image.stars import StarPixels, blended, peaks_and_clean_radius
from nightloom.plan.recipes import PlannedFrame
from nightloom.reduce.cosmic import mark_cosmic_rays
from nightloom.reduce.detection import (
    ALIGNED_STARS,
    CalibratedFrame,
    Exposure,
    Sight,
    expose,
    gain_of,
    look,
    place,
)
from nightloom.reduce.masters import calibration_of
from nightloom.reduce.networks import network_of
from nightloom.reduce.overscan import data_of
from nightloom.reduce.positions import Positions, steadiest
from nightloom.schema.cube import ROW_VARIABLES
from nightloom.schema.flags import BITS
from nightloom.sky.times import airmass
from nightloom.store.encodings import read_arrays, read_attributes

Row = dict[str, Any]
CENTROID_CAP_FWHM = 0.5
WINDOW_FWHM, WINDOW_PX = 4.0, 32.0  # more than any centroid looks at, in whichever is wider
LOW_MATCH = 8
BLEND_FWHM = 2.0
FLAG_RADIUS_FWHM = 1.5

log = logging.getLogger("nightloom")


@dataclass(frozen=True, slots=True)
class StarList:
    """The field's stars in the reference: positions, fluxes, and which are good for aligning."""

    x_px: NDArray[np.float64]
    y_px: NDArray[np.float64]
    flux_e: NDArray[np.float64]
    clean: NDArray[np.bool_]  # neither saturated nor blended nor appended
    detected: NDArray[np.bool_]
    fwhm_px: float
    exposure_s: float


def measure_frame(
    item: CalibratedFrame, stars: StarList, settings: PhotometrySection, *, trim_px: int,
    cosmic_rays: bool = False,
) -> Row:  # fmt: skip
    """All that the cube holds of one frame.

    A frame that can't be measured gives a row of NaN with `not_measured` and its reason.
    """
    try:
        calibration = calibration_of(item.paths, item.frame.exposure_s)
        exposure = expose(item.frame, calibration, item.instrument, trim_px=trim_px)
        if cosmic_rays:
            exposure = mark_cosmic_rays(exposure, fwhm_px=stars.fwhm_px)
        sight = look(exposure, fwhm_px=stars.fwhm_px, settings=settings, max_stars=ALIGNED_STARS)
        placed = _place(item.frame, sight, stars, settings)
    except FrameError as error:
        log.warning("quarantined: %s", error)
        row = empty_row(item.frame, len(stars.x_px), settings, reason=error.why)
    else:
        row = _measure(item, exposure, sight, placed, stars, settings)
        if exposure.saturation_guessed:
            row["frame_flags"] |= BITS["saturation_guessed"]
    row["frame_flags"] |= _frame_caveats(item)
    return row


def empty_row(
    frame: PlannedFrame, n_stars: int, settings: PhotometrySection, *, reason: str
) -> Row:
    """The row of a frame that was not measured."""
    sizes = {"star": n_stars, "aperture": len(settings.aperture_kinds)}
    row: Row = {}
    for variable in ROW_VARIABLES:
        if len(variable.dims) > 1:
            shape = tuple(sizes[dim] for dim in variable.dims[1:])
            row[variable.name] = np.full(shape, variable.fill, dtype=variable.dtype)
        else:
            row[variable.name] = variable.fill
    row["flags"][:] = 0
    row |= _known(frame) | {
        "reason": reason,
        "n_matched": 0,
        "frame_flags": BITS["not_measured"],
    }
    return row


def _known(frame: PlannedFrame) -> Row:
    """What is known of a frame without its pixels."""
    here = (frame.site_lat_deg, frame.site_lon_deg)
    return {
        "path": frame.path,
        "reason": "",
        "jd_utc": frame.jd_utc,
        "exposure_s": frame.exposure_s,
        "airmass_center": float(airmass(frame.jd_utc, frame.ra_deg, frame.dec_deg, *here)),
    }


def _frame_caveats(item: CalibratedFrame) -> int:
    flags = 0
    if item.frame.time_suspect:
        flags |= BITS["time_suspect"]
    bare = item.paths.dark is None or item.paths.flat is None
    if bare and not item.paths.calibrated:
        flags |= BITS["calibration_missing"]
    calibration = calibration_of(item.paths, item.frame.exposure_s)
    if not np.isfinite(gain_of(item.frame, calibration)):
        flags |= BITS["gain_assumed"]
    elif calibration.gain_from_lights and not np.isfinite(item.frame.gain_e_per_adu):
        flags |= BITS["gain_estimated"]
    return flags


def _place(
    frame: PlannedFrame, sight: Sight, stars: StarList, settings: PhotometrySection
) -> Alignment:
    """Where the star list lies in the frame.

    Raises FrameError: too few stars, or the alignment is refused.
    """
    if not len(sight.stars.x_px):
        raise FrameError(where=frame.path, why="no stars found")
    xy = np.column_stack([stars.x_px, stars.y_px])[stars.detected]
    placed = place(xy, sight, settings=settings)
    if not isinstance(placed, Alignment):
        raise FrameError(
            where=frame.path,
            why=f"does not align with the reference: {placed.reason}",
            do="another field, clouds or trailed?",
        )
    return placed


def _measure(
    item: CalibratedFrame, exposure: Exposure, sight: Sight, placed: Alignment, stars: StarList,
    settings: PhotometrySection,
) -> Row:  # fmt: skip
    fwhm_px = sight.psf.fwhm_px if sight.psf.n_stars else stars.fwhm_px
    x, y = alignment.apply(placed.matrix, stars.x_px, stars.y_px)
    reach_px = _reach_px(settings, fwhm_px)
    repair_near(exposure.pixels_e, exposure.mask, x, y, reach_px=reach_px)
    # About the aligned places, once: the sky beneath the centroids is then that of the fluxes.
    annuli = _background(exposure, sight, x, y, settings, fwhm_px)
    positions = _centroids(exposure, x, y, annuli, settings, fwhm_px)
    x, y = positions.x_px, positions.y_px
    radii_px = np.concatenate([np.array(settings.radii_fwhm) * fwhm_px, settings.radii_px])
    sums = aperture_sums(exposure.pixels_e, exposure.mask, x, y, radii_px)
    if settings.optimal:
        weighted = optimal_sums(exposure.pixels_e, exposure.mask, x, y, shape=sight.psf)
        sums = joined((sums, weighted))
        radii_px = np.append(radii_px, REACH_FWHM * fwhm_px)
    flux = sums.flux_e - sums.area_px * annuli.level_e[:, None]
    marks = peaks_and_clean_radius(
        exposure.raw, exposure.mask, x, y, fwhm_px=fwhm_px,
        flag_radius_px=FLAG_RADIUS_FWHM * fwhm_px, max_radius_px=float(radii_px.max()),
    )  # fmt: skip
    ny, nx = exposure.pixels_e.shape
    middle_x, middle_y = (nx - 1) / 2, (ny - 1) / 2
    centre_x, centre_y = alignment.apply(placed.matrix, np.array([middle_x]), np.array([middle_y]))
    transparency = _transparency(flux, radii_px, fwhm_px, stars, item.frame.exposure_s)
    inside_px = _inside_px(item.frame, x, y)
    flags = _star_flags(marks, annuli, positions, fwhm_px)
    flags[~(inside_px >= FLAG_RADIUS_FWHM * fwhm_px)] |= BITS["edge"]
    flux[~(inside_px > 0)] = np.nan
    return _known(item.frame) | {
        "flux": flux.astype(np.float32),
        "flux_err": _errors(sums, annuli, exposure, fwhm_px, radii_px).astype(np.float32),
        "x": x,
        "y": y,
        "background": annuli.level_e.astype(np.float32),
        "background_err": annuli.error_e.astype(np.float32),
        "peak": marks.peak_adu,
        "flags": flags,
        "clean_radius_px": marks.clean_radius_px,
        "fwhm_px": fwhm_px if sight.psf.n_stars else float("nan"),
        "elongation": sight.psf.elongation,
        "shift_x_px": float(centre_x[0]) - middle_x,
        "shift_y_px": float(centre_y[0]) - middle_y,
        "rotation_deg": placed.rotation_deg,
        "n_matched": placed.n_matched,
        "background_level": float(np.median(sight.background.level)),
        "transparency": transparency,
        "gain_e_per_adu": float("nan") if exposure.gain_assumed else exposure.gain_e_per_adu,
        "read_noise_e": exposure.read_noise_e,
        "dark_e": exposure.dark_e,
        "flat_err": exposure.flat_err,
        "frame_flags": _frame_flags(sight, placed, settings),
        "aperture_radius_px": radii_px.astype(np.float32),
    }


def _inside_px(
    frame: PlannedFrame, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How far within the edges of the data each star lies."""
    data = data_of(frame)
    sides = [x - data.x0 + 0.5, y - data.y0 + 0.5, data.x1 - 0.5 - x, data.y1 - 0.5 - y]
    return np.asarray(np.minimum.reduce(sides))


def _reach_px(settings: PhotometrySection, fwhm_px: float) -> float:
    """How far from its aligned place a star's pixels are looked at, by whatever step."""
    widest_fwhm = max(*settings.annulus_fwhm, *settings.radii_fwhm, WINDOW_FWHM, REACH_FWHM)
    widest_px = max(widest_fwhm * fwhm_px, WINDOW_PX, *settings.radii_px)
    return widest_px + CENTROID_CAP_FWHM * fwhm_px + 2


_METHODS: dict[str, Callable[..., Centroids]] = {
    "windowed": windowed,
    "quadratic": quadratic,
    "gaussian2d": gaussian2d,
    "ballet": ballet,
}


def _background(
    exposure: Exposure, sight: Sight, x: NDArray[np.float64], y: NDArray[np.float64],
    settings: PhotometrySection, fwhm_px: float,
) -> Annuli:  # fmt: skip
    """Sky beneath the stars: of a ring about each, or of the mesh over the whole frame."""
    if settings.background == "mesh":
        level, noise = background_at(sight.background, x, y)
        # A box's level is about a median of its pixels; linear between boxes it is known better.
        n_box = sight.background.box_px**2
        error = noise * np.sqrt(0.5 * np.pi / n_box)
        return Annuli(level, error, noise, np.full(len(x), n_box, dtype=np.int32))
    ring = annulus_mode if settings.background == "annulus_mode" else annulus_background
    inner, outer = (radius * fwhm_px for radius in settings.annulus_fwhm)
    annuli = ring(
        exposure.pixels_e, exposure.mask, x, y, inner_px=inner, outer_px=outer,
        step_e=exposure.gain_e_per_adu,
    )  # fmt: skip
    if ring is annulus_mode or exposure.gain_assumed:
        return annuli
    return mean_of_photons(annuli, dark_e=exposure.dark_e)


def _centroids(
    exposure: Exposure, x: NDArray[np.float64], y: NDArray[np.float64], annuli: Annuli,
    settings: PhotometrySection, fwhm_px: float,
) -> Positions:  # fmt: skip
    """Aligned positions, bettered star by star where a centroid can be trusted and is steadier."""
    if settings.centroid == "none":
        asked = np.zeros(len(x), dtype=bool)
        return Positions(x, y, fallback=asked, forced=asked)
    method = _METHODS[settings.centroid]
    if settings.centroid == "ballet":
        own = network_of(settings.ballet_weights) if settings.ballet_weights else None
        method = partial(ballet, rms_e=annuli.rms_e, network=own)
    found: Centroids = method(
        exposure.pixels_e, exposure.mask, x, y, background_e=annuli.level_e, fwhm_px=fwhm_px,
        max_shift_px=CENTROID_CAP_FWHM * fwhm_px,
    )  # fmt: skip
    return steadiest(exposure, x, y, found, annuli, fwhm_px=fwhm_px)


def _errors(
    sums: ApertureSums, annuli: Annuli, exposure: Exposure, fwhm_px: float,
    radii_px: NDArray[np.float64],
) -> NDArray[np.float64]:  # fmt: skip
    """Flux errors by the CCD equation, or by the sky's scatter where its terms are unknown."""
    flat_err = flat_errors(exposure.flat_err, fwhm_px=fwhm_px, radii_px=radii_px)
    if exposure.gain_assumed or not np.isfinite(exposure.read_noise_e):
        return flux_errors_from_rms(
            sums, background_e=annuli.level_e, background_err_e=annuli.error_e,
            rms_e=annuli.rms_e, flat_err=flat_err,
        )  # fmt: skip
    return flux_errors(
        sums, background_e=annuli.level_e, background_err_e=annuli.error_e,
        read_noise_e=exposure.read_noise_e, gain_e_per_adu=exposure.gain_e_per_adu,
        dark_e=exposure.dark_e, flat_err=flat_err,
    )  # fmt: skip


def _transparency(
    flux: NDArray[np.float64], radii_px: NDArray[np.float64], fwhm_px: float, stars: StarList,
    exposure_s: float,
) -> float:  # fmt: skip
    """Median of star flux over the reference's, each a second of exposure."""
    near = int(np.argmin(np.abs(radii_px - 1.5 * fwhm_px)))
    ratio = flux[stars.clean, near] / stars.flux_e[stars.clean]
    ratio = ratio[np.isfinite(ratio)]
    if not ratio.size:
        return float("nan")
    return float(np.median(ratio)) * stars.exposure_s / exposure_s


def _frame_flags(sight: Sight, placed: Alignment, settings: PhotometrySection) -> int:
    flags = 0
    if sight.psf.elongation > settings.max_elongation:
        flags |= BITS["trailed"]
    if placed.n_matched < LOW_MATCH:
        flags |= BITS["low_match"]
    return flags


_MASK_FLAGS = (
    (MASK_SATURATED, "saturated"),
    (MASK_NONLINEAR, "nonlinear"),
    (MASK_COSMIC, "cosmic_ray"),
    (MASK_BAD | MASK_NAN, "bad_pixel"),
)


def _star_flags(
    marks: StarPixels, annuli: Annuli, positions: Positions, fwhm_px: float
) -> NDArray[np.uint32]:
    flags = np.zeros(len(positions.x_px), dtype=np.uint32)
    for mask_bits, name in _MASK_FLAGS:
        flags[marks.mask_bits & mask_bits != 0] |= BITS[name]
    flags[positions.fallback] |= BITS["centroid_fallback"]
    flags[positions.forced] |= BITS["position_forced"]
    flags[~np.isfinite(annuli.level_e)] |= BITS["background_poor"]
    near = blended(positions.x_px, positions.y_px, radius_px=BLEND_FWHM * fwhm_px)
    flags[near] |= BITS["blended"]
    return flags


def lost_row(item: CalibratedFrame, n_stars: int, settings: PhotometrySection, reason: str) -> Row:
    """The row of a frame that no worker survives."""
    row = empty_row(item.frame, n_stars, settings, reason=reason)
    row["frame_flags"] |= _frame_caveats(item)
    return row


def star_list(path: Path) -> StarList:
    """The stars of a field from its published list."""
    columns = read_arrays(path, ["x", "y", "flux", "saturated", "blended", "appended"])
    facts = read_attributes(path)
    appended = columns["appended"]
    return StarList(
        x_px=columns["x"],
        y_px=columns["y"],
        flux_e=columns["flux"],
        clean=~(columns["saturated"] | columns["blended"] | appended),
        detected=~appended,
        fwhm_px=float(facts["fwhm_px"]),
        exposure_s=float(facts["exposure_s"]),
    )
