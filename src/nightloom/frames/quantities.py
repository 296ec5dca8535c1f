"""Numbers, angles and exposure times from the text of header cards.

What can't be read is NaN; a decimal comma is an error unless the profile allows it, as 12,5 read
as 12 would be worse than nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from nightloom.errors import FrameError
from nightloom.frames.cards import Cards, comment_of, first_text, raw_of
from nightloom.frames.clock import Findings
from nightloom.frames.rules import Rules

_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[EDed][+-]?\d+)?)\s*([A-Za-zµ]*)\.?")
_COMMA = re.compile(r"[+-]?\d+,\d+(?:[EDed][+-]?\d+)?")
_SEXAGESIMAL = re.compile(
    r"([+-]?)\s*(\d+)[\s:hd°]+(\d+)(?:[\s:m'′]+(\d+(?:\.\d*)?))?[\s\"s″]*([NSEW]?)"
)
_PLAIN = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[Ee][+-]?\d+)?)\s*(?:deg|°)?\s*([NSEW]?)")
_HOURS = re.compile(r"\[h\b|\bhours?\b|\bhrs?\b|\bhms\b", re.IGNORECASE)
_DEGREES = re.compile(r"\bdeg(?:rees?)?\b", re.IGNORECASE)
_WEST = re.compile(r"\bwest\b|\+\s?W\b", re.IGNORECASE)
_EAST = re.compile(r"\beast\b|\+\s?E\b", re.IGNORECASE)
_UNITS = (
    (re.compile(r"\b(?:min|mins|minutes?)\b", re.IGNORECASE), 60.0),
    (re.compile(r"\b(?:ms|msec|milli-?seconds?)\b", re.IGNORECASE), 1e-3),
    (re.compile(r"\b(?:us|µs|usec|micro-?seconds?)\b", re.IGNORECASE), 1e-6),
)
_UNIT_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0}


def number(cards: Cards, key: str, *, rules: Rules, where: str) -> float:
    """The number of a card, also one written as a string; NaN where there is none.

    Raises FrameError: a decimal comma that the profile does not allow.
    """
    text = raw_of(cards, key) if key else ""
    if "," in text and _COMMA.fullmatch(text):
        if not rules.decimal_comma:
            raise FrameError(
                where=f"{where} {key}",
                why=f"'{text}' is not a number",
                do="set decimal_comma in the instrument profile",
            )
        text = text.replace(",", ".")
    found = _NUMBER.fullmatch(text)
    return float(found[1].replace("D", "E").replace("d", "e")) if found else math.nan


def first_number(
    cards: Cards, keys: Iterable[str], *, rules: Rules, where: str
) -> tuple[str, float]:
    """Keyword and number of the first of `keys` that is a number, else '' and NaN."""
    for key in keys:
        if key in cards:
            value = number(cards, key, rules=rules, where=where)
            if not math.isnan(value):
                return key, value
    return "", math.nan


def exposure_s(cards: Cards, *, rules: Rules, where: str) -> float:
    """Exposure time in seconds, NaN where there is none or it is negative.

    The unit is the profile's or dialect's, else what the comment or the string itself says.
    Raises FrameError: a decimal comma.
    """
    key, value = first_number(cards, rules.keys["exposure_s"], rules=rules, where=where)
    if not key or value < 0:
        return math.nan
    if rules.exposure_unit:
        # Division keeps 9998 ms at the nearest double to 9.998 s.
        unit_s = _UNIT_S[rules.exposure_unit]
    else:
        words = f"{_unit_in(raw_of(cards, key))} {comment_of(cards, key)}"
        unit_s = next((factor for unit, factor in _UNITS if unit.search(words)), 1.0)
    return value * unit_s if unit_s >= 1.0 else value / round(1.0 / unit_s)


def _unit_in(text: str) -> str:
    found = _NUMBER.fullmatch(text)
    return found[2] if found else ""


def sexagesimal(text: str) -> float:
    """Value of 'dd mm ss' in units of its first field, sign and N S E W applied; else NaN."""
    found = _SEXAGESIMAL.fullmatch(text.strip())
    if found is None:
        return math.nan
    sign, whole, minutes, seconds, side = found.groups()
    if int(minutes) >= 60 or float(seconds or 0) >= 60:
        return math.nan
    value = int(whole) + int(minutes) / 60.0 + float(seconds or 0) / 3600.0
    return -value if (sign == "-") != (side.upper() in ("S", "W") and side != "") else value


def right_ascension_deg(cards: Cards, *, rules: Rules, findings: Findings) -> float:
    """Right ascension in degrees; NaN with a remark where the unit is in doubt.

    Sexagesimal is hours, a number of FITS degrees, unless the comment says otherwise. A string
    with a plain number up to 24 may be either.
    """
    key, text = first_text(cards, rules.keys["ra_deg"])
    if not text:
        return _from_wcs(cards, "1", "RA")
    comment = comment_of(cards, key)
    says_hours, says_degrees = _HOURS.search(comment), _DEGREES.search(comment)
    hours = sexagesimal(text)
    plain = _PLAIN.fullmatch(text)
    is_string = cards[key].lstrip().startswith("'")
    value = math.nan
    if not math.isnan(hours):
        in_doubt = hours >= 24 or hours < 0 or (says_degrees and not says_hours)
        value = math.nan if in_doubt else 15.0 * hours
    elif plain is not None:
        value = float(plain[1])
        if says_hours and not says_degrees:
            value *= 15.0
        elif is_string and not says_degrees and value <= 24:
            value = math.nan
    if not -360 < value <= 360:
        findings.append(("", f"{key} = '{text}' is no clear right ascension: not used"))
        return math.nan
    return value % 360.0


def declination_deg(cards: Cards, *, rules: Rules, findings: Findings) -> float:
    """Declination in degrees, NaN where there is none, with a remark where it can't be read."""
    key, text = first_text(cards, rules.keys["dec_deg"])
    if not text:
        return _from_wcs(cards, "2", "DEC")
    value = _degrees(text)
    if not -90 <= value <= 90:
        findings.append(("", f"{key} = '{text}' is no declination: not used"))
        return math.nan
    return value


def latitude_deg(cards: Cards, *, rules: Rules) -> float:
    """Latitude of the site, north positive; NaN where there is none."""
    value = _degrees(first_text(cards, rules.keys["site_lat_deg"])[1])
    return value if -90 <= value <= 90 else math.nan


def longitude_deg(cards: Cards, *, rules: Rules) -> float:
    """Longitude of the site in -180..180, east positive; NaN where there is none.

    A number without a sign is east, unless the dialect or the comment says west.
    """
    key, text = first_text(cards, rules.keys["site_lon_deg"])
    value = _degrees(text)
    if not -360 <= value <= 360:
        return math.nan
    comment = comment_of(cards, key)
    if rules.longitude_is_west or (_WEST.search(comment) and not _EAST.search(comment)):
        value = -value
    return (value + 180.0) % 360.0 - 180.0


def _degrees(text: str) -> float:
    if not text:
        return math.nan
    plain = _PLAIN.fullmatch(text)
    if plain is None:
        return sexagesimal(text)
    return -float(plain[1]) if plain[2] in ("S", "W") else float(plain[1])


def _from_wcs(cards: Cards, axis: str, kind: str) -> float:
    """CRVAL of a celestial axis, NaN where the header has no such axis."""
    if not raw_of(cards, f"CTYPE{axis}").startswith(kind):
        return math.nan
    found = _NUMBER.fullmatch(raw_of(cards, f"CRVAL{axis}"))
    return float(found[1].replace("D", "E")) if found else math.nan
