"""A header's cards to the standard values of the frame table's row.

What is guessed, contradicts itself or is missing goes into `suspect` and, in words, `reason`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from nightloom.errors import FrameError
from nightloom.frames.cards import Cards, comment_of, first_text, raw_of, text_of
from nightloom.frames.clock import Findings, mid_exposure_jd
from nightloom.frames.quantities import (
    declination_deg,
    exposure_s,
    first_number,
    latitude_deg,
    longitude_deg,
    number,
    right_ascension_deg,
)
from nightloom.frames.rules import Rules
from nightloom.schema.frames import SUSPECT_BITS

_ARCSEC_UM_PER_MM = 206.264806  # arcsec in a radian, um in a mm
_KELVIN_0 = 273.15
_LEAST_APERTURE_MM, _MOST_APERTURE_MM = 10.0, 45000.0
_MAX_TEMP_C = 100.0  # a sensor warmer than this is in kelvin
_WORD = re.compile(r"[a-z]+")
_DIGITS = re.compile(r"\d+")
_NOT_SLUG = re.compile(r"[^a-z0-9]+")
_ELECTRONS = re.compile(r"\be-?\s*(?:/|per)\s*(?:adu|dn|count)|electron", re.IGNORECASE)
_SATURATION = re.compile("saturat", re.IGNORECASE)
# Where words of two types stand together the earlier counts: a "flat dark" is a dark.
_TYPES = ("dark", "flat", "bias", "science")
_PATH_WORDS = {
    word: rank
    for rank, words in enumerate(
        (
            "dark darks darkframe darkflat darkflats flatdark flatdarks",
            "flat flats flatframe flatfield domeflat domeflats skyflat skyflats",
            "bias biases biasframe zero zeros offset offsets",
            "light lights lightframe object science sci",
        )
    )
    for word in words.split()
}
# These tell the type in a header, but would be chance in a path.
_HEADER_WORDS = _PATH_WORDS | {"twilight": 1, "dome": 1, "target": 3, "expose": 3, "standard": 3}
_SPECTRUM_WORDS = {"comp", "arc", "lamp", "spectrum", "spectra", "spectroscopic", "wave"}


def standard_values(
    cards: Cards, *, rules: Rules, path: str, n_own_parts: int, where: str, findings: Findings
) -> dict[str, object]:
    """The columns of the frame table that come from the header; what is doubtful is found.

    path: of the file, for the globs of a profile; its last `n_own_parts` parts may tell a type.
    Raises FrameError: an exposure time with a decimal comma that the profile does not allow.
    """
    values = _optional_numbers(cards, rules, where, findings)
    length_s = exposure_s(cards, rules=rules, where=where)
    object_name = first_text(cards, rules.keys["object"])[1]
    filter_name = first_text(cards, rules.keys["filter"])[1]
    image_type = _type_in_header(cards, rules, findings) or next(
        (kind for kind, glob in rules.types.items() if fnmatchcase(path, glob)), ""
    )
    if not image_type:
        own_path = "/".join(path.split("/")[-n_own_parts:])
        named = bool(object_name and filter_name)
        image_type = _guessed_type(rules, own_path, length_s, is_named=named, findings=findings)
    if math.isnan(length_s):
        if image_type == "bias":
            length_s = 0.0
        else:
            findings.append(("no_exposure", "no exposure time"))
    values |= {
        "instrument": instrument_id(cards, rules),
        "image_type": image_type,
        "object": object_name,
        "filter": filter_name,
        "exposure_s": length_s,
        "jd_utc": mid_exposure_jd(cards, rules=rules, exposure_s=length_s, findings=findings),
        "ra_deg": right_ascension_deg(cards, rules=rules, findings=findings),
        "dec_deg": declination_deg(cards, rules=rules, findings=findings),
        "read_mode": _read_mode(cards, rules),
        "binning": _binning(cards, rules),
    }
    values.update(rules.fixed)
    return values


def suspect_columns(findings: Findings) -> dict[str, object]:
    """Columns `suspect` and `reason` of findings."""
    bits = 0
    for name, _ in findings:
        bits |= SUSPECT_BITS[name] if name else 0
    return {"suspect": bits, "reason": "; ".join(words for _, words in findings)}


def instrument_id(cards: Cards, rules: Rules) -> str:
    """The profile's name, else the slug of telescope and camera, else 'unknown'."""
    if rules.profile:
        return rules.profile
    names = (text_of(cards, key) for key in rules.keys["instrument"])
    return slug(" ".join(names)) or "unknown"


def slug(text: str) -> str:
    """Lower-case letters, digits and single hyphens."""
    return _NOT_SLUG.sub("-", text.lower()).strip("-")


def _type_in_words(words: list[str], ranks: Mapping[str, int]) -> str:
    """Image type that words name, '' where they name none."""
    rank = min((ranks[word] for word in words if word in ranks), default=-1)
    return _TYPES[rank] if rank >= 0 else ""


def _type_in_header(cards: Cards, rules: Rules, findings: Findings) -> str:
    """What the header calls the frame, '' where it does not; spectra and masters are found."""
    for key in rules.keys["image_type"]:
        if key not in cards:
            continue
        text = text_of(cards, key).lower()
        words = _WORD.findall(text.replace("master", " "))
        if not _SPECTRUM_WORDS.isdisjoint(words):
            findings.append(("not_ccd", f"{key} = '{text}': a spectrum"))
        if "master" in text:
            findings.append(("not_ccd", f"{key} = '{text}': a master, not a raw frame"))
        kind = _type_in_words(words, _HEADER_WORDS)
        if kind:
            return kind
    return ""


def _guessed_type(
    rules: Rules, own_path: str, length_s: float, *, is_named: bool, findings: Findings
) -> str:
    """The type by folder or name, the dialect, or what is left; is_named: object and filter."""
    kind, place = _type_by_path(own_path)
    if kind:
        findings.append(("type_guessed", f"{kind} by '{place}' in the path"))
    elif rules.image_type:
        kind = rules.image_type
    elif length_s == 0.0:
        kind = "bias"
        findings.append(("type_guessed", "bias by its exposure of 0 s"))
    elif is_named and length_s > 0:
        kind = "science"
        findings.append(("type_guessed", "science, as it has an object and a filter"))
    else:
        findings.append(("type_unknown", "neither header nor path tell the type"))
    return kind


def _type_by_path(path: str) -> tuple[str, str]:
    """Type and the part of the path that tells it: the file's name first, then its folders."""
    for part in reversed(path.split("/")):
        kind = _type_in_words(_WORD.findall(part.lower()), _PATH_WORDS)
        if kind:
            return kind, part
    return "", ""


def _optional_numbers(
    cards: Cards, rules: Rules, where: str, findings: Findings
) -> dict[str, object]:
    """Columns a frame can do without: one that can't be read is NaN with a remark."""
    readers = {
        "gain_e_per_adu": _gain_e_per_adu,
        "read_noise_e": _read_noise_e,
        "ccd_temp_c": _ccd_temp_c,
        "pixel_scale_arcsec": _pixel_scale_arcsec,
        "aperture_m": _aperture_m,
        "saturation_adu": _saturation_adu,
        "site_height_m": _site_height_m,
    }
    values: dict[str, object] = {}
    for column, read in readers.items():
        try:
            values[column] = read(cards, rules, where)
        except FrameError as error:
            findings.append(("", f"{column}: {error.why}"))
            values[column] = math.nan
    values["site_lat_deg"] = latitude_deg(cards, rules=rules)
    values["site_lon_deg"] = longitude_deg(cards, rules=rules)
    return values | _missing(values, rules.site)


def _missing(values: Mapping[str, object], defaults: Mapping[str, float]) -> dict[str, object]:
    """Those of `defaults` whose column is NaN."""
    return {column: value for column, value in defaults.items() if values[column] != values[column]}


def _gain_e_per_adu(cards: Cards, rules: Rules, where: str) -> float:
    """e-/ADU: GAIN counts only if its comment says electrons, else it is a camera's setting."""
    said = [key for key in rules.keys["gain_if_said"] if _ELECTRONS.search(comment_of(cards, key))]
    keys = (*rules.keys["gain_e_per_adu"], *said)
    _, value = first_number(cards, keys, rules=rules, where=where)
    return value if 0.0 < value < 1e4 else math.nan


def _read_noise_e(cards: Cards, rules: Rules, where: str) -> float:
    _, value = first_number(cards, rules.keys["read_noise_e"], rules=rules, where=where)
    return value if value > 0 else math.nan


def _ccd_temp_c(cards: Cards, rules: Rules, where: str) -> float:
    _, value = first_number(cards, rules.keys["ccd_temp_c"], rules=rules, where=where)
    if rules.temperature_is_kelvin:
        return value - _KELVIN_0 if value > 0 else math.nan
    return value - _KELVIN_0 if value > _MAX_TEMP_C else value


def _saturation_adu(cards: Cards, rules: Rules, where: str) -> float:
    said = [
        key
        for key in rules.keys["saturation_if_said"]
        if _SATURATION.search(comment_of(cards, key))
    ]
    keys = (*rules.keys["saturation_adu"], *said)
    _, value = first_number(cards, keys, rules=rules, where=where)
    return value if value > 0 else math.nan


def _site_height_m(cards: Cards, rules: Rules, where: str) -> float:
    return first_number(cards, rules.keys["site_height_m"], rules=rules, where=where)[1]


def _aperture_m(cards: Cards, rules: Rules, where: str) -> float:
    """Diameter of the telescope; one that is no telescope's in mm is none."""
    _, value_mm = first_number(cards, rules.keys["aperture_mm"], rules=rules, where=where)
    return value_mm / 1000.0 if _LEAST_APERTURE_MM <= value_mm <= _MOST_APERTURE_MM else math.nan


def _pixel_scale_arcsec(cards: Cards, rules: Rules, where: str) -> float:
    """By a card of its own, else the optics, else the WCS."""
    _, scale = first_number(cards, rules.keys["pixel_scale_arcsec"], rules=rules, where=where)
    if 0.0 < scale < 3600.0:
        return scale
    _, size_um = first_number(cards, rules.keys["pixel_size_um"], rules=rules, where=where)
    _, focal_mm = first_number(cards, rules.keys["focal_length_mm"], rules=rules, where=where)
    if size_um > 0 and focal_mm > 0:
        return _ARCSEC_UM_PER_MM * size_um / focal_mm
    if not raw_of(cards, "CTYPE1").startswith("RA--"):
        return math.nan
    names = ("CD1_1", "CD1_2", "CD2_1", "CD2_2", "CDELT1", "CDELT2")
    a, b, c, d, step_1, step_2 = (number(cards, key, rules=rules, where=where) for key in names)
    area = abs(a * d - (0.0 if math.isnan(b) else b) * (0.0 if math.isnan(c) else c))
    if math.isnan(area):
        area = abs(step_1 * step_2)
    return 3600.0 * math.sqrt(area) if area > 0 else math.nan


def _binning(cards: Cards, rules: Rules) -> int:
    """Along x; '2x2' and '2 2' are 2, and 1 where the header has none."""
    for key in rules.keys["binning"]:
        digits = _DIGITS.match(raw_of(cards, key)) if key in cards else None
        if digits and 1 <= int(digits[0]) <= 64:
            return int(digits[0])
    return 1


def _read_mode(cards: Cards, rules: Rules) -> str:
    """Readout mode and settings that change the pixels' scale, as far as the header has them."""
    parts = [first_text(cards, rules.keys["read_mode"])[1]]
    for key in rules.keys["settings"]:
        if key in cards and not _ELECTRONS.search(comment_of(cards, key)):
            setting = text_of(cards, key)
            parts.append(f"{key.lower()} {setting}" if setting else "")
    return ", ".join(part for part in parts if part)
