"""Headers as MaxIm DL and N.I.N.A. write them, true of the simulated camera."""

from __future__ import annotations

import math

import numpy as np
from astropy.io import fits

from nightloom.schema.frames import ImageType
from nightloom.synth.nights import Frame
from nightloom.synth.truth import Field, SynthSpec

Card = tuple[str, str | float | int, str]
MAXIM_TYPES: dict[ImageType, str] = {
    "bias": "Bias Frame",
    "dark": "Dark Frame",
    "flat": "Flat Field",
    "science": "Light Frame",
}
NINA_TYPES: dict[ImageType, str] = {
    "bias": "BIAS",
    "dark": "DARK",
    "flat": "FLAT",
    "science": "LIGHT",
}
SUMMER_TIME_ENDS_MS = 1_729_990_800_000  # 2024-10-27 01:00 UTC, in the Canary Islands
OFFSET_SETTING = 50  # of the camera; it makes the bias level
GAIN_SETTING = 100  # of the camera, its own units


def header(spec: SynthSpec, frame: Frame, field: Field | None) -> fits.Header:
    """The cards of one frame in its dialect; `field` for science frames."""
    cards = (
        _maxim_cards(spec, frame, field)
        if frame.dialect == "maxim"
        else _nina_cards(spec, frame, field)
    )
    result = fits.Header(cards)
    result.add_history(f"Simulated by nightloom synth, seed {spec.seed}: no real sky")
    return result


def iso(unix_ms: int) -> str:
    """ISO date and time to the millisecond."""
    return str(np.datetime64(unix_ms, "ms"))


def _maxim_cards(spec: SynthSpec, frame: Frame, field: Field | None) -> list[Card]:
    camera = spec.instrument
    start_jd = frame.jd_utc - frame.exposure_s / 2 / 86400
    cards: list[Card] = [
        ("DATE-OBS", iso(frame.start_ms), "YYYY-MM-DDThh:mm:ss observation start, UT"),
        ("EXPTIME", frame.exposure_s, "Exposure time in seconds"),
        ("EXPOSURE", frame.exposure_s, "Exposure time in seconds"),
        ("SET-TEMP", camera.temp_c, "CCD temperature setpoint in C"),
        ("CCD-TEMP", camera.temp_c, "CCD temperature at start of exposure in C"),
        ("XPIXSZ", camera.pixel_um, "Pixel Width in microns (after binning)"),
        ("YPIXSZ", camera.pixel_um, "Pixel Height in microns (after binning)"),
        ("XBINNING", 1, "Binning factor in width"),
        ("YBINNING", 1, "Binning factor in height"),
        ("XORGSUBF", 0, "Subframe X position in binned pixels"),
        ("YORGSUBF", 0, "Subframe Y position in binned pixels"),
        ("IMAGETYP", MAXIM_TYPES[frame.image_type], "Type of image"),
    ]
    if frame.image_type in ("flat", "science"):
        cards.append(("FILTER", frame.filter, "Filter used when taking image"))
    cards += [
        ("FOCALLEN", camera.focal_mm, "Focal length of telescope in mm"),
        ("APTDIA", camera.aperture_mm, "Aperture diameter of telescope in mm"),
        ("EGAIN", camera.gain_e_per_adu, "Electronic gain in e-/ADU"),
    ]
    if field is not None and frame.scene is not None:
        cards += [
            ("OBJCTRA", sexagesimal(field.ra_deg / 15, seconds=2), "Nominal RA of image center"),
            ("OBJCTDEC", _signed(field.dec_deg, seconds=1), "Nominal Dec of image center"),
            ("AIRMASS", round(frame.scene.airmass, 6), "Relative optical path length"),
            ("PIERSIDE", frame.scene.pier_side.upper(), "Side of pier telescope is on"),
        ]
    cards += [
        ("SITELAT", _signed(spec.site.lat_deg), "Latitude of the imaging location"),
        ("SITELONG", _signed(spec.site.lon_deg), "Longitude of the imaging location"),
        ("JD", start_jd, "Julian Date at start of exposure"),
        ("OBJECT", "" if field is None else field.name, "Target object name"),
        ("TELESCOP", camera.telescope, "telescope used to acquire this image"),
        ("INSTRUME", camera.camera, "instrument or camera used"),
        ("SWCREATE", "MaxIm DL Version 6.30", "Name of software that created the image"),
        ("PEDESTAL", 0, "Correction to add for zero-based ADU"),
    ]
    return cards


def _nina_cards(spec: SynthSpec, frame: Frame, field: Field | None) -> list[Card]:
    camera = spec.instrument
    mid_ms = frame.start_ms + round(frame.exposure_s * 500)
    cards: list[Card] = [
        ("IMAGETYP", NINA_TYPES[frame.image_type], "Type of exposure"),
        ("EXPOSURE", frame.exposure_s, "[s] Exposure duration"),
        ("EXPTIME", frame.exposure_s, "[s] Exposure duration"),
        ("DATE-LOC", iso(frame.start_ms + _zone_ms(frame)), "Time of observation (local)"),
        ("DATE-OBS", iso(frame.start_ms), "Time of observation (UTC)"),
        ("DATE-AVG", iso(mid_ms), "Averaged midpoint time (UTC)"),
        ("XBINNING", 1, "X axis binning factor"),
        ("YBINNING", 1, "Y axis binning factor"),
        ("GAIN", GAIN_SETTING, "Sensor gain"),
        ("OFFSET", OFFSET_SETTING, "Sensor gain offset"),
        ("EGAIN", camera.gain_e_per_adu, "[e-/ADU] Electrons per A/D unit"),
        ("XPIXSZ", camera.pixel_um, "[um] Pixel X axis size"),
        ("YPIXSZ", camera.pixel_um, "[um] Pixel Y axis size"),
        ("INSTRUME", camera.camera, "Imaging instrument name"),
        ("SET-TEMP", camera.temp_c, "[degC] CCD temperature setpoint"),
        ("CCD-TEMP", camera.temp_c, "[degC] CCD temperature"),
        ("TELESCOP", camera.telescope, "Name of telescope"),
        ("FOCALLEN", camera.focal_mm, "[mm] Focal length"),
        ("FOCRATIO", camera.focal_mm / camera.aperture_mm, "Focal ratio"),
    ]
    if field is not None and frame.scene is not None:
        cards += [
            ("RA", field.ra_deg, "[deg] RA of telescope"),
            ("DEC", field.dec_deg, "[deg] Declination of telescope"),
            ("AIRMASS", frame.scene.airmass, "Airmass at frame center"),
            ("PIERSIDE", frame.scene.pier_side, "Telescope pointing state"),
        ]
    cards += [
        ("SITEELEV", spec.site.height_m, "[m] Observation site elevation"),
        ("SITELAT", spec.site.lat_deg, "[deg] Observation site latitude"),
        ("SITELONG", spec.site.lon_deg, "[deg] Observation site longitude"),
        ("FILTER", frame.filter, "Active filter name"),  # the wheel's, in darks too
    ]
    if field is not None:
        cards += [
            ("OBJECT", field.name, "Name of the object of interest"),
            ("OBJCTRA", sexagesimal(field.ra_deg / 15), "[H M S] RA of imaged object"),
            ("OBJCTDEC", _signed(field.dec_deg), "[D M S] Declination of imaged object"),
        ]
    cards += [
        ("ROWORDER", "TOP-DOWN", "FITS Image Orientation"),
        ("EQUINOX", 2000.0, "Equinox of celestial coordinate system"),
        ("SWCREATE", "N.I.N.A. 3.1.2.9001 (x64)", "Software that created this file"),
    ]
    return cards


def _zone_ms(frame: Frame) -> int:
    """Local time minus UTC."""
    return 3_600_000 if frame.start_ms < SUMMER_TIME_ENDS_MS else 0


def sexagesimal(value: float, *, seconds: int = 0) -> str:
    """'HH MM SS', the seconds with so many decimals; the value is not negative."""
    unit = 10**seconds
    total = round(value * 3600 * unit)
    whole, part = divmod(total, unit)
    text = f"{whole // 3600:02d} {whole // 60 % 60:02d} {whole % 60:02d}"
    return f"{text}.{part:0{seconds}d}" if seconds else text


def _signed(value: float, *, seconds: int = 0) -> str:
    return ("-" if math.copysign(1, value) < 0 else "+") + sexagesimal(abs(value), seconds=seconds)
