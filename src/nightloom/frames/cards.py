"""Header cards: bytes to keyword and text, text to typed values.

A card's text is kept as it stands (value and comment) and typed only when it is asked for: a
header has a hundred cards, a frame's row needs twenty. Nothing here depends on the locale, and
a broken card is only missing, it never harms its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

Value = str | int | float | bool
Cards = dict[str, str]  # keyword -> text behind "= ": value and comment

CARD_BYTES = 80
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[EDed][+-]?[0-9]+)?")
_STRING = re.compile(r"\s*'([^']*(?:''[^']*)*)'\s*(?:/(.*))?", re.DOTALL)
# A card with a value, its keyword without trailing blanks; any other card is passed over.
_CARD = re.compile(r"(?=([^ =]+)).{8}= (.{70})|.{80}", re.DOTALL)
_COMMENTARY = ("COMMENT", "HISTORY", "")
_D_EXPONENT = str.maketrans("Dd", "EE")


def split_cards(header: bytes) -> Cards:
    """Keyword and text of every card that has a value; the first of equal keywords counts.

    header: whole cards, without END. HIERARCH keywords are joined by single blanks, strings
    that go on in CONTINUE cards are joined.
    """
    text = header.decode("latin-1")  # any byte is a character: one bad card spoils no other
    if "HIERARCH" in text or "CONTINUE" in text:
        return _split_long(text)
    # From the last to the first, so that the first of equal keywords is what stays.
    cards = dict(reversed(_CARD.findall(text)))
    for keyword in _COMMENTARY:
        cards.pop(keyword, None)
    return cards


def _split_long(text: str) -> Cards:
    cards: Cards = {}
    last = ""  # keyword that a CONTINUE would go on with
    for i in range(0, len(text), CARD_BYTES):
        card = text[i : i + CARD_BYTES]
        keyword, value = card[:8].rstrip(), card[10:]
        if keyword == "CONTINUE":
            _continue(cards, last, card[8:])
            continue
        last = ""
        if keyword == "HIERARCH":
            name, equals, value = card[8:].partition("=")
            keyword = " ".join(name.split()) if equals else ""
        elif card[8:10] != "= ":
            continue
        if keyword not in _COMMENTARY and keyword not in cards:
            cards[keyword] = value
            last = keyword
    return cards


def _continue(cards: Cards, keyword: str, text: str) -> None:
    before = _STRING.match(cards.get(keyword, ""))
    more = _STRING.match(text)
    if before is None or more is None or not before[1].rstrip().endswith("&"):
        return
    comment = " ".join(f"{before[2] or ''} {more[2] or ''}".split())
    cards[keyword] = f"'{before[1].rstrip()[:-1]}{more[1]}' / {comment}"


@lru_cache(maxsize=4096)  # frames of a night share most of their cards
def parse_value(text: str) -> Value | None:
    """The value in a card's text as FITS types it; None where it is missing or broken.

    Source: FITS standard 4.0, section 4.2. Trailing blanks of strings mean nothing.
    """
    string = _STRING.match(text) if "'" in text else None
    if string is not None:
        return string[1].replace("''", "'").rstrip()
    word = text.partition("/")[0].strip()
    if word.isdecimal() or _INTEGER.fullmatch(word):
        return int(word)
    if _NUMBER.fullmatch(word):
        return float(word.translate(_D_EXPONENT))
    return {"T": True, "F": False}.get(word)


def value_of(cards: Cards, keyword: str) -> Value | None:
    """Typed value of a keyword, None where it is not there or broken."""
    text = cards.get(keyword)
    return None if text is None else parse_value(text)


def text_of(cards: Cards, keyword: str) -> str:
    """The value as text without blanks around it, '' where it is not there or broken."""
    text = cards.get(keyword)
    if text is None:
        return ""
    value = parse_value(text)
    if isinstance(value, str):
        return value.strip()
    return "" if value is None else text.partition("/")[0].strip()


def raw_of(cards: Cards, keyword: str) -> str:
    """What stands where the value should be, broken or not, quotes and blanks taken off."""
    text = cards.get(keyword, "")
    string = _STRING.match(text)
    return (string[1] if string else text.partition("/")[0]).strip()


def comment_of(cards: Cards, keyword: str) -> str:
    """Comment of a card, '' where there is none."""
    text = cards.get(keyword, "")
    string = _STRING.match(text)
    return ((string[2] or "") if string else text.partition("/")[2]).strip()


def first_text(cards: Cards, keywords: Iterable[str]) -> tuple[str, str]:
    """Keyword and text of the first of `keywords` that says something, else two ''."""
    for keyword in keywords:
        if keyword in cards:
            text = text_of(cards, keyword)
            if text:
                return keyword, text
    return "", ""
