"""Cards against closed forms, and against astropy on real headers."""

from __future__ import annotations

import locale
import warnings
from pathlib import Path

import astropy.io.fits
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightloom.frames.cards import (
    comment_of,
    first_text,
    parse_value,
    raw_of,
    split_cards,
    text_of,
    value_of,
)
from nightloom.frames.fits import read_hdus


def _cards(*lines: str | bytes) -> dict[str, str]:
    raw = [line if isinstance(line, bytes) else line.encode("latin-1") for line in lines]
    return split_cards(b"".join(line.ljust(80) for line in raw))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("                  T / logical", True),
        ("                  F", False),
        ("                 16 / bits", 16),
        ("060.00 / seconds", 60.0),
        ("05 / leading zero", 5),
        ("+62.592 / sign", 62.592),
        ("6.0D+01", 60.0),
        ("6.00000000000E+001 / [sec]", 60.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("'z       '           / name", "z"),
        ("'O''Neill'", "O'Neill"),
        ("'a / b' / c", "a / b"),
        ("''", ""),
        (" ' 9:27:27.00' / leading blanks count", " 9:27:27.00"),
        ("                     / no value", None),
        ("12,5", None),
        ("-1.38, -1.69 / two", None),
        ("(1.0, 2.0)", None),
        ("'never closed", None),
        ("nan", None),
        ("1_000", None),
        ("0x10", None),
    ],
)
def test_values_as_the_standard_types_them(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_hierarch_and_long_strings() -> None:
    cards = _cards(
        "LONGKEY = 'first &' / one",
        "CONTINUE  'second &' / two",
        "CONTINUE  'third'",
        "HIERARCH ESO INS  OPTI-7 NAME = 'R       ' / filter",
        "HIERARCH PI Camera Width='&'",
        "CONTINUE  '1024' /pixels",
        "CONTINUE  'of nothing'",
    )
    assert value_of(cards, "LONGKEY") == "first second third"
    assert comment_of(cards, "LONGKEY") == "one two"
    assert value_of(cards, "ESO INS OPTI-7 NAME") == "R"
    assert value_of(cards, "PI Camera Width") == "1024"
    assert comment_of(cards, "PI Camera Width") == "pixels"


def test_a_broken_card_harms_no_other() -> None:
    cards = _cards(
        "EXPTIME =                   60",
        b"OBJECT  = 'Caf\xe9 \xff'",
        "BROKEN  = 'no end",
        "COMMENT = in a comment",
        "COMMENT",
        "NOEQUALS 12",
        "A= B    = 7",
        "        = 8",
        "K=      = 9",
        "lower   =                    1",
        "EXPTIME =                   99 / the first counts",
        "FILTER  = 'V'",
    )
    assert value_of(cards, "EXPTIME") == 60
    assert text_of(cards, "FILTER") == "V"
    assert text_of(cards, "OBJECT").startswith("Caf")
    assert value_of(cards, "BROKEN") is None
    assert raw_of(cards, "BROKEN").endswith("no end")
    assert "COMMENT" not in cards
    assert "NOEQUALS" not in cards


def test_the_first_that_says_something_counts() -> None:
    cards = _cards("A       = '   '", "B       =", "C       = 48 / filters")
    assert first_text(cards, ("A", "B", "C", "D")) == ("C", "48")
    assert first_text(cards, ("A", "D")) == ("", "")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive(value: float) -> None:
    assert parse_value(f"{value!r:>20} / x") == value


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_strings_survive(value: str) -> None:
    quoted = value.replace("'", "''")
    assert parse_value(f"'{quoted}' / it's") == value.rstrip()


def test_numbers_do_not_depend_on_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    before = locale.setlocale(locale.LC_NUMERIC)
    for name in ("de_DE.UTF-8", "de_DE.utf8", "de_DE"):
        try:
            locale.setlocale(locale.LC_NUMERIC, name)
            break
        except locale.Error:
            continue
    else:
        pytest.skip("no locale with a decimal comma is installed")
    try:
        assert parse_value("1.5") == 1.5
        assert parse_value("1,5") is None
    finally:
        locale.setlocale(locale.LC_NUMERIC, before)


def test_real_headers_as_astropy_reads_them(shared_data: Path) -> None:
    paths = [p for p in sorted((shared_data / "odd").iterdir()) if p.suffix != ".md"]
    compared = 0
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy complains of what is odd here
            with astropy.io.fits.open(path, disable_image_compression=True) as hdus:
                theirs = [hdu.header for hdu in hdus]
                for ours in read_hdus(path):
                    compared += _compare(ours.cards, theirs[ours.index])
    assert compared > 2000


def _compare(ours: dict[str, object], theirs: astropy.io.fits.Header) -> int:
    keys = [card.keyword for card in theirs.cards]
    n_compared = 0
    for card in theirs.cards:
        keyword = card.keyword
        if keyword in ("", "COMMENT", "HISTORY", "END") or keys.count(keyword) > 1:
            continue
        try:
            value = card.value
        except astropy.io.fits.VerifyError:
            continue  # astropy gives up where we have None
        if isinstance(value, bool | int | float | str):
            if keyword in ours:
                assert ours[keyword] == (value.rstrip() if isinstance(value, str) else value)
                n_compared += 1
            else:
                assert keyword.startswith("ESO-LOG") or value == "", keyword
    return n_compared
