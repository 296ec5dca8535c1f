"""The cube and what grows from it: variables with dims, dtype, unit and meaning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nightloom.schema.flags import MISSING

CUBE_SCHEMA_VERSION = 1
CONVENTIONS = "CF-1.11"
TIME, STAR, APERTURE = "time", "star", "aperture"


@dataclass(frozen=True, slots=True)
class Variable:
    name: str
    dims: tuple[str, ...]
    dtype: str  # numpy name, or "str"
    unit: str
    meaning: str

    @property
    def fill(self) -> object:
        """What an element holds that was never written."""
        if self.dtype == "str":
            return ""
        if self.dtype.startswith("float"):
            return np.nan
        if self.dtype == "uint32":
            return int(MISSING)
        return {"uint8": 255, "bool": False}.get(self.dtype, -1)


_T, _TS, _TSA = (TIME,), (TIME, STAR), (TIME, STAR, APERTURE)

CUBE: tuple[Variable, ...] = (
    Variable("flux", _TSA, "float32", "electron", "flux in the exposure, background subtracted"),
    Variable("flux_err", _TSA, "float32", "electron", "its one-sigma error"),
    Variable("x", _TS, "float64", "pixel", "x of the star in the frame, 0 at the first pixel"),
    Variable("y", _TS, "float64", "pixel", "y of the star in the frame, 0 at the first pixel"),
    Variable("background", _TS, "float32", "electron", "local background of one pixel"),
    Variable("background_err", _TS, "float32", "electron", "error of that background"),
    Variable("peak", _TS, "float32", "adu", "highest raw pixel within 1.5 FWHM of the star"),
    Variable("flags", _TS, "uint32", "", "flags of the star in the frame; 0 is clean"),
    Variable(
        "clean_radius_px", _TS, "float32", "pixel", "largest radius free of edge and lost pixels"
    ),
    Variable("jd_utc", _T, "float64", "d", "Julian date, UTC, of mid-exposure"),
    Variable("exposure_s", _T, "float64", "s", "exposure time"),
    Variable("airmass_center", _T, "float64", "", "airmass of the pointing at mid-exposure"),
    Variable("fwhm_px", _T, "float32", "pixel", "FWHM of the frame's stars"),
    Variable("elongation", _T, "float32", "", "major over minor axis of the frame's stars"),
    Variable("shift_x_px", _T, "float64", "pixel", "frame minus reference at the frame's centre"),
    Variable("shift_y_px", _T, "float64", "pixel", "frame minus reference at the frame's centre"),
    Variable("rotation_deg", _T, "float64", "deg", "of the frame against the reference, x to y"),
    Variable("n_matched", _T, "int32", "", "stars matched with the reference"),
    Variable("background_level", _T, "float32", "electron", "median background of the frame"),
    Variable("transparency", _T, "float32", "", "star flux over the reference's, median, per s"),
    Variable("gain_e_per_adu", _T, "float32", "electron/adu", "gain used, NaN where assumed"),
    Variable("read_noise_e", _T, "float32", "electron", "read noise used, NaN where unknown"),
    Variable("dark_e", _T, "float32", "electron", "dark signal of one pixel that was subtracted"),
    Variable("flat_err", _T, "float32", "", "relative error of the flat in one pixel"),
    Variable("frame_flags", _T, "uint32", "", "flags of the frame; 0 is clean"),
    Variable("reason", _T, "str", "", "why the frame was quarantined, else empty"),
    Variable("path", _T, "str", "", "path of the raw file, relative to its root"),
    Variable("aperture_radius_px", (TIME, APERTURE), "float32", "pixel", "radius used"),
    Variable("star_id", (STAR,), "int32", "", "index of the star in the field's list"),
    Variable("radius_fwhm", (APERTURE,), "float64", "FWHM", "radius in FWHM, else NaN"),
    Variable("radius_px", (APERTURE,), "float64", "pixel", "fixed radius, else NaN"),
    Variable("aperture_kind", (APERTURE,), "str", "", "fwhm or px: a circle; optimal: weighted"),
)
CUBE_BY_NAME: dict[str, Variable] = {variable.name: variable for variable in CUBE}
ROW_VARIABLES: tuple[Variable, ...] = tuple(v for v in CUBE if v.dims[0] == TIME)

FIELD: tuple[Variable, ...] = (
    *CUBE,
    Variable("night", _T, "str", "", "date of the evening"),
)

_ST = (STAR, TIME)
ENSEMBLE: tuple[Variable, ...] = (
    Variable("flux", _ST, "float64", "", "differential flux at the star's own best aperture"),
    Variable("flux_err", _ST, "float64", "", "its one-sigma error"),
    Variable("flags", _ST, "uint32", "", "flags of frame and star, caveats apart; 0 is clean"),
    Variable("comparison", _ST, "float64", "", "factor of the frame that the others show"),
    Variable("raw_flux", _ST, "float64", "electron", "flux in the best aperture"),
    Variable("best_aperture", (STAR,), "int32", "", "index of the aperture, -1 where none"),
    Variable("scatter", (STAR, APERTURE), "float64", "", "neighbour-to-neighbour, by aperture"),
    Variable("weight", (STAR, APERTURE), "float64", "", "as comparison; sums to 1 over stars"),
    Variable("target", (STAR,), "bool", "", "a target: never a comparison"),
    Variable("jd_utc", _T, "float64", "d", "Julian date, UTC, of mid-exposure"),
    Variable("night", _T, "str", "", "date of the evening"),
)

_YX = ("y", "x")
MASTER: tuple[Variable, ...] = (
    Variable("level", _YX, "float32", "", "master: ADU for bias and dark, relative for flat"),
    Variable("noise", _YX, "float32", "", "scatter of one frame about it, in its unit"),
    Variable("variance", _YX, "float32", "", "variance of the level itself, in its unit squared"),
    Variable("bad", _YX, "uint8", "", "1 where the pixel is hot, dead or hardly lit"),
)

STACK: tuple[Variable, ...] = (
    Variable("stack", _YX, "float32", "electron", "clipped mean of aligned frames"),
    Variable("weight", _YX, "float32", "", "sum of the frames' weights; 0 where none"),
    Variable("frame", ("frame",), "str", "", "paths of the frames in the stack, best first"),
)

_C = ("catalogue_star",)
PLATE: tuple[Variable, ...] = (
    Variable("catalogue_ra", _C, "float64", "deg", "ICRS, at the reference's date"),
    Variable("catalogue_dec", _C, "float64", "deg", "ICRS, at the reference's date"),
    Variable("catalogue_mag", _C, "float64", "mag", "as the catalogue has it"),
    Variable("catalogue_x", _C, "float64", "pixel", "where the plate puts it in the reference"),
    Variable("catalogue_y", _C, "float64", "pixel", "where the plate puts it in the reference"),
)

STARS: tuple[Variable, ...] = (
    Variable("star_id", (STAR,), "int32", "", "index of the star in the field's list"),
    Variable("x", (STAR,), "float64", "pixel", "x in the reference, 0 at the first pixel"),
    Variable("y", (STAR,), "float64", "pixel", "y in the reference, 0 at the first pixel"),
    Variable("flux", (STAR,), "float64", "electron", "flux in the reference, NaN if appended"),
    Variable("peak", (STAR,), "float64", "electron", "peak above background in the reference"),
    Variable("saturated", (STAR,), "bool", "", "saturated in the reference"),
    Variable("blended", (STAR,), "bool", "", "a neighbour lies within two FWHM"),
    Variable("appended", (STAR,), "bool", "", "put there for a target, not detected"),
)

TARGETS: tuple[Variable, ...] = (
    Variable("target", ("target",), "str", "", "name of the target"),
    Variable("target_star", ("target",), "int32", "", "its star, -1 where it has none"),
    Variable("target_x", ("target",), "float64", "pixel", "where it should be in the reference"),
    Variable("target_y", ("target",), "float64", "pixel", "where it should be in the reference"),
    Variable("target_note", ("target",), "str", "", "how it was found, or why not"),
)

LIGHTCURVE: tuple[Variable, ...] = (
    Variable("flux", _T, "float64", "", "differential flux, median 1 over all nights"),
    Variable("flux_err", _T, "float64", "", "its one-sigma error"),
    Variable("bjd_tdb", _T, "float64", "d", "barycentric Julian date, TDB, of mid-exposure"),
    Variable("jd_utc", _T, "float64", "d", "Julian date, UTC, of mid-exposure"),
    Variable("flags", _T, "uint32", "", "flags of frame and star, caveats apart; 0 is clean"),
    Variable("caveats", _T, "uint32", "", "flags that hold for the whole product"),
    Variable("night", _T, "str", "", "date of the evening"),
    Variable("airmass", _T, "float64", "", "airmass of the target at mid-exposure"),
    Variable("err_star", _T, "float32", "", "relative error by the star's photons"),
    Variable("err_sky", _T, "float32", "", "by the sky's photons; NaN where not told apart"),
    Variable("err_dark", _T, "float32", "", "by the dark signal; NaN where not told apart"),
    Variable("err_read_noise", _T, "float32", "", "by the readout; NaN where not told apart"),
    Variable("err_pixels", _T, "float32", "", "by sky, dark and readout together"),
    Variable("err_sky_estimate", _T, "float32", "", "by the estimate of the sky"),
    Variable("err_flat", _T, "float32", "", "by the flat"),
    Variable(
        "err_photometry", _T, "float32", "", "by star, pixels, sky estimate and flat together"
    ),
    Variable("err_comparisons", _T, "float32", "", "by the comparison stars"),
    Variable("scintillation", _T, "float32", "", "relative rms of the star's own, not in flux_err"),
    Variable("exposure_s", _T, "float64", "s", "exposure time"),
    Variable("fwhm_px", _T, "float64", "pixel", "FWHM of the frame"),
    Variable("background", _T, "float64", "electron", "local background of one pixel"),
    Variable("x", _T, "float64", "pixel", "x of the target in the frame"),
    Variable("y", _T, "float64", "pixel", "y of the target in the frame"),
    Variable("shift_x_px", _T, "float64", "pixel", "frame minus reference at the centre"),
    Variable("shift_y_px", _T, "float64", "pixel", "frame minus reference at the centre"),
    Variable("raw_flux", _T, "float64", "electron", "flux in the chosen aperture"),
    Variable("comparison", _T, "float64", "", "what the raw flux was divided by, median 1"),
    Variable("path", _T, "str", "", "path of the raw file, relative to its root"),
    Variable("weight", (STAR,), "float64", "", "weight of each star as comparison, sum 1"),
    Variable("star_id", (STAR,), "int32", "", "index of the star in the field's list"),
)
