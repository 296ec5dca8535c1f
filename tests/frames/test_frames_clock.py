"""Times of mid-exposure: every form of date, and those that are no time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from astropy.time import Time

from nightloom.frames.cards import Cards, split_cards
from nightloom.frames.clock import Findings, mid_exposure_jd
from nightloom.frames.rules import Rules, dialects

GENERIC = dialects()[-1]


def _cards(*lines: str) -> Cards:
    return split_cards(b"".join(line.encode("ascii").ljust(80) for line in lines))


def _mid(
    cards: Cards, *, exposure_s: float = 0.0, rules: Rules = GENERIC
) -> tuple[float, list[str], str]:
    findings: Findings = []
    jd = mid_exposure_jd(cards, rules=rules, exposure_s=exposure_s, findings=findings)
    return jd, [name for name, _ in findings], "; ".join(words for _, words in findings)


def _seconds_apart(jd: float, iso: str) -> float:
    return abs(jd - Time(iso, scale="utc").jd) * 86400.0


@pytest.mark.parametrize(
    ("lines", "iso"),
    [
        (["DATE-OBS= '2017-12-20T01:33:43.317'"], "2017-12-20T01:33:43.317"),
        (["DATE-OBS= '2017-12-20T01:33:43.3171635'"], "2017-12-20T01:33:43.3171635"),
        (["DATE-OBS= '2017-12-20 01:33:43'"], "2017-12-20T01:33:43"),
        (["DATE-OBS= '2017-12-20T01:33:43Z'"], "2017-12-20T01:33:43"),
        (["DATE-OBS= '2017-12-20T01:33'"], "2017-12-20T01:33:00"),
        (["DATE-OBS= '2017-12-20T01:33:43,5'"], "2017-12-20T01:33:43.5"),
        (["DATE-OBS= '2017-12-19T18:33:43.317-0700'"], "2017-12-20T01:33:43.317"),
        (["DATE-OBS= '2017-12-20T07:03:43+05:30' / local"], "2017-12-20T01:33:43"),
        (["DATE-OBS= '2013-07-13'", "UT      = '00:57:33'"], "2013-07-13T00:57:33"),
        (["DATE-OBS= '2013-07-13'", "TIME-OBS= ' 9:27:27.00'"], "2013-07-13T09:27:27"),
        (["DATE-OBS= '2013-07-13'", "UT-START= '09 27 27.5'"], "2013-07-13T09:27:27.5"),
        (["DATE-OBS= '26/10/92'", "TM-START= 1.1048E+04"], "1992-10-26T03:04:08"),
        (["DATE-OBS= '09/04/92'", "UT      = '10:00:00'"], "1992-04-09T10:00:00"),
        (["DATE-OBS= '05/04/87'", "UT      = ' 9:27:27'"], "1987-04-05T09:27:27"),
        (["DATE-OBS= '02/06/25'", "UT      = '04:10:14'"], "2025-06-02T04:10:14"),
        (["DATE-OBS= '31/12/99'", "UT      = '23:59:59'"], "1999-12-31T23:59:59"),
        (["DATE-OBS= ' '", "DATE-BEG= '2024-02-29T12:00:00'"], "2024-02-29T12:00:00"),
    ],
)
def test_forms_of_dates(lines: list[str], iso: str) -> None:
    jd, names, words = _mid(_cards(*lines))
    assert _seconds_apart(jd, iso) < 1e-3, words
    assert names == []


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], "no card has a date"),
        (["DATE-OBS= '09:35:30'"], "no date"),
        (["UT      = '09:35:30'"], "no card has a date"),
        (["DATE-OBS= '2013-07-13'"], "without a time of day"),
        (["DATE-OBS= '09/04/92'"], "without a time of day"),
        (["DATE-OBS= '2013-07-13'", "UT      = 'noon'"], "no time of day"),
        (["DATE-OBS= '1951-08-09T09:60:00'"], "minute 60"),
        (["DATE-OBS= '1951-08-09T24:00:00'"], "hour 24"),
        (["DATE-OBS= '2023-02-29T01:00:00'"], "day"),
        (["DATE-OBS= '2023-13-01T01:00:00'"], "month"),
        (["DATE-OBS= '2021-09-17 T09:35:30'"], "no date"),
        (["DATE-OBS= '04/05/1987'", "UT      = '01:00:00'"], "no date"),
        (["DATE-OBS= '2017-12-19T18:33:43' / Local time"], "time_zone_h"),
        (["DATE-OBS= '2013-07-13'", "MJD-OBS = 56486.0"], "without a time of day"),
        (["MJD-OBS = 56486"], "no card has a date"),
        (["JD      = 12345.678"], "no card has a date"),
    ],
)
def test_what_is_no_time_is_not_guessed(lines: list[str], why: str) -> None:
    jd, names, words = _mid(_cards(*lines))
    assert math.isnan(jd)
    assert names == ["no_time"]
    assert why in words


@pytest.mark.parametrize(
    ("comment", "time_is", "expected_s"),
    [
        ("UTC", "", 150.0),
        ("UTC date/time of exposure start", "", 150.0),
        ("middle of exposure", "", 0.0),
        ("UT mid-exposure", "", 0.0),
        ("end of exposure", "", -150.0),
        ("UTC date/time of exposure start", "end", -150.0),
        ("end of exposure", "mid", 0.0),
        ("", "start", 150.0),
    ],
)
def test_start_middle_and_end_of_300_s(comment: str, time_is: str, expected_s: float) -> None:
    cards = _cards(f"DATE-OBS= '2020-01-01T00:00:00' / {comment}")
    jd, names, _ = _mid(cards, exposure_s=300.0, rules=replace(GENERIC, time_is=time_is))
    assert (jd - 2458849.5) * 86400.0 == pytest.approx(expected_s, abs=1e-3)
    assert names == []


def test_the_mean_time_of_the_exposure_is_the_middle() -> None:
    start = "DATE-OBS= '2020-01-01T00:00:00'"
    agrees = _cards(start, "DATE-AVG= '2020-01-01T00:00:31.2'")
    jd, names, _ = _mid(agrees, exposure_s=60.0)
    assert (jd - 2458849.5) * 86400.0 == pytest.approx(31.2, abs=1e-3)
    assert names == []
    alone = _cards("DATE-AVG= '2020-01-01T00:00:31.2'")
    assert _mid(alone, exposure_s=60.0)[0] == jd
    contradicts = _cards(start, "DATE-AVG= '2020-01-01T00:10:00'")
    jd, names, words = _mid(contradicts, exposure_s=60.0)
    assert (jd - 2458849.5) * 86400.0 == pytest.approx(30.0, abs=1e-3)
    assert names == ["time_suspect"]
    assert "+570.0 s" in words


@pytest.mark.parametrize(
    ("card", "agrees"),
    [
        ("JD      = 2458849.5000000", True),
        ("JD      = 2458849.5034722 / mid exposure", True),
        ("JD      = 2458849.5000000 / mid exposure", True),  # whole halves of days say nothing
        ("JD      = 2458849.5000231 / mid exposure", False),
        ("JD      = 2458849.5034722", True),
        ("JD      = 2458849.5069444", True),
        ("JD      = 2458849.5050000", False),
        ("MJD-OBS = 58849.003 / good to 43 s", True),
        ("MJD-OBS = 58849.002 / good to 43 s", False),
        ("MJD-OBS = 58849.50001 / half a day", False),
        ("MJD-OBS = 58849.0 / a day", True),
        ("JULDAT  = 2458849.5100001", False),
    ],
)
def test_julian_dates_are_compared_as_far_as_their_digits_go(card: str, agrees: bool) -> None:
    cards = _cards("DATE-OBS= '2020-01-01T00:00:00'", card)
    jd, names, _ = _mid(cards, exposure_s=600.0)
    assert (jd - 2458849.5) * 86400.0 == pytest.approx(300.0, abs=1e-3)
    assert names == ([] if agrees else ["time_suspect"])


def test_a_julian_date_alone_is_used_and_flagged() -> None:
    cards = _cards("MJD-OBS = 58849.25001")
    jd, names, words = _mid(cards, exposure_s=60.0)
    assert (jd - 2458849.75001) * 86400.0 == pytest.approx(30.0, abs=1e-3)
    assert names == ["time_suspect"]
    assert "MJD-OBS alone" in words


def test_a_profile_knows_the_zone_and_the_card() -> None:
    local = _cards("DATE-OBS= '2017-12-19T18:33:43' / Local time", "JD-MID  = 2458107.6")
    zoned = replace(GENERIC, time_zone_h=-7.0)
    assert _seconds_apart(_mid(local, rules=zoned)[0], "2017-12-20T01:33:43") < 1e-3
    keyed = replace(GENERIC, keys={**GENERIC.keys, "jd_utc": ("JD-MID",)}, time_is="mid")
    assert _mid(local, exposure_s=100.0, rules=keyed)[0] == 2458107.6
    lacking = replace(GENERIC, keys={**GENERIC.keys, "jd_utc": ("NONE",)})
    assert _mid(local, rules=lacking)[1] == ["no_time"]
    wrong = replace(GENERIC, keys={**GENERIC.keys, "jd_utc": ("GAIN",)})
    assert "neither" in _mid(_cards("GAIN    = 1.5"), rules=wrong)[2]


def test_twelve_hour_clock_with_its_half_of_the_day_and_a_zone() -> None:
    orion = next(rules for rules in dialects() if rules.name == "orion")
    stamp = "SIMPLE  =                    T / C# FITS: 9/17/2021 {} PM"
    late = _cards(stamp.format("9:35:30"), "DATE-OBS= '2021-09-17 T09:35:30'")
    noon = _cards(stamp.format("12:05:00"), "DATE-OBS= '2021-09-17 T12:05:00'")
    zoned = replace(orion, time_zone_h=2.0)
    assert _seconds_apart(_mid(late, rules=zoned)[0], "2021-09-17T19:35:30") < 1e-3
    assert _seconds_apart(_mid(noon, rules=zoned)[0], "2021-09-17T10:05:00") < 1e-3
    assert _mid(late, rules=orion)[1] == ["no_time"]
    without = _cards("SIMPLE  = T", "DATE-OBS= '2021-09-17 T09:35:30'")
    assert "AM or PM" in _mid(without, rules=zoned)[2]


def test_an_unknown_exposure_leaves_the_time_as_it_stands() -> None:
    cards = _cards("DATE-OBS= '2020-01-01T00:00:00'")
    assert _mid(cards, exposure_s=math.nan)[0] == 2458849.5
