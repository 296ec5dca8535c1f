"""The Julian date of mid-exposure from a header, and what is doubtful about it.

Nothing is filled in: a date without a time, a time without a date or a minute 60 are no time.
Findings are pairs of a name of SUSPECTS ('' for a mere remark) and words for the reason.
"""

from __future__ import annotations

import datetime
import math
import re

from nightloom.frames.cards import Cards, comment_of, first_text, raw_of, text_of, value_of
from nightloom.frames.rules import Rules

Findings = list[tuple[str, str]]

DAY_S = 86400.0
MJD_0 = 2400000.5
_ORDINAL_0 = 1721424.5  # JD of ordinal 0 of datetime.date
_FIRST_CCD_YEAR = 1975
_AGREE_S = 3.0

_CLOCK = r"(\d{1,2}):(\d{1,2})(?::(\d{1,2}(?:[.,]\d*)?))?"
_ISO = re.compile(
    rf"(\d{{4}})-(\d{{1,2}})-(\d{{1,2}})(?:(?:T| +){_CLOCK} *(Z|UTC?|[+-]\d{{2}}:?\d{{2}})?)?"
)
_SLASHES = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{2})")
_TIME = re.compile(r"(\d{1,2})[: ](\d{1,2})[: ](\d{1,2}(?:[.,]\d*)?)")
_AM_PM = re.compile(rf"(\d{{1,2}})/(\d{{1,2}})/(\d{{4}}) {_CLOCK} ([AP])M")
_IS_MID = re.compile(r"\b(?:mid|middle|mid-?point|center|centre|average)\b", re.IGNORECASE)
_IS_START = re.compile(r"\b(?:start|begin|beginning)\b", re.IGNORECASE)
_IS_END = re.compile(r"\b(?:end|stop)\b", re.IGNORECASE)
_IS_LOCAL = re.compile(r"\blocal\b|\bLT\b", re.IGNORECASE)
_HALVES = {"start": 0.5, "mid": 0.0, "end": -0.5}


class BadTime(ValueError):
    """A date or time that can't be read; its message says why."""


def mid_exposure_jd(cards: Cards, *, rules: Rules, exposure_s: float, findings: Findings) -> float:
    """Julian date, UTC, of mid-exposure; NaN with the finding no_time where there is none.

    An exposure of NaN leaves the time as the card has it.
    """
    length_s = exposure_s if math.isfinite(exposure_s) else 0.0
    try:
        key, jd = _stated(cards, rules)
    except BadTime as error:
        if not rules.twelve_hour_clock and "jd_utc" not in rules.keys:
            jd = _fallback(cards, rules, length_s, findings)
            if math.isfinite(jd):
                return jd
        findings.append(("no_time", str(error)))
        return math.nan
    if rules.time_doubt and rules.time_zone_h is None:
        findings.append(("time_suspect", rules.time_doubt))
    start_jd = jd + (_HALVES[_meaning(cards, key, rules)] - 0.5) * length_s / DAY_S
    mid_jd = start_jd + 0.5 * length_s / DAY_S
    _cross_check(cards, rules, start_jd, length_s, findings)
    mid_key, text = first_text(cards, rules.keys["date_mid"])
    if text and mid_key != key and "jd_utc" not in rules.keys:
        return _stated_mid(cards, mid_key, mid_jd, rules, findings)
    return mid_jd


def _stated(cards: Cards, rules: Rules) -> tuple[str, float]:
    """The card the time comes from, and the time it states."""
    if "jd_utc" in rules.keys:
        (key,) = rules.keys["jd_utc"]
        value = value_of(cards, key)
        if isinstance(value, int | float):
            jd = _julian(float(value))
            if math.isnan(jd):
                raise BadTime(f"{key} = {value:g} is neither a JD nor an MJD")
            return key, jd
        return key, _moment(cards, key, rules)
    if rules.twelve_hour_clock:
        return _twelve_hour(cards, rules)
    key, text = first_text(cards, (*rules.keys["date"], *rules.keys["date_mid"]))
    if not text:
        raise BadTime("no card has a date")
    return key, _moment(cards, key, rules)


def _moment(cards: Cards, key: str, rules: Rules) -> float:
    """JD, UTC, of a card with a date, the time of day taken from another where it must be."""
    text = text_of(cards, key)
    iso = _ISO.fullmatch(text)
    if iso is not None:
        year, month, day, hour, minute, second, zone = iso.groups()
        ordinal = _ordinal(int(year), int(month), int(day), key, text)
        if hour is None:
            seconds = _time_of_day(cards, rules, key)
        else:
            seconds = _seconds(hour, minute, second or "0", key, text)
    else:
        old = _SLASHES.fullmatch(text)
        if old is None:
            raise BadTime(f"{key} = '{text}' is no date of the FITS standard")
        # FITS before 2000: dd/mm/yy. There were no CCDs before 1975, so 25 is 2025.
        year = 1900 + int(old[3]) + (100 if 1900 + int(old[3]) < _FIRST_CCD_YEAR else 0)
        ordinal = _ordinal(year, int(old[2]), int(old[1]), key, text)
        seconds, zone = _time_of_day(cards, rules, key), None
    return ordinal + _ORDINAL_0 + (seconds - 3600.0 * _zone_h(cards, key, zone, rules)) / DAY_S


def _ordinal(year: int, month: int, day: int, key: str, text: str) -> int:
    try:
        return datetime.date(year, month, day).toordinal()
    except ValueError as error:
        raise BadTime(f"{key} = '{text}': {error}") from None


def _seconds(hour: str, minute: str, second: str, key: str, text: str) -> float:
    h, m, s = int(hour), int(minute), float(second.replace(",", "."))
    for value, limit, name in ((h, 24, "hour"), (m, 60, "minute"), (s, 61, "second")):
        if value >= limit:
            raise BadTime(f"{key} = '{text}' has the {name} {value:g}")
    return 3600.0 * h + 60.0 * m + s


def _time_of_day(cards: Cards, rules: Rules, date_key: str) -> float:
    """Seconds since midnight UTC from a card of its own."""
    key, text = first_text(cards, rules.keys["time_of_day"])
    if text:
        time = _TIME.fullmatch(text)
        if time is None:
            raise BadTime(f"{key} = '{text}' is no time of day")
        return _seconds(time[1], time[2], time[3], key, text)
    key, text = first_text(cards, rules.keys["seconds_of_day"])
    value = value_of(cards, key) if text else None
    if isinstance(value, int | float) and 0 <= value < DAY_S:
        return float(value)
    raise BadTime(f"{date_key} is a date without a time of day")


def _zone_h(cards: Cards, key: str, zone: str | None, rules: Rules) -> float:
    """Hours that the card's time is ahead of UTC: by its offset, the profile, else none."""
    if zone is not None:
        if zone[0] not in "+-":
            return 0.0
        hours = int(zone[1:3]) + int(zone[-2:]) / 60.0
        return -hours if zone[0] == "-" else hours
    if rules.time_zone_h is not None:
        return rules.time_zone_h
    if _IS_LOCAL.search(comment_of(cards, key)):
        raise BadTime(f"{key} is local time of an unknown zone: set time_zone_h in the profile")
    return 0.0


def _twelve_hour(cards: Cards, rules: Rules) -> tuple[str, float]:
    """Local time of a twelve-hour clock; AM or PM stands in the comment of the first card."""
    key, text = first_text(cards, rules.keys["date"])
    if rules.time_zone_h is None:
        raise BadTime(
            f"{key} = '{text}' is a twelve-hour clock without AM or PM in local time of an "
            "unknown zone: set time_zone_h in the profile"
        )
    stamp = _AM_PM.search(comment_of(cards, "SIMPLE"))
    if stamp is None:
        raise BadTime(f"{key} = '{text}' is a twelve-hour clock without AM or PM")
    month, day, year, hour, minute, second, half = stamp.groups()
    ordinal = _ordinal(int(year), int(month), int(day), "SIMPLE", stamp[0])
    hour_24 = int(hour) % 12 + (12 if half == "P" else 0)
    seconds = _seconds(str(hour_24), minute, second or "0", "SIMPLE", stamp[0])
    return key, ordinal + _ORDINAL_0 + (seconds - 3600.0 * rules.time_zone_h) / DAY_S


def _meaning(cards: Cards, key: str, rules: Rules) -> str:
    """start, mid or end: by the profile or dialect, the card's comment, else the standard."""
    if key in rules.keys["date_mid"]:
        return "mid"
    if rules.time_is:
        return rules.time_is
    comment = comment_of(cards, key)
    if _IS_START.search(comment):
        return "start"
    if _IS_MID.search(comment):
        return "mid"
    return "end" if _IS_END.search(comment) else "start"


def _stated_mid(
    cards: Cards, key: str, computed_jd: float, rules: Rules, findings: Findings
) -> float:
    """What DATE-AVG says where it agrees with the start and the exposure time."""
    try:
        stated_jd = _moment(cards, key, rules)
    except BadTime as error:
        findings.append(("", f"{error}: not used"))
        return computed_jd
    if abs(stated_jd - computed_jd) * DAY_S > _AGREE_S:
        off_s = (stated_jd - computed_jd) * DAY_S
        findings.append(("time_suspect", f"{key} is {off_s:+.1f} s off start and exposure"))
        return computed_jd
    return stated_jd


def _julian(value: float) -> float:
    """JD of a number that is JD or MJD, NaN where it is neither."""
    if 2.4e6 < value < 2.6e6:
        return value
    return value + MJD_0 if 1.5e4 < value < 2.0e5 else math.nan


def _julian_cards(cards: Cards, rules: Rules) -> list[tuple[str, float, float]]:
    """Keyword, JD and what its last digit leaves open in seconds; whole days left out."""
    found = []
    for key in rules.keys["julian"]:
        value = value_of(cards, key) if key in cards else None
        if isinstance(value, float) and not value.is_integer():
            jd, decimals = _julian(value), len(repr(value).partition(".")[2])
            if math.isfinite(jd):
                found.append((key, jd, 0.5 * DAY_S / 10**decimals))
    return found


def _cross_check(
    cards: Cards, rules: Rules, start_jd: float, length_s: float, findings: Findings
) -> None:
    """Compare with the Julian dates of the header, which may be those of start, mid or end."""
    for key, jd, slack_s in _julian_cards(cards, rules):
        after_s = (jd - start_jd) * DAY_S
        is_mid = _IS_MID.search(comment_of(cards, key)) is not None
        allowed = (0.5,) if is_mid else (0.0, 0.5, 1.0)
        off_s = min((after_s - part * length_s for part in allowed), key=abs)
        if abs(off_s) > _AGREE_S + slack_s:
            words = f"{key} = {raw_of(cards, key)} is {off_s:+.0f} s off the date"
            findings.append(("time_suspect", words))


def _fallback(cards: Cards, rules: Rules, length_s: float, findings: Findings) -> float:
    """A Julian date of the header where no date can be read, NaN where there is none."""
    for key, jd, slack_s in _julian_cards(cards, rules):
        part = _HALVES[_meaning(cards, key, rules)]
        words = f"time by {key} alone, good to {max(slack_s, 0.05):.1f} s"
        findings.append(("time_suspect", words))
        return jd + part * length_s / DAY_S
    return math.nan
