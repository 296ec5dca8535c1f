"""The noise budget: what the error of a light curve's point is made of, and what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightloom.gather.aperture import step_scatter
from nightloom.image.aperture import flat_errors

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """One star in its aperture, [time]: electrons, pixels; NaN where unknown."""

    flux_e: Floats
    flux_err_e: Floats
    background_e: Floats
    background_err_e: Floats
    radius_px: Floats
    fwhm_px: Floats
    gain_e_per_adu: Floats
    read_noise_e: Floats
    dark_e: Floats
    flat_err: Floats


@dataclass(frozen=True, slots=True)
class Term:
    """A line of the budget: relative to the flux (the ratio apart), NaN where unknown, and why."""

    name: str
    value: float
    meaning: str
    note: str = ""


def error_terms(star: Measured, *, total: Floats, is_circle: bool) -> dict[str, Floats]:
    """Relative errors [time] of a point by their causes, by the name of the variable.

    total: relative error of the point, with its comparisons'. Where the read noise is unknown the
    pixels' noise is what the sky's scatter left in flux_err, and not told apart; of a weighted sum
    (no circle) only star with pixels and comparisons are. A term without its numbers is NaN.
    """
    flux = np.where(star.flux_e > 0, star.flux_e, np.nan)
    own = star.flux_err_e / flux
    area_px, noise_px = _areas(np.where(is_circle, star.radius_px, np.nan))
    known_gain = np.isfinite(star.gain_e_per_adu)
    photons = np.where(known_gain & np.isfinite(area_px), 1 / np.sqrt(flux), np.nan)
    sky_estimate = area_px * star.background_err_e / flux
    flat = flat_errors(star.flat_err, fwhm_px=star.fwhm_px, radii_px=star.radius_px)
    flat = np.where(np.isfinite(area_px * flux), flat, np.nan)
    with np.errstate(invalid="ignore"):
        one = np.sqrt(noise_px) / flux
        # Counts are cut to whole numbers by the readout, which adds to its noise.
        read_out_e2 = star.read_noise_e**2 + star.gain_e_per_adu**2 / 12
        known = {
            "err_sky": one * np.sqrt(np.maximum(star.background_e, 0)),
            "err_dark": one * np.sqrt(star.dark_e),
            "err_read_noise": one * np.sqrt(read_out_e2),
        }
        told = np.isfinite(read_out_e2)
        known = {name: np.where(told, values, np.nan) for name, values in known.items()}
        summed = np.sqrt(sum(values**2 for values in known.values()))
        left = np.sqrt(np.maximum(own**2 - photons**2 - sky_estimate**2 - flat**2, 0))
        comparisons = np.sqrt(np.maximum(total**2 - own**2, 0))
    return {
        "err_star": photons,
        **known,
        "err_pixels": np.where(told, summed, left),
        "err_sky_estimate": sky_estimate,
        "err_flat": flat,
        "err_photometry": own,
        "err_comparisons": comparisons,
    }


def _areas(radius_px: Floats) -> tuple[Floats, Floats]:
    """Area of a circle, and the area whose noise it carries.

    An edge cuts w from a pixel and takes w² of its variance: along a unit of it w - w² comes to
    1/6 px² whatever its direction (0.1650 to 0.1667).
    """
    area_px = np.pi * radius_px**2
    return area_px, np.maximum(area_px - np.pi * radius_px / 3, 0.0)


_MEANINGS = {
    "err_star": "photons of the star",
    "err_sky": "photons of the sky",
    "err_dark": "dark signal",
    "err_read_noise": "read noise",
    "err_pixels": "sky, dark and read noise together",
    "err_sky_estimate": "estimate of the sky",
    "err_flat": "flat",
    "err_photometry": "star and sky together, as flux_err has them",
    "err_comparisons": "comparison stars",
}
ERROR_NAMES = tuple(_MEANINGS)


def noise_budget(
    columns: Mapping[str, NDArray[Any]], clean: NDArray[np.bool_], facts: Mapping[str, Any]
) -> tuple[Term, ...]:
    """What one point of a light curve errs by, medians over its clean points, and its scatter.

    columns: of the light curve, [time]; facts: its attributes. `expected` is the sum in
    quadrature of photometry, comparison stars and scintillation, of those that are known;
    `measured` the scatter from point to point, so that slow changes do not enter.
    """
    middle = {name: _median(columns[name][clean]) for name in (*ERROR_NAMES, "scintillation")}
    why = _unknown(columns, clean, facts)
    terms = [
        Term(name, middle[name], meaning, "" if np.isfinite(middle[name]) else why[name])
        for name, meaning in _MEANINGS.items()
    ]
    # Each comparison scintillates on its own, so their mean does by the sum of squared weights.
    share = float(facts["comparison_share"])
    flicker = middle["scintillation"] * np.sqrt(1 + share)
    terms.append(
        Term("scintillation", flicker, "scintillation, of the comparison stars too",
             "" if np.isfinite(flicker) else why["scintillation"])
    )  # fmt: skip
    parts = {
        "photometry": np.nan if why["gain"] else middle["err_photometry"],
        "comparison stars": middle["err_comparisons"],
        "scintillation": flicker,
    }
    lacking = [name for name, value in parts.items() if not np.isfinite(value)]
    expected = float(np.sqrt(np.nansum(np.square(list(parts.values())))))
    if "photometry" in lacking:
        expected = np.nan
    note = f"without {' and '.join(lacking)}" if lacking else ""
    measured = step_scatter(columns["flux"], clean, columns["night"])
    measured /= _median(columns["flux"][clean])
    return (
        *terms,
        Term("expected", expected, "all of these in quadrature", why["gain"] or note),
        Term("measured", measured, "scatter from point to point"),
        Term("ratio", measured / expected, "measured over expected", note),
    )


def clean_points(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Points of a light curve [time] that have a flux and no flag."""
    return np.asarray((columns["flags"] == 0) & np.isfinite(columns["flux"]))


def _unknown(
    columns: Mapping[str, NDArray[Any]], clean: NDArray[np.bool_], facts: Mapping[str, Any]
) -> dict[str, str]:
    """Why a term would be missing, by its name; "gain": empty where it is known."""
    if not clean.any():
        return dict.fromkeys((*ERROR_NAMES, "scintillation", "gain"), "no clean point")
    names = dict.fromkeys(ERROR_NAMES, "not told apart")
    if facts["aperture_kind"] == "optimal":
        names = dict.fromkeys(ERROR_NAMES, "not told apart in a weighted aperture")
    else:
        names |= dict.fromkeys(
            ("err_sky", "err_dark", "err_read_noise"),
            "read noise unknown: the pixels' noise is as measured, not told apart",
        )
    gainless = facts["flux_units"] == "adu"
    gain = "gain unknown, and so the photon noise" if gainless else ""
    if gainless:
        names |= dict.fromkeys(("err_star", "err_pixels"), "gain unknown")
    lacks = [
        words
        for words, is_lacking in (
            ("aperture_m of the instrument", facts["aperture_m"] is None),
            ("height of the site", facts["site_height_m"] is None),
            ("airmass", not np.isfinite(columns["airmass"][clean]).any()),
        )
        if is_lacking
    ]
    return names | {"scintillation": f"unknown: {', '.join(lacks)}", "gain": gain}


def _median(values: NDArray[Any]) -> float:
    good = values[np.isfinite(values)]
    return float(np.median(good)) if good.size else float("nan")
